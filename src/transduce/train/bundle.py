"""The model file a user keeps: a folder with weights, all that rebuilds the model, and a model card.

``model.safetensors``  the weights; ``bundle.json``  format version, system, its config, the data fields,
metrics, corpus, how it was trained, library versions, and size and SHA-256 of the weights; ``README.md``  the
card for people.

Reading never runs code. A file that is damaged, foreign, ambiguous or newer than this version is refused with
one sentence (:class:`BundleError`). The readers of JSON and safetensors both accept a name that stands there
twice; here it is refused, because two readers could then see two different models.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import stat
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, TypeVar

import torch
from safetensors.torch import save as format_tensors
from torch import Tensor, nn

from transduce.core.errors import BundleError, nearest
from transduce.data.fields import DataSpec

from . import weights
from .card import model_card
from .storage import (
    TEMPORARY,
    DuplicateKey,
    digest,
    new_folder,
    replace_file,
    strict_json,
    to_json,
    write_new,
    writing,
)
from .tensorfile import read_tensors

FORMAT = 1
KIND = "transduce bundle"
LARGEST_JSON = 64 << 20
_FIELDS = {
    "system": str,
    "config": dict,
    "spec": dict,
    "metrics": dict,
    "corpus": dict,
    "training": dict,
    "versions": dict,
}

C = TypeVar("C")


@dataclass(frozen=True)
class BundleParts:
    """What a bundle holds. Rebuild the system's model from ``config`` and ``spec``, then :meth:`load_into`
    it."""

    weights: dict[str, Tensor]
    system_name: str
    config: dict[str, Any]
    spec: DataSpec
    metrics: dict[str, Any] = field(default_factory=dict)
    corpus: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    path: Path | None = None

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into ``model``. Raises :class:`BundleError` naming a tensor that is absent,
        surplus or of another shape; the model is unchanged then."""
        weights.restore(
            model, self.weights, what=f"The bundle {self.path or self.system_name}", error=BundleError
        )

    def config_as(self, config_type: type[C]) -> C:
        """The system's config as its dataclass. Raises :class:`BundleError` naming a field the class does not
        have."""
        return config_of(config_type, self.config, self.path)


def write(
    folder: Path | str,
    model: nn.Module | Mapping[str, Tensor],
    system_name: str,
    config: Any,
    spec: DataSpec,
    metrics: Mapping[str, Any],
    about: Mapping[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a bundle atomically and return its path.

    ``model``: a module, or its tensors by name. ``config``: the system's dataclass, or its fields as a
    dictionary. ``metrics``: numbers by name, best grouped by split: ``{"valid": {...}, "test": {...}}``.
    ``about`` may hold ``corpus`` (``name``, ``kind``, ``licence``, ``origin``, ...) and ``training``
    (``steps``, ``seconds``, ...), which go on the card. Raises :class:`BundleError` when the folder exists
    and ``overwrite`` is False, or when a weight is not a finite number, and UserError when the disk refuses.
    """
    folder, about = Path(folder), about or {}
    tensors = weights.snapshot(model) if isinstance(model, nn.Module) else dict(model)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BundleError(
                f"The weights in {name} are not finite numbers, so no bundle was written; train again."
            )
    if not overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already; choose another folder or ask for it to be overwritten.")
    content = format_tensors({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
    described = {
        "kind": KIND,
        "format": FORMAT,
        "system": system_name,
        "config": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config),
        "spec": spec.to_json(),
        "metrics": dict(metrics),
        "corpus": dict(about.get("corpus", {})),
        "training": dict(about.get("training", {})),
        "versions": versions(),
        "parameters": sum(t.numel() for t in tensors.values()),
        "weights": {"bytes": len(content), "sha256": digest(content)},
    }
    with writing(folder):
        retired = _retire(folder) if overwrite and folder.exists() else None
        try:
            with new_folder(folder) as temporary:
                write_new(temporary / "model.safetensors", content)
                write_new(temporary / "README.md", model_card(described).encode())
                write_new(temporary / "bundle.json", to_json(described))
        except BaseException:
            if retired is not None:
                os.rename(retired, folder)
            raise
        if retired is not None:
            shutil.rmtree(retired)
    return folder


def _retire(folder: Path) -> Path:
    """Move an old bundle aside; refuses what is not one."""
    if any(folder.iterdir()):
        _described(folder)
    retired = folder.with_name(f"{TEMPORARY}{folder.name}-old")
    shutil.rmtree(retired, ignore_errors=True)
    os.rename(folder, retired)
    return retired


def add_metrics(folder: Path | str, metrics: Mapping[str, Any]) -> None:
    """Add groups of measured numbers (say ``{"test": {...}}``) to a bundle and bring its card up to date."""
    folder = Path(folder)
    described = _described(folder)
    described["metrics"] = {**described["metrics"], **metrics}
    with writing(folder):
        replace_file(folder / "bundle.json", to_json(described))
        replace_file(folder / "README.md", model_card(described).encode())


def read(folder: Path | str) -> BundleParts:
    """Read and check a bundle. Raises :class:`BundleError`, one sentence, for anything that is not a sound
    one."""
    folder = Path(folder)
    described = _described(folder)
    tensors = read_tensors(folder / "model.safetensors", described["weights"])
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            raise BundleError(
                f"The bundle {folder} holds weights that are not finite numbers (in {name}); "
                "use another copy of it or train again."
            )
    try:
        spec = DataSpec.from_json(described["spec"])
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BundleError(
            f"The data fields in {folder / 'bundle.json'} cannot be used: {problem}"
        ) from problem
    return BundleParts(
        weights=tensors,
        system_name=described["system"],
        spec=spec,
        path=folder,
        **{name: described[name] for name in ("config", "metrics", "corpus", "training", "versions")},
    )


def _described(folder: Path) -> dict[str, Any]:
    """bundle.json, checked as far as it can be without the weights."""
    if not folder.is_dir():
        raise BundleError(f"There is no bundle at {folder}; give a folder that a training run wrote.")
    path = folder / "bundle.json"
    for needed in (path, folder / "model.safetensors"):
        if not needed.exists():
            raise BundleError(f"{folder} is not a transduce bundle: it has no {needed.name}.")
        if not stat.S_ISREG(needed.stat().st_mode):
            raise BundleError(f"{needed} is not an ordinary file.")
    if path.stat().st_size > LARGEST_JSON:
        raise BundleError(
            f"{path} has {path.stat().st_size} bytes, more than the {LARGEST_JSON} a bundle may have."
        )
    try:
        described = strict_json(path.read_bytes())
    except DuplicateKey as problem:
        raise BundleError(f"{path} is ambiguous: {problem}.") from None
    except ValueError as problem:  # UnicodeDecodeError and JSONDecodeError are kinds of it
        raise BundleError(f"{path} is cut off or damaged: {problem}.") from None
    if not isinstance(described, dict) or described.get("kind") != KIND:
        raise BundleError(f"{path} was not written by transduce: it does not call itself a {KIND}.")
    version = described.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path} has no valid format version.")
    if version > FORMAT:
        writer = (
            described["versions"].get("transduce", "newer")
            if isinstance(described.get("versions"), dict)
            else "newer"
        )
        raise BundleError(
            f"The bundle {folder} has format version {version} and this transduce reads up to {FORMAT}: "
            f"upgrade transduce (it was written by version {writer})."
        )
    for name, kind in {**_FIELDS, "weights": dict}.items():
        if not isinstance(described.get(name), kind):
            raise BundleError(f'{path} is damaged: its entry "{name}" is missing or of the wrong kind.')
    return described


def versions() -> dict[str, str]:
    """Versions of what shaped the weights."""
    from transduce import __version__

    return {"transduce": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def config_of(kind: type[C], values: Any, path: Path | None) -> C:
    if not isinstance(values, dict):
        raise BundleError(f"The bundle {path} has a config that is not a table of fields.")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind) if f.init}
    for name in values:
        if name not in known:
            raise BundleError(
                f'The bundle {path} sets "{name}", which {kind.__name__} does not have; '
                f"it was written by another version of the system.{nearest(name, known)}"
            )
    made = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = config_of(hint, value, path)
        elif isinstance(value, list):  # JSON has no tuples, frozen configs have no lists
            value = tuple(value)
        made[name] = value
    try:
        return kind(**made)
    except (TypeError, ValueError) as problem:
        raise BundleError(
            f"The config in the bundle {path} does not fit {kind.__name__}: {problem}"
        ) from problem
