"""Looking into trained models: what they attend to, what they depend on, how long they think."""

from .attention import attention_mass, log_slope, source_sensitivity
from .depth import ponder_times
from .sources import with_swapped_part, without_part

__all__ = [
    "attention_mass",
    "log_slope",
    "ponder_times",
    "source_sensitivity",
    "with_swapped_part",
    "without_part",
]
