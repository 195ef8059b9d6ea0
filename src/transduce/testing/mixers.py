"""The eleven laws of a mixer: what makes any chunking, any batch neighbour and any padding give the same
answer.

::

    check_mixer(lambda dim: MinGRU(dim), dim=16)          # raises AssertionError naming the first broken law
    mixer_laws(MinGRU, 16)                                # a result for every law

``transduce laws module:Factory --dim 32`` prints the same on one screen. A mixer that is not causal has no
state; the laws that speak of states then check that it says so. All checks run in evaluation mode with
random weights and inputs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from torch import Tensor, nn

from transduce.core import state as states
from transduce.core.protocols import Mixer
from transduce.core.state import State

from .tolerances import tolerance

Factory = Callable[[int], Mixer]


@dataclass(frozen=True)
class LawResult:
    """How one law went. ``detail`` says in numbers what was found."""

    number: int
    name: str
    passed: bool
    detail: str
    seconds: float


class Trial:
    """One mixer with inputs: ``x`` (B,T,D), its dtype's tolerances and a generator for everything random."""

    def __init__(
        self, factory: Factory, dim: int, dtype: torch.dtype, seed: int, batch: int, steps: int
    ) -> None:
        torch.manual_seed(seed)
        self.mixer = factory(dim).to(dtype).eval()
        self.dim, self.dtype, self.batch, self.steps = dim, dtype, batch, steps
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.x = self.random(batch, steps, dim)
        self.worst = 0.0

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=self.dtype, generator=self.generator)

    def flags(self, share: float, steps: int | None = None) -> Tensor:
        """Random bool (B,T), True with the given probability."""
        return torch.rand(self.batch, steps or self.steps, generator=self.generator) < share

    def cuts(self) -> list[int]:
        """Lengths of a random ragged split of the steps."""
        sizes: list[int] = []
        while (left := self.steps - sum(sizes)) > 0:
            sizes.append(min(left, int(torch.randint(1, 5, (), generator=self.generator))))
        return sizes

    def fresh(self, batch: int | None = None) -> State:
        return self.mixer.init_state(batch or self.batch)

    def agree(self, what: str, got: Tensor, want: Tensor, kind: str = "mixer") -> None:
        """Equal up to the tolerance of this dtype, relative to the size of the wanted values."""
        if got.shape != want.shape:
            raise AssertionError(f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if not got.numel():
            return
        if got.dtype == torch.bool or not (got.is_floating_point() or got.is_complex()):
            if not torch.equal(got, want):
                raise AssertionError(f"{what} differs")
            return
        if not bool(torch.isfinite(got).all()):
            raise AssertionError(f"{what} is not finite")
        error = float((got.detach() - want.detach()).abs().max() / want.detach().abs().max().clamp_min(1.0))
        self.worst = max(self.worst, error)
        if error > tolerance(kind, self.dtype):
            raise AssertionError(f"{what} is off by {error:.1e}")

    def agree_states(self, what: str, got: State, want: State) -> None:
        mine, other = states.leaves(states.canonical(got)), states.leaves(states.canonical(want))
        if len(mine) != len(other):
            raise AssertionError(f"{what}: {len(mine)} tensors, expected {len(other)}")
        for a, b in zip(mine, other):
            self.agree(what, a, b)


def run_chunks(mixer: Mixer, x: Tensor, state: State, sizes: Sequence[int]) -> tuple[Tensor, State]:
    """Feed ``x`` in chunks of the given lengths."""
    outputs: list[Tensor] = []
    for part in x.split(list(sizes), 1):
        y, state = mixer(part, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


# ---------------------------------------------------------------- the laws


def chunks(t: Trial) -> None:
    if not t.mixer.causal:
        return refuses_states(t)
    whole, end = t.mixer(t.x, t.fresh())
    for sizes in ([1] * t.steps, [t.steps - 1, 1], t.cuts(), t.cuts()):
        y, state = run_chunks(t.mixer, t.x, t.fresh(), sizes)
        t.agree(f"output of chunks {sizes}", y, whole)
        t.agree_states(f"state behind chunks {sizes}", state, end)


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
    if t.mixer.causal:
        t.agree("output without a state", y, t.mixer(t.x, t.fresh())[0])
    t.mixer.train()
    try:
        trained, _ = t.mixer(t.x)  # training mode, dropout included, must run
        if trained.requires_grad:
            trained.sum().backward()
    finally:
        t.mixer.eval()
        t.mixer.zero_grad(set_to_none=True)


def padding(t: Trial) -> None:
    right = torch.arange(t.steps)[None, :] < torch.randint(
        1, t.steps + 1, (t.batch, 1), generator=t.generator
    )
    right[0] = True
    holes = t.flags(0.6)
    holes[:, int(t.steps // 2)] = True
    for label, mask in (("on the right", right), ("in between", holes)):
        if label == "in between" and not t.mixer.causal:
            continue
        poisoned = t.x.masked_fill(~mask[..., None], float("nan"))
        y, end = t.mixer(poisoned, t.fresh() if t.mixer.causal else None, mask=mask)
        for i in range(t.batch):
            alone, state = t.mixer(t.x[i : i + 1][:, mask[i]], t.fresh(1) if t.mixer.causal else None)
            t.agree(f"row {i} with padding {label}", y[i][mask[i]], alone[0])
            if t.mixer.causal:
                t.agree_states(f"state of row {i} with padding {label}", states.select(end, [i]), state)
        weight = t.random(*y.shape)
        grads = []
        for filler in (float("nan"), 1e3):
            filled = t.x.masked_fill(~mask[..., None], filler).requires_grad_()
            loss = torch.where(mask[..., None], t.mixer(filled, mask=mask)[0] * weight, 0.0).sum()
            wanted = [filled, *(p for p in t.mixer.parameters() if p.requires_grad)]
            grads.append(torch.autograd.grad(loss, wanted, allow_unused=True))
        for a, b in zip(*grads):
            if b is not None:
                t.agree(f"gradient with padding {label}", a, b, "mixer gradient")


def masked_step(t: Trial) -> None:
    if not t.mixer.causal:
        return
    _, before = t.mixer(t.x, t.fresh())
    nothing = torch.zeros(t.batch, 1, dtype=torch.bool)
    _, after = t.mixer(torch.full((t.batch, 1, t.dim), float("nan"), dtype=t.dtype), before, mask=nothing)
    t.agree_states("state behind a masked step", after, before)


def old_states(t: Trial) -> None:
    if not t.mixer.causal:
        return
    half = t.steps // 2
    _, middle = t.mixer(t.x[:, :half], t.fresh())
    t.mixer(t.random(t.batch, t.steps - half, t.dim), middle)  # the wrong continuation
    y, end = t.mixer(t.x[:, half:], middle)
    whole, want = t.mixer(t.x, t.fresh())
    t.agree("output after a wrong continuation", y, whole[:, half:])
    t.agree_states("state after a wrong continuation", end, want)


def rows(t: Trial) -> None:
    fresh = (lambda n: t.fresh(n)) if t.mixer.causal else (lambda n: None)
    y, end = t.mixer(t.x, fresh(t.batch))
    for i in range(t.batch):
        alone, _ = t.mixer(t.x[i : i + 1], fresh(1))
        t.agree(f"row {i} alone", alone[0], y[i])
    crowd = torch.cat((100.0 * t.random(2, t.steps, t.dim), t.x))
    t.agree("rows beside large neighbours", t.mixer(crowd, fresh(t.batch + 2))[0][2:], y)
    if not t.mixer.causal:
        return
    order = [t.batch - 1, 0, 0]
    more = t.random(t.batch, 3, t.dim)
    there, state = t.mixer(more[order], states.select(end, order))
    here, other = t.mixer(more, end)
    t.agree("output after select", there, here[order])
    t.agree_states("state after select", state, states.select(other, order))


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
    if t.mixer.causal and declared != 0:
        raise AssertionError(f"a causal mixer has lookahead 0, this one declares {declared}")
    if declared is None:
        if reach and ahead < t.steps - 1:
            raise AssertionError(f"declared to read everything, but reads only {ahead} steps ahead")
    elif ahead > declared:
        raise AssertionError(f"reads {ahead} steps ahead, declared {declared}")
    elif ahead < declared and declared < t.steps:
        raise AssertionError(f"reads only {ahead} steps ahead, declared {declared}")


def gradients(t: Trial) -> None:
    if not t.mixer.causal:
        return
    _, start = t.mixer(t.random(t.batch, 3, t.dim), t.fresh())
    weight = None
    found = []
    for sizes in ([t.steps], [1] * t.steps):
        x = t.x.clone().requires_grad_()
        begin = states.map_tensors(lambda s: s.detach().clone(), start)
        learned = [
            s.requires_grad_() for s in states.leaves(begin) if s.is_floating_point() or s.is_complex()
        ]
        y, _ = run_chunks(t.mixer, x, begin, sizes)
        weight = t.random(*y.shape) if weight is None else weight
        wanted = [x, *(p for p in t.mixer.parameters() if p.requires_grad), *learned]
        grads = torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True)
        found.append([torch.zeros_like(w) if g is None else g for g, w in zip(grads, wanted)])
    for whole, stepped in zip(*found):
        t.agree("gradient of the stepped form", stepped, whole, "mixer gradient")


def resets(t: Trial) -> None:
    flags = t.flags(0.25)
    flags[:, 0] = False
    flags[0, t.steps // 2] = True
    y, end = t.mixer(t.x, t.fresh() if t.mixer.causal else None, resets=flags)
    for i in range(t.batch):
        starts = [0, *flags[i].nonzero()[:, 0].tolist(), t.steps]
        for a, b in zip(starts, starts[1:]):
            alone, state = t.mixer(t.x[i : i + 1, a:b], t.fresh(1) if t.mixer.causal else None)
            t.agree(f"row {i}, segment {a}:{b}", y[i, a:b], alone[0])
        if t.mixer.causal:
            t.agree_states(f"state of row {i} after resets", states.select(end, [i]), state)
    if t.mixer.causal:  # the first step of a chunk may be a reset, too
        _, old = t.mixer(t.random(t.batch, 4, t.dim), t.fresh())
        first = torch.zeros(t.batch, t.steps, dtype=torch.bool)
        first[:, 0] = True
        t.agree(
            "output after a reset at once", t.mixer(t.x, old, resets=first)[0], t.mixer(t.x, t.fresh())[0]
        )


def growth(t: Trial) -> None:
    if not t.mixer.causal:
        return
    sizes: dict[int, int] = {}
    room: dict[int, int] = {}
    state = t.fresh()
    for step in range(1, 41):
        _, state = t.mixer(t.random(t.batch, 1, t.dim), state)
        sizes[step], room[step] = states.nbytes(state), states.allocated(state)
    grown = (sizes[40] - sizes[20]) / 20 / t.batch
    if grown != t.mixer.bytes_per_step:
        raise AssertionError(
            f"the state grows by {grown:g} bytes a step and row, declared {t.mixer.bytes_per_step}"
        )
    if t.mixer.bytes_per_step == 0 and room[40] != room[20]:
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
    if not t.mixer.causal:
        return
    with torch.no_grad():
        _, state = t.mixer(t.x[:, :3], t.fresh())
        step = _Step(t.mixer, state)
        program = torch.export.export(step, (t.x[:, 3:4].clone(), [s.clone() for s in states.leaves(state)]))
        _, later = t.mixer(t.random(t.batch, 3, t.dim), t.fresh())
        copies = lambda: [s.clone() for s in states.leaves(later)]
        y, after = program.module()(t.x[:, 4:5], copies())
        want, want_after = step(t.x[:, 4:5], copies())
    t.agree("output of the exported step", y, want)
    for a, b in zip(after, want_after):
        t.agree("state of the exported step", a, b)


LAWS: tuple[tuple[str, Callable[[Trial], None]], ...] = (
    ("any chunking gives the same", chunks),
    ("None is a fresh state", none_is_fresh),
    ("padding changes nothing", padding),
    ("a masked step changes nothing", masked_step),
    ("an old state stays usable", old_states),
    ("rows do not see each other", rows),
    ("lookahead is as declared", causality),
    ("gradients of steps and whole agree", gradients),
    ("a reset is a new sequence", resets),
    ("the state grows as declared", growth),
    ("one step can be exported", export),
)


def mixer_laws(
    factory: Factory,
    dim: int = 16,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    batch: int = 3,
    steps: int = 11,
) -> list[LawResult]:
    """Try every law on ``factory(dim)``; a law that raises anything is broken."""
    results: list[LawResult] = []
    for number, (name, law) in enumerate(LAWS, 1):
        started = time.perf_counter()
        trial = Trial(factory, dim, dtype, seed, batch, steps)
        try:
            law(trial)
            skipped = not trial.mixer.causal and law in (masked_step, old_states, gradients, growth, export)
            detail = "no state, not causal" if skipped else f"largest difference {trial.worst:.0e}"
            passed = True
        except AssertionError as broken:
            passed, detail = False, str(broken).splitlines()[0] if str(broken) else "an assertion failed"
        except Exception as problem:  # a layer under test may raise anything
            passed, detail = (
                False,
                f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}",
            )
        results.append(LawResult(number, name, passed, detail, time.perf_counter() - started))
    return results


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
    broken = [
        r for r in mixer_laws(factory, dim, dtype=dtype, seed=seed, batch=batch, steps=steps) if not r.passed
    ]
    assert not broken, "; ".join(f'law {r.number} "{r.name}": {r.detail}' for r in broken)


def render_laws(title: str, results: Sequence[LawResult]) -> str:
    """One screen: a line for each law and a verdict."""
    lines = [title, ""]
    for r in results:
        lines.append(f" {'ok    ' if r.passed else 'BROKEN'} {r.number:>2}  {r.name:<36} {r.detail[:100]}")
    broken = [r.number for r in results if not r.passed]
    verdict = "all laws hold" if not broken else f"broken: law {', '.join(map(str, broken))}"
    return "\n".join([*lines, "", verdict])
