"""The harness of the benchmarks: what it refuses to time, what it reports, and that it counts right."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import attention_decode, blocks, harness, main_job, rnn, scan, selective, seq2seq, solvers
from benchmarks.harness import Benchmark, Result
from transduce.core.seq import Batch, Seq
from transduce.ops.dispatch import use_backend
from transduce.ops.scan import linear_scan


def never(case: str, peer: str) -> Result:
    raise RuntimeError("timed all the same")


def broken(**laws: Callable[[], object]) -> Benchmark:
    return Benchmark("nothing", "Doc.", ["case"], lambda case: ["peer"], never, laws=laws)


def test_nothing_is_timed_while_an_op_is_wrong(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(harness, "in_own_process", lambda *a, **k: started.append(a))
    wrong = lambda a, b, h0=None, **how: linear_scan.reference(a, b, h0, **how) * 1.001
    first = linear_scan.all_cases()[:1]
    monkeypatch.setattr(linear_scan, "all_cases", lambda: first)
    monkeypatch.setitem(linear_scan._backends, "wrong", (wrong, lambda *a, **k: None))
    monkeypatch.setitem(linear_scan._elsewhere, "wrong", lambda: None)
    contest = Benchmark("nothing", "Doc.", ["case"], lambda case: ["peer"], never, ("transduce.ops.scan:linear_scan",))
    assert harness.run(contest, []) == 1
    assert not started
    said = capsys.readouterr().err
    assert "Nothing is timed" in said and "linear_scan" in said and "wrong" in said


def test_nothing_is_timed_while_a_model_breaks_its_laws(monkeypatch, capsys):
    def law() -> None:
        raise AssertionError('law "rows": the score of row 1 alone differs')

    started = []
    monkeypatch.setattr(harness, "in_own_process", lambda *a, **k: started.append(a))
    assert harness.run(broken(model=law), []) == 1
    assert not started and 'law "rows"' in capsys.readouterr().err


def test_every_benchmark_checks_what_it_times(monkeypatch):
    seen = {}
    for module in (attention_decode, blocks, main_job, rnn, scan, selective, seq2seq, solvers):
        monkeypatch.setattr(module, "run", lambda contest: seen.setdefault(contest.name, contest) and 0)
        module.main()
    assert sorted(seen) == ["attention_decode", "blocks", "main_job", "rnn", "scan", "selective", "seq2seq", "solvers"]
    for contest in seen.values():
        assert contest.ops or contest.laws
        absent = set(contest.environments) - {p for case in contest.cases for p in contest.peers(case)}
        assert not absent, f"{contest.name} gives an environment to {absent}, who do not compete"
        for home in contest.environments.values():
            assert (harness.PEERS / f"{home}.txt").exists()


@pytest.mark.parametrize("name", "attention_decode blocks matrix_state rnn scan selective seq2seq softmax solvers".split())
def test_foreign_environments_need_not_hold_this_package(name):
    start = f"import sys; sys.modules['transduce'] = None; import benchmarks.{name} as b; b.run = lambda c: 0; b.main()"
    subprocess.run([sys.executable, "-c", start], check=True, cwd=harness.PEERS.parent.parent)


@pytest.mark.parametrize("name", seq2seq.MODELS)
def test_the_models_obey_their_laws(name):
    seq2seq.law(name)


class Clock:
    """Stands still, but for what is spent."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter

    def spend(self, time: float) -> None:
        self.now += time


def test_only_the_call_is_timed(monkeypatch):
    clock, made = Clock(), []
    monkeypatch.setattr(harness, "time", clock)

    def prepare() -> int:
        clock.spend(50.0)
        made.append(len(made))
        return made[-1]

    used = []

    def call(number: int) -> None:
        used.append(number)
        clock.spend(3.0 if number == 4 else 4.0)

    result = harness.measure("case", "peer", call, 0.5, prepare=prepare, repeats=2)
    assert used == made == list(range(1 + harness.MIN_CALLS))  # the first one warms up
    assert (result.best_ms, result.median_ms, result.limit_ms) == (1500.0, 2000.0, 500.0)
    assert result.calls == harness.MIN_CALLS and result.cpu_ms == 1500.0


def test_more_calls_while_the_budget_lasts(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    assert len(harness.seconds(lambda: clock.spend(0.25), budget=5.0)) == 20
    assert len(harness.seconds(lambda: clock.spend(1e-9), budget=5.0)) == 500


def row(peer: str, best: float | None = 2.0, **more) -> Result:
    return Result("case", peer, best, best, 7, 1.0, cpu_ms=best and 2 * best, **more)


def test_a_table_gives_ratios_rates_and_reasons():
    rows = [
        row("other", 8.0, limit_ms=1.5, units=16, unit="words", others=0.04),
        row("transduce", 4.0, limit_ms=1.0, units=16, unit="words", others=0.0, note="bf16"),
        row("third", None, problem="absent: no module"),
    ]
    title, head, first, second, last = harness.table(rows).strip().splitlines()
    assert title == "case   limit 1.000 ms" and head.endswith("words/s")
    figures = ["4.000", "4.000", "7", "4.00", "4.00", "1.00", "8.000", "1.0", "0.00", "4,000"]
    assert first.split() == ["transduce", *figures, "bf16"]
    assert second.split() == ["other", "8.000", "8.000", "7", "8.00", "5.33", "2.00", "16.000", "1.0", "0.04", "2,000"]
    assert last.split() == ["third", "absent:", "no", "module"]


def test_figures_beside_other_work_are_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    loud, quiet = row("a", others=1.3, units=4), row("b", others=0.1)
    assert harness.disturbed([quiet]) == ""
    assert "1 of 2 figures" in harness.disturbed([loud, quiet]) and "1.30" in harness.disturbed([loud])
    stored = json.loads(harness.save("bench-x", "command", [loud, quiet], {"cpu": "x"}).read_text())
    assert "1 of 2" in stored["disturbed"]
    assert [r["rate"] for r in stored["results"]] == [2000.0, None]


def test_a_case_measured_anew_replaces_the_old_one_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    old = [replace(row("a", others=0.0), case="one", limit_ms=1.0), replace(row("a", others=0.0), case="two", limit_ms=2.0)]
    harness.save("bench-x", "all", old, {"cpu": "x"})
    again = [replace(row("a", others=0.0), case="two", best_ms=0.25, limit_ms=3.0)]
    stored = json.loads(harness.save("bench-x", "some", again, {"cpu": "y"}, update=True).read_text())
    assert [(r["case"], r["best_ms"]) for r in stored["results"]] == [("one", old[0].best_ms), ("two", 0.25)]
    assert stored["command"] == "all" and stored["limit_ms"] == {"one": 1.0, "two": 3.0}
    assert [(u["cases"], u["command"], u["environment"]) for u in stored["updates"]] == [(["two"], "some", {"cpu": "y"})]


def test_the_clock_sees_other_processes():
    """What this process does itself is not counted as others'."""
    before = harness._Clock(machine=10.0, own=4.0, wall=0.0)
    after = harness._Clock(machine=16.0, own=7.0, wall=2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness._Clock, "now", classmethod(lambda cls: after))
        assert before.others_since() == 1.5


def test_contestants_without_their_environment_are_absent(tmp_path, monkeypatch):
    contest = Benchmark("nothing", "Doc.", ["case"], lambda case: ["peer"], never, environments={"peer": "home"})
    for arguments in ([], ["--venvs", str(tmp_path)]):
        found = harness._contest(contest, "case", "peer", harness._parser(contest).parse_args(arguments))
        assert found.best_ms is None and found.problem.startswith("absent: no environment home")
    (tmp_path / "home" / "bin").mkdir(parents=True)
    (tmp_path / "home" / "bin" / "python").write_text("")
    monkeypatch.setattr(harness, "in_own_process", lambda *a, python, **k: python)
    options = harness._parser(contest).parse_args(["--venvs", str(tmp_path)])
    assert harness._contest(contest, "case", "peer", options) == str(tmp_path / "home" / "bin" / "python")


def test_the_reason_of_a_failure_is_its_exception():
    trace = 'Traceback (most recent call last):\n  File "x"\nValueError: too short\n\nAsk someone.\n'
    assert harness._last_words(trace) == "ValueError: too short"
    assert harness._last_words("") == "no output"
    assert harness._last_words("killed") == "killed"


def test_a_contestant_that_computes_something_else_gets_no_time(monkeypatch):
    def forgetful(layer, prefix):
        _, k, v = layer.qkv(prefix)
        return (lambda x, past: (layer.mix(layer.qkv(x)[0], k, v), past)), lambda: None, lambda past: ()

    monkeypatch.setitem(attention_decode.PEERS, "forgetful", forgetful)
    found = attention_decode.child("batch 1 length 64", "forgetful")
    assert found.best_ms is None and found.problem.startswith("wrong: off by")


@pytest.mark.parametrize("peer", [p for p in attention_decode.PEERS if p not in attention_decode.ENVIRONMENTS])
def test_attention_contestants_compute_what_is_asked(peer, monkeypatch):
    monkeypatch.setattr(harness, "MIN_CALLS", 2)
    monkeypatch.setattr(attention_decode, "measure", lambda case, peer, fn, limit, **how: row(peer))
    assert attention_decode.child("batch 8 length 64", peer).problem is None


def test_the_limit_counts_the_products_of_the_models():
    source, target = seq2seq.pairs(seq2seq.ROWS, 0)
    batch = Batch(Seq(source), Seq(torch.nn.functional.pad(target, (0, 1), value=2)))
    with FlopCounterMode(display=False) as counted:  # with gradients: the layers' fused path is not counted
        seq2seq.Plain()(source, batch.previous)
    assert counted.get_total_flops() == 2 * seq2seq.multiply_adds("transformer")
    model = seq2seq.our_system("rnnsearch").model.eval()
    # by the plain products: nobody counts what a compiled kernel multiplies
    with torch.no_grad(), use_backend(gru="reference"), FlopCounterMode(display=False) as counted:
        model(batch.previous, model.start(batch, continues=False))
    width, steps = seq2seq.WIDTH, seq2seq.SOURCE
    ours_only = steps * 3 * width + width * width / seq2seq.TARGET  # the gates' average, and the first state
    uncounted = steps * width  # a product with a vector
    extra = seq2seq.ROWS * seq2seq.TARGET * (ours_only - uncounted)
    assert counted.get_total_flops() == 2 * (seq2seq.multiply_adds("rnnsearch") + extra)


@pytest.mark.parametrize("name", seq2seq.MODELS)
def test_our_side_trains_and_decodes(name, monkeypatch):
    for constant, value in {"ROWS": 2, "STEPS": 1, "VOCABULARY": 50, "WIDTH": 16, "INNER": 16, "LAYERS": 1}.items():
        monkeypatch.setattr(seq2seq, constant, value)
    # the setting belongs to the process, and other tests run in this one
    monkeypatch.setattr("transduce.core.heap.keep_large_blocks", lambda: True)
    step, note = seq2seq.our_training(name, "transduce fit, float32, heap left alone")
    step()
    assert note.startswith("float32, ")
    for beam in (1, 2):
        search, _ = seq2seq.our_decoding(name, beam, 2)
        assert [len(best.ids) for best, *_ in search()] == [seq2seq.TARGET] * 2
