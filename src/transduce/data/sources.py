"""One door to all data: built-in corpora by name, a user's files by path, ``hf:`` data sets."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from transduce.core.errors import DataError

from . import corpora, hub
from .batching import Corpus
from .files import is_path, read_parts
from .quarantine import MAX_BAD
from .rows import Columns, Rules, join_of


def load_corpus(
    name_or_path: str,
    *,
    data_dir: str | os.PathLike | None = None,
    columns: Columns | None = None,
    source_units: str | None = None,
    target_units: str | None = None,
    max_bad: float = MAX_BAD,
    max_rows: int | None = None,
) -> Corpus:
    """A built-in corpus by name, the user's file or folder by path, or a data set of the package ``datasets``
    (``hf:NAME``).

    ``columns``: names of the source and target column; "source" and "target" unless given; "de+fr" joins two
    columns with :data:`transduce.data.fields.SEPARATOR`. ``*_units``: how each side is split, "chars" (the
    default of files), "words", "bytes" or "bpe"; a source may be "points", a target
    "positions" (:mod:`transduce.data.points`). ``max_bad``: share of broken rows that are left out with a
    note in ``Corpus.notes``. ``max_rows``: read this many rows of each part, no more. Raises
    :class:`DataError`, one sentence.
    """
    if is_path(name_or_path) and name_or_path not in corpora.names():
        if max_rows is not None and max_rows < 1:
            raise DataError(f"--max-rows must be at least 1, got {max_rows}.")
        joins = join_of(source_units), join_of(target_units)
        kind, parts, notes, windowed = read_parts(name_or_path, Rules(columns, joins, max_bad, max_rows))
        short = Path(name_or_path.removeprefix(hub.PREFIX)).name.replace(":", "-")
        corpus = Corpus(
            short,
            kind,
            parts["train"],
            parts["valid"],
            parts["test"],
            "chars",
            "chars",
            licence="the user's own",
            origin=short,
            windowed=windowed,
            notes=tuple(notes),
        )
    else:
        corpus = corpora.load(name_or_path, data_dir)
    return replace(
        corpus,
        source_units=source_units or corpus.source_units,
        target_units=target_units or corpus.target_units,
    )


def anywhere(name: str) -> str:
    """A name as it is; a path, that behind ``hf:`` included, so that it can be found from any folder."""
    if name.startswith(hub.PREFIX):
        folder, _, split = hub.parse(name)
        whole = ":".join([os.path.abspath(folder), *([split] if split else [])])
        return f"{hub.PREFIX}{whole}" if os.path.exists(folder) else name
    return str(Path(name).resolve()) if os.path.exists(name) else name
