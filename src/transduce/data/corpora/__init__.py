"""Named real data sets, one module each, found by file name and imported only when asked for.

A name may carry a variant behind a colon, ``libreoffice-help:en-fr``, where the module's ``load`` takes one.
"""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path

from transduce.core.errors import DataError, nearest

from .. import synthetic
from ..batching import Corpus


def _modules() -> dict[str, str]:
    pages = sorted(Path(__file__).parent.glob("*.py"))
    return {p.stem.replace("_", "-"): f"{__name__}.{p.stem}" for p in pages if not p.stem.startswith("_")}


def names() -> list[str]:
    """Every built-in corpus, real and generated, by name."""
    return [*_modules(), *synthetic.names()]


def load(name: str, data_dir: str | os.PathLike | None = None) -> Corpus:
    """A built-in corpus by name; real ones may be fetched first."""
    base, colon, variant = name.partition(":")
    modules = _modules()
    if base not in names():
        raise DataError(
            f'There is no corpus or file "{name}".{nearest(base, names())} Built in are {", ".join(names())}; '
            "your own data are given by the path of a .tsv, .csv, .jsonl or .txt file."
        )
    read = importlib.import_module(modules[base]).load if base in modules else None
    if colon and (read is None or "variant" not in inspect.signature(read).parameters):
        raise DataError(f'The corpus {base} has no variants; leave out ":{variant}".')
    if read is None:
        return synthetic.built_in(base)
    return read(data_dir, variant=variant) if colon else read(data_dir)
