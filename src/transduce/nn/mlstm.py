"""The matrix memory of xLSTM: exponential input gates, a normaliser, and a stabiliser that keeps both in range."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.retention import retention
from transduce.ops.scan import linear_scan

from .gated_linear_attention import new_memory
from .masking import valid_resets


@dataclass(frozen=True)
class MLSTMState:
    """``memory`` C (B,H,K,V) and ``normaliser`` n (B,H,K), both divided by exp(m); ``stabiliser`` m (B,H).

    In float32 or better.
    """

    memory: Tensor
    normaliser: Tensor
    stabiliser: Tensor


class MLSTM(Mixer):
    """The mLSTM layer of xLSTM, in each head, with gates i = cap(W_i x + b_i) and f = log sigmoid(cap(W_f x + b_f))::

        C_t = exp(f_t) C_(t-1) + exp(i_t) k_t v_t^T,     n_t = exp(f_t) n_(t-1) + exp(i_t) k_t
        h_t = C_t^T q_t / max(|n_t . q_t|, 1),     q scaled by 1 / sqrt(K)
        out = W_o (sigmoid(W_r x) * layer_norm(h))

    Beck et al. 2024 (arXiv 2405.04517, section 2.3), in the form of the 7B model (arXiv 2503.13427): no convolution,
    gates capped softly, narrower keys. C and n are kept divided by exp(m_t), m_t = max(f_t + m_(t-1), i_t), which
    cancels in h; no exponent is ever positive. x: (B,T,dim) -> (B,T,dim).

    Args:
        dim: width of inputs and outputs; values have dim / heads channels a head.
        heads: number of heads.
        keys: width of keys and queries over all heads, default dim / 2.
        cap: gates are cap * tanh(z / cap); None leaves them as they are.
    """

    def __init__(self, dim: int, heads: int = 4, *, keys: int | None = None, cap: float | None = 15.0) -> None:
        super().__init__()
        keys = max(heads, dim // 2) if keys is None else keys
        if dim % heads or keys % heads:
            raise ValueError(f"mLSTM needs widths that are multiples of heads = {heads}, got dim {dim} and keys {keys}")
        self.heads, self.keys, self.dim, self.cap = heads, keys, dim, cap
        self.input = nn.Linear(dim, 2 * keys + 2 * dim, bias=False)
        self.gates = nn.Linear(dim, 2 * heads)
        self.norm = nn.Parameter(torch.ones(dim))
        self.output = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():  # as published: gates begin without the input, heads with long to longer memories
            self.gates.weight.zero_()
            self.gates.bias.copy_(torch.cat((0.1 * torch.randn(heads), torch.linspace(3.0, 6.0, heads))))

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        memory = new_memory(self.norm, batch, self.heads, self.keys // self.heads, self.dim // self.heads)
        return MLSTMState(memory, torch.zeros_like(memory[..., 0]), torch.zeros_like(memory[..., 0, 0]))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        parts = self.input(x).split((self.keys, self.keys, self.dim, self.dim), -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts[:3])
        i, f = self._gates(x, mask)
        before = self.init_state(len(x)) if state is None else state
        h, after = matrix_memory(q, k, v, i, f, before, resets)
        h = F.layer_norm(h, (h.shape[-1],), eps=1e-6).flatten(2).to(x.dtype) * self.norm
        return self.output(torch.sigmoid(parts[3]) * h), None if state is None else after

    def _gates(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """i and log f (B,T,H) in the precision of the state; masked steps write nothing and forget nothing."""
        z = self.gates(x).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        if self.cap is not None:
            z = self.cap * torch.tanh(z / self.cap)
        i, f = z.chunk(2, -1)
        f = zero_masked(F.logsigmoid(f), mask)
        return i if mask is None else torch.where(mask[..., None], i, -torch.inf), f


def matrix_memory(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState, resets: Tensor | None = None
) -> tuple[Tensor, MLSTMState]:
    """h (B,T,H,V) of :class:`MLSTM` and the state behind the last step, from q, k (B,T,H,K), v (B,T,H,V) and the logarithms
    of the gates i and f (B,T,H), f at most 0."""
    m0, width = state.stabiliser, q.shape[-1]
    m = stabiliser(i, f, m0, resets)
    last = torch.cat((m0[:, None], m[:, :-1]), 1)
    if resets is not None:
        last = torch.where(resets[..., None], 0, last)
    fade, put = f + last - m, torch.exp(i - m)
    k = k * put[..., None].to(k.dtype)
    y, memory = retention(q * width**-0.5, k, v, fade, state.memory, resets=resets)
    a = fade.exp()[..., None].expand(k.shape).flatten(2)
    n = linear_scan(a, k.flatten(2), state.normaliser.flatten(1), resets=resets).view(k.shape)
    size = (n * q).sum(-1).abs() * width**-0.5
    h = y / torch.maximum(size, torch.exp(-m))[..., None]
    return h, MLSTMState(memory, n[:, -1].clone(), m[:, -1].clone())


@torch.no_grad()
def stabiliser(i: Tensor, f: Tensor, m0: Tensor, resets: Tensor | None) -> Tensor:
    """m_t = max(f_t + m_(t-1), i_t), with m = 0 before a reset: (B,T,H) from gates (B,T,H) and m0 (B,H).

    Outputs do not depend on m, so it needs no gradient. Doubling: after r rounds i_t is the maximum over the last 2^r
    steps and f_t their sum.
    """
    i, f = i.clone(), f.clone()
    if resets is not None:
        i = torch.where(resets[..., None], torch.maximum(i, f), i)
        f = torch.where(resets[..., None], -torch.inf, f)
    i[:, 0] = torch.maximum(i[:, 0], f[:, 0] + m0)
    reach = 1
    while reach < i.shape[1]:
        i = torch.cat((i[:, :reach], torch.maximum(i[:, reach:], f[:, reach:] + i[:, :-reach])), 1)
        f = torch.cat((f[:, :reach], f[:, reach:] + f[:, :-reach]), 1)
        reach *= 2
    return i
