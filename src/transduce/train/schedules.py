"""Learning-rate schedules: pure functions of the step and the plan, so a resumed run repeats them exactly.

Each returns the factor of the peak rate. All rise linearly from 1/25 over the first ``warmup`` share of the
plan's steps and differ in what follows. With p the share of the remaining steps that is done:

* ``one-cycle``     (1 + cos(pi p)) / 2 down to zero (Smith and Topin 2018, section 3, in cosine form;
  the momentum is not cycled)
* ``cosine``        0.1 + 0.9 (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, equation 5; floor 0.1)
* ``inverse-sqrt``  sqrt(w / t), w the warm-up steps and t the step (Vaswani et al. 2017, section 5.3)
* ``constant``      1
"""

from __future__ import annotations

import math

SCHEDULES = ("one-cycle", "cosine", "inverse-sqrt", "constant")

_START = 1.0 / 25.0
_FLOOR = 0.1


def factor(name: str, step: int, steps: int, warmup: float) -> float:
    """The learning rate of ``step`` (0 is the first) in a plan of ``steps``, as a share of the peak."""
    rising = warmup * steps
    if step < rising:
        return _START + (1.0 - _START) * step / rising
    if name == "constant":
        return 1.0
    if name == "inverse-sqrt":
        turn = max(1.0, rising)
        return math.sqrt(turn / max(turn, step + 1.0))
    done = min(1.0, (step + 1.0 - rising) / max(1.0, steps - rising))
    falling = (1.0 + math.cos(math.pi * done)) / 2.0
    if name == "one-cycle":
        return max(falling, 1e-4)
    if name == "cosine":
        return _FLOOR + (1.0 - _FLOOR) * falling
    raise ValueError(f"no schedule is named {name!r}; choose one of {', '.join(SCHEDULES)}")
