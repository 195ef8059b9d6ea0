"""Lattice: a memory of a few slots that takes in only what they do not hold yet."""

from __future__ import annotations

from functools import partial
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.state import State
from transduce.ops.orthogonal import initial_slots, orthogonal_update
from transduce.ops.orthogonal_frozen import FrozenState, frozen_update

from .convolution import CausalConv
from .delta import HeadOutput, MemoryState, advancing, memory_like


def _unit(x: Tensor) -> Tensor:
    x = F.silu(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


_KEYS: dict[str, Callable[[Tensor], Tensor]] = {"unit": _unit, "softmax": partial(torch.softmax, dim=-1)}


class Lattice(Mixer):
    """Each head keeps ``slots`` vectors s_i, read by direction u_i = s_i / |s_i| and written at right angles::

        e    = v - sum_i k_i u_i
        s_i <- a s_i + r (k_i / |s_i|) (e - (u_i . e) u_i)
        y    = sum_i q_i u_i                                      out = W_o (SiLU(W_g x) * rms_norm(y))

    Karami and Mirrokni 2025 (arXiv 2504.05646), from the abstract and public summaries: constants may differ.
    q, k and v come from a short causal convolution, q and k over the slots; r = sigmoid and log a = -softplus are a
    number a head. The slots start from orthonormal ones, which are learned.

    x: (B,T,dim) -> (B,T,dim). State: the tail of the convolution and the slots (B,H,M,D) with D = dim / heads
    (:class:`MemoryState`), or a :class:`~transduce.ops.orthogonal_frozen.FrozenState` with ``chunk``.

    Args:
        dim, heads: width of the layer, and heads that share it.
        slots: M.
        kernel: taps of the convolution.
        chunk: None is the exact update, one step after the other. A number computes in parallel inside chunks of
            so many steps, with norms and directions as they are at the start of the chunk: an approximation, whose
            error grows with the chunk. 1 is exact.
        project: False leaves the projection (u_i . e) u_i out, for comparison.
        forget: False keeps a = 1. Slots then only grow, and turn less and less.
        keys: "unit": q and k pass SiLU and then have norm 1; "softmax": they are shares of the slots.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        slots: int = 16,
        *,
        kernel: int = 4,
        chunk: int | None = None,
        project: bool = True,
        forget: bool = True,
        keys: str = "unit",
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"Lattice needs a width that is a multiple of its {heads} heads, got {dim}")
        if chunk is not None and not project:
            raise ValueError("the chunks of Lattice need its projection; leave chunk out with project=False")
        self.heads, self.slots, self.width = heads, slots, dim // heads
        if keys not in _KEYS:
            raise ValueError(f'keys is one of {", ".join(map(repr, _KEYS))}, not {keys!r}')
        self.chunk, self.project, self.keys = chunk, project, _KEYS[keys]
        size = heads * (2 * slots + self.width)
        self.input = nn.Linear(dim, size, bias=False)
        self.conv = CausalConv(size, kernel)
        self.rate = nn.Linear(dim, heads)
        self.decay = nn.Linear(dim, heads) if forget else None
        self.fresh = nn.Parameter(initial_slots(slots, self.width).repeat(heads, 1, 1))
        self.output = HeadOutput(dim, heads, self.width)
        nn.init.constant_(self.rate.bias, 2.0)  # a slot takes most of the news from the first
        if self.decay is not None:
            nn.init.constant_(self.decay.bias, -5.0)  # a memory of about 150 steps at first

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        slots = self.fresh.to(memory_like(self.fresh, 0).dtype).expand(batch, -1, -1, -1)
        memory = slots.clone() if self.chunk is None else FrozenState.fresh(slots)
        return MemoryState(self.conv.init_state(batch), memory)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, mask, resets = advancing(x, state, mask, resets)
        tail, memory = (None, None) if state is None else state
        z, tail = self.conv(self.input(x), tail, mask=mask, resets=resets)
        keys, v = z.split((2 * self.heads * self.slots, self.heads * self.width), -1)
        keys = self.keys(keys.unflatten(-1, (self.heads, 2, self.slots)))
        rate = torch.sigmoid(self.rate(x))
        decay = torch.zeros_like(rate) if self.decay is None else -F.softplus(self.decay(x))
        inputs = keys, v.unflatten(-1, (self.heads, self.width)), torch.stack((rate, decay), -1), self.fresh
        if self.chunk is None:
            y, memory = orthogonal_update(*inputs, memory, project=self.project, mask=mask, resets=resets)
        else:
            y, memory = frozen_update(*inputs, memory, chunk=self.chunk, mask=mask, resets=resets)
        return self.output(y, x), None if state is None else MemoryState(tail, memory)
