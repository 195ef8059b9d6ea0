"""Building blocks. Mixers work over time, feedforward layers over channels, attends read a memory."""

from .attend import AdditiveAttend, Attend, DotAttend, GeneralAttend, LocationAttend, MultiHeadAttend
from .attention import Attention
from .block_lrnn import BlockLRNN, OrthogonalBlocks, PNormBlocks, StochasticBlocks
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
from .plstm import PLSTM, PLSTM2D, FourWay, PLSTMGraph
from .pyramid import GatedPyramid
from .recurrent import GRU, LSTM, Elman, ElmanCell, GRUCell, LSTMCell, Recurrence, from_torch
from .retention import Retention

__all__ = [
    "AdditiveAttend",
    "Attend",
    "Attention",
    "AttentivePool",
    "Bidirectional",
    "BlockLRNN",
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
    "FourWay",
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
    "OrthogonalBlocks",
    "PLSTM",
    "PLSTM2D",
    "PLSTMGraph",
    "PNormBlocks",
    "Parallel",
    "Pointwise",
    "RMSNorm",
    "Recurrence",
    "Repeat",
    "Residual",
    "Retention",
    "SequenceDropout",
    "Serial",
    "StochasticBlocks",
    "dilated_stack",
    "from_torch",
]
