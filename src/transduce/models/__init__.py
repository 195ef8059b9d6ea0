"""Whole shapes: what stands between a batch and a distribution."""

from .depth_layer import DepthLayer
from .encoder_decoder import EncoderDecoder, LanguageModel
from .encoders import LastStep, MeanStep, SequenceEncoder, VectorEncoder
from .grid_decoder import GridDecoder
from .labelling import Labeller
from .memory import FreeAnswers, MemoryNetwork, RecentDecoder, TiedAnswers
from .mixer_decoder import DecoderLayer, MixerDecoder
from .mixer_lm import mixer_language_model
from .multi_source import MultiSourceEncoder, MultiSourceLayer
from .perspectives import PerspectiveDecoder, perspectives
from .pictures import PatchLabeller, Raster
from .pointer import PointerAttend, PointerDecoder, PointerNet
from .recurrent_decoder import RecurrentDecoder
from .red import RedForm, RedSize, RegularisedEncoderDecoder
from .stacked_decoder import StackedDecoder, UnfoldingEncoder

__all__ = [
    "DecoderLayer",
    "DepthLayer",
    "EncoderDecoder",
    "FreeAnswers",
    "GridDecoder",
    "Labeller",
    "LanguageModel",
    "LastStep",
    "MeanStep",
    "MemoryNetwork",
    "MixerDecoder",
    "MultiSourceEncoder",
    "MultiSourceLayer",
    "PatchLabeller",
    "PerspectiveDecoder",
    "PointerAttend",
    "PointerDecoder",
    "PointerNet",
    "Raster",
    "RecentDecoder",
    "RecurrentDecoder",
    "RedForm",
    "RedSize",
    "RegularisedEncoderDecoder",
    "SequenceEncoder",
    "StackedDecoder",
    "TiedAnswers",
    "UnfoldingEncoder",
    "VectorEncoder",
    "mixer_language_model",
    "perspectives",
]
