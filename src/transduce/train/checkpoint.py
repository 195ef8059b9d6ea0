"""Checkpoints that are absent, temporary or complete.

Each is a folder ``save-<number>`` of safetensors files, one a group of tensors, and ``state.json``.
``manifest.json`` is written last and lists every file with its size and SHA-256. The folder is built under a
temporary name, flushed to the disk and renamed; the previous checkpoint is deleted only after the new one has
been read back and verified. So whenever the process dies, the newest folder with a manifest is a whole
checkpoint. Nothing in it is code.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor

from transduce.core.errors import UserError

from .distributed import World, is_spread
from .storage import TEMPORARY, digest, new_folder, strict_json, sweep, to_json, write_new, writing

FORMAT = 1
_SHARD = "shard-"  # so torch.distributed.checkpoint names each process's file
_NAME = re.compile(r"save-(\d{6,})")


class CheckpointError(UserError):
    """A checkpoint that is damaged or of another version."""


@dataclass(frozen=True)
class Checkpoint:
    """``tensors[group][name]`` on the CPU and the ``state`` that JSON holds. ``skipped``: newer ones that
    were damaged."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path
    skipped: tuple[str, ...] = ()


def stored(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, newest first."""
    if not folder.is_dir():
        return []
    found = [
        (int(m[1]), p)
        for p in folder.iterdir()
        if (m := _NAME.fullmatch(p.name)) and (p / "manifest.json").is_file()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def save(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    world: World = World(),
) -> Path | None:
    """Store a checkpoint in ``folder`` and delete the older ones. Returns its path (in the first process).

    Tensors that are spread over the processes of ``world`` are written by all of them, each its part, through
    torch.distributed.checkpoint into safetensors files; then every process must call this. Everything else is
    written by the first process. Raises :class:`UserError` when the disk refuses; the last good checkpoint is
    intact then and no part is left.
    """
    tensors, spread = split_spread(tensors)
    if not world.main:
        if spread:
            _write_spread(Path(world.agree("")), spread)
        return None
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        older = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)]
        number = 1 + max((int(_NAME.fullmatch(p.name)[1]) for p in older), default=0)
        path = folder / f"save-{number:06d}"
        with new_folder(path) as temporary:
            listed = {}
            if spread:
                _write_spread(Path(world.agree(str(temporary))), spread)
                for part in sorted(temporary.iterdir()):
                    content = part.read_bytes()
                    listed[part.name] = {"bytes": len(content), "sha256": digest(content)}
            for name, content in _contents(tensors, state):
                write_new(temporary / name, content)
                listed[name] = {"bytes": len(content), "sha256": digest(content)}
                del content
            write_new(temporary / "manifest.json", to_json({"format": FORMAT, "files": listed}))
        verify(path)
        for old in older:
            # renamed first, so that a half-deleted folder is never taken for a checkpoint
            doomed = old.with_name(f"{TEMPORARY}{old.name}")
            os.rename(old, doomed)
            shutil.rmtree(doomed)
    return path


def split_spread(
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Groups of whole tensors, and the tensors spread over processes as ``group/name``."""
    plain = {g: {n: t for n, t in named.items() if not is_spread(t)} for g, named in tensors.items()}
    spread = {f"{g}/{n}": t for g, named in tensors.items() for n, t in named.items() if is_spread(t)}
    return plain, spread


def _write_spread(folder: Path, tensors: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_spread(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill ``tensors`` (``group/name``) of this process from a checkpoint that any number of processes wrote."""
    import torch.distributed.checkpoint as dcp

    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)))


def _contents(tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]):
    for group, named in tensors.items():
        yield (
            f"{group}.safetensors",
            format_tensors({n: t.detach().cpu().contiguous() for n, t in named.items()}),
        )
    yield "state.json", to_json(state)


def verify(path: Path) -> dict[str, bytes]:
    """Read every file of a checkpoint against its manifest. Raises :class:`CheckpointError` naming the
    damaged one."""
    manifest = _json(path / "manifest.json")
    if not (
        isinstance(manifest, dict)
        and isinstance(manifest.get("files"), dict)
        and "state.json" in manifest["files"]
    ):
        raise CheckpointError(f"The checkpoint file {path / 'manifest.json'} is damaged.")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"The checkpoint {path} has format {manifest.get('format')}, this version reads format {FORMAT}; "
            "resume it with the version that wrote it."
        )
    contents = {}
    for name, expected in manifest["files"].items():
        file = path / name
        if os.path.basename(name) != name or not file.is_file():
            raise CheckpointError(f"The checkpoint file {file} is missing.")
        content = file.read_bytes()
        size, checksum = (
            (expected.get("bytes"), expected.get("sha256")) if isinstance(expected, dict) else (None, None)
        )
        if len(content) != size:
            raise CheckpointError(f"The checkpoint file {file} has {len(content)} bytes instead of {size}.")
        if digest(content) != checksum:
            raise CheckpointError(
                f"The checkpoint file {file} is damaged: its content changed after it was written."
            )
        contents[name] = content
    return contents


def load(folder: Path) -> Checkpoint:
    """The newest intact checkpoint of ``folder``.

    Raises :class:`CheckpointError` when there is none, naming the damaged file where there was one.
    """
    problems: list[CheckpointError] = []
    for path in stored(folder):
        try:
            contents = verify(path)
        except CheckpointError as problem:
            problems.append(problem)
            continue
        tensors = {
            # cloned: torch's allocator aligns memory, a view into the file's bytes need not be
            name.removesuffix(".safetensors"): {k: t.clone() for k, t in parse_tensors(content).items()}
            for name, content in contents.items()
            if name.endswith(".safetensors") and not name.startswith(_SHARD)
        }
        state = strict_json(contents["state.json"])
        return Checkpoint(tensors, state, path, tuple(str(p) for p in problems))
    if problems:
        raise CheckpointError(f"{problems[0]} No older checkpoint is left; start again with --force.")
    raise CheckpointError(f"There is no checkpoint in {folder}; start the run without --resume.")


def _json(path: Path) -> Any:
    try:
        return strict_json(path.read_bytes())
    except (OSError, ValueError):
        raise CheckpointError(f"The checkpoint file {path} is damaged.") from None


def random_group(rank: int) -> str:
    """The name under which a process's generators are stored."""
    return "random" if rank == 0 else f"random-{rank}"


def random_state(generator: torch.Generator) -> dict[str, Tensor]:
    """The states of torch's generators (CPU and every CUDA device) and of ``generator``, as byte tensors."""
    states = {"cpu": torch.get_rng_state(), "objective": generator.get_state()}
    if torch.cuda.is_initialized():
        states.update({f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())})
    return states


def restore_random(states: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Put back what :func:`random_state` gave; CUDA devices that are absent now are passed over."""
    torch.set_rng_state(states["cpu"])
    generator.set_state(states["objective"])
    for name, state in states.items():
        if name.startswith("cuda.") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[5:]))
