"""The recurrent decoder of the first encoder-decoders, with attention or a fixed-length code."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from transduce.core.dist import Dist
from transduce.core.protocols import Decoder, Mixer
from transduce.core.seq import Seq
from transduce.core.state import Shared, State
from transduce.nn.attend import Attend
from transduce.ops.rnn import gru, gru_gates


@dataclass(frozen=True)
class RecurrentState:
    """``hidden`` (B,H), the state of the mixer on top (or None), and the source: an attention's state, or
    the code."""

    hidden: Tensor
    upper: State
    source: State


class RecurrentDecoder(Decoder):
    """A GRU whose every step reads the source (Bahdanau et al. 2015, arXiv 1409.0473, section 3.1 and
    appendix A).

    With an ``attend`` of :mod:`transduce.nn.attend`, queried by the state before the step::

        c_u = attend(s_{u-1}, memory)
        s_u = GRU([E y_{u-1}; c_u], s_{u-1}),   s_0 = tanh(W_s h_1)
        p(y_u | ..) = head(tanh(W_r [s_u; c_u; E y_{u-1}]))

    With ``attend=None`` the memory must be one step long and c_u is that vector at every u: the decoder of
    Cho et al. 2014 (arXiv 1409.1259, section 2), which then runs without a Python loop over u.

    The GRU sees c_u through a linear map, so the map is applied to the memory once and its result is
    averaged with the same weights: S instead of U products. ``upper``: a mixer on top of the recurrence,
    fed with s_u + W_l c_u and added to s_u, for further layers.
    """

    def __init__(
        self,
        embed: nn.Module,
        memory_width: int,
        hidden: int,
        head: nn.Module,
        *,
        embed_width: int,
        attend: Attend | None = None,
        upper: Mixer | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden, self.memory_width = hidden, memory_width
        self.embed, self.head, self.attend, self.upper = embed, head, attend, upper
        self.start_state = nn.Linear(memory_width, hidden)
        self.read_memory = nn.Linear(memory_width, 3 * hidden, bias=False)
        self.read_symbol = nn.Linear(embed_width, 3 * hidden)
        self.recur = nn.Linear(hidden, 3 * hidden)
        self.lift = nn.Linear(memory_width, hidden, bias=False) if upper is not None else None
        self.readout = nn.Linear(hidden + memory_width + embed_width, hidden)
        self.dropout = nn.Dropout(dropout)
        for gate in self.recur.weight.data.split(hidden):
            nn.init.orthogonal_(gate)

    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> RecurrentState:
        if memory is None:
            raise ValueError("this decoder is conditioned on a memory: give start() one")
        fanout = batch // memory.batch
        hidden = (
            torch.tanh(self.start_state(memory.data[:, 0])).to(memory.data.dtype).repeat_interleave(fanout, 0)
        )
        upper = (
            self.upper.init_state(batch, capacity=capacity) if self.upper is not None and continues else None
        )
        if self.attend is None:
            if memory.steps != 1:
                raise ValueError(
                    f"without attention the memory must be one vector a row, got {memory.steps} steps"
                )
            return RecurrentState(hidden, upper, Shared(self._with_gates(memory.data), fanout))
        source = self.attend.start(memory)
        read = source.memory.value
        shared = Shared(replace(read, values=self._with_gates(read.values)), fanout)
        past = None if source.past is None else source.past.repeat_interleave(fanout, 0)
        return RecurrentState(hidden, upper, replace(source, memory=shared, past=past))

    def forward(
        self, prev: Tensor, state: RecurrentState, *, mask: Tensor | None = None
    ) -> tuple[Dist, RecurrentState]:
        symbols = self.dropout(self.embed(prev))
        pre = self.read_symbol(symbols)  # (B,U,3H)
        run = self._run_on_code if self.attend is None else self._run_attending
        h, context, source = run(pre, state, mask)
        hidden, upper = h[:, -1], state.upper
        if self.upper is not None:
            lifted, upper = self.upper(self.dropout(h + self.lift(context)), upper, mask=mask)
            h = h + lifted
        read = torch.tanh(
            self.readout(torch.cat((self.dropout(h), context.to(h.dtype), symbols.to(h.dtype)), -1))
        )
        return self.head(self.dropout(read)), RecurrentState(hidden, upper, source)

    def _with_gates(self, values: Tensor) -> Tensor:
        """(G,S,M) -> (G,S,M+3H): what one averaging yields both the context and its share of the gates
        from."""
        gates = self.read_memory(values)
        return torch.cat((values.to(gates.dtype), gates), -1)

    def _run_on_code(
        self, pre: Tensor, state: RecurrentState, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        """The whole chunk in one call, since the code is the same at every step."""
        both = state.source.unfold(state.source.value.expand(-1, state.source.fanout, -1))
        context, gates = both.split((self.memory_width, 3 * self.hidden), -1)
        bias_rz, bias_n = self.recur.bias.split((2 * self.hidden, self.hidden))
        pre = pre + gates + torch.cat((bias_rz, torch.zeros_like(bias_n)))
        h = gru(pre, self.recur.weight, bias_n, state.hidden, mask=mask)
        return h, context.expand(-1, pre.shape[1], -1), state.source

    def _run_attending(
        self, pre: Tensor, state: RecurrentState, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        """Step by step, since each step's query is the state before it."""
        hidden, source = state.hidden, state.source
        all_hidden: list[Tensor] = []
        contexts: list[Tensor] = []
        valid = mask.unbind(1) if mask is not None else (None,) * pre.shape[1]
        for symbol, keep in zip(pre.unbind(1), valid):
            both, source = self.attend.attend_step(hidden, source, mask=keep)
            context, gates = both.split((self.memory_width, 3 * self.hidden), -1)
            after = gru_gates(symbol + gates, self.recur(hidden), hidden)
            hidden = after if keep is None else torch.where(keep[:, None], after, hidden)
            all_hidden.append(hidden)
            contexts.append(context)
        return torch.stack(all_hidden, 1), torch.stack(contexts, 1), source
