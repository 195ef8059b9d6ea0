"""Which data a command works on: the flags, and how a run remembers them."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Mapping

if TYPE_CHECKING:
    from transduce.data import Corpus

SourceUnits = Literal["chars", "words", "bytes", "bpe", "points"]
TargetUnits = Literal["chars", "words", "bytes", "bpe", "positions"]


@dataclass(frozen=True)
class DataOptions:
    data: str | None = None
    """A built-in corpus by name (libreoffice-help:fr-en chooses languages), or a .tsv, .csv, .jsonl, .parquet or
    .txt file, or a folder with train, valid and test files, or hf:NAME for a data set of the package datasets."""
    data_dir: Path | None = None
    """Folder with data files that are not fetched (also: TRANSDUCE_DATA)."""
    source_column: str | None = None
    """Name of the source column of your file (source where left out); de+fr joins two columns."""
    target_column: str | None = None
    """Name of the target column of your file (target where left out); en+fr joins two columns."""
    source_units: SourceUnits | None = None
    """How sources are split into symbols; files are split into chars. points: lists such as 0.1,0.2 0.5,0.9."""
    target_units: TargetUnits | None = None
    """How targets are split into symbols; files are split into chars. positions: places in the source, from 1."""
    vocabulary: int | None = None
    """Most symbols that a side may learn (8,000 where the corpus does not say)."""
    max_bad: float = 0.01
    """Share of broken rows of your file that are left out; with more of them nothing is trained."""
    max_rows: int | None = None
    """Read this many rows of each part of your data, no more."""

    def to_json(self) -> dict[str, Any]:
        """What is needed to find the same data again, from any folder."""
        from transduce.data import anywhere

        return {
            **dataclasses.asdict(self),
            "data": anywhere(self.data) if self.data else self.data,
            "data_dir": None if self.data_dir is None else str(self.data_dir.resolve()),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DataOptions:
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {k: v for k, v in stored.items() if k in known and v is not None}
        if "data_dir" in kept:
            kept["data_dir"] = Path(kept["data_dir"])
        return cls(**kept)

    def load(self, *, quiet: bool = False) -> Corpus:
        """The corpus; what should be known about it is printed unless ``quiet``."""
        from transduce.api import corpus_of

        corpus = corpus_of(dataclasses.asdict(self))
        for note in () if quiet else corpus.notes:
            print(f"note: {note}", file=sys.stderr)
        return corpus
