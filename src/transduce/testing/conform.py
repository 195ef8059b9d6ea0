"""Does a causal model of any library keep the promises that decoding relies on?

::

    probe(adapt(model, vocabulary=1000))        # a Finding for every promise
    transduce conform my_module:make_model      # the same on the command line

The model is seen through :class:`Subject`; :mod:`.adapters` makes one of a mixer or model of this library, of a
transformers model and of a plain function. Every promise is tried on random inputs with the weights as they are. An
error is the largest difference of logits, relative to their standard deviation.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest error of a kept promise. Above what float32 roundings inside a model cause, far below what a wrong state does."""


class Subject(ABC):
    """A causal model under test: inputs (B,T) ids or (B,T,D) values to outputs (B,T,V)."""

    name: str = "model"
    has_state: bool = True
    takes_mask: bool = True
    """Whether ``mask`` (B,T), True = valid, is understood; without it only padding on the right can be tried."""

    @abstractmethod
    def inputs(self, batch: int, steps: int, generator: torch.Generator) -> Tensor:
        """Random inputs."""

    @abstractmethod
    def whole(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs of a whole sequence, from nothing."""

    def start(self, batch: int) -> Any:
        """The state before the first step."""
        raise self._stateless()

    def go(self, x: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Outputs of a chunk that follows ``state``, and the state behind it. ``mask`` is about the chunk."""
        raise self._stateless()

    def reorder(self, state: Any, rows: Tensor) -> Any:
        """The state whose row i continues row ``rows[i]``."""
        raise self._stateless()

    def nbytes(self, state: Any) -> int:
        """Bytes of all tensors of a state."""
        raise self._stateless()

    def _stateless(self) -> ValueError:
        """What a subject with ``has_state = False`` says; one with a state defines these four methods."""
        return ValueError(f"{self.name} has no state")


@dataclass(frozen=True)
class Finding:
    """How one promise went. ``kept``: None where it could not be tried, with the reason in ``detail``."""

    promise: str
    kept: bool | None
    detail: str
    error: float | None = None
    seconds: float = 0.0


class _Untried(Exception):
    """A promise that this model does not make."""


class _Broken(Exception):
    """A promise that is broken in a way that is not a number."""


@dataclass
class _Trial:
    subject: Subject
    steps: int
    tolerance: float
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.x = self.subject.inputs(3, self.steps, self.generator)
        self.want = self.subject.whole(self.x)
        self.scale = float(self.want.std()) or 1.0

    def error(self, got: Tensor, want: Tensor) -> float:
        if got.shape != want.shape:
            raise _Broken(f"outputs of shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        difference = (got - want).abs().max() if got.numel() else torch.zeros(())
        if not bool(torch.isfinite(difference)):
            raise _Broken("outputs that are not finite")
        return float(difference) / self.scale

    def need_state(self) -> None:
        if not self.subject.has_state:
            raise _Untried("no state")

    def need_mask(self) -> None:
        if not self.subject.takes_mask:
            raise _Untried("no mask")

    def other(self, steps: int) -> Tensor:
        return self.subject.inputs(3, steps, self.generator)

    def chunks(self, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Any]:
        outputs, state = [], self.subject.start(len(x))
        for part in x.split(list(sizes), 1):
            y, state = self.subject.go(part, state)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    def sizes(self) -> list[int]:
        """A ragged split: a long piece, single steps, a short piece, the rest."""
        first, short = self.steps // 3, max(2, self.steps // 8)
        return [first, 1, short, 1, self.steps - first - short - 2]


def _repeats(t: _Trial) -> float:
    return t.error(t.subject.whole(t.x), t.want)


def _past_matters(t: _Trial) -> float:
    """How much the last output moves when all but the last three inputs are others: the power of the other tests."""
    before = t.steps - 3
    changed = torch.cat((t.other(before), t.x[:, before:]), 1)
    moved = t.error(t.subject.whole(changed)[:, -1], t.want[:, -1])
    if moved < 100 * t.tolerance:
        raise _Broken(f"the last output moves by {moved:.0e} only, so no other test means much; try --jitter 0.1")
    raise _Kept(f"the last output moves by {moved:.2g}")


def _causal(t: _Trial) -> float:
    half = t.steps // 2
    changed = torch.cat((t.x[:, :half], t.other(t.steps - half)), 1)
    return t.error(t.subject.whole(changed)[:, :half], t.want[:, :half])


def _rows_alone(t: _Trial) -> float:
    return max(t.error(t.subject.whole(t.x[i : i + 1]), t.want[i : i + 1]) for i in range(3))


def _pads(t: _Trial, left: bool) -> float:
    """Rows of three lengths; what stands in the padding are other inputs."""
    lengths = [t.steps, t.steps - 3, t.steps // 2]
    x, mask = t.other(t.steps), torch.zeros(3, t.steps, dtype=torch.bool)
    for i, n in enumerate(lengths):
        where = slice(t.steps - n, None) if left else slice(0, n)
        x[i, where], mask[i, where] = t.x[i, :n], True
    got = t.subject.whole(x, mask if t.subject.takes_mask else None)
    return max(t.error(got[i][mask[i]], t.want[i, :n]) for i, n in enumerate(lengths))


def _right_padding(t: _Trial) -> float:
    return _pads(t, left=False)


def _left_padding(t: _Trial) -> float:
    t.need_mask()
    return _pads(t, left=True)


def _prefill(t: _Trial) -> float:
    t.need_state()
    return t.error(t.subject.go(t.x, t.subject.start(3))[0], t.want)


def _chunks(t: _Trial) -> float:
    t.need_state()
    return t.error(t.chunks(t.x, t.sizes())[0], t.want)


def _steps(t: _Trial) -> float:
    t.need_state()
    return t.error(t.chunks(t.x, [1] * t.steps)[0], t.want)


def _prefill_then_steps(t: _Trial) -> float:
    t.need_state()
    half = t.steps // 2
    return t.error(t.chunks(t.x, [half] + [1] * (t.steps - half))[0], t.want)


def _beam(t: _Trial) -> float:
    t.need_state()
    half, rows = t.steps // 2, torch.tensor([2, 0, 0])
    _, state = t.chunks(t.x[:, :half], [half])
    state, errors = t.subject.reorder(state, rows), []
    rest = t.x[:, half:]
    want = t.subject.whole(torch.cat((t.x[rows, :half], rest), 1))
    for i, part in enumerate(rest.unbind(1)):
        y, state = t.subject.go(part[:, None], state)
        errors.append(t.error(y[:, 0], want[:, half + i]))
    return max(errors)


def _old_state(t: _Trial) -> float:
    t.need_state()
    half = t.steps // 2
    _, state = t.chunks(t.x[:, :half], [half])
    t.subject.go(t.other(1), state)
    return t.error(t.subject.go(t.x[:, half : half + 1], state)[0][:, 0], t.want[:, half])


def _padded_prompt(t: _Trial) -> float:
    t.need_state(), t.need_mask()
    half, lengths = t.steps // 2, [t.steps // 2, t.steps // 2 - 1, t.steps // 4]
    x, mask = t.other(half), torch.zeros(3, half, dtype=torch.bool)
    for i, n in enumerate(lengths):
        x[i, half - n :], mask[i, half - n :] = t.x[i, :n], True
    _, state = t.subject.go(x, t.subject.start(3), mask)
    errors = []
    for s in range(t.steps - half):
        now = torch.stack([t.x[i, n + s] for i, n in enumerate(lengths)])
        y, state = t.subject.go(now[:, None], state, torch.ones(3, 1, dtype=torch.bool))
        errors += [t.error(y[i, 0], t.want[i, n + s]) for i, n in enumerate(lengths)]
    return max(errors)


def _state_size(t: _Trial) -> float:
    t.need_state()
    sizes, long = [], t.subject.inputs(1, 4 * t.steps, t.generator)
    for steps in (t.steps, 2 * t.steps, 4 * t.steps):
        _, state = t.subject.go(long[:, :steps], t.subject.start(1))
        sizes.append(t.subject.nbytes(state))
    first, second = (sizes[1] - sizes[0]) / t.steps, (sizes[2] - sizes[1]) / (2 * t.steps)
    grown = "does not grow" if first == second == 0 else f"grows by {second:,.0f} bytes a step"
    raise _Kept(f"{sizes[0]:,} bytes a row after {t.steps} steps, {grown}")


class _Kept(Exception):
    """A promise that is kept, with something to tell instead of an error."""


PROMISES: dict[str, Callable[[_Trial], float]] = {
    "the same call gives the same": _repeats,
    "the past matters": _past_matters,
    "nothing reads the future": _causal,
    "rows do not see each other": _rows_alone,
    "padding on the right changes nothing": _right_padding,
    "padding on the left changes nothing": _left_padding,
    "with a state as without": _prefill,
    "step by step as at once": _steps,
    "a prompt, then steps, as at once": _prefill_then_steps,
    "any chunks as at once": _chunks,
    "a padded prompt, then steps, as alone": _padded_prompt,
    "a beam may reorder the state": _beam,
    "an old state stays usable": _old_state,
    "size of the state": _state_size,
}


@torch.no_grad()
def probe(
    subject: Subject, *, steps: int = 24, tolerance: float = TOLERANCE, seed: int = 0
) -> list[Finding]:
    """Try every promise; whatever a model raises while one is tried counts as that promise broken.

    Raises ValueError for fewer than 16 steps, and whatever the model raises on its very first plain call.
    """
    if steps < 16:
        raise ValueError(f"the probe needs at least 16 steps, got {steps}")
    _Trial(subject, steps, tolerance, seed)  # a model that cannot be called at all is no finding
    return [_try(name, test, subject, steps, tolerance, seed) for name, test in PROMISES.items()]


def _try(
    name: str, test: Callable[[_Trial], float], subject: Subject, steps: int, tolerance: float, seed: int
) -> Finding:
    started = time.perf_counter()

    def found(kept: bool | None, detail: str, error: float | None = None) -> Finding:
        return Finding(name, kept, detail, error, time.perf_counter() - started)

    try:
        error = test(_Trial(subject, steps, tolerance, seed))
    except _Kept as told:
        return found(True, str(told))
    except _Untried as told:
        return found(None, str(told))
    except _Broken as told:
        return found(False, str(told))
    except Exception as problem:  # a model under test may raise anything
        said = " ".join(str(problem).split()) or "no message"
        return found(False, f"{type(problem).__name__}: {said}"[:160])
    return found(error <= tolerance, f"largest error {error:.0e}", error)


def render_findings(title: str, findings: Sequence[Finding]) -> str:
    """One screen: a line for each promise and a verdict."""
    words = {True: "kept", False: "BROKEN", None: "-"}
    width = max(len(f.promise) for f in findings)
    lines = [title, ""]
    lines += [f" {words[f.kept]:<6}  {f.promise:<{width}}  {f.detail}" for f in findings]
    broken = sum(f.kept is False for f in findings)
    verdict = "every promise is kept" if not broken else f"{broken} promise{'s' * (broken > 1)} broken"
    return "\n".join([*lines, "", verdict])
