"""How much memory there is, so that data that cannot fit are refused before the machine stalls."""

from __future__ import annotations

import os
from pathlib import Path


def available() -> int | None:
    """Bytes that this process may still take: what the machine has free, and what its control group leaves.

    None where the system does not tell.
    """
    found = [n for n in (_free(), _group("/sys/fs/cgroup")) if n is not None]
    return min(found) if found else None


def _free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:  # no Linux: half of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _group(root: str) -> int | None:
    for most, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            limit, now, lines = (Path(root, name).read_text() for name in (most, used, stat))
            if not limit.strip().isdecimal():
                return None
            # What lies there of files that were read is given up as soon as somebody needs the room.
            files = [
                int(n)
                for key, n in map(str.split, lines.splitlines())
                if key in ("active_file", "inactive_file")
            ]
            return max(0, int(limit) - int(now) + sum(files))
        except (OSError, ValueError):
            continue
    return None


def size(count: float) -> str:
    """Bytes for people: "1.5 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"
