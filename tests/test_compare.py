"""``transduce compare``: one budget for all, goes on where it stopped, and a page that needs nothing else."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import refused, write_pairs
from train_toys import pairs as toy_pairs
from train_toys import toy

import transduce
from transduce import systems
from transduce.cli import compare, trial
from transduce.cli.compare import named_systems, settings
from transduce.cli.main import main
from transduce.cli.settings import as_flags, read, value_of
from transduce.core.errors import UserError
from transduce.core.seq import PAD
from transduce.data import DataSpec, TextField
from transduce.report import page as pages
from transduce.report.cost import decoding_costs
from transduce.report.page import page
from transduce.report.quality import behind, count_text, figure, size_text, time_text
from transduce.report.table import columns, merge, overruns, tables
from transduce.train import checkpoint

TINY = ["embed=8", "encoder=8", "hidden=16", "attention=8", "precision=float32", "evaluations=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.tsv", train=180, held_out=10, longest=6)


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Trainings without a process of their own, which costs seconds; the interrupt below has real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "_wait", lambda words: trial.main(words[-1:]))
        yield


@pytest.fixture(scope="module")
def command(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "compared"
    tiny = [w for text in TINY for w in ("--set", text)]
    return [
        "compare", "rnnsearch", "location=rnnsearch", "--data", str(data), "--out", str(out), "--budget", "1s",
        "--set", "location.score=location", "--lengths", "4", "16", *tiny,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compared(command):
    assert main(command) == 0
    return json.loads((out_of(command) / "compare.json").read_text())


def out_of(command):
    return Path(command[command.index("--out") + 1])


# ---------------------------------------------------------------- the command


def test_every_figure_of_every_system_is_there(compared, command):
    assert {s["label"] for s in compared["systems"]} == {"rnnsearch", "location"}
    errors = []
    for s in compared["systems"]:
        q = s["quality"]["sequence_error"]
        errors.append(s["quality"][compared["ranked_by"]]["value"])
        assert q["low"] <= q["value"] <= q["high"] and s["rows"] == 20
        assert s["parameters"] > 0 and s["symbols_per_second"] > 0 and s["epochs"] > 0
        assert [c["length"] for c in s["costs"]] == [4, 16]
        assert all(c["bytes"] > 0 and c["seconds"] > 0 for c in s["costs"])
        assert s["costs"][1]["bytes"] > s["costs"][0]["bytes"]  # the memory that is attended to
        assert len(s["examples"]) == 8 and s["attention"]["target"][-1] == "end"
        assert s["runs"][0]["training"]["max_time"] == 1.0 and s["runs"][0]["speed"]["curve"]
    assert errors == sorted(errors)
    configs = {s["label"]: s["config"]["score"] for s in compared["systems"]}
    assert configs == {"rnnsearch": "additive", "location": "location"}
    assert (out_of(command) / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else(compared, command):
    text = (out_of(command) / "compare.html").read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert len(sources) >= 12 and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "<script" not in text and "url(" not in text
    assert text.count("prefers-color-scheme: dark") == 1 + len(sources) // 2  # each picture for both grounds
    for s in compared["systems"]:
        assert s["label"] in text and f"{s['parameters']:,}" in text
    assert compared["systems"][0]["examples"][0]["source"] in text


def test_what_is_done_is_not_done_again_and_what_is_missing_is(compared, command, capsys):
    runs = out_of(command) / "runs"
    bundles = {p: p.stat().st_mtime_ns for p in runs.glob("*/bundle/bundle.json")}
    kept, lost = runs / "location-seed0.json", runs / "rnnsearch-seed0.json"
    before = kept.stat().st_mtime_ns
    lost.unlink()  # stopped behind its training and before its measurement
    assert main(command) == 0
    assert kept.stat().st_mtime_ns == before and lost.exists() and len(bundles) == 2
    assert {p: p.stat().st_mtime_ns for p in runs.glob("*/bundle/bundle.json")} == bundles
    again = json.loads((out_of(command) / "compare.json").read_text())
    pick = lambda c: {s["label"]: s["quality"] for s in c["systems"]}
    assert pick(again) == pick(compared)  # the same weights measure the same


def test_another_comparison_is_refused_in_the_same_folder(compared, command, capsys, tmp_path):
    other = [w if w != "1s" else "2s" for w in command]
    said = refused(capsys, *other)
    assert "budget" in said and "--force" in said and "started with" in said
    (tmp_path / "notes.txt").write_text("mine")
    foreign = [w if w != str(out_of(command)) else str(tmp_path) for w in command]
    assert "something else" in refused(capsys, *foreign, "--force")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupt_saves_and_the_same_command_goes_on(data, tmp_path):
    tiny = [w for text in (*TINY, "save_every=0.2") for w in ("--set", text)]
    call = [sys.executable, "-m", "transduce.cli.main", "compare", "rnnsearch", "--data", str(data)]
    call += ["--budget", "60s", "--out", str(tmp_path / "c"), *tiny]
    run = tmp_path / "c" / "runs" / "rnnsearch-seed0"
    with subprocess.Popen(
        call,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        until = time.monotonic() + 200
        while not (run / "checkpoint").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # to this process alone: it has to pass it on
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "goes on" in said and "transduce compare rnnsearch" in said
    assert not (run.parent / "rnnsearch-seed0.json").exists()
    assert checkpoint.stored(run / "checkpoint") and not trial.trained(run)


def test_a_process_that_is_killed_leaves_a_reason(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_wait", lambda words: -9)
    command = ["compare", "rnnsearch", "--data", str(data), "--out", str(tmp_path / "c")]
    assert main(command) == 1
    assert "memory ran out" in capsys.readouterr().out
    assert not (tmp_path / "c" / "compare.html").exists()


def test_one_that_fails_is_named_and_the_others_are_compared(data, tmp_path, capsys, monkeypatch):
    tiny = [w for text in TINY for w in ("--set", text)]
    out = tmp_path / "c"
    monkeypatch.setattr(pages, "both", lambda *a, **k: ("data:,", "data:,"))
    code = main(
        ["compare", "rnnsearch", "wild=rnnsearch", "--set", "wild.learning_rate=1e30", "--set", "wild.clip=0",
         "--data", str(data), "--budget", "1s", "--out", str(out), "--lengths", "4", *tiny]
    )  # fmt: skip
    found = json.loads((out / "compare.json").read_text())
    assert code == 1 and [s["label"] for s in found["systems"]] == ["rnnsearch"]
    assert found["failed"][0]["name"] == "wild, seed 0" and found["failed"][0]["reason"]
    assert "wild, seed 0 failed" in capsys.readouterr().out
    assert "wild, seed 0" in (out / "compare.html").read_text()


def test_language_models_are_compared_in_bits(tmp_path, capsys):
    lines = [
        f"the {a} {b} sees a {c}" for a in ("old", "new", "red") for b in ("cat", "dog") for c in "xyzuvw"
    ]
    (tmp_path / "lines.txt").write_text("\n".join(lines * 4) + "\n")
    command = [
        "compare",
        "gru-lm",
        "small=gru-lm",
        "--set",
        "dim=16",
        "--set",
        "layers=1",
        "--set",
        "small.dim=8",
    ]
    command += ["--set", "precision=float32", "--budget", "1s", "--lengths", "4", "16"]
    out = tmp_path / "c"
    assert main([*command, "--data", str(tmp_path / "lines.txt"), "--out", str(out)]) == 0
    found = json.loads((out / "compare.json").read_text())
    for s in found["systems"]:
        q = s["quality"]["bits_per_character"]
        # the same figure as that of training, which measures the whole batch at once
        model = transduce.load(out / "runs" / f"{s['label']}-seed0")
        whole = model.evaluate(trial.capped(model.part("test"), 1000)).bits_per_character
        assert q["value"] == pytest.approx(whole, rel=1e-5) and q["low"] <= q["value"] <= q["high"]
        assert len({c["bytes"] for c in s["costs"]}) == 1 and s["attention"] is None
    assert "bits per character" in capsys.readouterr().out
    text = (out / "compare.html").read_text()
    assert "does not grow with the length" not in text  # said only where others do grow
    assert "What they write" in text and found["systems"][0]["examples"][0]["answer"][:20] in text
    assert "leave --beam out" in refused(
        capsys, *command, "--data", str(tmp_path / "lines.txt"), "--out", str(out), "--beam", "3"
    )


def test_mistakes_are_one_sentence(data, capsys, tmp_path):
    on = ["--data", str(data), "--out", str(tmp_path / "c")]
    assert "transduce compare SYSTEM" in refused(capsys, "compare", *on)
    assert "rnnsearch" in refused(capsys, "compare", "rnnserch", *on)
    assert "twice" in refused(capsys, "compare", "rnnsearch", "rnnsearch", *on)
    assert "--data" in refused(capsys, "compare", "rnnsearch")
    assert "--budget" in refused(capsys, "compare", "rnnsearch", *on, "--budget", "soon")
    assert "--seeds" in refused(capsys, "compare", "rnnsearch", *on, "--seeds", "0")
    assert "plain text" in refused(capsys, "compare", "gru-lm", *on)
    assert "hidden" in refused(capsys, "compare", "rnnsearch", *on, "--set", "hiden=3")
    assert "no system here" in refused(capsys, "compare", "rnnsearch", *on, "--set", "transformer.dim=3")
    assert "heads" in refused(capsys, "compare", "transformer", *on, "--set", "heads=7")
    assert "budget" in refused(capsys, "compare", "rnnsearch", *on, "--set", "max_time=3")
    assert not (tmp_path / "c").exists()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3), ("1e-3", float, 1e-3), ("true", bool, True), ("no", bool, False), ("a b", str, "a b"),
        ("None", float | None, None), ("0.9", float | None, 0.9), ("0.9,0.98", tuple[float, float], (0.9, 0.98)),
        ("(1, 2, 3)", tuple[int, ...], (1, 2, 3)),
    ],
)  # fmt: skip
def test_values_are_read_by_their_type(text, hint, value):
    assert value_of(text, hint) == value and type(value_of(text, hint)) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"), [("3.5", int), ("x", float), ("maybe", bool), ("1", tuple[float, float])]
)
def test_other_values_are_refused(text, hint):
    with pytest.raises(ValueError):
        value_of(text, hint)


def test_settings_go_to_those_who_take_them():
    entries = named_systems(["rnnsearch", "big=transformer"])
    assert entries == {"rnnsearch": "rnnsearch", "big": "transformer"}
    found = settings(entries, ["hidden=32", "learning-rate=1e-3", "big.dim=64"])
    assert found == {
        "rnnsearch": {"hidden": 32, "learning_rate": 1e-3},
        "big": {"learning_rate": 1e-3, "dim": 64},
    }
    with pytest.raises(UserError, match="coverage goes with"):
        settings(entries, ["rnnsearch.coverage=true", "rnnsearch.score=general"])
    assert read(systems.find("rnnsearch"), "betas", "0.9,0.99") == (0.9, 0.99)
    assert as_flags({"dim": 8, "coverage": True, "betas": (0.9, 0.99)}) == [
        "--dim", "8", "--coverage", "--betas", "0.9", "0.99",
    ]  # fmt: skip


# ---------------------------------------------------------------- figures


def record(label, wrong, seed=0, cost=100):
    wrong = list(map(int, wrong))
    return {
        "label": label, "system": label, "seed": seed, "config": {}, "parameters": 10, "weight_bytes": 40,
        "training": {"epochs": 1.0, "steps": 5, "seconds": 1.0}, "peak_bytes": 1 << 20, "seconds": 2.0,
        "speed": {"symbols_per_second": 9.0, "rows_per_second": 1.0, "losses": [], "curve": []},
        "numbers": {"bleu": 12.5 + seed}, "rows": len(wrong), "measuring_seconds": 0.5, "examples": [], "attention": None,
        "counts": {"sequence_error": [wrong, [1] * len(wrong)], "symbol_error": [wrong, [4] * len(wrong)]},
        "costs": [{"length": 4, "bytes": cost, "seconds": 1e-3}, {"length": 16, "refused": "too <long>"}],
    }  # fmt: skip


ABOUT = {
    "kind": "pairs", "sequence_name": "word error", "symbol_name": "letter error", "corpus": "c<o>rpus",
    "budget": 1.0, "seeds": 1, "split": "test", "scores": ["bleu"], "beam": None, "lengths": [4, 16], "device": "cpu",
    "command": "transduce compare a b", "systems": {"a": "a", "b": "b", "d": "d"},
}  # fmt: skip


def test_a_difference_is_judged_on_the_same_rows():
    """b errs wherever a errs and on ten rows more: the intervals overlap, the paired one lies above 0."""
    wrong = np.arange(400) % 4 == 0
    more = wrong | (np.arange(400) % 40 == 1)
    merged = merge(ABOUT, ["b", "a"], [record("a", wrong), record("b", more)])
    best, other = merged["systems"]
    assert (best["label"], other["label"]) == ("a", "b") and "behind" not in best
    assert best["quality"]["sequence_error"]["high"] > other["quality"]["sequence_error"]["value"]
    gap = other["behind"]
    assert gap["value"] == pytest.approx(0.025) and 0 < gap["low"] < gap["value"] < gap["high"]
    titles, rows = columns(merged)
    assert rows[1][titles.index("behind")] == "+2.50" and rows[0][titles.index("behind")] == "best"
    shuffled = np.random.default_rng(0).permutation(more)
    noise = behind([record("a", wrong)], [record("b", shuffled)], "sequence_error")
    assert noise["low"] < 0 < noise["high"]


def test_seeds_are_pooled_by_row():
    one, two = record("a", [1, 0, 0, 0]), record("a", [1, 1, 0, 0], seed=1)
    found = figure([one, two], "sequence_error")
    assert found["value"] == pytest.approx(3 / 8) and found["seeds"] == [0.25, 0.5]
    titles, rows = columns(merge(ABOUT, ["a"], [one, two]))
    assert rows[0][titles.index("BLEU")] == "13.00"


def test_symbols_rank_where_hardly_a_row_is_right():
    merged = merge(ABOUT, ["a", "b"], [record("a", [1] * 50), record("b", [1] * 49 + [1])])
    assert merged["ranked_by"] == "symbol_error"
    assert merge(ABOUT, ["a"], [record("a", [1, 0])])["ranked_by"] == "sequence_error"


def test_the_page_escapes_what_it_shows(monkeypatch):
    monkeypatch.setattr(pages, "both", lambda *a, **k: ("data:,", "data:,"))  # drawing is tested above
    failed = {"label": "d", "seed": 0, "failed": "the <loss> is not finite"}
    merged = merge(ABOUT, ["a", "b", "d"], [record("a", [1, 0]), record("b", [1, 1]), failed])
    text = page(merged)
    for raw in ("<o>", "<long>", "<loss>"):
        assert raw not in text
    assert "c&lt;o&gt;rpus" in text and "the &lt;loss&gt; is not finite" in text
    assert len(tables(merged)) == 2


def test_a_training_beyond_its_budget_is_told():
    slow, quick = record("a", [1, 0]), record("b", [1, 1])
    slow["training"] = {**slow["training"], "seconds": 60.0}
    (said,) = overruns(merge(ABOUT, ["a", "b"], [slow, quick]))
    assert said.startswith("a trained for 60 s instead of 1 s")


def test_a_comparison_of_nothing_is_told(monkeypatch):
    monkeypatch.setattr(pages, "both", lambda *a, **k: ("data:,", "data:,"))
    merged = merge(ABOUT, ["d"], [{"label": "d", "seed": 0, "failed": "no"}])
    assert merged["systems"] == [] and "No training came to an end" in page(merged)


# ---------------------------------------------------------------- costs


def test_state_is_measured_in_bytes_of_what_is_carried():
    letters = TextField.learn(["abcdefgh"], "chars")
    spec = DataSpec(None, letters, 8, 8)
    torch.manual_seed(0)
    page_of = lambda name, **c: systems.find(name).build(spec, systems.find(name).config_type(**c)).model
    gru = decoding_costs(page_of("gru-lm", dim=8, layers=2), spec, [4, 8, 32])
    assert [c["bytes"] for c in gru] == [2 * 8 * 4] * 3  # two layers of eight floats, at any length
    grows = decoding_costs(page_of("transformer-lm", dim=16, layers=1, heads=2), spec, [4, 8, 16])
    sizes = [c["bytes"] for c in grows]
    assert (
        sizes[1] - sizes[0] == pytest.approx((sizes[2] - sizes[1]) / 2)
        and sizes[1] - sizes[0] >= 4 * 2 * 16 * 4
    )


def test_lengths_that_a_model_refuses_or_that_take_too_long_have_a_reason():
    data = toy_pairs()
    model = toy(data).model
    model.train()
    source = model.source.forward

    def short(ids):
        if ids.shape[1] > 8:
            raise ValueError("this model reads at most 8 symbols")
        assert not bool((ids == PAD).any())
        return source(ids)

    model.source.forward = short
    found = decoding_costs(model, data.spec, [16, 4])
    assert [c["length"] for c in found] == [4, 16] and "bytes" in found[0]
    assert found[1]["refused"] == "this model reads at most 8 symbols" and model.training
    assert "set aside" in decoding_costs(model, data.spec, [4, 8], seconds=1e-9)[1]["refused"]


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        (size_text, 384, "384 B"), (size_text, 1536, "1.5 KiB"), (size_text, 200 * 1024, "200 KiB"),
        (time_text, 3.4e-4, "340 us"), (time_text, 1.25e-3, "1.25 ms"), (time_text, 2.13, "2.1 s"),
        (count_text, 812, "812"), (count_text, 12345, "12.3k"), (count_text, 1.25e6, "1.25M"),
    ],
)  # fmt: skip
def test_numbers_read_well(text, value, shown):
    assert text(value) == shown
