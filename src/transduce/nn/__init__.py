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
from .four_way import FourWay
from .gated_linear_attention import HGRN2, GatedLinearAttention
from .grid import AttentivePool, DenseGrid, GatedMax, GridConv, MaxOver, MeanOver
from .griffin import RGLRU, BlockDiagonal, GriffinRecurrent
from .hgrn import HGRU, LowerBounds
from .linear_rnn import MinGRU, MinLSTM, min_rnn
from .lmu import LMU, lmuformer_block, patch_embedding, spiking_lmuformer_block
from .mlstm import MLSTM
from .norm import LayerNorm, RMSNorm
from .plstm import PLSTM, PLSTM2D, PLSTMGraph
from .para import ConvGated, ParaGRU, ParaGRUCell, ParaLSTM, ParaLSTMCell
from .pyramid import GatedPyramid
from .recurrent import GRU, LSTM, Elman, ElmanCell, GRUCell, LSTMCell, Recurrence, from_torch
from .retention import Retention
from .slstm import SLSTM, SLSTMCell
from .spiking import LIF, BatchNorm
from .ssm import LRU, LSSL, S4D

__all__ = [
    "AdditiveAttend",
    "Attend",
    "Attention",
    "AttentivePool",
    "BatchNorm",
    "Bidirectional",
    "BlockDiagonal",
    "BlockLRNN",
    "CausalConv",
    "ConvGated",
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
    "GatedLinearAttention",
    "GatedMax",
    "GatedPyramid",
    "GeneralAttend",
    "GridConv",
    "GriffinRecurrent",
    "HGRN2",
    "HGRU",
    "Halting",
    "Head",
    "LIF",
    "LMU",
    "LRU",
    "LSSL",
    "LSTM",
    "LSTMCell",
    "LayerNorm",
    "LocationAttend",
    "LowerBounds",
    "MLSTM",
    "MaxOver",
    "MeanOver",
    "MinGRU",
    "MinLSTM",
    "MultiHeadAttend",
    "MultiplicativeUnit",
    "OrthogonalBlocks",
    "PLSTM",
    "PLSTM2D",
    "PLSTMGraph",
    "PNormBlocks",
    "ParaGRU",
    "ParaGRUCell",
    "ParaLSTM",
    "ParaLSTMCell",
    "Parallel",
    "Pointwise",
    "RGLRU",
    "RMSNorm",
    "Recurrence",
    "Repeat",
    "Residual",
    "Retention",
    "S4D",
    "SLSTM",
    "SLSTMCell",
    "SequenceDropout",
    "Serial",
    "StochasticBlocks",
    "dilated_stack",
    "from_torch",
    "lmuformer_block",
    "min_rnn",
    "patch_embedding",
    "spiking_lmuformer_block",
]
