"""A strict reader of safetensors files: everything in the header is checked before a tensor is made.

Layout: 8 bytes (little-endian size N of the header), N bytes of JSON ``{name: {dtype, shape,
data_offsets}}``, then the data. Checked here: sizes, the cap on the header, names that stand there twice,
known kinds of number, shapes that agree with the offsets, and data that is covered without gap or overlap.
"""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import Any, Mapping

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from torch import Tensor

from transduce.core.errors import BundleError

from .storage import DuplicateKey, digest, strict_json

LARGEST_HEADER = 16 << 20
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_tensors(path: Path, expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file whose size and checksum are ``expected["bytes"]`` and ``expected["sha256"]``.

    Raises :class:`BundleError` with one sentence.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise BundleError(f"{path} is not an ordinary file.")
    size = expected.get("bytes")
    if info.st_size != size:
        fault = "is cut off" if isinstance(size, int) and info.st_size < size else "is too large"
        raise BundleError(
            f"{path} {fault}: it has {info.st_size} bytes instead of {size}; copy the bundle again."
        )
    content = path.read_bytes()
    check_layout(content, path)
    if digest(content) != expected.get("sha256"):
        raise BundleError(
            f"{path} was changed after it was written: its SHA-256 does not match; copy the bundle again."
        )
    try:
        return {name: tensor.clone() for name, tensor in parse_tensors(content).items()}
    except (SafetensorError, ValueError, KeyError, TypeError) as problem:
        raise BundleError(f"{path} is damaged: {problem}.") from problem


def check_layout(content: bytes, path: Path) -> None:
    """Check the header of a safetensors file against its data. Raises :class:`BundleError`."""

    def refuse(why: str) -> BundleError:
        return BundleError(f"{path} is not a sound safetensors file: {why}.")

    if len(content) < 8:
        raise refuse("it is shorter than a header")
    length = int.from_bytes(content[:8], "little")
    if length > LARGEST_HEADER:
        raise refuse(f"its header claims {length} bytes, more than {LARGEST_HEADER}")
    if length > len(content) - 8:
        raise refuse(f"its header claims {length} bytes and only {len(content) - 8} follow")
    try:
        header = strict_json(content[8 : 8 + length])
    except DuplicateKey as problem:
        raise refuse(str(problem)) from None
    except ValueError:
        raise refuse("its header is not JSON") from None
    if not isinstance(header, dict):
        raise refuse("its header is not a table")
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        span = _span(entry)
        if span is None:
            raise refuse(f'the entry of tensor "{name[:80]}" is malformed')
        spans.append((span, name))
    end = 0
    for (start, stop), name in sorted(spans):
        if start != end:
            raise refuse(f'the data of tensor "{name[:80]}" leave a gap or overlap')
        end = stop
    if end != len(content) - 8 - length:
        raise refuse(f"its header describes {end} bytes of data and {len(content) - 8 - length} are there")


def _span(entry: Any) -> tuple[int, int] | None:
    """The data range of one entry, or None when it contradicts itself."""
    if (
        not isinstance(entry, dict)
        or set(entry) != {"dtype", "shape", "data_offsets"}
        or entry["dtype"] not in _BYTES
    ):
        return None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        return None
    if math.prod(shape) * _BYTES[entry["dtype"]] != offsets[1] - offsets[0]:
        return None
    return offsets[0], offsets[1]


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
