"""The comparison with other packages' layers: that it agrees where they are the same, and that it would notice."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import selective, witnesses
from benchmarks.testify import testify as heard
from benchmarks.witness_entry import load
from benchmarks.witnesses import ENTRIES, Row, compare, page
from transduce.nn import RWKV4

PACKAGES = {"transformers": "transformers", "bench": "mambapy"}


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.home is None])
def test_torchs_own_layers_agree_with_ours(name):
    row = compare(name, "float32", heard(name, torch.float32))
    assert row.agrees, row
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
    assert selective.main() == 0 and [op.name for op in seen[0].ops] == ["selective_scan"]
    assert len(seen[0].cases) == 4 and "mambapy pscan" in seen[0].peers(seen[0].cases[0])
