"""How things are measured here.

* Every contestant runs in a process of its own: two OpenMP runtimes in one process slow each other down.
* A contestant from another package runs in a virtual environment of its own, so that nobody's pins decide what
  the others run on: ``--venvs FOLDER`` names the folder that holds them, and ``benchmarks/peers/NAME.txt`` is what
  ``FOLDER/NAME`` installs.
* A contestant that cannot be imported is reported as absent, never dropped in silence; one that computes
  something else than asked is reported as wrong, and its time is not shown.
* Time is the best and the median of at least seven calls after one warm-up call. On a shared machine the best
  is the figure to compare. ``others`` is how many cores everybody else used meanwhile; a figure with much of it is
  no figure to quote, and the report says so. ``cpu`` is the least processor time of a call, which neighbours
  hardly change; with one thread (OMP_NUM_THREADS=1) its ratios stay good on a busy machine, with more the
  threads that wait in a loop are counted too.
* The limit is what the machine can do, measured by every contestant's process before it runs. ``x limit`` is against
  the best that any of them saw, ``x its own`` against what the same process saw: where a process's memory comes to
  lie can make every copy in it faster or slower by half, for as long as it lives.
* Laws first: ops against their reference in float64, mixers and models against their suites. Nothing is timed
  while one of them is broken.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Callable, Mapping, Sequence

import torch

_TICKS = 0.02
"""Seconds of a call below which its processor time is a mean: the system books other threads' time by the tick,
so that the least of many short calls shows one thread only."""
RESULTS = Path(__file__).resolve().parent.parent / "results"
PEERS = Path(__file__).resolve().parent / "peers"
PACKAGES = ("torch", "numpy", "numba", "jax", "jaxlib", "mambapy", "accelerated-scan", "transduce")
MIN_CALLS = 7
QUIET = 0.25
"""Cores that everybody else may use while a figure that can be quoted is measured."""


@dataclass(frozen=True)
class Result:
    """One contestant on one case.

    Times in milliseconds, memory in MiB above the inputs; ``problem`` says why there is no time. ``limit_ms`` is
    the physical limit as this process saw it. ``units`` of what ``unit`` says are done in one call; ``cpu_ms``
    is the least processor time of a call; ``others`` is the mean number of cores that other processes used meanwhile; ``note`` says what else a reader should know
    (the version of the package, the number of parameters).
    """

    case: str
    peer: str
    best_ms: float | None = None
    median_ms: float | None = None
    calls: int = 0
    peak_mib: float | None = None
    limit_ms: float | None = None
    problem: str | None = None
    units: float | None = None
    unit: str = ""
    cpu_ms: float | None = None
    others: float | None = None
    note: str = ""

    @property
    def rate(self) -> float | None:
        """Units a second of the fastest call."""
        return None if self.units is None or self.best_ms is None else self.units / self.best_ms * 1e3


def seconds(fn: Callable[[], object], *, budget: float = 2.0) -> list[float]:
    """Durations of at least seven calls, more while the budget (in seconds) lasts."""
    return _calls(fn, budget, None)[0]


def _calls(
    fn: Callable[..., object], budget: float, prepare: Callable[[], object] | None
) -> tuple[list[float], list[float]]:
    """Durations of the calls and the processor time of each. What ``prepare`` gives is handed to each call;
    making it is not timed."""
    call = fn if prepare is None else lambda: fn(made)
    made = prepare() if prepare is not None else None
    call()
    taken: list[float] = []
    busy: list[float] = []
    while len(taken) < MIN_CALLS or (sum(taken) < budget and len(taken) < 500):
        made = prepare() if prepare is not None else None
        begun, start = time.process_time(), time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
        busy.append(time.process_time() - begun)
    return taken, busy


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


@dataclass(frozen=True)
class _Clock:
    """CPU seconds so far: of the whole machine, of this process, and the wall clock."""

    machine: float
    own: float
    wall: float

    @classmethod
    def now(cls) -> _Clock | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq = (int(x) for x in fields[:7])
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return cls(busy, time.process_time(), time.perf_counter())

    def others_since(self) -> float:
        """Mean number of cores that other processes have used since; the kernel counts in hundredths."""
        now = _Clock.now()
        foreign = (now.machine - self.machine) - (now.own - self.own)
        return max(0.0, foreign / (now.wall - self.wall))


def measure(
    case: str,
    peer: str,
    fn: Callable[..., object],
    limit_seconds: float | None,
    *,
    prepare: Callable[[], object] | None = None,
    repeats: int = 1,
    budget: float = 2.0,
) -> Result:
    """Time ``fn`` and note how far above its level before the first call the process's memory rose.

    ``repeats``: how often one call does what the case is about; times are for one. ``prepare`` makes
    what each call is given, untimed.
    """
    before = _memory_mib("VmRSS")
    _forget_peak()
    clock = _Clock.now()
    taken, busy = _calls(fn, budget, prepare)
    others = None if clock is None else clock.others_since()
    return Result(
        case,
        peer,
        min(taken) * 1e3 / repeats,
        statistics.median(taken) * 1e3 / repeats,
        len(taken),
        _memory_mib("VmHWM") - before,
        None if limit_seconds is None else limit_seconds * 1e3,
        cpu_ms=(min(busy) if min(taken) > _TICKS else statistics.fmean(busy)) * 1e3 / repeats,
        others=others,
    )


def in_own_process(
    module: str,
    case: str,
    peer: str,
    *,
    options: Sequence[str] = (),
    python: str = sys.executable,
    timeout: float = 600,
) -> Result:
    """Run ``python -m module --child case peer`` and read the result it prints as its last line."""
    command = [python, "-m", module, "--child", case, peer, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=PEERS.parent.parent)
    except subprocess.TimeoutExpired:
        return Result(case, peer, problem=f"did not finish in {timeout:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        reason = _last_words(done.stderr)
        absent = "ModuleNotFoundError" in reason or "ImportError" in reason
        return Result(case, peer, problem=f"{'absent' if absent else 'failed'}: {reason}")
    return Result(**json.loads(lines[-1]))


def _last_words(stderr: str) -> str:
    """The line of a traceback that names the exception, however many lines of advice follow it."""
    lines = stderr.strip().splitlines() or ["no output"]
    named = [x for x in lines if "Error" in x.split(":")[0] and not x.startswith(" ")]
    return (named or lines)[-1]


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
    """A readable table, grouped by case: ratios to the best limit seen, to the process's own, to our fastest entry."""
    lines: list[str] = []
    for case in dict.fromkeys(r.case for r in results):
        mine = [r for r in results if r.case == case]
        limit = case_limit(mine)
        ours = min((r.best_ms for r in mine if r.best_ms and r.peer.startswith("transduce")), default=None)
        unit = next((r.unit for r in mine if r.unit), "")
        lines.append(f"\n{case}" + (f"   limit {limit:.3f} ms" if limit else ""))
        lines.append(
            f"  {'':32}{'best ms':>10}{'median':>10}{'calls':>7}{'x limit':>9}{'x its own':>11}{'x ours':>8}{'cpu ms':>10}{'MiB':>8}{'others':>8}"
            + (f"  {unit}/s" if unit else "")
        )
        lines += [_row(r, limit, ours) for r in sorted(mine, key=lambda r: (r.best_ms is None, r.best_ms))]
    return "\n".join(lines)


def _row(r: Result, limit: float | None, ours: float | None) -> str:
    if r.best_ms is None:
        return f"  {r.peer:32}{r.problem}"
    times = [
        f"{'-':>{width}}" if base is None else f"{r.best_ms / base:{width}.2f}"
        for base, width in ((limit, 9), (r.limit_ms, 11), (ours, 8))
    ]
    cpu = f"{'-':>10}" if r.cpu_ms is None else f"{r.cpu_ms:10.3f}"
    others = f"{'-':>8}" if r.others is None else f"{r.others:8.2f}"
    return (
        f"  {r.peer:32}{r.best_ms:10.3f}{r.median_ms:10.3f}{r.calls:7d}{''.join(times)}{cpu}{r.peak_mib:8.1f}{others}"
        + ("" if r.rate is None else f"  {r.rate:,.0f}")
        + (f"  {r.note}" if r.note else "")
    )


def disturbed(results: Sequence[Result]) -> str:
    """One sentence about the figures that were measured beside other work, or ''."""
    timed = [r for r in results if r.best_ms is not None and r.others is not None]
    loud = [r for r in timed if r.others > QUIET]
    if not loud:
        return ""
    worst = max(r.others for r in loud)
    return (
        f"{len(loud)} of {len(timed)} figures were measured while other processes used more than {QUIET} cores "
        f"(at worst {worst:.2f}): compare them within this run only, and do not quote them."
    )


def case_limit(results: Sequence[Result]) -> float | None:
    return min((r.limit_ms for r in results if r.limit_ms is not None), default=None)


def save(name: str, command: str, results: Sequence[Result], before: Mapping[str, object], update: bool = False) -> Path:
    """Write results/NAME.json: the command, the machine before and after, every row, the limit of every
    case. ``update``: replace the measured cases in a record that exists, and say so in it."""
    RESULTS.mkdir(exist_ok=True)
    cases = dict.fromkeys(r.case for r in results)
    content = {
        "command": command,
        "environment": dict(before),
        "load_average_after": environment()["load_average"],
        "disturbed": disturbed(results),
        "limit_ms": {case: case_limit([r for r in results if r.case == case]) for case in cases},
        "results": [{**asdict(r), "rate": r.rate} for r in results],
    }
    path = RESULTS / f"{name}.json"
    if update and path.is_file():
        content = _merged(json.loads(path.read_text()), content)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old record with the cases of the new one, whose command and environment stand under "updates"."""
    kept = [r for r in old["results"] if r["case"] not in new["limit_ms"]]
    update = {"cases": list(new["limit_ms"]), **{k: new[k] for k in ("command", "environment", "disturbed")}}
    limits = {**old["limit_ms"], **new["limit_ms"]}
    updates = [*old.get("updates", []), update]
    return {**old, "limit_ms": limits, "results": kept + new["results"], "updates": updates}


@dataclass(frozen=True)
class Benchmark:
    """``peers(case)`` names the contestants of a case, ``child(case, peer)`` measures one in this process.

    ``ops`` are the ops under test ("module:name", since a contestant's process may not have this package) and ``laws``
    whatever else must hold, by name: a check raises AssertionError.
    All of them must pass before anything is timed. ``environments``: which contestants run in which virtual
    environment of ``--venvs``.
    """

    name: str
    doc: str
    cases: Sequence[str]
    peers: Callable[[str], Sequence[str]]
    child: Callable[[str, str], Result]
    ops: Sequence[str] = ()
    laws: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    environments: Mapping[str, str] = field(default_factory=dict)


def run(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> int:
    """The command line of a benchmark: check the laws, measure every contestant of every case, print tables,
    write results/bench-NAME.json. Returns the exit status: 1 where a law is broken and nothing was timed."""
    options = _parser(benchmark).parse_args(arguments)
    if options.keep_heap:
        from transduce.core.heap import keep_large_blocks

        keep_large_blocks()
    if options.child:
        print(json.dumps(asdict(benchmark.child(*options.child))))
        return 0
    broken = broken_laws(benchmark)
    if broken:
        print(f"Nothing is timed, because a law is broken.\n{broken}", file=sys.stderr)
        return 1
    before = environment()
    print(f"load average {before['load_average']}, {before['cores']} cores, {before['cpu']}", flush=True)
    results: list[Result] = []
    for case in benchmark.cases:
        if options.only in case:
            contestants = benchmark.peers(case)
            rounds = [[_contest(benchmark, case, p, options) for p in contestants] for _ in range(options.rounds)]
            mine = [_best(tries) for tries in zip(*rounds)]
            print(table(mine), flush=True)
            results += mine
    warning = disturbed(results)
    print(f"\nload average {environment()['load_average']}" + (f"\n{warning}" if warning else ""))
    if options.update or not options.only:
        suffix = "-keep-heap" if options.keep_heap else ""
        command = ["python -m", f"benchmarks.{benchmark.name}", *(["--keep-heap"] if options.keep_heap else [])]
        command += ["--rounds", str(options.rounds)] if options.rounds > 1 else []
        command += ["--venvs FOLDER"] if options.venvs else []
        command += [f"--only {options.only} --update"] if options.only else []
        name = f"bench-{benchmark.name.replace('_', '-')}{suffix}"
        path = save(name, " ".join(command), results, before, options.update)
        print(f"written: results/{path.name}")
    return 0


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=benchmark.doc.splitlines()[0])
    parser.add_argument("--child", nargs=2, metavar=("CASE", "PEER"), help=argparse.SUPPRESS)
    parser.add_argument("--keep-heap", action="store_true", help="apply keep_large_blocks() in every process of this environment")
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written then")
    parser.add_argument("--update", action="store_true", help="with --only: replace these cases in the record")
    parser.add_argument("--rounds", type=int, default=1, help="processes per contestant, in turns; the best counts")
    parser.add_argument("--venvs", type=Path, help="folder of the contestants' virtual environments")
    return parser


def _contest(benchmark: Benchmark, case: str, peer: str, options: argparse.Namespace) -> Result:
    python, home = sys.executable, benchmark.environments.get(peer)
    if home is not None and options.venvs is not None:
        python = str(options.venvs / home / "bin" / "python")
    if home is not None and not (options.venvs and Path(python).exists()):
        return Result(case, peer, problem=f"absent: no environment {home}, see {PEERS.name}/{home}.txt and --venvs")
    extra = ["--keep-heap"] if options.keep_heap and home is None else []
    return in_own_process(f"benchmarks.{benchmark.name}", case, peer, options=extra, python=python)


def _best(tries: Sequence[Result]) -> Result:
    """The fastest of several processes, with the best limit that any of them saw."""
    best = min(tries, key=lambda r: (r.best_ms is None, r.best_ms or 0.0))
    return replace(best, limit_ms=case_limit(tries))


def broken_laws(benchmark: Benchmark) -> str:
    """What the first broken law says, or ''."""
    from transduce.testing.ops import check_op

    checks = {name: lambda name=name: check_op(resolve_name(name)) for name in benchmark.ops} | dict(benchmark.laws)
    for name, check in checks.items():
        try:
            check()
        except AssertionError as broken:
            return f"{name}: {broken}"
    return ""
