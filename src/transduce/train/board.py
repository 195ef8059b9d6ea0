"""The log of a run for TensorBoard, beside the lines of log.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from transduce.core.errors import UserError


class Board:
    """Scalars of the log's records by step. Raises :class:`UserError` where the package tensorboard is missing."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                'The setting tensorboard needs the package tensorboard: pip install "transduce[train]", or leave it out; '
                "log.jsonl holds the same figures."
            ) from None
        self._open = lambda step: SummaryWriter(str(folder), purge_step=step)
        self._writer = None

    def add(self, record: Mapping[str, Any]) -> None:
        step = record["step"]
        if self._writer is None:  # a resumed run hides what the stopped one logged behind its checkpoint
            self._writer = self._open(step)
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                group = "valid" if "error" in name or name.startswith(("valid", "bits")) else "train"
                self._writer.add_scalar(f"{group}/{name.removeprefix('valid_')}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
