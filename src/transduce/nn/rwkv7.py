"""RWKV-7: the generalised delta rule with everything read from the input, each from its own mixture of two steps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.state import State
from transduce.ops.delta_general import generalised_delta_rule

from .delta import advancing, memory_like
from .token_shift import TokenShift

_ROLES = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""What is read from a mixture of two steps of its own, and the power of a channel's place in (0, 1) that the share of
the later step starts at, as in the released code's first layer."""


class RWKV7State(NamedTuple):
    """``last`` (B,dim): the input of the step before; ``memory`` (B,H,K,K), float32 at least, keys as rows."""

    last: Tensor
    memory: Tensor


class LowRank(nn.Module):
    """bias + B f(A x), rank much smaller than the width; without ``bias`` just B f(A x)."""

    def __init__(self, dim: int, rank: int, activation: str | None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.activation = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, None: nn.Identity()}[activation]
        self.down, self.up = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)
        self.bias = None if bias is None else nn.Parameter(bias)
        nn.init.zeros_(self.down.weight)
        nn.init.orthogonal_(self.up.weight, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.activation(self.down(x)))
        return y if self.bias is None else y + self.bias


class RWKV7(Mixer):
    """RWKV-7's time mixing (Peng et al. 2025, arXiv 2503.14456, section 4). With x^i_t = mu_i x_t + (1 - mu_i) x_(t-1)
    for each of the roles r, w, k, v, a, g, in every head::

        w = exp(-e^(-1/2) sigmoid(w_0 + B_w tanh(A_w x^w)))           a = sigmoid(a_0 + B_a A_a x^a)
        k' = W_k x^k,  e = normalise(k' xi),  k = k' (1 + (a - 1) alpha),  v = W_v x^v,  r = W_r x^r
        S_t = (diag(w) - (a e) e^T) S_(t-1) + k v^T                   y = S_t^T r
        out = W_o (g (group_norm(y) + (r . (rho k)) v)),              g = B_g sigmoid(A_g x^g)

    The released models also blend the first layer's values into those of every later one; a mixer sees only its own
    input, so that is left out here, which is exactly their first layer.

    x: (B,T,dim) -> (B,T,dim). State: :class:`RWKV7State`. ``head_width``: K, a divisor of ``dim``. ``rank``: of
    the four small maps, dim / 8 by default and at least 16. Raises ValueError where K does not divide the width.
    """

    def __init__(self, dim: int, head_width: int | None = None, *, rank: int | None = None) -> None:
        super().__init__()
        width = min(64, max(16, dim // 4)) if head_width is None else head_width
        if dim % width:
            raise ValueError(f"RWKV7 needs a width that is a multiple of its heads' {width}, got {dim}")
        rank = max(16, dim // 8) if rank is None else rank
        self.heads, self.width = dim // width, width
        self.shift = TokenShift(dim, len(_ROLES))
        place = torch.arange(dim) / dim
        with torch.no_grad():
            self.shift.mix.copy_(torch.stack([place**power for power in _ROLES.values()]))
        speed = -6.5 + 5 * (torch.arange(dim) / max(1, dim - 1)) ** 0.85
        self.decay = LowRank(dim, rank, "tanh", speed)
        self.rate = LowRank(dim, rank, None, torch.zeros(dim))
        self.gate = LowRank(dim, rank, "sigmoid")
        self.receptance, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.output = nn.Linear(dim, dim, bias=False)
        self.removal_scale = nn.Parameter(torch.full((dim,), 0.85))  # xi
        self.rate_scale = nn.Parameter(torch.ones(dim))  # alpha
        self.bonus = nn.Parameter(torch.zeros(self.heads, width))  # rho
        self.norm = nn.GroupNorm(self.heads, dim, eps=1e-5 * width)
        nn.init.kaiming_uniform_(self.gate.down.weight, a=math.sqrt(5))  # a gate of zero would pass nothing on

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        like = self.key.weight
        memory = memory_like(like, batch, self.heads, self.width, self.width)
        return RWKV7State(self.shift.init_state(batch), memory)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, mask, resets = advancing(x, state, mask, resets)
        last, memory = (None, None) if state is None else state
        mixed, last = self.shift(x, last, mask=mask, resets=resets)
        of = dict(zip(_ROLES, mixed))
        log_decay = -math.exp(-0.5) * torch.sigmoid(self.decay(of["w"]))
        rate = torch.sigmoid(self.rate(of["a"]))
        r, k, v = self.receptance(of["r"]), self.key(of["k"]), self.value(of["v"])
        e = self._by_head(k * self.removal_scale)
        # The floor is the released code's: below it a vector counts as zero rather than as a direction.
        e = F.normalize(e, dim=-1, eps=1e-12)
        k = torch.addcmul(k, k, (rate - 1) * self.rate_scale)
        r, k, v, rate, log_decay = map(self._by_head, (r, k, v, rate, log_decay))
        removal = torch.stack((e, rate * e), 3)
        y, memory = generalised_delta_rule(r, k, v, log_decay, removal, memory, mask=mask, resets=resets)
        y = self.norm(y.flatten(0, 1).flatten(1)).view_as(x)
        y = y + ((r * k * self.bonus).sum(-1, keepdim=True) * v).flatten(2)
        return self.output(y * self.gate(of["g"])), None if state is None else RWKV7State(last, memory)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.width))
