"""``transduce compare``: systems under one budget, same seeds, same data; then a table, a picture, a page."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Iterator, Mapping, Sequence

import tyro

from transduce import systems
from transduce.core.errors import UserError, nearest

from .data import DataOptions
from .machine import device_named
from .options import parse, seconds, settings_of
from .trial import Request

ASIDE = 20.0
"""Seconds that loading and measuring take beside a training, roughly; only for the forecast."""


@dataclass(frozen=True)
class CompareOptions:
    systems: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SYSTEM ...")] = ()
    """Systems by name. NAME=SYSTEM gives one another name, so that it can stand there twice."""
    budget: str = "3m"
    """Wall clock of each training: 600, 90s, 10m, 2h. Loading and measuring come on top."""
    seeds: int = 1
    """Trainings of each system, from seed 0 on."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting, NAME.FIELD=VALUE for one of the systems, FIELD=VALUE for all; may be given often."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Folder of the comparison; runs/compare-DATA where left out. What is done there is not done again."""
    rows: int = 1000
    """Test rows that the models are measured on, always the same ones."""
    beam: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Beam width of the measurement; greedy without it."""
    lengths: tuple[int, ...] = (16, 64, 256, 1024)
    """Lengths behind which state and latency are measured."""
    force: bool = False
    """Replace the comparison in --out."""
    device: str = "cpu"
    """cpu, or cuda where torch sees one."""


def compare_command(arguments: Sequence[str]) -> int:
    parts = [
        ("data", settings_of(DataOptions(), "Data", "What to train on.")),
        ("run", tyro.conf.FlagCreatePairsOff[CompareOptions]),
    ]
    kind = dataclasses.make_dataclass("Compare", parts, frozen=True)
    options = parse(kind, arguments, "compare", "Train systems under one budget and compare them.")
    comparison = Comparison(options.run, DataOptions(**dataclasses.asdict(options.data)))
    return comparison.run(["transduce", "compare", *arguments])


class Comparison:
    """What is asked for, checked as far as it can be before anything is trained."""

    def __init__(self, options: CompareOptions, data: DataOptions) -> None:
        self.options, self.data = options, data
        self.budget = seconds(options.budget, "--budget")
        if data.data is None:
            raise UserError("Say what to train on: --data with the name of a corpus or the path of a file.")
        checks = [("--seeds", options.seeds), ("--rows", options.rows), ("--vocabulary", data.vocabulary)]
        checks += [("--beam", options.beam), *(("--lengths", n) for n in options.lengths)]
        for name, value in checks:
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}.")
        device_named(options.device)
        self.entries = named_systems(options.systems)
        self.values = settings(self.entries, options.set)
        self.out = options.out or Path("runs") / f"compare-{_slug(Path(data.data).stem)}"

    def run(self, command: Sequence[str]) -> int:
        from transduce.report.table import merge
        from transduce.train.check import machine

        from .report import write_json

        corpus = self.data.load()
        self._check_kind(corpus)
        prepare_folder(self.out, self.request(), self.options.force)
        requests = [self._trial(label, seed) for seed in range(self.options.seeds) for label in self.entries]
        left = [r for r in requests if not done(r)]
        if left:
            self._forecast(len(requests), len(left))
        for number, request in enumerate(left, 1):
            print(f"\n[{number}/{len(left)}] {request.name}", file=sys.stderr, flush=True)
            if train(request) == 130:
                print(f"stopped; the same command goes on with what is missing:\n  {shlex.join(command)}")
                return 130
        records = [json.loads(r.record.read_text()) for r in requests]
        about = {
            "command": shlex.join(command),
            "corpus": corpus.name,
            "kind": corpus.kind,
            "sequence_name": corpus.sequence_name,
            "symbol_name": corpus.symbol_name,
            "scores": list(corpus.metrics),
            "split": "test" if len(corpus.test) else "valid",
            **self.request(),
        }
        merged = merge(about, list(self.entries), records)
        write_json(self.out / "compare.json", {**merged, "machine": machine()})
        self._publish(merged)
        return 1 if merged["failed"] else 0

    def _publish(self, merged: Mapping[str, Any]) -> None:
        """Table on the terminal, picture and page."""
        from rich.console import Console

        from transduce.report.page import write_page
        from transduce.report.pictures import overview
        from transduce.report.table import overruns, tables

        console = Console(width=None if sys.stdout.isatty() else 140)
        for table in tables(merged):
            console.print()
            console.print(table)
        for sentence in overruns(merged):
            console.print(f"not fair: {sentence}", markup=False)
        for failed in merged["failed"]:
            console.print(f"{failed['name']} failed: {failed['reason']}", markup=False)
        written = [self.out / "compare.json"]
        if merged["systems"]:
            written += [
                overview(merged, self.out / "compare.png"),
                write_page(merged, self.out / "compare.html"),
            ]
        print(f"\nwritten: {', '.join(map(str, written))}")

    def request(self) -> dict[str, Any]:
        """What makes a comparison the same one."""
        return {
            "systems": self.entries,
            "settings": self.values,
            "data": self.data.to_json(),
            "budget": self.budget,
            "seeds": self.options.seeds,
            "rows": self.options.rows,
            "beam": self.options.beam,
            "lengths": list(self.options.lengths),
            "device": self.options.device,
        }

    def _check_kind(self, corpus: Any) -> None:
        from transduce.systems.build import KINDS

        for system in self.entries.values():
            if (kind := systems.find(system).kind) != corpus.kind:
                raise UserError(
                    f"{system} trains on {KINDS[kind]}; {corpus.name} holds {KINDS[corpus.kind]}."
                )
        if self.options.beam is not None and corpus.kind == "text":
            raise UserError("Language models are measured in bits per character; leave --beam out.")

    def _trial(self, label: str, seed: int) -> Request:
        return Request(
            label, self.entries[label], seed, self.values[label], self.data.to_json(), self.budget,
            str(self.out), self.options.rows, self.options.beam, self.options.device,
            list(self.options.lengths),
        )  # fmt: skip

    def _forecast(self, every: int, left: int) -> None:
        from transduce.train.progress import clock

        ready = f", {every - left} of {every} are done" if left < every else ""
        print(
            f"{left} trainings of {clock(self.budget)} each{ready}: "
            f"about {clock(left * (self.budget + ASIDE))}",
            file=sys.stderr,
        )


# ---------------------------------------------------------------- what is asked for


def named_systems(words: Sequence[str]) -> dict[str, str]:
    """ "rnnsearch wide=rnnsearch" -> system by label."""
    if not words:
        raise UserError("Name the systems to compare: transduce compare SYSTEM SYSTEM ... --data ...")
    found: dict[str, str] = {}
    for word in words:
        label, _, system = word.rpartition("=")
        label = label or system
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", label):
            raise UserError(f'"{label}" cannot be a name here; use letters, digits, - and _.')
        if label in found:
            raise UserError(f"{label} stands there twice; give one another name, say {label}-2={system}.")
        found[label] = systems.find(system).name
    return found


def settings(entries: Mapping[str, str], changes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The changed settings of every label. Raises :class:`UserError` for what no system takes."""
    from .settings import kinds, read, try_out

    found: dict[str, dict[str, Any]] = {label: {} for label in entries}
    for change in changes:
        left, equals, text = change.partition("=")
        label, dot, name = left.rpartition(".")
        if not equals or not name:
            raise UserError(f'--set takes NAME.FIELD=VALUE or FIELD=VALUE, not "{change}".')
        if dot and label not in entries:
            raise UserError(f'--set {change}: no system here is called "{label}".{nearest(label, entries)}')
        pages = {each: systems.find(entries[each]) for each in ([label] if dot else entries)}
        takers = [each for each, page in pages.items() if name.replace("-", "_") in kinds(page)]
        for each in takers or list(pages)[:1]:
            found[each][name.replace("-", "_")] = read(pages[each], name, text)
    for label, values in found.items():
        if values:
            try_out(systems.find(entries[label]), values)
    return found


def prepare_folder(out: Path, request: Mapping[str, Any], force: bool) -> None:
    """Take a new folder, or one that holds the same comparison; refuse any other."""
    from transduce.train.config import same
    from transduce.train.storage import strict_json, to_json, writing

    from .report import write_json

    mark, wanted = out / "request.json", strict_json(to_json({"kind": "transduce comparison", **request}))
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} exists and is not a folder; choose another --out.")
    if out.is_dir() and any(out.iterdir()):
        try:
            stored = strict_json(mark.read_bytes())
            assert stored["kind"] == wanted["kind"]
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            raise UserError(f"{out} holds something else than a comparison; choose another --out.") from None
        if force:
            _clear(out)
        else:
            try:
                for before, now in ((stored, wanted), (wanted, stored)):
                    same(before, now)
            except UserError as problem:
                said = str(problem).split(":")[0].replace("The run was", "The comparison there was")
                raise UserError(
                    f"{said} ({out}); choose another --out, or replace it with --force."
                ) from None
    with writing(out):
        (out / "runs").mkdir(parents=True, exist_ok=True)
    write_json(mark, wanted)


def _clear(out: Path) -> None:
    """Remove what a comparison wrote, and nothing else."""
    import shutil

    for name in ("request.json", "compare.json", "compare.png", "compare.html"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "runs", ignore_errors=True)


# ---------------------------------------------------------------- one training after another


def done(request: Request) -> bool:
    """True when this training has left its figures."""
    try:
        return "counts" in json.loads(request.record.read_text())
    except (OSError, ValueError):
        return False


def train(request: Request) -> int:
    """Carry out one request in a process of its own. Returns 130 when the user stops it, else 0: what went
    wrong stands in the record."""
    from .report import write_json

    order = request.record.with_suffix(".request.json")
    write_json(order, request.to_json())
    request.record.unlink(missing_ok=True)
    began = time.perf_counter()
    code = _wait([sys.executable, "-m", "transduce.cli.trial", str(order)])
    if code == 130:
        return 130
    order.unlink(missing_ok=True)
    if not request.record.exists():
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        reason = f"The process {how}" + ("; perhaps memory ran out." if code == -9 else ".")
        write_json(request.record, {"label": request.label, "seed": request.seed, "failed": reason})
    print(f"{request.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return 0


def _wait(command: Sequence[str]) -> int:
    """Run a command to its end. When this process is interrupted, the child is asked to end, saves what it
    has, and 130 comes back."""
    with _as_interrupt(signal.SIGTERM), subprocess.Popen(command) as child:
        stopped = False
        while True:
            try:
                code = child.wait()
                return 130 if stopped else code
            except KeyboardInterrupt:
                # On a terminal the child has had the interrupt, too; a request to terminate is harmless then.
                stopped = True
                child.terminate()


@contextlib.contextmanager
def _as_interrupt(number: int) -> Iterator[None]:
    """Inside the block the signal reads as Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-") or "data"
