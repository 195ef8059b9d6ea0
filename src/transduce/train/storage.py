"""Files that are absent, temporary or complete: write under another name, flush to the disk, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from transduce.core.errors import UserError

TEMPORARY = ".tmp-"
"""Names that begin so are unfinished work of a process that was stopped; they may be deleted at any time."""

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission was denied; choose another folder or change its permissions",
    errno.EPERM: "permission was denied; choose another folder or change its permissions",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EFBIG: "the file is too large for this file system; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals to write into one sentence (:class:`UserError`)."""
    try:
        yield
    except OSError as problem:
        remedy = _REMEDIES.get(problem.errno or 0)
        if remedy is None:
            raise
        raise UserError(f"Cannot write {path}: {remedy}.") from problem


def flush_folder(path: Path) -> None:
    """Make renames inside a folder durable, where the platform can."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk. Not atomic: for use inside :func:`new_folder`."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` atomically: after a crash it holds the old content or the new one, never a part."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        write_new(temporary, content)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that is renamed to ``path`` when the block ends well.

    ``path`` must not exist then, or be an empty folder. When the block fails the temporary folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary
        flush_folder(temporary)
        os.rename(temporary, path)
        flush_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what interrupted writers left in a folder."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def to_json(value: Any) -> bytes:
    """Readable JSON of finite numbers; raises ValueError for NaN and infinity."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class DuplicateKey(ValueError):
    """A JSON object names the same key twice, so two readers could see two different files."""


def strict_json(text: bytes | str) -> Any:
    """Parse JSON; refuses duplicate keys, NaN and infinity, which Python's own reader lets pass.

    Raises ValueError (:class:`DuplicateKey` among them) with a short reason, for nesting too deep as well.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in items:
            if key in seen:
                raise DuplicateKey(f'the key "{key[:80]}" stands there twice')
            seen[key] = value
        return seen

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number that JSON allows")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
