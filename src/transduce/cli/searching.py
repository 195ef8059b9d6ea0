"""The parts of a sweep: what is searched, and the reporter that ends a trial which is behind the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transduce.core.errors import UserError
from transduce.core.registry import Page

from .settings import described, kinds, read


@dataclass(frozen=True)
class Searched:
    """One setting that is searched: a range (``low`` to ``high``, ``log`` or not) or ``choices`` as texts."""

    name: str
    whole: bool = False
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def suggest(self, trial: Any) -> Any:
        """The trial's value; a choice comes as its text."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in what is searched."""
        if self.choices:
            return str(value) in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high


def searched(page: Page, text: str) -> Searched:
    """FIELD=LOW:HIGH[:log] or FIELD=A,B,C. Raises :class:`UserError`, one sentence."""
    field, _, space = text.partition("=")
    name = field.replace("-", "_")
    if not space:
        raise UserError(f'--search takes FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C, not "{text}".')
    if ":" not in space:
        choices = tuple(dict.fromkeys(c.strip() for c in space.split(",") if c.strip()))
        for choice in choices:
            read(page, field, choice)
        if len(choices) < 2:
            raise UserError(f"--search {text} leaves no choice; fix it with --set {text} instead.")
        return Searched(name, choices=choices)
    low, high, *rest = space.split(":")
    if rest not in ([], ["log"]):
        raise UserError(f'A range is LOW:HIGH or LOW:HIGH:log, not "{space}".')
    values = [read(page, field, low), read(page, field, high)]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise UserError(f"{name} takes {described(kinds(page)[name])}, which has no range; list its choices.")
    if not values[0] < values[1]:
        raise UserError(f"The range of {name} is empty: {low} is not below {high}.")
    if rest and not values[0] > 0:
        raise UserError(f"A logarithmic range begins above 0; that of {name} begins at {low}.")
    return Searched(name, all(isinstance(v, int) for v in values), *map(float, values), bool(rest))


class Watch:
    """A reporter that tells a trial of every evaluation and ends it when it is behind the others."""

    def __init__(self, trial: Any) -> None:
        from transduce.train.progress import reporter

        self.trial, self.inner, self.count = trial, reporter(), 0

    def start(self, about: Any) -> None:
        self.inner.start(about)

    def step(self, report: Any) -> None:
        self.inner.step(report)

    def evaluated(self, numbers: Mapping[str, Any]) -> None:
        import optuna

        self.inner.evaluated(numbers)
        self.count += 1  # by evaluation, not by step: settings differ in speed, the budget does not
        self.trial.report(score_of(numbers), self.count)
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def note(self, text: str) -> None:
        self.inner.note(text)

    def stop(self) -> None:
        self.inner.stop()


def score_of(numbers: Mapping[str, Any]) -> float:
    """What is made small: the symbol error, bits per character for texts."""
    for name in ("symbol_error", "bits_per_character", "loss"):
        if numbers.get(name) is not None:
            return float(numbers[name])
    return math.inf
