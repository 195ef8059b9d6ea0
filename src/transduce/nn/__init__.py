"""Building blocks. Mixers work over time, feedforward layers over channels, attends read a memory."""

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
from .griffin import RGLRU, BlockDiagonal, GriffinRecurrent
from .hgrn import HGRU, LowerBounds
from .linear_rnn import MinGRU, MinLSTM, min_rnn
from .norm import LayerNorm, RMSNorm
from .pyramid import GatedPyramid
from .recurrent import GRU, LSTM, Elman, ElmanCell, GRUCell, LSTMCell, Recurrence, from_torch
from .retention import Retention

__all__ = [
    "AdditiveAttend",
    "Attend",
    "Attention",
    "AttentivePool",
    "Bidirectional",
    "BlockDiagonal",
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
    "GriffinRecurrent",
    "HGRU",
    "Halting",
    "Head",
    "LSTM",
    "LSTMCell",
    "LayerNorm",
    "LocationAttend",
    "LowerBounds",
    "MaxOver",
    "MeanOver",
    "MinGRU",
    "MinLSTM",
    "MultiHeadAttend",
    "MultiplicativeUnit",
    "Parallel",
    "Pointwise",
    "RGLRU",
    "RMSNorm",
    "Recurrence",
    "Repeat",
    "Residual",
    "Retention",
    "SequenceDropout",
    "Serial",
    "dilated_stack",
    "from_torch",
    "min_rnn",
]
