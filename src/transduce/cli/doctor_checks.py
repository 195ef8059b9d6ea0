"""What ``transduce doctor`` looks at around the machine: versions, packages, data, disk, and the main job."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .doctor import Finding

LITTLE_DISK, NO_DISK = 5 << 30, 200 << 20


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def versions() -> Iterator[Finding]:
    """Python, torch and this package."""
    import torch

    from transduce import __version__

    here = Path(__file__).resolve().parent.parent
    yield Finding("versions", "transduce", "ok", f"{__version__} at {here}")
    old = sys.version_info < (3, 11)
    yield Finding(
        "versions", "python", "problem" if old else "ok", f"{platform.python_version()} at {sys.executable}",
        "Install Python 3.11 or newer." if old else "",
    )  # fmt: skip
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    parts = [
        name
        for name, on in (
            ("oneDNN", torch.backends.mkldnn.is_available()),
            ("MKL", torch.backends.mkl.is_available()),
        )
        if on
    ]
    yield Finding(
        "versions",
        "torch",
        "ok",
        f"{torch.__version__}, built for {build}" + (f", with {' and '.join(parts)}" if parts else ""),
    )
    yield Finding(
        "versions",
        "system",
        "ok",
        f"{platform.system()} {platform.release()} on {platform.machine()}, "
        + (" ".join(platform.libc_ver()).strip() or "no glibc"),
    )


def _required(extra: str | None) -> list[str]:
    """Requirements of the base install (None) or of an extra, as the package's metadata name them."""
    found = []
    for line in importlib.metadata.requires("transduce") or []:
        requirement, _, marker = line.partition(";")
        named = re.search(r"""extra\s*==\s*["']([^"']+)""", marker)
        if (named[1] if named else None) == extra:
            found.append(requirement.strip())
    return found


def _missing(requirement: str) -> str | None:
    """Why a requirement is not met; None when it is."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return None
    if Requirement(requirement).specifier.contains(installed, prereleases=True):
        return None
    return f"{name} {installed} is not {requirement.removeprefix(name)}"


def packages() -> Iterator[Finding]:
    """The packages of the base install, and what each extra would add."""
    try:
        names = importlib.metadata.metadata("transduce").get_all("Provides-Extra") or []
        base = [m for r in _required(None) if (m := _missing(r))]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "packages", "base", "note",
            "transduce runs from its source and is not installed, so nothing says what it needs",
            "pip install . in the folder of the source.",
        )  # fmt: skip
        return
    yield Finding(
        "packages", "base", "problem" if base else "ok",
        ", ".join(base) or f"{len(_required(None))} packages, all there",
        "pip install --upgrade transduce" if base else "",
    )  # fmt: skip
    for extra in names:
        wanted = _required(extra)
        missing = [m for r in wanted if (m := _missing(r))]
        packages = ", ".join(re.match(r"[A-Za-z0-9._-]+", r)[0] for r in wanted)
        yield Finding(
            "packages", f"extra {extra}", "note" if missing else "ok", "; ".join(missing) or packages,
            f'pip install "transduce[{extra}]" where you want it.' if missing else "",
        )  # fmt: skip


def user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home())))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def writable(folder: Path) -> bool:
    """True when a file can be made in the folder, or the folder itself in its nearest parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def data() -> Iterator[Finding]:
    """Where data are looked for, and the cache."""
    from transduce.data.fetch import cache_dir, data_dirs

    named = data_dirs()
    if not named:
        yield Finding("data", "data folder", "ok", "none set (TRANSDUCE_DATA or --data-dir names one)")
    for folder in named:
        there = folder.is_dir()
        fix = "" if there else "Correct TRANSDUCE_DATA or make the folder."
        yield Finding(
            "data",
            "data folder",
            "ok" if there else "note",
            f"{folder}" + ("" if there else " does not exist"),
            fix,
        )
    cache = cache_dir()
    if not writable(cache):
        yield Finding(
            "data",
            "cache",
            "note",
            f"{cache} cannot be written",
            "Set TRANSDUCE_CACHE to a folder with room; built-in corpora are fetched into it.",
        )
        return
    files = [p for p in cache.rglob("*") if p.is_file()] if cache.is_dir() else []
    yield Finding(
        "data", "cache", "ok", f"{cache}, {len(files)} files, {size(sum(p.stat().st_size for p in files))}"
    )
    pip = importlib.util.find_spec("pip") is not None
    clients = [
        name
        for name, there in (("pip", pip), ("apt-get", shutil.which("apt-get")), ("npm", shutil.which("npm")))
        if there
    ]
    fix = "" if pip else "python -m ensurepip, or put the archives into the cache by hand."
    yield Finding("data", "fetched with", "ok" if pip else "note", ", ".join(clients) or "no client", fix)


def disk() -> Iterator[Finding]:
    """Room where runs, temporary files and the cache go."""
    from transduce.data.fetch import cache_dir

    for name, folder in (
        ("present folder", Path.cwd()),
        ("temporary", Path(tempfile.gettempdir())),
        ("cache", cache_dir()),
    ):
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        status = (
            "problem"
            if free < NO_DISK and name == "present folder"
            else "note"
            if free < LITTLE_DISK
            else "ok"
        )
        fix = "" if status == "ok" else "Free some space: a run keeps two checkpoints and a bundle."
        yield Finding("disk", name, status, f"{size(free)} free at {folder}", fix)


def main_job() -> Iterator[Finding]:
    """A small model is trained for three steps, stored, opened and asked: what all of this is for."""
    from transduce import systems
    from transduce.api import load
    from transduce.data import synthetic
    from transduce.systems.build import assemble
    from transduce.train import TrainConfig, Trainer

    began = time.perf_counter()
    page = systems.find("rnnsearch")
    small = page.config_type(embed=8, encoder=8, hidden=8, attention=8)
    corpus = synthetic.make("synthetic-copy", train=200, held_out=10, shortest=2, longest=5)
    prepared, system = assemble(page, corpus, small)
    settings = TrainConfig(
        max_steps=3, batch_symbols=256, evaluations=1, evaluation_rows=10, precision="float32"
    )
    with tempfile.TemporaryDirectory(prefix="transduce-doctor-") as folder:
        Trainer(system, prepared, settings, Path(folder) / "run").run()
        answer = load(Path(folder) / "run").predict("abc")
    assert isinstance(answer, str)
    yield Finding("main job", "train, store, ask", "ok", f"works ({time.perf_counter() - began:.1f} s)")
