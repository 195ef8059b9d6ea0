"""Data sets of the package ``datasets`` (extra ``data``): ``hf:NAME``, ``hf:NAME:CONFIG``,
``hf:NAME:CONFIG:SPLIT``, or ``hf:FOLDER`` and ``hf:FOLDER:SPLIT`` for one that was saved to disk.

Only the wanted columns are read, as Arrow tables; sounds and pictures beside them are never decoded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterator

from transduce.core.errors import DataError, nearest

from .arrow import read_arrow
from .readers import Found, Progress
from .rows import Rules

PREFIX = "hf:"
PARTS = {"train": ("train",), "valid": ("validation", "valid", "dev", "val"), "test": ("test",)}


def _datasets():
    try:
        import datasets
    except ImportError:
        raise DataError('hf: data sets need the package datasets: pip install "transduce[data]".') from None
    datasets.disable_progress_bars()
    return datasets


def parse(name: str) -> tuple[str, str | None, str | None]:
    """ "hf:NAME[:CONFIG][:SPLIT]" -> name, config, split. A folder on this machine has no config."""
    whole = name.removeprefix(PREFIX)
    if os.path.exists(whole):
        return whole, None, None
    folder, _, split = whole.rpartition(":")
    if folder and os.path.exists(folder):
        return folder, None, split or None
    found, *rest = whole.split(":")
    if not found or len(rest) > 2:
        raise DataError(
            f'"{name}" names no data set; the form is hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT.'
        )
    config, split = (*rest, "", "")[:2]
    return found, config or None, split or None


def open_parts(name: str) -> dict[str, Any]:
    """The splits of a data set as "train", "valid" and "test", as far as it has them; a single split, or the
    one that was asked for, is "train" alone.

    Raises :class:`DataError` where the data set cannot be had.
    """
    found, config, split = parse(name)
    data = _load(name, found, config)
    if not hasattr(data, "keys"):
        return {"train": data}
    if split is not None:
        if split not in data:
            raise DataError(
                f'{name}: there is no split "{split}".{nearest(split, data)} It has {", ".join(data)}.'
            )
        return {"train": data[split]}
    parts = {part: data[key] for part, keys in PARTS.items() for key in keys if key in data}
    if "train" in parts:
        return parts
    if len(data) == 1:
        return {"train": next(iter(data.values()))}
    raise DataError(
        f"{name} has the splits {', '.join(data)} and none named train; name the one to split up."
    )


def _load(name: str, found: str, config: str | None) -> Any:
    datasets = _datasets()
    try:
        if os.path.isdir(found) and any(
            os.path.exists(os.path.join(found, mark)) for mark in ("dataset_dict.json", "state.json")
        ):
            return datasets.load_from_disk(found)
        return datasets.load_dataset(found, config)
    except DataError:
        raise
    except Exception as problem:  # the package raises many kinds: no network, no such name, broken files
        said = (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"{name} could not be loaded: {said[:300]}; without a network, load it where there is one, save it with "
            "save_to_disk and name the folder: hf:FOLDER."
        ) from None


def read_dataset(name: str, data: Any, rules: Rules, progress: Progress) -> Iterator[Found]:
    """Rows of one split."""
    schema = data.features.arrow_schema

    def tables(columns: list[str]) -> Iterator[Any]:
        arrow = data.select_columns(columns).with_format("arrow")
        for table in arrow.iter(batch_size=4096):
            yield from table.combine_chunks().to_batches()

    yield from read_arrow(Path(name), rules, progress, (schema, tables, max(1, len(data))))
