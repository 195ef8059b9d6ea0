"""What a training run tells while it works: a live line on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any, Mapping, Protocol, TextIO

from .engine import Update


@dataclass(frozen=True)
class About:
    """Words for the report: names of the two errors and of a row (``word``, ``sentence``, ...)."""

    sequence_name: str = "sequence error"
    symbol_name: str = "symbol error"
    row_name: str = "row"
    kind: str = "pairs"


@dataclass(frozen=True)
class StepReport:
    """One step. ``steps`` and ``seconds_left`` are None until the plan is settled."""

    step: int
    steps: int | None
    loss: float
    smooth_loss: float
    learning_rate: float
    rows_per_second: float
    symbols_per_second: float
    seconds_left: float | None


class Meter:
    """Makes the reports of a run: loss and speeds smoothed over about twenty steps."""

    def __init__(self) -> None:
        self._smooth: tuple[float, float, float] | None = None
        self._reads = 0

    def read(
        self, step: int, steps: int | None, update: Update, rate: float, seconds: float, left: float | None
    ) -> StepReport:
        """The report of one step that took ``seconds``."""
        now = (update.loss, update.rows / seconds, update.symbols / seconds)
        self._reads += 1
        if self._smooth is None or self._reads <= 5:  # the first steps are no measure of the speed
            self._smooth = now
        self._smooth = tuple(0.95 * old + 0.05 * new for old, new in zip(self._smooth, now))
        loss, rows, symbols = self._smooth
        return StepReport(step, steps, update.loss, loss, rate, rows, symbols, left)


class Reporter(Protocol):
    """Receives the run's news in order: ``start``, then steps, evaluations and notes, then ``stop``."""

    def start(self, about: About) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def evaluated(self, numbers: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


class Silent:
    """Keeps quiet."""

    def start(self, about: About) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def evaluated(self, numbers: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


def errors_line(numbers: Mapping[str, Any], about: About) -> str:
    """'held-out word error 41.2 %, phoneme error 10.6 %' or the bits per character of a text."""
    if numbers.get("bits_per_character") is not None:
        return f"held-out {numbers['bits_per_character']:.3f} bits per character"
    if numbers.get("sequence_error") is None:
        return f"held-out loss {numbers.get('loss', math.inf):.4f}"
    return (
        f"held-out {about.sequence_name} {100 * numbers['sequence_error']:.1f} %, "
        f"{about.symbol_name} {100 * numbers['symbol_error']:.1f} %"
    )


def clock(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss."""
    if seconds is None:
        return "-:--"
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def plural(noun: str) -> str:
    return noun if noun.endswith("s") else noun + "s"


class Plain:
    """A line every ``every`` seconds and one for each evaluation."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream
        self._every = every
        self._last = time.monotonic()
        self._about = About()
        self._step = 0

    def start(self, about: About) -> None:
        self._about = about

    def step(self, report: StepReport) -> None:
        self._step = report.step
        if time.monotonic() - self._last < self._every:
            return
        self._last = time.monotonic()
        self._say(step_line(report, self._about))

    def evaluated(self, numbers: Mapping[str, Any]) -> None:
        rows = f"{numbers['rows']} {plural(self._about.row_name)}"
        self._say(f"step {self._step}: {errors_line(numbers, self._about)} ({rows})")

    def note(self, text: str) -> None:
        self._say(text)

    def stop(self) -> None: ...

    def _say(self, text: str) -> None:
        print(text, file=self._stream or sys.stderr, flush=True)


def step_line(report: StepReport, about: About) -> str:
    total = f"/{report.steps}" if report.steps else ""
    return (
        f"step {report.step}{total}  loss {report.smooth_loss:.3f}  {report.rows_per_second:,.0f} "
        f"{plural(about.row_name)}/s  time left {clock(report.seconds_left)}"
    )


class Live:
    """Two lines that are redrawn in place (bar and time left; loss, held-out errors and speed), notes above
    them."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

        class TwoLines(Progress):  # both fit a terminal of 80 columns
            def get_renderables(self):
                yield self.make_tasks_table(self.tasks)
                yield Text(
                    self.tasks[0].fields["text"] if self.tasks else "", no_wrap=True, overflow="ellipsis"
                )

        self._bar = TwoLines(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[left]}"),
            console=Console(file=stream or sys.stderr, highlight=False),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("measuring the speed", total=None, text="", left="")
        self._about = About()
        self._errors = ""

    def start(self, about: About) -> None:
        self._about = about
        self._bar.start()

    def step(self, report: StepReport) -> None:
        total = f"/{report.steps:,}" if report.steps else ""
        self._bar.update(
            self._task,
            description=f"step {report.step:,}{total}",
            total=report.steps,
            completed=report.step,
            left="" if report.seconds_left is None else f"{clock(report.seconds_left)} left",
            text=f"loss {report.smooth_loss:.3f}{self._errors}  "
            f"{report.rows_per_second:,.0f} {plural(self._about.row_name)}/s",
        )

    def evaluated(self, numbers: Mapping[str, Any]) -> None:
        self._errors = "  " + errors_line(numbers, self._about).removeprefix("held-out ")

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False)

    def stop(self) -> None:
        self._bar.stop()


def reporter(stream: TextIO | None = None) -> Reporter:
    """The live bar on a terminal, plain lines where the output is a file or a pipe."""
    target = stream or sys.stderr
    return Live(target) if target.isatty() else Plain(target)
