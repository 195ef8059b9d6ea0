"""Compiled CPU kernels on torch's own threads.

numba's ``parallel=True`` brings a second pool of threads. Both pools spin for a while after each parallel
region, so on
a machine with as many threads as cores a kernel beside torch waits for a scheduler tick: milliseconds instead
of microseconds. Here a kernel is compiled to a C function and handed to the OpenMP runtime that torch itself
links (``GOMP_parallel``), so there is one pool, its size is ``torch.get_num_threads()``, and a launch costs
about 2 us. Where torch uses another runtime (macOS, Windows) kernels run on one thread.

This module imports numba: import it inside the function that first needs a kernel.
"""

from __future__ import annotations

import ctypes
from array import array
from functools import lru_cache
from pathlib import Path
from typing import Callable, Sequence

import llvmlite.binding
import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

_TYPES = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.complex64: types.complex64,
    torch.complex128: types.complex128,
}
_THREAD_SYMBOL, _BARRIER_SYMBOL = "transduce_thread_number", "transduce_barrier"
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_WORTH_A_THREAD = 16384
"""Elements below which a second thread costs more than it gives (measured: 2 us a launch, about 0.1 ns an
element)."""


def _openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime inside torch, when it offers the GNU entry points (LLVM's runtime does on Linux,
    too)."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        runtime = ctypes.CDLL(str(library))
        runtime.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        runtime.GOMP_parallel.restype = None
        runtime.omp_get_thread_num.restype = runtime.omp_get_dynamic.restype = ctypes.c_int
        runtime.GOMP_barrier.restype = None
    except (OSError, AttributeError):
        return None
    return runtime


@numba.cfunc(types.int32())
def _always_zero() -> int:
    return 0


@numba.cfunc(types.void())
def _alone() -> None:
    pass


_runtime = _openmp()
llvmlite.binding.add_symbol(
    _THREAD_SYMBOL,
    ctypes.cast(_runtime.omp_get_thread_num, ctypes.c_void_p).value if _runtime else _always_zero.address,
)
thread_number = types.ExternalFunction(_THREAD_SYMBOL, types.int32())
"""For use inside kernels: which of the threads of this launch we are."""
llvmlite.binding.add_symbol(
    _BARRIER_SYMBOL,
    ctypes.cast(_runtime.GOMP_barrier, ctypes.c_void_p).value if _runtime else _alone.address,
)
barrier = types.ExternalFunction(_BARRIER_SYMBOL, types.void())
"""For use inside kernels on several threads: wait until all threads of this launch are here."""


@intrinsic
def as_size(typingctx, pointer):  # noqa: ANN001, ANN201 (numba's own signature)
    """The number that :meth:`Kernel.launch` put in the place of a pointer."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), codegen


@intrinsic
def as_bytes(typingctx, pointer):  # noqa: ANN001, ANN201
    """The same address, read as bytes (bool tensors)."""
    target = types.CPointer(types.uint8)

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.bitcast(args[0], context.get_value_type(target))

    return target(pointer), codegen


@intrinsic
def float_from_bits(typingctx, bits):  # noqa: ANN001, ANN201
    """The float32 whose bits are those of an int32."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


def threads_for(elements: int) -> int:
    """How many threads a streaming kernel over so many elements deserves, at most
    ``torch.get_num_threads()``."""
    return max(1, min(most_threads(), elements // _WORTH_A_THREAD))


def most_threads() -> int:
    """How many threads a launch may ask for and will get: ``torch.get_num_threads()``, fewer where the runtime is held
    back (``OMP_THREAD_LIMIT``, ``OMP_MAX_ACTIVE_LEVELS``), one where it chooses by itself (``OMP_DYNAMIC``). A kernel
    divides its work among the threads it asked for, so one that does not come would leave its part undone."""
    threads = torch.get_num_threads()
    return threads if threads == 1 else _granted(threads)


@lru_cache
def _granted(asked: int) -> int:
    if _runtime is None or _runtime.omp_get_dynamic():
        return 1
    here = torch.zeros(asked)
    Kernel(_sign).launch(torch.float32, (here,), (), asked)
    return int(here.sum())


def _sign(data) -> None:  # noqa: ANN001 (numba's own signature)
    data[0][thread_number()] = 1


class Kernel:
    """A function ``fn(data)`` in numba's nopython subset, compiled for a dtype at its first launch.

    ``data[i]`` is a pointer to the elements of the i-th tensor for i < len(tensors); the sizes follow, to be
    read with :func:`as_size`. A missing tensor is a null pointer. Machine code is cached on disk beside the
    source, in the user's cache folder where that cannot be written, and not at all where neither can.
    """

    def __init__(self, fn: Callable[..., None]) -> None:
        self._fn = fn
        self._alive: list[object] = []  # the owners of the machine code
        self._compiled: dict[torch.dtype, tuple[int, Callable[[int], None]]] = {}

    @staticmethod
    def serves(dtype: torch.dtype) -> bool:
        return dtype in _TYPES

    def _compile(self, dtype: torch.dtype) -> tuple[int, Callable[[int], None]]:
        """Where the machine code begins, and the same to be called from Python."""
        signature = types.void(types.CPointer(types.CPointer(_TYPES[dtype])))
        try:
            compiled = numba.cfunc(signature, cache=True)(self._fn)
        except (OSError, RuntimeError):  # no folder for the cache, or a full disk
            compiled = numba.cfunc(signature)(self._fn)
        self._compiled[dtype] = entry = compiled.address, _ENTRY(compiled.address)
        self._alive.append(compiled)
        return entry

    def prepare(
        self, dtype: torch.dtype, tensors: Sequence[Tensor | None], sizes: Sequence[int], threads: int
    ) -> Launch:
        """A call to be made many times. The tensors must be contiguous, on the CPU, and of the layout ``fn``
        expects."""
        for t in tensors:
            assert t is None or (t.is_contiguous() and t.is_cpu)
        return Launch(self._compiled.get(dtype) or self._compile(dtype), tensors, sizes, threads)

    def launch(
        self, dtype: torch.dtype, tensors: Sequence[Tensor | None], sizes: Sequence[int], threads: int
    ) -> None:
        """Run once on ``threads`` threads; arguments as for :meth:`prepare`."""
        self.prepare(dtype, tensors, sizes, threads)()


class Launch:
    """A kernel with its arguments. ``set_last(n)`` changes the last size; calling it runs the kernel."""

    def __init__(
        self,
        entry: tuple[int, Callable[[int], None]],
        tensors: Sequence[Tensor | None],
        sizes: Sequence[int],
        threads: int,
    ) -> None:
        self._words = array("q", [0 if t is None else t.data_ptr() for t in tensors])
        self._words.extend(sizes)
        self._tensors = tensors  # they must live as long as their addresses are used
        self._address, self._entry = entry
        self._threads = threads

    def set_last(self, value: int) -> None:
        self._words[-1] = value

    def __call__(self) -> None:
        data, _ = self._words.buffer_info()
        if self._threads == 1 or _runtime is None:
            self._entry(data)
        else:
            _runtime.GOMP_parallel(self._address, data, self._threads, 0)
