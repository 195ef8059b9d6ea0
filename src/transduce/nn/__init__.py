"""Building blocks. Mixers work over time, feedforward layers over channels, attends read a memory."""

from .aaren import Aaren
from .attend import AdditiveAttend, Attend, DotAttend, GeneralAttend, LocationAttend, MultiHeadAttend
from .attention import Attention
from .bytenet import MultiplicativeUnit, dilated_stack
from .combine import Bidirectional, Parallel, Pointwise, Repeat, Residual, Serial
from .convolution import CausalConv, DilatedConv
from .depth import DepthBlock, DepthLoop, Halting
from .dropout import SequenceDropout
from .embed import Embed, Head
from .feedforward import FeedForward
from .grid import AttentivePool, DenseGrid, GatedMax, GridConv, MaxOver, MeanOver
from .linear_rnn import MinGRU
from .norm import LayerNorm, RMSNorm
from .pyramid import GatedPyramid
from .recurrent import GRU, LSTM, Elman, ElmanCell, GRUCell, LSTMCell, Recurrence, from_torch
from .retention import Retention
from .rwkv import RWKV4, RWKV4ChannelMix, rwkv4_layers
from .token_shift import TokenShift

__all__ = [
    "Aaren",
    "AdditiveAttend",
    "Attend",
    "Attention",
    "AttentivePool",
    "Bidirectional",
    "CausalConv",
    "DenseGrid",
    "DepthBlock",
    "DepthLoop",
    "DilatedConv",
    "DotAttend",
    "Elman",
    "ElmanCell",
    "Embed",
    "FeedForward",
    "GRU",
    "GRUCell",
    "GatedMax",
    "GatedPyramid",
    "GeneralAttend",
    "GridConv",
    "Halting",
    "Head",
    "LSTM",
    "LSTMCell",
    "LayerNorm",
    "LocationAttend",
    "MaxOver",
    "MeanOver",
    "MinGRU",
    "MultiHeadAttend",
    "MultiplicativeUnit",
    "Parallel",
    "Pointwise",
    "RMSNorm",
    "RWKV4",
    "RWKV4ChannelMix",
    "Recurrence",
    "Repeat",
    "Residual",
    "Retention",
    "SequenceDropout",
    "Serial",
    "TokenShift",
    "dilated_stack",
    "from_torch",
    "rwkv4_layers",
]
