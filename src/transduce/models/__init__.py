"""Whole shapes: what stands between a batch and a distribution."""

from .encoder_decoder import EncoderDecoder, LanguageModel
from .encoders import LastStep, MeanStep, SequenceEncoder, VectorEncoder
from .mixer_decoder import DecoderLayer, MixerDecoder
from .pointer import PointerAttend, PointerDecoder, PointerNet
from .recurrent_decoder import RecurrentDecoder

__all__ = [
    "DecoderLayer",
    "EncoderDecoder",
    "LanguageModel",
    "LastStep",
    "MeanStep",
    "MixerDecoder",
    "PointerAttend",
    "PointerDecoder",
    "PointerNet",
    "RecurrentDecoder",
    "SequenceEncoder",
    "VectorEncoder",
]
