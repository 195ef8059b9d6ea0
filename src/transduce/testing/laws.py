"""The laws of a mixer, one function a law; :mod:`transduce.testing.mixers` runs and reports them.

A law takes a :class:`Trial` and raises AssertionError where it is broken. ``Law.modes`` says whether it is
tried while gradients are recorded, while they are not, or both: a state may be kept in another way in each
(a cache that is written in place when nothing is recorded, and out of place when something is).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor, nn

from transduce.core import state as states
from transduce.core.protocols import Mixer
from transduce.core.state import State

from .trial import Trial


def float_leaves(state: State) -> list[Tensor]:
    return [s for s in states.leaves(state) if s.is_floating_point() or s.is_complex()]


def copy_of(state: State) -> State:
    """The same state in memory of its own, so that only law 5 speaks of a mixer that writes into old states."""
    return states.map_tensors(torch.clone, state)


def chunks(t: Trial) -> None:
    if not t.causal:
        return refuses_states(t)
    whole, end = t.mixer(t.x, t.fresh())
    for sizes in ([1] * t.steps, [t.steps - 1, 1], t.cuts(), t.cuts()):
        y, state = t.chunked(t.x, t.fresh(), sizes)
        t.agree(f"output of chunks {sizes}", y, whole)
        t.agree_states(f"state behind chunks {sizes}", state, end)
    reserved = t.mixer.init_state(t.batch, capacity=t.steps)
    y, state = t.chunked(t.x, reserved, t.cuts())
    t.agree("output of chunks with room reserved by capacity", y, whole)
    t.agree_states("state behind chunks with room reserved by capacity", state, end)


def refuses_states(t: Trial) -> None:
    """What the state laws ask of a mixer that reads the whole sequence: a clear refusal."""
    for attempt in (lambda: t.mixer.init_state(t.batch), lambda: t.mixer(t.x, (t.x[:, 0],))):
        try:
            attempt()
        except ValueError:
            continue
        raise AssertionError("a mixer that is not causal must refuse a state with ValueError")


def none_is_fresh(t: Trial) -> None:
    y, state = t.mixer(t.x)
    if state is not None:
        raise AssertionError("a call without a state must give back None")
    if y.shape[:2] != t.x.shape[:2]:
        raise AssertionError(f"an output of shape {tuple(y.shape)} for an input of shape {tuple(t.x.shape)}")
    if t.causal:
        same, after = t.mixer(t.x, t.fresh())
        t.agree("output without a state", y, same)
        if after is None:
            raise AssertionError("a call with a state must give back a state, not None")
    t.mixer.train()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            trained, _ = t.mixer(t.x)  # training mode, dropout included, must run
            if trained.requires_grad:
                trained.sum().backward()
    finally:
        t.mixer.eval()
        t.mixer.zero_grad(set_to_none=True)


def _masks(t: Trial) -> list[tuple[str, Tensor]]:
    steps = torch.arange(t.steps)
    lengths = torch.randint(1, t.steps + 1, (t.batch, 1), generator=t.generator)
    lengths[0] = t.steps
    empty = steps < lengths
    empty[-1] = False
    holes = t.flags(0.6)
    holes[:, t.steps // 2] = True
    return [
        ("on the right", steps < lengths),
        ("on the left", steps >= t.steps - lengths),
        ("in between", holes),
        ("filling a whole row", empty),
    ]


def padding(t: Trial) -> None:
    follow = t.random(t.batch, 2, t.dim)
    for label, mask in _masks(t):
        poisoned = t.x.masked_fill(~mask[..., None], float("nan"))
        start = t.used() if t.causal else None
        y, end = t.mixer(poisoned, copy_of(start), mask=mask)
        more = t.mixer(follow, copy_of(end))[0] if t.causal else follow
        for i in range(t.batch):
            before = states.select(start, [i]) if t.causal else None
            kept = t.x[i : i + 1][:, mask[i]]
            if kept.shape[1]:
                alone, before = t.mixer(kept, copy_of(before))
                t.agree(f"row {i} with padding {label}", y[i][mask[i]], alone[0])
            if t.causal:
                t.agree_states(f"state of row {i} with padding {label}", states.select(end, [i]), before)
                t.agree(
                    f"row {i} behind padding {label}",
                    more[i],
                    t.mixer(follow[i : i + 1], copy_of(before))[0][0],
                )
    if torch.is_grad_enabled():
        for label, mask in _masks(t):
            _padding_gradients(t, label, mask)


def _padding_gradients(t: Trial, label: str, mask: Tensor) -> None:
    """Without a state: NaN in the padding leaves the gradients of the weights as those of every row alone."""
    filled = t.x.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    y, _ = t.mixer(filled, mask=mask)
    weight = t.random(*y.shape)
    loss = torch.where(mask[..., None], y * weight, 0.0).sum()
    into_x, *found = t.gradients(loss, [filled, *t.weights()])
    t.agree(f"gradient into padding {label}", into_x[~mask], torch.zeros_like(into_x[~mask]))
    rows = [(t.x[i : i + 1][:, mask[i]], weight[i : i + 1][:, mask[i]]) for i in range(t.batch)]
    alone = sum((t.mixer(x)[0] * w).sum() for x, w in rows if x.shape[1])
    for a, b in zip(found, t.gradients(alone, t.weights())):
        t.agree(f"gradient with padding {label}", a, b, "mixer gradient")


def masked_step(t: Trial) -> None:
    if not t.causal:
        return
    for steps in (1, 3):
        before = t.used(t.steps)
        marks = {"mask": torch.zeros(t.batch, steps, dtype=torch.bool)}
        nothing = torch.full((t.batch, steps, t.dim), float("nan"), dtype=t.dtype)
        t.agree_states("state behind a masked step", t.mixer(nothing, copy_of(before), **marks)[1], before)
        marks["resets"] = ~marks["mask"]
        t.agree_states("state behind a masked reset", t.mixer(nothing, copy_of(before), **marks)[1], before)


def old_states(t: Trial) -> None:
    if not t.causal:
        return
    half = t.steps // 2
    _, middle = t.mixer(t.x[:, :half], t.fresh())
    twin = states.fork(middle)
    t.mixer(t.random(t.batch, t.steps - half, t.dim), middle)  # the wrong continuation
    whole, want = t.mixer(t.x, t.fresh())
    _, again = t.mixer(t.x[:, :half], t.fresh())
    t.agree_states("the old state itself after a wrong continuation", middle, again)
    for what, state in (("after a wrong continuation", middle), ("of a forked state", twin)):
        y, end = t.mixer(t.x[:, half:], state)
        t.agree(f"output {what}", y, whole[:, half:])
        t.agree_states(f"state {what}", end, want)


def rows(t: Trial) -> None:
    start = t.used() if t.causal else None
    y, end = t.mixer(t.x, copy_of(start))
    for i in range(t.batch):
        alone, _ = t.mixer(t.x[i : i + 1], states.select(start, [i]) if t.causal else None)
        t.agree(f"row {i} alone", alone[0], y[i])
    for what, neighbour in (("large", 100.0 * t.random(2, t.steps, t.dim)), ("NaN", t.x[:2] * float("nan"))):
        crowd, _ = t.mixer(torch.cat((neighbour, t.x)), t.fresh(t.batch + len(neighbour)))
        t.agree(f"rows beside {what} neighbours", crowd[len(neighbour) :], t.mixer(t.x, t.fresh())[0])
    if not t.causal:
        return
    more = t.random(t.batch, 3, t.dim)
    here, other = t.mixer(more, copy_of(end))
    order = [t.batch - 1, 0, 0]
    twice = [i for i in range(t.batch) for _ in (0, 1)]
    swap = torch.tensor([[1, 0]] * t.batch)
    keep = torch.arange(t.batch) % 2 == 0
    for what, state, index in (
        ("select", states.select(end, order), order),
        ("expand and reorder", states.reorder(states.expand(end, 2), swap), twice),
        ("split and cat", states.cat(states.split(end, [1, t.batch - 1])), list(range(t.batch))),
        ("where", states.where(keep, end, t.used(t.steps)), torch.arange(t.batch)[keep].tolist()),
    ):
        whole = what != "where"
        x = more[index] if whole else more
        there, after = t.mixer(x, state)
        if not whole:
            there, after = there[index], states.select(after, index)
        t.agree(f"output after {what}", there, here[index])
        t.agree_states(f"state after {what}", after, states.select(other, index))


def causality(t: Trial) -> None:
    x = t.x[:1].clone().requires_grad_()
    y, _ = t.mixer(x)
    reach: list[int] = []
    for at in range(t.steps):
        (grad,) = torch.autograd.grad((y[0, at] * t.random(y.shape[-1])).sum(), x, retain_graph=True)
        touched = grad[0].abs().sum(-1).nonzero()[:, 0]
        if len(touched):
            reach.append(int(touched.max()) - at)
    ahead = max(reach, default=0)
    declared = t.mixer.lookahead
    if t.causal and declared != 0:
        raise AssertionError(f"a causal mixer has lookahead 0, this one declares {declared}")
    if declared is None:
        if reach and ahead < t.steps - 1:
            raise AssertionError(f"declared to read everything, but reads only {ahead} steps ahead")
    elif ahead > declared:
        raise AssertionError(f"reads {ahead} steps ahead, declared {declared}")
    elif ahead < declared and declared < t.steps:
        raise AssertionError(f"reads only {ahead} steps ahead, declared {declared}")


def gradients(t: Trial) -> None:
    if not t.causal:
        return
    start = t.used()
    out, end = t.mixer(t.x, start)
    weight = t.random(*out.shape)
    end_weights = [t.random(*s.shape) for s in float_leaves(states.canonical(end))]
    found = []
    for sizes in ([t.steps], [1] * t.steps, t.cuts()):
        x = t.x.clone().requires_grad_()
        begin = states.map_tensors(lambda s: s.detach().clone(), start)
        learned = [s.requires_grad_() for s in float_leaves(begin)]
        y, after = t.chunked(x, begin, sizes)
        loss = (y * weight).sum()
        for s, w in zip(float_leaves(states.canonical(after)), end_weights):
            loss = loss + (s * w).real.sum() if s.is_complex() else loss + (s * w.to(s.dtype)).sum()
        found.append(t.gradients(loss, [x, *t.weights(), *learned]))
    for stepped in found[1:]:
        for a, b in zip(stepped, found[0]):
            t.agree("gradient of the stepped form", a, b, "mixer gradient")
    trained, stepped = (
        t.gradients((t.mixer(t.x, state)[0] * weight).sum(), t.weights()) for state in (None, t.fresh())
    )
    for a, b in zip(trained, stepped):
        t.agree("gradient without a state", a, b, "mixer gradient")


def resets(t: Trial) -> None:
    flags = t.flags(0.25)
    flags[:, 0] = False
    flags[0, t.steps // 2] = True
    holes = t.flags(0.7)
    holes[:, 0] = holes[0, t.steps // 2] = True
    for mask in (None, holes):
        marks = {"resets": flags} if mask is None else {"resets": flags, "mask": mask}
        results = [t.mixer(t.x, None, **marks)]
        if t.causal:
            results += [t.mixer(t.x, t.fresh(), **marks), t.chunked(t.x, t.fresh(), t.cuts(), **marks)]
        for i in range(t.batch):
            steps = torch.arange(t.steps) if mask is None else mask[i].nonzero()[:, 0]
            starts = [0, *flags[i, steps].nonzero()[:, 0].tolist(), len(steps)]
            for a, b in zip(starts, starts[1:]):
                alone, state = t.mixer(t.x[i : i + 1, steps[a:b]], t.fresh(1))
                for y, _ in results:
                    t.agree(f"row {i}, history of steps {a} to {b - 1}", y[i, steps[a:b]], alone[0])
            for _, end in results[1:]:
                t.agree_states(f"state of row {i} after resets", states.select(end, [i]), state)
    if t.causal:  # the first step of a chunk may be a reset, too
        first = torch.zeros(t.batch, t.steps, dtype=torch.bool)
        first[:, 0] = True
        y, end = t.mixer(t.x, t.used(4), resets=first)
        want, state = t.mixer(t.x, t.fresh())
        t.agree("output after a reset at once", y, want)
        t.agree_states("state after a reset at once", end, state)


def growth(t: Trial) -> None:
    if not t.causal:
        return
    sizes: dict[int, int] = {}
    room: dict[int, int] = {}
    state = t.fresh()
    for step in range(1, 41):
        _, state = t.mixer(t.random(t.batch, 1, t.dim), state)
        sizes[step], room[step] = states.nbytes(state), states.allocated(state)
    grown, declared = (sizes[40] - sizes[20]) / 20 / t.batch, t.mixer.bytes_per_step
    if grown != declared:
        raise AssertionError(f"the state grows by {grown:g} bytes a step and row, declared {declared}")
    if declared == 0 and room[40] != room[20]:
        raise AssertionError("the state is declared constant, but what it allocates grows")
    if room[40] > 4 * sizes[40] + 65536:
        raise AssertionError(f"{room[40]} bytes are allocated for a state of {sizes[40]}")


class _Step(nn.Module):
    def __init__(self, mixer: Mixer, like: State) -> None:
        super().__init__()
        self.mixer, self.like = mixer, like

    def forward(self, x: Tensor, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, after = self.mixer(x, states.unflatten(self.like, leaves))
        return y, states.leaves(after)


def export(t: Trial) -> None:
    if not t.causal:
        return
    _, state = t.mixer(t.x[:, :3], t.fresh())
    step = _Step(t.mixer, state)
    program = torch.export.export(step, (t.x[:, 3:4].clone(), [s.clone() for s in states.leaves(state)]))
    later = t.used()
    y, after = program.module()(t.x[:, 4:5], [s.clone() for s in states.leaves(later)])
    want, want_after = t.mixer(t.x[:, 4:5], later)
    t.agree("output of the exported step", y, want)
    for a, b in zip(after, states.leaves(want_after)):
        t.agree("state of the exported step", a, b)


@dataclass(frozen=True)
class Law:
    """``check`` is tried once for each of ``modes``: whether gradients are recorded."""

    name: str
    check: Callable[[Trial], None]
    modes: tuple[bool, ...] = (True, False)
    needs_state: bool = False


LAWS: tuple[Law, ...] = (
    Law("any chunking gives the same", chunks),
    Law("None is a fresh state", none_is_fresh),
    Law("padding changes nothing", padding),
    Law("a masked step changes nothing", masked_step, needs_state=True),
    Law("an old state stays usable", old_states, needs_state=True),
    Law("rows do not see each other", rows),
    Law("lookahead is as declared", causality, modes=(True,)),
    Law("gradients of steps and whole agree", gradients, modes=(True,), needs_state=True),
    Law("a reset is a new sequence", resets),
    Law("the state grows as declared", growth, modes=(False,), needs_state=True),
    Law("one step can be exported", export, modes=(False,), needs_state=True),
)
