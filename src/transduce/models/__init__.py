"""Whole shapes: what stands between a batch and a distribution."""

from .encoder_decoder import EncoderDecoder, LanguageModel
from .encoders import LastStep, MeanStep, SequenceEncoder, VectorEncoder
from .grid_decoder import GridDecoder
from .mixer_decoder import DecoderLayer, MixerDecoder
from .recurrent_decoder import RecurrentDecoder
from .stacked_decoder import StackedDecoder, UnfoldingEncoder

__all__ = [
    "DecoderLayer",
    "EncoderDecoder",
    "GridDecoder",
    "LanguageModel",
    "LastStep",
    "MeanStep",
    "MixerDecoder",
    "RecurrentDecoder",
    "SequenceEncoder",
    "StackedDecoder",
    "UnfoldingEncoder",
    "VectorEncoder",
]
