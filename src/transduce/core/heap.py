"""Keep large blocks of memory in the process instead of returning them to the system after every use.

glibc serves blocks above a threshold (at most 32 MiB) by ``mmap`` and unmaps them on free, and it trims the
top of the heap. Each large tensor is then page-faulted again at its first write, which on a CPU costs more
than most
elementwise operations: measured on two cores, ``a + b`` with a fresh output of 64 MiB takes 24.6 ms by
default and 5.5 ms with the blocks kept.

The setting belongs to the whole process and memory once used stays with it, so importing this package never
changes it; a program that owns its process calls :func:`keep_large_blocks` before the first large tensor.
"""

from __future__ import annotations

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Parameter numbers of ``mallopt`` (malloc.h of glibc)."""

_NEVER = -1
_TOP_PAD_BYTES = 64 << 20


@functools.cache
def keep_large_blocks() -> bool:
    """Tell glibc's allocator to serve every block from the heap (no ``mmap``), never to trim it, and to grow
    it by 64 MiB at a time. Returns True when it took effect: on Linux with glibc, unless another allocator is
    preloaded that ignores the request. Calling it again does nothing and returns the same. It cannot be
    undone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    wishes = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return all([mallopt(parameter, value) == 1 for parameter, value in wishes])
