"""Python source code: the standard library of the interpreter that runs, split by top-level module or package.

Nothing is fetched. Tests and what is installed beside the library are left out, and so are files that are not UTF-8. The
text differs a little from one Python version to the next; the origin says which one it was. The symbols are bytes.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path
from typing import Iterator

from transduce.core.errors import DataError

from ..batching import Corpus, Example
from ..files import windows
from ..split import part_of

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def sources(library: Path) -> Iterator[tuple[str, str]]:
    """Top-level name and text of every source file of a library folder, in the order of their paths."""
    found = (path.relative_to(library) for path in library.rglob("*.py"))
    for path in sorted(path for path in found if not LEFT_OUT.intersection(path.parts)):
        try:
            text = (library / path).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip():
            yield path.parts[0].removesuffix(".py"), text


def texts(library: Path) -> dict[str, list[str]]:
    """Whole files by part."""
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for top, text in sources(library):
        parts[part_of(top)].append(text)
    return parts


def load(data_dir: str | os.PathLike | None = None, *, window: int = 256) -> Corpus:
    """``data_dir`` is not looked into."""
    library = Path(sysconfig.get_path("stdlib"))
    parts = texts(library)
    if not all(parts.values()):
        raise DataError(f"This Python has no source files of its library at {library}; use one that has them.")
    cut: dict[str, list[Example]] = {
        name: [row for text in part for row in windows(text, window)] for name, part in parts.items()
    }
    return Corpus(
        "python-stdlib",
        "text",
        cut["train"],
        cut["valid"],
        cut["test"],
        "bytes",
        "bytes",
        licence="PSF-2.0",
        origin=f"standard library of Python {platform.python_version()}",
        windowed=True,
    )
