"""Every causal mixer by name, ready to be built for a width: what the law tests, `transduce bench mixers` and the
witnesses go through.

The entries are plain factories with the settings of a small model; whoever composes a network calls the classes
themselves.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, Mapping

from transduce.core.protocols import Mixer

from .aaren import Aaren
from .attention import Attention
from .block_lrnn import BlockLRNN
from .delta import DeltaNet, GatedDeltaNet
from .gated_linear_attention import HGRN2, GatedLinearAttention
from .griffin import RGLRU, GriffinRecurrent
from .hgrn import HGRU
from .lattice import Lattice
from .linear_rnn import MinGRU, MinLSTM
from .lmu import LMU, lmuformer_block, spiking_lmuformer_block
from .mlstm import MLSTM
from .para import ParaGRU, ParaLSTM
from .plstm import PLSTM
from .recurrent import GRU, LSTM, Elman
from .retention import Retention
from .rwkv import RWKV4
from .rwkv7 import RWKV7
from .selective import Mamba, Mamba2
from .slstm import SLSTM
from .ssm import LRU, LSSL, S4D

MIXERS: Mapping[str, Callable[[int], Mixer]] = {
    "aaren": Aaren,
    "attention": Attention,
    "block-lrnn": BlockLRNN,
    "delta-net": DeltaNet,
    "elman": Elman,
    "gated-delta-net": GatedDeltaNet,
    "gla": GatedLinearAttention,
    "griffin": GriffinRecurrent,
    "gru": GRU,
    "hgrn": HGRU,
    "hgrn2": HGRN2,
    "lattice": Lattice,
    "lmu": LMU,
    "lmuformer": lmuformer_block,
    "local-attention": partial(Attention, window=64),
    "lru": LRU,
    "lssl": LSSL,
    "lstm": LSTM,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "min-gru": MinGRU,
    "min-lstm": MinLSTM,
    "mlstm": MLSTM,
    "para-gru": partial(ParaGRU, solver="newton"),
    "para-lstm": partial(ParaLSTM, solver="newton"),
    "plstm": PLSTM,
    "retention": Retention,
    "rg-lru": RGLRU,
    "rwkv4": RWKV4,
    "rwkv7": RWKV7,
    "s4d": S4D,
    "slstm": SLSTM,
    "spiking-lmuformer": spiking_lmuformer_block,
}
"""Name -> factory of a causal mixer (B,T,dim) -> (B,T,dim). ``dim`` is a multiple of 16."""
