"""Files of Debian bookworm's package index, fetched by apt without root into the cache.

apt runs with a folder, a source list and a choice of languages of its own, so that neither the system's lists nor its
settings change; it checks Debian's signature. Where it is missing or fails, the files come from Debian's mirror. They
are pinned by the hash of their text: a point release changes them, and then the newer one is taken with a warning.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Sequence

from transduce.core.errors import DataError

from ..fetch import MOST_BYTES, cache_dir, data_dirs, download, unwritable, warn

RELEASE = "bookworm"
FOLDER = f"debian-{RELEASE}"
MIRRORS = ("https://deb.debian.org/debian", "https://archive.debian.org/debian")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_OPEN = {"": open, ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}

PACKAGES = "Packages"
DIGESTS = {
    "Packages": "515e692f2c4121c6fcec444ef100cc18f79a991910615f3a88c8b7becfc94d2f",
    "Translation-cs": "13017b3ee4f8def6a2540497222e2e826b68138b5dbf552b4b8ebe378b525f9e",
    "Translation-da": "dc3e8f2d1f51c3dde7814e58e2312e194cb8faee439bb5e56e3f034dd94048e2",
    "Translation-de": "adac331fc51f9a00c1b4120b4ac87423be2b1f1615d4f288c7cbc2d5258c0650",
    "Translation-en": "62f59c3cdca9786e4f7adf9002f9f5729a684adcb4667e58e448dec9b5a46c7f",
    "Translation-es": "891b4912747533755c5caca42c5dc2365fc7a8b73af88c44485b61ce7fddb740",
    "Translation-fr": "1b5ce81d2dac68fb27997899d9e092b8281f984baa658c22139d8f2640aec6cc",
    "Translation-it": "f2010961f0968127812de8484ecead4f45b25b2cb6aeb788f9f25753fbd5cff7",
    "Translation-ja": "642792836c58facc19a735181fc1bc53ac211fc082ff141377fc6be2d2498259",
    "Translation-ko": "2c6269e0889312fd60711cbe4dd03a50d3f45d0f6a95076d48226f60cc76f76c",
    "Translation-pl": "2cbf30bbcc0996040301104f88ab3d950b37d2fc7067cbc6f66e62b5245ba264",
    "Translation-pt": "58bee04ff62934475047bd428d960b8400b523b4985cd7d740b1b26d2db45e12",
    "Translation-pt_BR": "06883dac5c7394bc37f99a26980e21ca8baec34b364719d0b98793dbfcdf50ff",
    "Translation-ru": "150a6c5b969a2856ffb16908306ac2328ad61131df343a7e6418ebdc1a86c9bd",
    "Translation-sk": "d1df7536efa9f0d00d044bd70698cec70c983b0cf947da419e7d72b569e67da8",
    "Translation-uk": "a1e9e092c9ef84e12dd7eb1be3819deb3209e3bc4cec0671beb78f3351d026a3",
}
"""SHA-256 of the uncompressed files of main, amd64."""


def read(names: Sequence[str], data_dir: str | os.PathLike | None = None) -> list[str]:
    """The text of index files by name, "Packages" or "Translation-de": from a data directory, the cache, apt, or a
    mirror. In a data directory they may lie plain or as .gz, .xz or .bz2, also inside a folder debian-bookworm.

    Raises :class:`DataError` when one cannot be had, and says where to put it.
    """
    cache = cache_dir() / FOLDER
    places = [*(p for place in data_dirs(data_dir) for p in (place, place / FOLDER)), cache]
    missing = [name for name in names if _find(name, places) is None]
    if missing:
        print(f"fetching Debian's {', '.join(missing)} ...", file=sys.stderr)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
                _apt(missing, Path(folder), cache)
                for name in missing:
                    if _find(name, [cache]) is None:
                        _mirror(name, cache)
        except OSError as problem:
            raise unwritable(cache / missing[0], problem) from None
    return [_text(name, places) for name in names]


def _find(name: str, places: Sequence[Path]) -> Path | None:
    found = (place / f"{name}{suffix}" for place in places for suffix in _OPEN)
    return next((path for path in found if path.is_file()), None)


def _text(name: str, places: Sequence[Path]) -> str:
    path = _find(name, places)
    try:
        with _OPEN[path.suffix if path.suffix in _OPEN else ""](path, "rb") as file:
            content = file.read(MOST_BYTES)
    except (OSError, EOFError, lzma.LZMAError):
        raise DataError(f"{path} cannot be read; remove it and fetch it again.") from None
    if hashlib.sha256(content).hexdigest() != DIGESTS[name]:
        warn(f"{path.name} is another version of Debian's {name}: figures may differ a little.")
    return content.decode("utf-8", errors="replace")


def _apt(names: Sequence[str], folder: Path, cache: Path) -> None:
    """What apt can bring of the files; silent where it cannot, for a mirror is asked next."""
    wanted = [n.removeprefix("Translation-") for n in names if n != PACKAGES] or ["none"]
    languages = "".join(f' "{code}";' for code in wanted)
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "sources").write_text(f"deb [signed-by={KEYS}] http://deb.debian.org/debian {RELEASE} main\n")
    (folder / "apt.conf").write_text(
        f"#clear Acquire::Languages;\nAcquire::Languages {{{languages} }};\n"
    )
    own = {
        "Dir::State::lists": str(folder / "lists"),
        "Dir::Cache": str(folder),
        "Dir::Etc::sourcelist": str(folder / "sources"),
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "",
        "Acquire::GzipIndexes": "false",
        "Acquire::Retries": "1",
    }
    options = [word for key, value in own.items() for word in ("-o", f"{key}={value}")]
    command = ["apt-get", "-c", str(folder / "apt.conf"), *options, "-qq", "update"]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired):
        return
    for name in names:
        end = "binary-amd64_Packages" if name == PACKAGES else f"i18n_{name}"
        for path in (folder / "lists").glob(f"*_{RELEASE}_main_{end}"):
            _keep(name, path.read_bytes(), cache)


def _mirror(name: str, cache: Path) -> None:
    place = "binary-amd64/Packages.xz" if name == PACKAGES else f"i18n/{name}.bz2"
    addresses = [f"{mirror}/dists/{RELEASE}/main/{place}" for mirror in MIRRORS]
    for address in addresses:
        try:
            content = download(address)
            return _keep(name, (lzma if name == PACKAGES else bz2).decompress(content), cache)
        except (OSError, ValueError, EOFError, lzma.LZMAError):
            continue
    raise DataError(
        f"Debian's {name} was not found and could not be fetched. Get it from {addresses[0]} and put it into {cache} "
        "or into the folder given by --data-dir."
    )


def _keep(name: str, content: bytes, cache: Path) -> None:
    """Into the cache, compressed, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        (Path(folder) / name).write_bytes(gzip.compress(content, 5, mtime=0))
        os.replace(Path(folder) / name, cache / f"{name}.gz")
