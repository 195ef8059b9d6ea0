"""The small digits of scikit-learn: 1,797 handwritten digits of 8 x 8 grey values from 0 to 16 (UCI, Alpaydin and Kaynak
1998).

:func:`load_images` gives the pixels, :func:`load` pairs of 64 symbols (``0`` to ``g``, row after row) and the digit. The
first 1,200 images are for training, the next 200 for validation and the last 397 for test.
"""

from __future__ import annotations

import gzip
import io
import os
from typing import NamedTuple

import numpy as np

from transduce.core.errors import DataError

from ..batching import Corpus, Example
from ..fetch import Archive, fetch, read_member

ARCHIVE = Archive(
    "pypi",
    "scikit-learn",
    "1.7.2",
    "scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
)
SIDE = 8
PARTS = {"train": slice(0, 1200), "valid": slice(1200, 1400), "test": slice(1400, 1797)}
_LEVELS = "0123456789abcdefg"


class SmallImages(NamedTuple):
    """Grey values (N,8,8) from 0 to 16, ink high, and the digits (N); both uint8."""

    pixels: np.ndarray
    digits: np.ndarray


def load_images(data_dir: str | os.PathLike | None = None) -> dict[str, SmallImages]:
    """"train" (1,200), "valid" (200) and "test" (397)."""
    packed = read_member(fetch(ARCHIVE, data_dir), "sklearn/datasets/data/digits.csv.gz")
    try:
        rows = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",", ndmin=2).astype(np.uint8)
    except (OSError, EOFError, ValueError):
        rows = np.empty((0, 0), np.uint8)
    if rows.shape != (1797, SIDE * SIDE + 1) or rows[:, :-1].max() > 16 or rows[:, -1].max() > 9:
        raise DataError("The file of small digits is damaged; remove its archive and fetch it again.")
    pixels, digits = rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1]
    return {name: SmallImages(pixels[part], digits[part]) for name, part in PARTS.items()}


def _examples(images: SmallImages) -> list[Example]:
    rows = images.pixels.reshape(len(images.digits), -1)
    return [
        Example("".join(_LEVELS[level] for level in row), str(digit), (str(digit),))
        for row, digit in zip(rows, images.digits)
    ]


def load(data_dir: str | os.PathLike | None = None) -> Corpus:
    parts = load_images(data_dir)
    return Corpus(
        "digits",
        "pairs",
        _examples(parts["train"]),
        _examples(parts["valid"]),
        _examples(parts["test"]),
        "chars",
        "chars",
        "digit error",
        "symbol error",
        licence="BSD-3-Clause (scikit-learn); CC BY 4.0 (UCI)",
        origin="scikit-learn 1.7.2, datasets/data/digits.csv.gz",
    )
