"""Training: the job, its files, measurement and pictures."""

from .config import TrainConfig
from .distributed import World
from .evaluate import Evaluation, evaluate
from .run import RunFolder, prepare_out
from .state import TrainResult
from .trainer import Trainer

__all__ = ["Evaluation", "RunFolder", "TrainConfig", "TrainResult", "Trainer", "World", "evaluate", "prepare_out"]
