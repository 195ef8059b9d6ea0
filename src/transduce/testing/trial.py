"""One mixer under test, with its inputs and the measure of agreement."""

from __future__ import annotations

from typing import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from transduce.core import state as states
from transduce.core.errors import UserError
from transduce.core.protocols import Mixer
from transduce.core.state import State

from .tolerances import tolerance

Factory = Callable[[int], Mixer]

JITTER = 0.1
"""Noise of this size is added to all weights, or whatever starts at zero or one would go untested."""


class Trial:
    """One mixer with inputs: ``x`` (B,T,D), its dtype's tolerances and a generator for everything random."""

    def __init__(
        self, factory: Factory, dim: int, dtype: torch.dtype, seed: int, batch: int, steps: int
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = factory(dim)
        if not isinstance(made, Mixer):
            raise UserError(
                f"The laws are about mixers, and this factory makes a {type(made).__name__}: derive it from "
                "transduce.core.protocols.Mixer, or wrap a function of single positions in transduce.nn.Pointwise."
            )
        self.mixer = made.to(dtype).eval()
        self.dim, self.dtype, self.batch, self.steps = dim, dtype, batch, steps
        self.generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for p in self.mixer.parameters():
                noise = torch.randn(p.shape, generator=self.generator, dtype=torch.float64)
                p.add_(JITTER * noise.to(p.dtype))
        self.x = self.random(batch, steps, dim)
        self.causal = self.mixer.causal
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
        """A state before the first step; None for a mixer that keeps none."""
        return self.mixer.init_state(batch or self.batch) if self.causal else None

    def used(self, steps: int = 3) -> State:
        """A state with random history behind it."""
        return self.mixer(self.random(self.batch, steps, self.dim), self.fresh())[1]

    def chunked(self, x: Tensor, state: State, sizes: Sequence[int], **marks: Tensor) -> tuple[Tensor, State]:
        """Feed ``x``, and ``mask`` or ``resets`` with it, in chunks of the given lengths."""
        outputs: list[Tensor] = []
        cut = {name: flags.split(list(sizes), 1) for name, flags in marks.items()}
        for i, part in enumerate(x.split(list(sizes), 1)):
            y, state = self.mixer(part, state, **{name: parts[i] for name, parts in cut.items()})
            outputs.append(y)
        return torch.cat(outputs, 1), state

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
        if not self.causal:
            return
        mine, other = states.leaves(states.canonical(got)), states.leaves(states.canonical(want))
        if len(mine) != len(other):
            raise AssertionError(f"{what}: {len(mine)} tensors, expected {len(other)}")
        for a, b in zip(mine, other):
            self.agree(what, a, b)

    def gradients(self, loss: Tensor, wanted: Iterable[Tensor]) -> list[Tensor]:
        """Gradients of ``loss``, zeros for what it does not depend on."""
        wanted = list(wanted)
        if not loss.requires_grad:
            return [torch.zeros_like(w) for w in wanted]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted)]

    def weights(self) -> list[nn.Parameter]:
        return [p for p in self.mixer.parameters() if p.requires_grad]
