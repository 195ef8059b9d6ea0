"""Free Spoken Digit Dataset: 3,000 recordings of the English digits by six speakers, 8 kHz, silence cut off (CC BY-SA 4.0).

Takes 0 to 4 of each speaker and digit are the official test part (300); takes 5 to 9 are for validation (300) and the
other forty for training (2,400). An archive of the repository serves as well as its folder of recordings alone in a
tar file: what is checked is what the recordings hold.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import tempfile
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transduce.core.errors import DataError

from ..fetch import cache_dir, data_dirs, download, unwritable

FILE = "spoken-digits.tar"
ADDRESS = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
DIGEST = "45a9b976ba3397a2fd5c70a9f2e43c34f442a3a6be47392ecfc41174b678f37e"
"""What :func:`digest` gives for all recordings."""
RATE = 8000
NAME = re.compile(r"\d_[a-z]+_\d+\.wav")


class Recording(NamedTuple):
    """``samples`` (N,) int16 at 8 kHz, and the ``digit`` that is spoken."""

    samples: np.ndarray
    digit: int


def load_recordings(data_dir: str | os.PathLike | None = None) -> dict[str, list[Recording]]:
    """"train" (2,400), "valid" (300) and "test" (300)."""
    path = _find(data_dir)
    files = _files(path)
    if digest(files) != DIGEST:
        raise DataError(f"{path} does not hold the expected 3,000 recordings; remove it and get it anew from {ADDRESS}.")
    parts: dict[str, list[Recording]] = {"train": [], "valid": [], "test": []}
    for name in sorted(files):
        digit, _, take = name.removesuffix(".wav").split("_")
        part = "test" if int(take) < 5 else "valid" if int(take) < 10 else "train"
        parts[part].append(Recording(_samples(files[name]), int(digit)))
    return parts


def digest(files: dict[str, bytes]) -> str:
    """SHA-256 over names and contents, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(name.encode())
        found.update(files[name])
    return found.hexdigest()


def _files(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if NAME.fullmatch(name) and (file := archive.extractfile(member)) is not None:
                    found[name] = file.read()
        return found
    except (tarfile.TarError, EOFError, OSError):
        raise DataError(f"{path} is no archive of spoken digits; remove it and get it anew from {ADDRESS}.") from None


def _samples(content: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(content)) as sound:
        return np.frombuffer(sound.readframes(sound.getnframes()), np.int16)


def _find(data_dir: str | os.PathLike | None) -> Path:
    """The archive in a data directory or the cache, else fetched into the cache."""
    cached = cache_dir() / "files" / FILE
    for path in [*(place / FILE for place in data_dirs(data_dir)), cached]:
        if path.is_file():
            return path
    try:
        content = download(ADDRESS)
    except OSError:
        raise DataError(
            f"The file {FILE} was not found and could not be fetched. Get it from {ADDRESS} and put it at {cached}, "
            "or give its folder by TRANSDUCE_DATA."
        ) from None
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".fetch-") as folder:
            (Path(folder) / FILE).write_bytes(content)
            os.replace(Path(folder) / FILE, cached)
    except OSError as problem:
        raise unwritable(cached, problem) from None
    return cached
