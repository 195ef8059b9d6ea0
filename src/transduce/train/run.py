"""The run folder: what a training run leaves behind and who may overwrite it.

::

    out/  config.json      what was asked for; written first, and the mark of a run folder
          log.jsonl        one line a report: step, loss, learning rate, speed; one an evaluation
          checkpoint/      to go on from (resume)
          bundle/          the model to keep and to share
          curve.png  attention-*.png  eval*.json
          dump-<step>/     the step at which the loss was no number, for `transduce replay`
          tensorboard/     the log once more, where asked for
"""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from transduce.core.errors import UserError

from . import checkpoint
from .storage import TEMPORARY, replace_file, strict_json, sweep, to_json, writing

KIND = "transduce run"
_OURS = (
    "config.json",
    "log.jsonl",
    "checkpoint",
    "bundle",
    "*.png",
    "eval*.json",
    "dump-*",
    "tensorboard",
    "metrics.json",
    f"{TEMPORARY}*",
)


@dataclass(frozen=True)
class RunFolder:
    """The places in a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    def attention(self, number: int) -> Path:
        return self.path / f"attention-{number}.png"

    def write_config(self, content: Mapping[str, Any]) -> None:
        with writing(self.path):
            replace_file(self.config, to_json({"kind": KIND, "format": 1, **content}))

    def read_config(self) -> dict[str, Any]:
        """What :meth:`write_config` stored. Raises :class:`UserError` for a folder that is no run."""
        found = _config(self.path)
        if found is None:
            raise UserError(f"{self.path} is not a run folder: it has no config.json written by transduce.")
        return found

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Add a line; on failure the file keeps whole lines only."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with writing(self.log), open(self.log, "ab") as file:
            size = file.tell()
            try:
                file.write(line)
                file.flush()
            except OSError:
                os.truncate(self.log, size)
                raise

    def rewrite_log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Bring the log back to what a checkpoint knows."""
        with writing(self.log):
            replace_file(self.log, "".join(json.dumps(r, allow_nan=False) + "\n" for r in records).encode())


def prepare_out(path: Path | str, *, resume: bool = False, force: bool = False) -> RunFolder:
    """Make sure that a run may write to ``path``.

    A new or empty folder is taken; a run folder only with ``resume`` (it needs a checkpoint) or ``force``
    (its files are deleted); anything else is never touched. Raises :class:`UserError` with one sentence.
    """
    if resume and force:
        raise UserError("Give --resume to go on with a run or --force to replace it, not both.")
    folder = RunFolder(Path(path))
    if resume:
        _check_resumable(folder)
        with writing(folder.path):
            sweep(folder.path)
        return folder
    with writing(folder.path):
        if os.path.lexists(folder.path):
            _make_room(folder, force)
        folder.path.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.path, os.W_OK):
            raise OSError(errno.EACCES, "not writable")
    return folder


def _check_resumable(folder: RunFolder) -> None:
    if not folder.path.is_dir() or _config(folder.path) is None:
        raise UserError(f"There is no run to resume at {folder.path}; start it without --resume.")
    if not checkpoint.stored(folder.checkpoint):
        raise UserError(
            f"The run at {folder.path} has no complete checkpoint yet; start it again with --force."
        )


def _make_room(folder: RunFolder, force: bool) -> None:
    path = folder.path
    if not path.is_dir():
        raise UserError(f"{path} exists and is not a folder; choose another place for the run.")
    present = sorted(p.name for p in path.iterdir())
    if not present:
        return
    if _config(path) is None:
        raise UserError(
            f"{path} exists and is not a run folder, so it is left alone; choose another place for the run."
        )
    if not force:
        raise UserError(
            f"{path} holds a run already; add --resume to go on with it or --force to replace it."
        )
    foreign = [name for name in present if not any(fnmatch.fnmatch(name, pattern) for pattern in _OURS)]
    if foreign:
        raise UserError(
            f"{path} also holds {foreign[0]}, which no run wrote, so nothing was deleted; "
            "move that file away first."
        )
    for name in present:  # config.json last: until then an interrupted removal still looks like a run
        if name != "config.json":
            _remove(path / name)
    _remove(folder.config)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _config(path: Path) -> dict[str, Any] | None:
    try:
        found = strict_json((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("kind") == KIND else None
