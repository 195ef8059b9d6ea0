"""The eleven laws of a mixer: what makes any chunking, any batch neighbour and any padding give the same
answer.

::

    check_mixer(lambda dim: MinGRU(dim), dim=16)          # raises AssertionError naming every broken law
    mixer_laws(MinGRU, 16)                                # a result for every law

``transduce laws module:Factory --dim 32`` prints the same on one screen. A mixer that is not causal has no
state; the laws that speak of states then check that it says so. All checks run in evaluation mode with
random weights and inputs, recording gradients and not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Sequence

import torch

from .laws import LAWS, Law
from .trial import Factory, Trial


@dataclass(frozen=True)
class LawResult:
    """How one law went. ``detail`` says in numbers what was found."""

    number: int
    name: str
    passed: bool
    detail: str
    seconds: float


def mixer_laws(
    factory: Factory,
    dim: int = 16,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    batch: int = 3,
    steps: int = 11,
) -> list[LawResult]:
    """Try every law on ``factory(dim)``; a law during which anything is raised is broken.

    ``batch`` must be at least 2 and ``steps`` at least 6, since rows, chunks and holes are to be told apart.
    Raises ValueError for less, and UserError when the factory does not make a :class:`Mixer`.
    """
    if batch < 2 or steps < 6:
        raise ValueError(f"the laws need batch >= 2 and steps >= 6, got {batch} and {steps}")
    results: list[LawResult] = []
    for number, law in enumerate(LAWS, 1):
        started = time.perf_counter()
        passed, detail = _try(law, lambda: Trial(factory, dim, dtype, seed, batch, steps))
        results.append(LawResult(number, law.name, passed, detail, time.perf_counter() - started))
    return results


def _try(law: Law, trial: Callable[[], Trial]) -> tuple[bool, str]:
    worst = 0.0
    for recording in law.modes:
        t = trial()
        if law.needs_state and not t.causal:
            return True, "no state, not causal"
        try:
            with torch.set_grad_enabled(recording):
                law.check(t)
        except Exception as problem:  # a layer under test may raise anything
            said = str(problem).splitlines()[0] if str(problem) else "no reason given"
            kind = "" if isinstance(problem, AssertionError) else f"{type(problem).__name__}: "
            where = " (only without gradients)" if not recording and len(law.modes) > 1 else ""
            return False, kind + said + where
        worst = max(worst, t.worst)
    return True, f"largest difference {worst:.0e}"


def check_mixer(
    factory: Factory,
    *,
    dim: int = 16,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    batch: int = 3,
    steps: int = 11,
) -> None:
    """Raise AssertionError naming every law that ``factory(dim)`` breaks."""
    results = mixer_laws(factory, dim, dtype=dtype, seed=seed, batch=batch, steps=steps)
    broken = [r for r in results if not r.passed]
    assert not broken, "; ".join(f'law {r.number} "{r.name}": {r.detail}' for r in broken)


def render_laws(title: str, results: Sequence[LawResult]) -> str:
    """One screen: a line for each law and a verdict."""
    lines = [title, ""]
    for r in results:
        lines.append(f" {'ok    ' if r.passed else 'BROKEN'} {r.number:>2}  {r.name:<36} {r.detail[:100]}")
    broken = [r.number for r in results if not r.passed]
    verdict = "all laws hold" if not broken else f"broken: law {', '.join(map(str, broken))}"
    return "\n".join([*lines, "", verdict])
