"""One door to all data: built-in corpora by name, a user's files by path."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from . import corpora
from .batching import Corpus
from .files import Columns, are_windows, is_path, read_parts


def load_corpus(
    name_or_path: str,
    *,
    data_dir: str | os.PathLike | None = None,
    columns: Columns | None = None,
    source_units: str | None = None,
    target_units: str | None = None,
) -> Corpus:
    """A built-in corpus by name, or the user's file or folder by path.

    ``columns``: names of the source and target column; "source" and "target" unless given. ``*_units``: how
    each side is split, "chars" (the default of files), "words", "bytes" or "bpe"; a source may be "points", a target
    "positions" (:mod:`transduce.data.points`). Raises :class:`DataError`, one sentence.
    """
    if is_path(name_or_path) and name_or_path not in corpora.names():
        path = Path(name_or_path)
        kind, parts = read_parts(path, columns)
        corpus = Corpus(
            path.name,
            kind,
            parts["train"],
            parts["valid"],
            parts["test"],
            "chars",
            "chars",
            "sequence error",
            "symbol error",
            licence="the user's own",
            origin=path.name,
            windowed=kind == "text" and are_windows([e for part in parts.values() for e in part]),
        )
    else:
        corpus = corpora.load(name_or_path, data_dir)
    return replace(
        corpus,
        source_units=source_units or corpus.source_units,
        target_units=target_units or corpus.target_units,
    )
