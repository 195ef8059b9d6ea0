"""The law suites: prove a layer, an op, a decoder, a search or a system of your own."""

from .decoder import check_decoder
from .mixers import LawResult, check_mixer, mixer_laws, render_laws
from .ops import check_op
from .search import check_search
from .system import check_system

__all__ = [
    "LawResult",
    "check_decoder",
    "check_mixer",
    "check_op",
    "check_search",
    "check_system",
    "mixer_laws",
    "render_laws",
]
