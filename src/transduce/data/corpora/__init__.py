"""Named real data sets, one module each, found by file name and imported only when asked for."""

from __future__ import annotations

import importlib
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
    if name in synthetic.names():
        return synthetic.built_in(name)
    modules = _modules()
    if name not in modules:
        raise DataError(
            f'There is no corpus or file "{name}".{nearest(name, names())} Built in are {", ".join(names())}; '
            "your own data are given by the path of a .tsv, .csv, .jsonl or .txt file."
        )
    return importlib.import_module(modules[name]).load(data_dir)
