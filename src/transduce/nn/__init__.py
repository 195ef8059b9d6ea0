"""Building blocks. Mixers work over time, feedforward layers over channels, attends read a memory."""

from .attend import AdditiveAttend, Attend, DotAttend, GeneralAttend, LocationAttend, MultiHeadAttend
from .attention import Attention
from .bytenet import MultiplicativeUnit, dilated_stack
from .combine import Bidirectional, Parallel, Pointwise, Repeat, Residual, Serial
from .convolution import CausalConv, DilatedConv
from .delta import DeltaNet, GatedDeltaNet
from .depth import DepthBlock, DepthLoop, Halting
from .dropout import SequenceDropout
from .embed import Embed, Head
from .feedforward import FeedForward
from .grid import AttentivePool, DenseGrid, GatedMax, GridConv, MaxOver, MeanOver
from .lattice import Lattice
from .linear_rnn import MinGRU
from .norm import LayerNorm, RMSNorm
from .pyramid import GatedPyramid
from .recurrent import GRU, LSTM, Elman, ElmanCell, GRUCell, LSTMCell, Recurrence, from_torch
from .retention import Retention
from .rwkv7 import RWKV7

__all__ = [
    "AdditiveAttend",
    "Attend",
    "Attention",
    "AttentivePool",
    "Bidirectional",
    "CausalConv",
    "DeltaNet",
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
    "GatedDeltaNet",
    "GatedMax",
    "GatedPyramid",
    "GeneralAttend",
    "GridConv",
    "Halting",
    "Head",
    "LSTM",
    "LSTMCell",
    "Lattice",
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
    "RWKV7",
    "Recurrence",
    "Repeat",
    "Residual",
    "Retention",
    "SequenceDropout",
    "Serial",
    "dilated_stack",
    "from_torch",
]
