"""Attention with a query that is learned once: softmax attention with a state of constant size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.softmax_scan import softmax_scan


class Aaren(Mixer):
    """y_t = W_o concat_h( sum_{i<=t} e^{s_i} v_i / sum_{i<=t} e^{s_i} ), s_i = q_h . k_i / sqrt(K), k, v linear in x.

    Feng et al. 2024 (arXiv 2405.13956, section 3.3). q_h is a parameter, the same for every position and input, so that
    what a new token adds to the past does not depend on what is asked later: the state is one vector [m, u, w] a head
    (B,H,2+K), in float32 or better, whatever the length of the history. The average is exact softmax attention, yet each
    layer sees its past as an unordered set: order has to come from positions in x or from the layers below.

    Args:
        dim: width of inputs and outputs, a multiple of ``heads``.
        heads: number of queries, each of width K = dim / heads.
        query: their first values (heads, K); standard normal by default. A module or function that would make the query
            from the token raises ValueError: its scores with the past change at every step, which needs all keys.
    """

    def __init__(self, dim: int, heads: int = 4, *, query: Tensor | None = None) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads, self.width = heads, dim // heads
        if callable(query):
            raise ValueError(
                "Aaren's query is a parameter: one that is made from the token has no state of constant size; use "
                "Attention, which keeps the keys and values of the past"
            )
        if query is not None and query.shape != (heads, self.width):
            raise ValueError(f"query has shape {(heads, self.width)}, one row a head, got {tuple(query.shape)}")
        self.query = nn.Parameter(torch.randn(heads, self.width) if query is None else query.detach().clone())
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        like = self.query
        accumulate = torch.float64 if like.dtype == torch.float64 else torch.float32
        state = torch.zeros(batch, self.heads, 2 + self.width, dtype=accumulate, device=like.device)
        state[..., 0] = -math.inf
        return state

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        # q . (W x) = (q W) . x: one row a head instead of a key a token.
        rows = torch.einsum("hk,hkd->hd", self.query, self.key.weight.unflatten(0, (self.heads, self.width)))
        scores = F.linear(x, rows / math.sqrt(self.width))
        values = self.value(x).unflatten(-1, (self.heads, self.width))
        y, after = softmax_scan(scores, values, state, mask=mask, resets=resets)
        return self.output(y.flatten(2)), None if state is None else after
