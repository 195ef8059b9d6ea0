"""The comparison with other packages' layers: that it agrees where they are the same, and that it would notice."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import selective, witnesses
from benchmarks.testify import WITNESSES
from benchmarks.testify import testify as heard
from benchmarks.witness_entry import load
from benchmarks.witness_parts import Witness, float32_means, randomize, split
from benchmarks.witnesses import ENTRIES, Row, compare, page
from transduce.nn import RWKV4

PACKAGES = {"transformers": "transformers", "bench": "mambapy", "fla": "fla", "xlstm": "xlstm"}


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.home is None])
def test_torchs_own_layers_agree_with_ours(name):
    row = compare(name, "float32", heard(name, torch.float32))
    assert row.agrees, row
    if name != "attention torch":  # it keeps nothing
        assert row.states is not None and row.steps is not None and row.chunks < 1e-6


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.home is not None])
def test_layers_of_other_packages_agree_with_ours(name):
    package = PACKAGES[ENTRIES[name].home]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    found = witnesses.collect([name], "float64", sys.executable)[name]
    if "absent" in found:
        pytest.skip(found["absent"])
    assert compare(name, "float64", found).agrees


@pytest.mark.parametrize("part", ["y", "dx", "states", "stepped"])
def test_a_difference_anywhere_is_noticed(part):
    found = heard("gru", torch.float32)
    found[part] = {k: v + 1e-3 for k, v in found[part].items()} if part == "states" else found[part] + 1e-3
    assert not compare("gru", "float32", found).agrees


def test_every_witness_is_asked_and_every_comparison_has_one():
    assert ENTRIES.keys() == WITNESSES.keys()


RECURRENCES = {
    "op retention": lambda S, p, h: (1 - 2.0 ** (-5 - h)) * S + p["k"].outer(p["v"]),
    "op simple-gla": lambda S, p, h: p["g"].exp() * S + p["k"].outer(p["v"]),
    "op linear-attention": lambda S, p, h: S + p["k"].outer(p["v"]),
    "op gla": lambda S, p, h: p["g"].exp()[:, None] * S + p["k"].outer(p["v"]),
    "op delta": lambda S, p, h: S + p["beta"] * p["k"].outer(p["v"] - S.T @ p["k"]),
    "op gated-delta": lambda S, p, h: (
        p["g"].exp() * (S - p["beta"] * p["k"].outer(S.T @ p["k"])) + p["beta"] * p["k"].outer(p["v"])
    ),
    "op kda": lambda S, p, h: (
        (F := p["g"].exp()[:, None] * S) + p["beta"] * p["k"].outer(p["v"] - F.T @ p["k"])
    ),
    "op dplr": lambda S, p, h: p["g"].exp()[:, None] * S - p["r"].outer(S.T @ p["e"]) + p["k"].outer(p["v"]),
}


@pytest.mark.parametrize("name", RECURRENCES)
def test_our_side_of_an_operation_is_the_recurrence_that_the_witness_is_named_after(name):
    """Written out step by step for every row and head, with the arguments where the witness finds them."""
    witness = WITNESSES[name](torch.float64)
    g = torch.Generator().manual_seed(3)
    x = witness.inputs(torch.randn(2, 9, witness.width, generator=g, dtype=torch.float64))
    mixer = ENTRIES[name].build({}, witness.settings)
    y, memory = mixer(x, mixer.init_state(2).double())
    parts = split(x, witness.settings["parts"])
    heads, keys = parts["k"].shape[2:]
    for row in range(2):
        for head in range(heads):
            S = torch.zeros(keys, parts["v"].shape[3], dtype=torch.float64)
            for t in range(9):
                at = {part: value[row, t, head] for part, value in parts.items()}
                S = RECURRENCES[name](S, at, head)
                want = S.T @ at["q"] / keys**0.5
                torch.testing.assert_close(y.unflatten(2, (heads, -1))[row, t, head], want)
            torch.testing.assert_close(memory[row, head], S)


def test_what_a_witness_makes_in_float32_is_made_in_the_dtype_of_the_row_only_while_it_runs():
    with float32_means(torch.float64):
        made = torch.zeros(2), torch.zeros(2, dtype=torch.float32), torch.tensor([True]).float()
        assert {t.dtype for t in made} == {torch.float64}
    assert torch.zeros(2).dtype == torch.tensor([True]).float().dtype == torch.float32 == torch.float
    with pytest.raises(ValueError), float32_means(torch.float64):
        raise ValueError
    assert torch.get_default_dtype() == torch.float32


def test_a_witness_is_heard_within_its_context_backward_too(monkeypatch):
    open_now = []

    @contextmanager
    def within():
        open_now.append(True)
        yield
        open_now.clear()

    def build(dtype):
        seen = torch.nn.Linear(16, 16)

        def run(x):
            x.register_hook(lambda grad: None if open_now else pytest.fail("left before the backward pass"))
            return seen(x)

        return Witness("torch", "Linear", seen, run, within=within)

    monkeypatch.setitem(WITNESSES, "linear", build)
    assert heard("linear", torch.float32)["dx"].shape == (2, 37, 16) and not open_now


def test_complex_weights_keep_their_imaginary_part_in_either_precision():
    module = torch.nn.Module()
    module.z = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    module.x = torch.nn.Parameter(torch.zeros(3))
    randomize(module, torch.float64, **{"complex z": lambda z: z - 5})
    assert module.z.dtype == torch.complex128 and module.x.dtype == torch.float64
    assert bool((module.z.imag != 0).all()) and bool((module.z.real < -2).all())


def test_a_weight_that_finds_no_place_is_an_error():
    found = heard("gru", torch.float32)["weights"]
    with pytest.raises(AssertionError, match="not given .*decay"):
        load(RWKV4(16), {"shift.mix": found["bias_hh_l0"]})


def test_the_page_says_who_agrees_and_who_contradicts_itself():
    good = Row("Ours", "theirs 1.0 Layer", "float64", 1e-15, 1e-15, 1e-15, 1e-15, 1e-15)
    astray = replace(good, outputs=1e-3, chunks=0.5, note="a cast is taken out")
    text = page([good, astray, Row("X", "x", "float32", problem="absent: x")])
    assert "1 of 2 rows agree everywhere" in text and "| X | x | float32 | absent: x |" in text
    assert "contradict themselves when fed in chunks: Ours (theirs 1.0 Layer)" in text
    assert "* theirs 1.0 Layer: a cast is taken out." in text


def test_rows_measured_again_replace_theirs_whatever_the_version():
    old = [Row("A", "p 1 L", "float64", 1.0), Row("A", "p 1 L", "float32", 2.0)]
    record = [{**asdict(row), "agrees": False} for row in old]
    new, other = Row("A", "p 2 L", "float32", 3.0), Row("B", "p 1 L", "float32", 4.0)
    assert witnesses.updated(record, [new, other]) == [old[0], new, other]


def test_the_selective_scan_is_timed_behind_its_law_and_peers_compute_the_same(monkeypatch):
    monkeypatch.setitem(selective.SIZES, "small", (2, 70, 18, 3))
    tensors = selective.inputs("small")
    want = selective.torch_loop(*tensors)
    for peer in ("transduce numba", "transduce chunked"):
        torch.testing.assert_close(selective.PEERS[peer]()(*tensors), want, rtol=1e-4, atol=1e-5)
    seen = []
    monkeypatch.setattr(selective, "run", lambda contest: seen.append(contest) or 0)
    assert selective.main() == 0 and seen[0].ops == ("transduce.ops.selective_scan:selective_scan",)
    assert len(seen[0].cases) == 4 and "mambapy pscan" in seen[0].peers(seen[0].cases[0])
