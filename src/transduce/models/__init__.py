"""Whole shapes: what stands between a batch and a distribution."""

from .encoder_decoder import EncoderDecoder, LanguageModel
from .encoders import LastStep, MeanStep, SequenceEncoder, VectorEncoder
from .memory import FreeAnswers, MemoryNetwork, RecentDecoder, TiedAnswers
from .mixer_decoder import DecoderLayer, MixerDecoder
from .pointer import PointerAttend, PointerDecoder, PointerNet
from .recurrent_decoder import RecurrentDecoder

__all__ = [
    "DecoderLayer",
    "EncoderDecoder",
    "FreeAnswers",
    "LanguageModel",
    "LastStep",
    "MeanStep",
    "MemoryNetwork",
    "MixerDecoder",
    "PointerAttend",
    "PointerDecoder",
    "PointerNet",
    "RecentDecoder",
    "RecurrentDecoder",
    "SequenceEncoder",
    "TiedAnswers",
    "VectorEncoder",
]
