"""The recurrent decoder of the first encoder-decoders, with attention or a fixed-length code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transduce.core.dist import Dist
from transduce.core.protocols import Decoder, Mixer
from transduce.core.seq import Seq, zero_masked
from transduce.core.state import Shared, State
from transduce.core.tap import tap
from transduce.ops.rnn import gru


@dataclass(frozen=True)
class SourceMemory:
    """What the decoder reads of the source, computed once: attention keys (B,S,A), values (B,S,M), the values' share
    of the gate pre-activations (B,S,3H), and the mask (B,S) or None."""

    keys: Tensor | None
    values: Tensor
    gates: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class RecurrentState:
    hidden: Tensor
    upper: State
    memory: Shared


class RecurrentDecoder(Decoder):
    """A GRU whose every step reads the source (Bahdanau et al. 2015, arXiv 1409.0473, section 3.1 and appendix A).

    With ``attention_width`` = A::

        e_uj = v . tanh(W_a s_{u-1} + U_a h_j)       additive scores from the previous state
        a_u = softmax_j(e_uj),   c_u = sum_j a_uj h_j
        s_u = GRU([E y_{u-1}; c_u], s_{u-1}),   s_0 = tanh(W_s h_1)
        p(y_u | ..) = head(tanh(W_r [s_u; c_u; E y_{u-1}]))

    With ``attention_width=None`` the memory must be one step long and c_u is that vector at every u: the decoder of
    Cho et al. 2014 (arXiv 1409.1259, section 2), which then runs without a Python loop over u.

    Since the GRU sees c_u through a linear map, that map is applied to the memory once (``gates``) and each step
    averages its result: S instead of U products. ``upper``: a mixer on top of the recurrence (a residual
    stack of further layers), fed with [s_u; c_u] projected to H. The weights a_u are tapped as ``weights`` (B,U,S).
    """

    def __init__(
        self,
        embed: nn.Module,
        memory_width: int,
        hidden: int,
        head: nn.Module,
        *,
        embed_width: int,
        attention_width: int | None = None,
        upper: Mixer | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden, self.attention_width = hidden, attention_width
        self.embed, self.head, self.upper = embed, head, upper
        extra = attention_width or 0
        self.start_state = nn.Linear(memory_width, hidden)
        self.read_memory = nn.Linear(memory_width, 3 * hidden + extra, bias=False)
        self.read_symbol = nn.Linear(embed_width, 3 * hidden)
        self.recur = nn.Linear(hidden, 3 * hidden + extra)
        self.score = nn.Parameter(torch.randn(extra) / extra**0.5) if extra else None
        self.lift = nn.Linear(memory_width, hidden, bias=False) if upper is not None else None
        self.readout = nn.Linear(hidden + memory_width + embed_width, hidden)
        self.dropout = nn.Dropout(dropout)
        for gate in range(3):
            nn.init.orthogonal_(self.recur.weight.data[gate * hidden : (gate + 1) * hidden])

    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> RecurrentState:
        if memory is None:
            raise ValueError("this decoder is conditioned on a memory: give start() one")
        if self.attention_width is None and memory.steps != 1:
            raise ValueError(f"without attention the memory must be one vector a row, got {memory.steps} steps")
        values = zero_masked(memory.data, memory.mask)
        gates, keys = self.read_memory(values).split((3 * self.hidden, self.attention_width or 0), -1)
        parts = SourceMemory(keys if self.attention_width else None, values, gates, memory.mask)
        hidden = torch.tanh(self.start_state(values[:, 0])).to(values.dtype)
        upper = self.upper.init_state(batch, capacity=capacity) if self.upper is not None and continues else None
        return RecurrentState(hidden, upper, Shared(parts, batch // memory.batch))

    def forward(
        self, prev: Tensor, state: RecurrentState, *, mask: Tensor | None = None
    ) -> tuple[Dist, RecurrentState]:
        symbols = self.dropout(self.embed(prev))
        source: SourceMemory = state.memory.value
        pre = self.read_symbol(symbols)  # (B,U,3H)
        all_weights: list[Tensor] = []
        if source.keys is None:
            h = self._run_on_code(pre + state.memory.unfold(source.gates.expand(-1, state.memory.fanout, -1)), state, mask)
        else:
            h = self._run_attending(pre, state, mask, all_weights)
        hidden = h[:, -1]
        context = self._contexts(source, state.memory, all_weights, prev.shape[1])
        upper_state = state.upper
        if self.upper is not None:
            lifted, upper_state = self.upper(self.dropout(h + self.lift(context)), upper_state, mask=mask)
            h = h + lifted
        read = torch.tanh(self.readout(torch.cat((self.dropout(h), context.to(h.dtype), symbols.to(h.dtype)), -1)))
        return self.head(self.dropout(read)), RecurrentState(hidden, upper_state, state.memory)

    def _run_on_code(self, pre: Tensor, state: RecurrentState, mask: Tensor | None) -> Tensor:
        """The whole chunk in one call: the pre-activations already hold the code's share."""
        bias_rz, bias_n = self.recur.bias.split((2 * self.hidden, self.hidden))
        pre = pre + torch.cat((bias_rz, torch.zeros_like(bias_n)))
        return gru(pre, self.recur.weight, bias_n, state.hidden, mask=mask)

    def _run_attending(
        self, pre: Tensor, state: RecurrentState, mask: Tensor | None, all_weights: list[Tensor]
    ) -> Tensor:
        """Step by step, since each step's weights read the state before it; they are added to ``all_weights``."""
        source: SourceMemory = state.memory.value
        hidden, all_hidden = state.hidden, []
        valid = mask.unbind(1) if mask is not None else (None,) * pre.shape[1]
        for symbol, keep in zip(pre.unbind(1), valid):
            recurrent, query = self.recur(hidden).split((3 * self.hidden, self.attention_width), -1)
            weights = self._attend(query, source, state.memory.fanout)
            all_weights.append(weights)
            after = gru_step(symbol + (weights @ source.gates).flatten(0, 1), recurrent, hidden)
            hidden = after if keep is None else torch.where(keep[:, None], after, hidden)
            all_hidden.append(hidden)
        return torch.stack(all_hidden, 1)

    def _attend(self, query: Tensor, source: SourceMemory, fanout: int) -> Tensor:
        """(G*fanout, A) -> weights (G, fanout, S)"""
        groups = source.keys.shape[0]
        sums = torch.tanh(query.view(groups, fanout, 1, -1) + source.keys[:, None])
        scores = sums @ self.score.to(sums.dtype)
        if source.mask is not None:
            scores = scores.masked_fill(~source.mask[:, None], float("-inf"))
        return torch.softmax(scores, -1).to(source.gates.dtype)

    def _contexts(self, source: SourceMemory, memory: Shared, weights: list[Tensor], steps: int) -> Tensor:
        """The context vectors of all steps at once: (B,U,M)"""
        if not weights:
            return memory.unfold(source.values.expand(-1, memory.fanout, -1)).expand(-1, steps, -1)
        grid = torch.stack(weights, 2)  # (G, fanout, U, S)
        grid = tap(self, "weights", grid.flatten(0, 1)).view(grid.shape)
        return (grid.flatten(1, 2) @ source.values.to(grid.dtype)).view(-1, steps, source.values.shape[-1])


def gru_step(pre: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    """One GRU step from the input's and the state's share of the pre-activations, each (B,3H) in the order r, z, n.

    h' = z h + (1 - z) tanh(n_x + r n_h)
    """
    width = hidden.shape[-1]
    r, z = torch.sigmoid(pre[..., : 2 * width] + recurrent[..., : 2 * width]).split(width, -1)
    candidate = torch.tanh(torch.addcmul(pre[..., 2 * width :], r, recurrent[..., 2 * width :]))
    return torch.lerp(candidate, hidden.to(candidate.dtype), z)
