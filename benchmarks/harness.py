"""How things are measured here.

* Every contestant runs in a process of its own: two OpenMP runtimes in one process slow each other down.
* A contestant that cannot be imported is reported as absent, never dropped in silence; one that computes
  something else than asked is reported as wrong, and its time is not shown.
* Time is the best and the median of at least seven calls after one warm-up call. On a shared machine the best
  is the figure to compare, and the load is printed.
* The limit is what the machine can do, measured by every contestant's process before it runs; the best of all
  is taken.
* Our own ops are first checked against their reference in float64; nothing is reported for an op that fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Callable, Mapping, Sequence

import torch

RESULTS = Path(__file__).resolve().parent.parent / "results"
PACKAGES = ("torch", "numpy", "numba", "jax", "jaxlib", "mambapy", "accelerated-scan", "transduce")
MIN_CALLS = 7


@dataclass(frozen=True)
class Result:
    """One contestant on one case. Times in milliseconds, memory in MiB above the inputs; ``problem`` says why
    there is no time. ``limit_ms`` is the physical limit as this process saw it."""

    case: str
    peer: str
    best_ms: float | None = None
    median_ms: float | None = None
    calls: int = 0
    peak_mib: float | None = None
    limit_ms: float | None = None
    problem: str | None = None


def seconds(fn: Callable[[], object], *, budget: float = 2.0) -> list[float]:
    """Durations of at least seven calls, more while the budget (in seconds) lasts."""
    fn()
    taken: list[float] = []
    while len(taken) < MIN_CALLS or (sum(taken) < budget and len(taken) < 500):
        start = time.perf_counter()
        fn()
        taken.append(time.perf_counter() - start)
    return taken


def _memory_mib(field: str) -> float:
    """VmRSS or VmHWM (the highest VmRSS since :func:`_forget_peak`) of this process; Linux only, else 0."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def measure(case: str, peer: str, fn: Callable[[], object], limit_seconds: float) -> Result:
    """Time ``fn`` and note how far above its level before the first call the process's memory rose."""
    before = _memory_mib("VmRSS")
    _forget_peak()
    taken = seconds(fn)
    return Result(
        case,
        peer,
        min(taken) * 1e3,
        statistics.median(taken) * 1e3,
        len(taken),
        _memory_mib("VmHWM") - before,
        limit_seconds * 1e3,
    )


def in_own_process(
    module: str, case: str, peer: str, *, options: Sequence[str] = (), timeout: float = 600
) -> Result:
    """Run ``python -m module --child case peer`` and read the result it prints as its last line."""
    command = [sys.executable, "-m", module, "--child", case, peer, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Result(case, peer, problem=f"did not finish in {timeout:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        absent = "ModuleNotFoundError" in reason or "ImportError" in reason
        return Result(case, peer, problem=f"{'absent' if absent else 'failed'}: {reason}")
    return Result(**json.loads(lines[-1]))


def environment() -> dict[str, object]:
    """Everything that a reader needs to judge the figures."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def table(results: Sequence[Result]) -> str:
    """A readable table, grouped by case, ratios to the best limit seen and to our fastest entry."""
    lines: list[str] = []
    for case in dict.fromkeys(r.case for r in results):
        mine = [r for r in results if r.case == case]
        limit = case_limit(mine)
        timed = [r for r in mine if r.best_ms is not None]
        ours = min((r.best_ms for r in timed if r.peer.startswith("transduce")), default=None)
        lines.append(f"\n{case}" + (f"   limit {limit:.3f} ms" if limit else ""))
        lines.append(
            f"  {'':28}{'best ms':>10}{'median':>10}{'calls':>7}{'x limit':>9}{'x ours':>8}{'MiB':>8}"
        )
        for r in sorted(mine, key=lambda r: (r.best_ms is None, r.best_ms)):
            if r.best_ms is None:
                lines.append(f"  {r.peer:28}{r.problem}")
                continue
            of_limit = f"{r.best_ms / limit:9.2f}" if limit else f"{'-':>9}"
            of_ours = f"{r.best_ms / ours:8.2f}" if ours else f"{'-':>8}"
            lines.append(
                f"  {r.peer:28}{r.best_ms:10.3f}{r.median_ms:10.3f}{r.calls:7d}"
                f"{of_limit}{of_ours}{r.peak_mib:8.1f}"
            )
    return "\n".join(lines)


def case_limit(results: Sequence[Result]) -> float | None:
    return min((r.limit_ms for r in results if r.limit_ms is not None), default=None)


def save(name: str, command: str, results: Sequence[Result], before: Mapping[str, object]) -> Path:
    """Write results/NAME.json: the command, the machine before and after, every row, the limit of every
    case."""
    RESULTS.mkdir(exist_ok=True)
    cases = dict.fromkeys(r.case for r in results)
    content = {
        "command": command,
        "environment": dict(before),
        "load_average_after": environment()["load_average"],
        "limit_ms": {case: case_limit([r for r in results if r.case == case]) for case in cases},
        "results": [asdict(r) for r in results],
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


@dataclass(frozen=True)
class Benchmark:
    """``peers(case)`` names the contestants of a case, ``child(case, peer)`` measures one in this process;
    ``ops`` are the ops under test, which must obey their law before anything is timed."""

    name: str
    doc: str
    cases: Sequence[str]
    peers: Callable[[str], Sequence[str]]
    child: Callable[[str, str], Result]
    ops: Sequence[object]


def run(benchmark: Benchmark) -> None:
    """The command line of a benchmark: measure every contestant of every case, print tables, write
    results/bench-NAME.json."""
    parser = argparse.ArgumentParser(description=benchmark.doc.splitlines()[0])
    parser.add_argument("--child", nargs=2, metavar=("CASE", "PEER"), help=argparse.SUPPRESS)
    parser.add_argument("--keep-heap", action="store_true", help="apply keep_large_blocks() in every process")
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written then")
    parser.add_argument("--rounds", type=int, default=1, help="processes per contestant, in turns; the best counts")
    options = parser.parse_args()
    if options.keep_heap:
        from transduce.core.heap import keep_large_blocks

        keep_large_blocks()
    if options.child:
        print(json.dumps(asdict(benchmark.child(*options.child))))
        return
    _check_ops(benchmark.ops)
    before = environment()
    print(f"load average {before['load_average']}, {before['cores']} cores, {before['cpu']}", flush=True)
    extra = ["--keep-heap"] if options.keep_heap else []
    module = f"benchmarks.{benchmark.name}"
    results: list[Result] = []
    for case in benchmark.cases:
        if options.only in case:
            rounds = [
                [in_own_process(module, case, peer, options=extra) for peer in benchmark.peers(case)]
                for _ in range(options.rounds)
            ]
            mine = [_best(tries) for tries in zip(*rounds)]
            print(table(mine), flush=True)
            results += mine
    if not options.only:
        suffix = "-keep-heap" if options.keep_heap else ""
        command = ["python -m", module, *extra, *(["--rounds", str(options.rounds)] if options.rounds > 1 else [])]
        path = save(f"bench-{benchmark.name}{suffix}", " ".join(command), results, before)
        print(f"\nload average {environment()['load_average']}; written: results/{path.name}")


def _best(tries: Sequence[Result]) -> Result:
    """The fastest of several processes, with the best limit that any of them saw."""
    best = min(tries, key=lambda r: (r.best_ms is None, r.best_ms or 0.0))
    return replace(best, limit_ms=case_limit(tries))


def _check_ops(ops: Sequence[object]) -> None:
    from transduce.testing.ops import check_op

    for op in ops:
        check_op(op)
