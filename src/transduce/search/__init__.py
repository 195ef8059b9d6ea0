"""From a model and a batch to n-best lists. A search sees scores and states, nothing else of a model."""

from .align import align, score
from .beam import Beam
from .limits import MaxLength, ratio
from .scorers import (
    BlockNGrams, Constrain, CoveragePenalty, EachOnce, Ensemble, Fusion, LengthPenalty, StepScorer,
)
from .single import Greedy, Sample

__all__ = [
    "Beam", "BlockNGrams", "Constrain", "CoveragePenalty", "EachOnce", "Ensemble", "Fusion", "Greedy", "LengthPenalty",
    "MaxLength", "Sample", "StepScorer", "align", "ratio", "score",
]
