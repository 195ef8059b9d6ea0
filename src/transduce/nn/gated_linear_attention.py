"""Linear attention with gates: a matrix memory in each head, and what fades in it is up to the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.gla import gated_linear_attention

from .masking import valid_resets


def new_memory(like: Tensor, batch: int, heads: int, width: int, values: int) -> Tensor:
    """An empty matrix state (B,H,K,V), float32 or better: sums over a long past must not be kept in halves."""
    accumulate = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.zeros(batch, heads, width, values, dtype=accumulate, device=like.device)


class GatedLinearAttention(Mixer):
    """Gated linear attention, in each head::

        g_t = log sigmoid(W_2 W_1 x_t + b) / temperature
        S_t = diag(exp g_t) S_(t-1) + k_t v_t^T,   y_t = S_t^T q_t / sqrt(K)
        out = W_o (SiLU(W_r x) * rms_norm(y))

    Yang et al. 2023 (arXiv 2312.06635, section 4.4), with RMS for layer normalisation of each head as in the
    authors' later code. x: (B,T,dim) -> (B,T,dim). State: S (B,H,K,V) in float32 or better.

    Args:
        dim: width of inputs and outputs; values have dim / heads channels a head.
        heads: number of heads.
        keys: width of keys and queries over all heads, default dim / 2.
        rank: width between the two factors of the gate.
        temperature: the larger, the slower a fresh layer forgets.
    """

    def __init__(
        self, dim: int, heads: int = 4, *, keys: int | None = None, rank: int = 16, temperature: float = 16.0
    ) -> None:
        super().__init__()
        keys = max(heads, dim // 2) if keys is None else keys
        if dim % heads or keys % heads:
            raise ValueError(
                f"gated linear attention needs widths that are multiples of heads = {heads}, got dim {dim} and keys {keys}"
            )
        self.heads, self.keys, self.dim, self.temperature = heads, keys, dim, temperature
        self.input = nn.Linear(dim, 2 * keys + 2 * dim, bias=False)
        self.gate = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, keys))
        self.norm = nn.Parameter(torch.ones(dim // heads))
        self.output = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return new_memory(self.norm, batch, self.heads, self.keys // self.heads, self.dim // self.heads)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        parts = self.input(x).split((self.keys, self.keys, self.dim, self.dim), -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts[:3])
        g = F.logsigmoid(self.gate(x)).unflatten(-1, (self.heads, -1)) / self.temperature
        scale = q.shape[-1] ** -0.5
        y, memory = gated_linear_attention(q * scale, k, v, g, state, mask=mask, resets=resets)
        y = F.rms_norm(y, self.norm.shape, self.norm, eps=1e-5).flatten(2)
        return self.output(F.silu(parts[3]) * y), None if state is None else memory


class HGRN2(Mixer):
    """HGRN with a matrix state: the gate that forgets also decides what is written, in each head::

        f_t = beta + (1 - beta) * sigmoid(W_f x_t),   k_t = 1 - f_t,   q_t = SiLU(W_q x_t),   v_t = W_i x_t
        S_t = diag(f_t) S_(t-1) + k_t v_t^T,   y_t = S_t^T q_t,   out = W_o rms_norm(y)

    Qin et al. 2024 (arXiv 2404.07904, section 3), normalised by head. log f and 1 - f are computed from the gate's
    argument without cancellation, so no gate underflows. x: (B,T,dim) -> (B,T,dim). State: S (B,H,K,V) with
    K = V = dim / heads, in float32 or better.

    Args:
        dim: width of inputs and outputs.
        heads: number of heads; the state has dim^2 / heads numbers.
        bound: a module that gives beta (dim,) in [0, 1) when called, such as one layer of the bounds that a whole
            stack shares and that rise with depth; None for beta = 0.
    """

    def __init__(self, dim: int, heads: int = 4, *, bound: nn.Module | None = None) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"HGRN2 needs a width that is a multiple of heads = {heads}, got {dim}")
        self.heads, self.bound = heads, bound
        self.input = nn.Linear(dim, 3 * dim, bias=False)
        self.norm = nn.Parameter(torch.ones(dim // heads))
        self.output = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return new_memory(self.norm, batch, self.heads, len(self.norm), len(self.norm))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        q, f, v = self.input(x).chunk(3, -1)
        log_f, k = log_forget(f, None if self.bound is None else self.bound())
        q, k, v, log_f = (part.unflatten(-1, (self.heads, -1)) for part in (F.silu(q), k, v, log_f))
        y, memory = gated_linear_attention(q, k, v, log_f, state, mask=mask, resets=resets)
        y = F.rms_norm(y, self.norm.shape, self.norm, eps=1e-5).flatten(2)
        return self.output(y), None if state is None else memory


def log_forget(z: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """log f and 1 - f of f = beta + (1 - beta) sigmoid(z), both to full precision.

    Near 1 the logarithm is taken of 1 - (1 - f), below 1/2 of f itself. A gate below exp(-60) counts as that.
    """
    z = z.clamp_min(-60.0)
    if bound is None:
        return F.logsigmoid(z), torch.sigmoid(-z)
    k = (1 - bound) * torch.sigmoid(-z)
    slow, fast = torch.log1p(-k.clamp_max(0.5)), torch.log(bound + (1 - bound) * torch.sigmoid(z))
    return torch.where(k < 0.5, slow, fast), k
