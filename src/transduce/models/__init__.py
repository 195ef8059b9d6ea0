"""Whole shapes: what stands between a batch and a distribution."""

from .depth_layer import DepthLayer
from .encoder_decoder import EncoderDecoder, LanguageModel
from .encoders import LastStep, MeanStep, SequenceEncoder, VectorEncoder
from .mixer_decoder import DecoderLayer, MixerDecoder
from .multi_source import MultiSourceEncoder, MultiSourceLayer
from .recurrent_decoder import RecurrentDecoder
from .red import RedForm, RedSize, RegularisedEncoderDecoder

__all__ = [
    "DecoderLayer",
    "DepthLayer",
    "EncoderDecoder",
    "LanguageModel",
    "LastStep",
    "MeanStep",
    "MixerDecoder",
    "MultiSourceEncoder",
    "MultiSourceLayer",
    "RecurrentDecoder",
    "RedForm",
    "RedSize",
    "RegularisedEncoderDecoder",
    "SequenceEncoder",
    "VectorEncoder",
]
