"""From a budget to a number of steps.

The learning rate is a function of the step and of the plan, so the plan must not drift with the speed of the
machine. It is settled once, after the first seconds have shown how long a step takes, is stored in the
checkpoint, and is only shortened when the time would truly run out.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .config import TrainConfig

SKIPPED = 5
"""First steps that are not timed: kernels are compiled and memory is laid out in them."""

PROVISIONAL = 10_000
"""Steps that the learning rate assumes before the plan is settled."""

_RESERVE = 0.015  # of the budget, for checkpoints, the last bundle and the curve
_EVALUATION_SHARE = 0.15  # of the budget at most, for all evaluations
_FEWEST_ROWS = 100


@dataclass(frozen=True)
class Plan:
    """``steps`` to take, what sets their number, and how many held-out rows the evaluations read.

    ``settled`` is False as long as the wall-clock budget has not been weighed.
    """

    steps: int
    limited_by: str
    evaluation_rows: int
    final_rows: int
    settled: bool = False

    def evaluation_due(self, step: int, evaluations: int) -> bool:
        """True at ``evaluations`` steps spread evenly over the plan, the last step among them."""
        if step == 0 or step > self.steps or evaluations == 0:
            return False
        return step * evaluations // self.steps != (step - 1) * evaluations // self.steps

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Moment:
    """What is to be done before the next step: settle the plan, shorten it, save, stop."""

    settle: bool = False
    shorter: Plan | None = None
    save: bool = False
    interrupted_by: str | None = None


class Pace:
    """Wall-clock seconds a step takes, first steps left out."""

    def __init__(self) -> None:
        self.steps = 0
        self.timed = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.steps += 1
        if self.steps > SKIPPED:
            self.timed += 1
            self.seconds += seconds

    def known(self, budget: float, elapsed: float) -> bool:
        """Enough was timed: 2 % of the budget (12 seconds at most) over ten steps, or a quarter of the budget
        is gone."""
        enough = self.timed >= 10 and self.seconds >= min(12.0, 0.02 * budget)
        return enough or (self.timed >= 1 and elapsed > 0.25 * budget)

    @property
    def per_step(self) -> float:
        return self.seconds / max(1, self.timed)


def cap(config: TrainConfig, batches_per_epoch: float) -> tuple[int | None, str]:
    """The number of steps that ``max_steps`` and ``max_epochs`` allow, and which of them sets it."""
    limits: list[tuple[int, str]] = []
    if config.max_steps is not None:
        limits.append((config.max_steps, "max_steps reached"))
    if config.max_epochs is not None:
        limits.append(
            (math.ceil(config.max_epochs * batches_per_epoch / config.accumulate), "max_epochs reached")
        )
    return min(limits) if limits else (None, "")


def settle(
    config: TrainConfig,
    step: int,
    elapsed: float,
    pace: Pace,
    seconds_per_row: float,
    rows: int,
    limit: tuple[int | None, str],
) -> Plan:
    """The plan for a run that is at ``step`` after ``elapsed`` seconds.

    ``seconds_per_row``: measured cost of evaluating one of the ``rows`` held-out examples. ``limit``: see
    :func:`cap`.
    """
    allowance = _EVALUATION_SHARE * config.max_time
    affordable = allowance / (2 * seconds_per_row) if seconds_per_row > 0 else rows
    per_evaluation = min(
        rows, config.evaluation_rows, max(_FEWEST_ROWS, int(affordable / max(1, config.evaluations)))
    )
    final = min(rows, max(per_evaluation, int(affordable)))
    reserved = _RESERVE * config.max_time + seconds_per_row * (config.evaluations * per_evaluation + final)
    left = config.max_time - elapsed - reserved
    by_time = step + max(1, int(left / pace.per_step))
    steps, reason = limit
    if steps is None or by_time < steps:
        return Plan(by_time, "time budget used", per_evaluation, final, settled=True)
    return Plan(steps, reason, per_evaluation, final, settled=True)


def shortened(
    plan: Plan, config: TrainConfig, step: int, elapsed: float, pace: Pace, seconds_per_row: float
) -> Plan | None:
    """A shorter plan when the present one would overrun the budget by more than 2 %, else None."""
    share = 1.0 - step / plan.steps
    ahead = seconds_per_row * (plan.evaluation_rows * math.ceil(config.evaluations * share) + plan.final_rows)
    left = config.max_time * (1.0 - _RESERVE / 2) - elapsed - ahead
    if (plan.steps - step) * pace.per_step <= left + 0.02 * config.max_time:
        return None
    steps = step + max(1, int(left / pace.per_step))
    return (
        dataclasses.replace(plan, steps=steps, limited_by="time budget used") if steps < plan.steps else None
    )
