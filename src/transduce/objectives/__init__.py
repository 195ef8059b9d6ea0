"""What a training step minimises: (model, batch) -> Loss."""

from .likelihood import Likelihood, TokenWeights
from .side import WithSide
from .weighted import Weighted, ramp

__all__ = ["Likelihood", "TokenWeights", "Weighted", "WithSide", "ramp"]
