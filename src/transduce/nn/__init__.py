"""Building blocks. Mixers work over time, feedforward layers over channels, attends read a memory."""

from .aaren import Aaren
from .attend import AdditiveAttend, Attend, DotAttend, GeneralAttend, LocationAttend, MultiHeadAttend
from .attention import Attention
from .axes import AlongAxes
from .block_lrnn import BlockLRNN, OrthogonalBlocks, PNormBlocks, StochasticBlocks
from .bytenet import MultiplicativeUnit, dilated_stack
from .combine import Bidirectional, Parallel, Pointwise, Repeat, Residual, Serial
from .convolution import CausalConv, DilatedConv
from .delta import DeltaNet, GatedDeltaNet
from .depth import DepthBlock, DepthLoop, Halting
from .dropout import SequenceDropout
from .embed import Embed, Head
from .feedforward import FeedForward
from .four_way import FourWay
from .gated_linear_attention import HGRN2, GatedLinearAttention
from .grid import AttentivePool, DenseGrid, GatedMax, GridConv, MaxOver, MeanOver
from .griffin import RGLRU, BlockDiagonal, GriffinRecurrent
from .hgrn import HGRU, LowerBounds
from .lattice import Lattice
from .linear_rnn import MinGRU, MinLSTM, min_rnn
from .lmu import LMU, lmuformer_block, patch_embedding, spiking_lmuformer_block
from .mlstm import MLSTM
from .norm import LayerNorm, RMSNorm
from .para import ConvGated, ParaGRU, ParaGRUCell, ParaLSTM, ParaLSTMCell
from .plstm import PLSTM, PLSTM2D, PLSTMGraph
from .pyramid import GatedPyramid
from .recurrent import GRU, LSTM, Elman, ElmanCell, GRUCell, LSTMCell, Recurrence, from_torch
from .retention import Retention
from .rwkv import RWKV4, RWKV4ChannelMix, rwkv4_layers
from .rwkv7 import RWKV7
from .selective import Mamba, Mamba2
from .slstm import SLSTM, SLSTMCell
from .spiking import LIF, BatchNorm
from .ssm import LRU, LSSL, S4D, lru_block
from .token_shift import TokenShift

__all__ = [
    "Aaren",
    "AdditiveAttend",
    "AlongAxes",
    "Attend",
    "Attention",
    "AttentivePool",
    "BatchNorm",
    "Bidirectional",
    "BlockDiagonal",
    "BlockLRNN",
    "CausalConv",
    "ConvGated",
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
    "FourWay",
    "GRU",
    "GRUCell",
    "GatedDeltaNet",
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
    "Lattice",
    "LayerNorm",
    "LocationAttend",
    "LowerBounds",
    "MLSTM",
    "Mamba",
    "Mamba2",
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
    "RWKV4",
    "RWKV4ChannelMix",
    "RWKV7",
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
    "TokenShift",
    "dilated_stack",
    "from_torch",
    "lmuformer_block",
    "lru_block",
    "min_rnn",
    "patch_embedding",
    "rwkv4_layers",
    "spiking_lmuformer_block",
]
