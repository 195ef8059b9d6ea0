"""Recurrence over depth: one block applied again and again, with a code of the step and halting per position.

::

    loop = DepthLoop(DepthBlock(Attention(64, 4, position=None), Pointwise(FeedForward(64)), norm), 64,
                     steps=6, halting=Halting(64))
    y, state = loop(x, loop.init_state(batch))

Every depth step has keys and values of its own, since the same position has another content there, so the
state holds one state of the block's mixers for each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.side import side
from transduce.core.state import State
from transduce.core.tap import tap
from transduce.nn.attend import Attend, AttendState
from transduce.nn.masking import positions, valid_resets
from transduce.nn.position import sinusoidal


class DepthBlock(nn.Module):
    """a = norm(x + mix(x)),  [a = norm(a + attend(a, memory)),]  y = norm(a + transition(a)): post-norm.

    Vaswani et al. 2017 (section 3.1), the step of Dehghani et al. 2019 (arXiv 1807.03819, section 2.1).

    Args:
        mixer: self-attention, or any other mixer.
        transition: what follows it, a mixer too: ``Pointwise(FeedForward(..))`` or a convolution.
        norm: makes one norm for each part.
        attend: attention to a memory that does not remember earlier weights, or None.
        dropout: on the output of each part.
    """

    def __init__(
        self,
        mixer: Mixer,
        transition: Mixer,
        norm: Callable[[], nn.Module],
        attend: Attend | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if attend is not None and attend.remembers:
            raise ValueError(
                "attention inside a depth loop is read once a depth step, so it cannot remember the weights of earlier "
                "target symbols; take one without coverage or location"
            )
        self.mixer, self.transition, self.attend = mixer, transition, attend
        self.mixer_norm, self.transition_norm = norm(), norm()
        self.attend_norm = norm() if attend is not None else None
        self.dropout = nn.Dropout(dropout)

    def init_state(self, batch: int, capacity: int | None) -> tuple[State, State]:
        return (
            self.mixer.init_state(batch, capacity=capacity),
            self.transition.init_state(batch, capacity=capacity),
        )

    def forward(
        self,
        x: Tensor,
        state: tuple[State, State] | None,
        memory: AttendState | None,
        mask: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, tuple[State, State] | None]:
        before = (None, None) if state is None else state
        mixed, mixer_state = self.mixer(x, before[0], mask=mask, resets=resets)
        x = self.mixer_norm(x + self.dropout(mixed))
        if self.attend is not None:
            context, _ = self.attend(x, memory, mask=mask)
            x = self.attend_norm(x + self.dropout(context))
        # Norms of masked steps are finite garbage; a mixer of the transition zeroes them itself.
        moved, transition_state = self.transition(x, before[1], mask=mask, resets=resets)
        x = self.transition_norm(x + self.dropout(moved))
        return x, None if state is None else (mixer_state, transition_state)


class Halting(nn.Module):
    """p = sigmoid(w . h + b), the share of a position's halting that one more depth step spends.

    Graves 2016 (arXiv 1603.08983, section 2.1), per position as in Dehghani et al. 2019 (section 2.2). A
    position stops at the first step at which the sum of its p exceeds ``1 - epsilon``, at the last step at
    the latest. b starts at ``bias``: at 1, as published, an untrained model stops after two steps and then has to
    find out that a third one would help; with a negative one it begins with many steps, and the ponder loss takes away
    those that it can do without.
    """

    def __init__(self, dim: int, epsilon: float = 0.01, bias: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < epsilon < 1.0:
            raise ValueError(f"epsilon must lie between 0 and 1, got {epsilon}")
        self.threshold = 1.0 - epsilon
        self.score = nn.Linear(dim, 1)
        nn.init.constant_(self.score.bias, bias)

    def forward(self, h: Tensor) -> Tensor:
        """(B,T,D) -> (B,T), in float32 at least: sums of it are compared with a threshold."""
        score = self.score(h)[..., 0]
        return torch.sigmoid(score.to(torch.promote_types(score.dtype, torch.float32)))


@dataclass(frozen=True)
class DepthState:
    """``count`` (B,): the position of the next step. ``steps``: the block's state at each depth step."""

    count: Tensor
    steps: tuple[State, ...]


class DepthLoop(Mixer):
    """h^s = block(h^{s-1} + c (code(position) + code(s))), s = 1..S, with one set of weights.

    Dehghani et al. 2019 (arXiv 1807.03819, section 2): both codes are sinusoids and are added anew at every
    step, there with c = 1.

    With ``halting`` each position spends weights w_s that sum to 1 on its steps (at the last one, whatever is
    left), keeps its h from where it halts on, and the output is the running blend of the authors' code,
    ``out <- w_s h^s + (1 - w_s) out``, begun at zero. Each position's cost, its steps plus the weight of the
    last one, is offered as the side loss "ponder" and tapped as ``ponder`` (B,T); the weights are tapped as
    ``halting`` (B,T,S) and the number of steps as ``depth`` (B,T).

    Args:
        block: the step.
        dim: width of its input.
        steps: S, depth steps, or the most of them under halting.
        halting: decides where a position stops; None takes all steps and returns h^S.
        offset: while training, each row's positions begin at a random number up to this one, so that a longer
            sequence meets trained codes later (section 4.3). The state keeps it.
        codes: c. Codes of full size come on top of what every step has found; where the symbols themselves say who
            they are, a small c learns far sooner.

    Under ``forward``, ``memory`` is the state of the block's attention. All depth steps read it alike, so its
    keys and values exist once.
    """

    def __init__(
        self,
        block: DepthBlock,
        dim: int,
        steps: int,
        *,
        halting: Halting | None = None,
        offset: int = 0,
        codes: float = 1.0,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"a depth loop takes at least one step, got {steps}")
        if offset < 0:
            raise ValueError(f"the largest offset of positions is at least 0, got {offset}")
        parts = (block.mixer, block.transition)
        self.block, self.dim, self.steps, self.halting, self.offset = block, dim, steps, halting, offset
        self.codes = codes
        self.causal = all(m.causal for m in parts)
        ahead = [m.lookahead for m in parts]
        self.lookahead = None if None in ahead else steps * sum(ahead)

    @property
    def bytes_per_step(self) -> int:
        return self.steps * (self.block.mixer.bytes_per_step + self.block.transition.bytes_per_step)

    def init_state(self, batch: int, *, capacity: int | None = None) -> DepthState:
        if not self.causal:
            raise ValueError(
                "a depth loop over a mixer that sees the future has no state; call it with the whole sequence"
            )
        device = next(self.block.parameters()).device
        return DepthState(
            self._begin(batch, device),
            tuple(self.block.init_state(batch, capacity) for _ in range(self.steps)),
        )

    def forward(
        self,
        x: Tensor,
        state: DepthState | None = None,
        *,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        memory: AttendState | None = None,
    ) -> tuple[Tensor, DepthState | None]:
        if state is not None and not self.causal:
            raise ValueError(
                "a depth loop over a mixer that sees the future cannot continue a state; give it the whole sequence"
            )
        if self.block.attend is not None and memory is None:
            raise ValueError("this depth loop attends to a memory: pass the state of its attention")
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        begun = state.count if state is not None else None
        if begun is None and self.training and self.offset:
            begun = self._begin(x.shape[0], x.device)
        position, count = positions(x, begun, mask, resets)
        place = sinusoidal(position, self.dim, x.dtype)
        blend = _Blend(self.halting, x) if self.halting is not None else None
        after: list[State] = []
        for s in range(self.steps):
            step = torch.full((1, 1), s + 1, device=x.device)
            code = self.codes * zero_masked((place + sinusoidal(step, self.dim, x.dtype)).expand_as(x), mask)
            before = None if state is None else state.steps[s]
            y, now = self.block(x + code, before, memory, mask, resets)
            after.append(now)
            y = zero_masked(y, mask)
            x = y if blend is None else blend.add(x, y, last=s == self.steps - 1)
            # Without a state nobody needs the keys of the steps that every position skips.
            if blend is not None and state is None and blend.finished(mask):
                break
        if blend is not None:
            x = blend.finish(self, mask)
        return x, None if state is None else DepthState(count, tuple(after))

    def _begin(self, batch: int, device: torch.device) -> Tensor:
        if self.training and self.offset:
            return torch.randint(0, self.offset + 1, (batch,), device=device)
        return torch.zeros(batch, dtype=torch.long, device=device)


class _Blend:
    """The running blend of the positions of one chunk; lives for one forward pass."""

    def __init__(self, halting: Halting, x: Tensor) -> None:
        self.halting = halting
        self.out = torch.zeros_like(x)
        self.running = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        self.spent = torch.zeros(
            x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device
        )
        self.remainder, self.depth = self.spent, self.spent
        self.weights: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor, *, last: bool) -> Tensor:
        """One depth step from x to y: positions that still run take it. Returns what the next step reads."""
        p, zero = self.halting(y), torch.zeros_like(self.spent)
        stops = self.running if last else self.running & (self.spent + p > self.halting.threshold)
        weight = torch.where(self.running, torch.where(stops, 1.0 - self.spent, p), zero)
        self.remainder = torch.where(stops, weight, self.remainder)
        self.depth = self.depth + self.running.to(self.depth.dtype)
        self.spent = self.spent + weight
        self.weights.append(weight)
        share = weight[..., None].to(y.dtype)
        self.out = share * y + (1.0 - share) * self.out
        x = torch.where(self.running[..., None], y, x)
        self.running = self.running & ~stops
        return x

    def finished(self, mask: Tensor | None) -> bool:
        """Whether nobody runs any more. It looks at the values, which a traced graph cannot hold."""
        if torch.compiler.is_compiling():
            return False
        return not bool((self.running if mask is None else self.running & mask).any())

    def finish(self, module: nn.Module, mask: Tensor | None) -> Tensor:
        ponder = tap(module, "ponder", self.depth + self.remainder)
        tap(module, "depth", self.depth)
        tap(module, "halting", torch.stack(self.weights, -1))
        side("ponder", ponder, mask)
        return self.out
