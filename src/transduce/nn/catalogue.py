"""Every causal mixer by name, ready to be built for a width: what the law tests, `transduce bench mixers` and the
witnesses go through.

The entries are plain factories with the settings of a small model; whoever composes a network calls the classes
themselves.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, Mapping

from transduce.core.protocols import Mixer

from .attention import Attention
from .linear_rnn import MinGRU
from .para import ParaGRU, ParaLSTM
from .recurrent import GRU, LSTM, Elman
from .retention import Retention
from .slstm import SLSTM

MIXERS: Mapping[str, Callable[[int], Mixer]] = {
    "attention": Attention,
    "elman": Elman,
    "gru": GRU,
    "local-attention": partial(Attention, window=64),
    "lstm": LSTM,
    "min-gru": MinGRU,
    "para-gru": ParaGRU,
    "para-lstm": ParaLSTM,
    "retention": Retention,
    "slstm": SLSTM,
}
"""Name -> factory of a causal mixer (B,T,dim) -> (B,T,dim). ``dim`` is a multiple of 16."""
