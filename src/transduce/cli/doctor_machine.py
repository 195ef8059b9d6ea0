"""What ``transduce doctor`` looks at in the machine: threads, processor, memory, devices, kernels, ops."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .doctor import Finding
from .doctor_checks import size, user_cache, writable
from .machine import CGROUP, cpu_quota

LITTLE_MEMORY = 2 << 30


def threads() -> Iterator[Finding]:
    """Threads against cores, and the OpenMP runtimes in this process."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, count, named = cpu_quota(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    granted = min(cores, quota or cores)
    said = f"{cores} cores" + (
        f", of which the container may use {quota}" if quota is not None and quota < cores else ""
    )
    yield Finding("threads", "cores", "ok", said)
    if count > granted and named:
        fix = (
            f"Set OMP_NUM_THREADS to {granted}: threads without a core of their own only wait for each other."
        )
        yield Finding(
            "threads", "torch", "note", f"{count} threads on {granted} cores (OMP_NUM_THREADS={named})", fix
        )
    elif count > granted:
        yield Finding(
            "threads", "torch", "ok", f"{count} threads by default; transduce lowers them to {granted}"
        )
    elif count < granted and named:
        fix = f"Unset OMP_NUM_THREADS, or set it to {granted}, unless other programs need the cores."
        yield Finding(
            "threads", "torch", "note", f"{count} of {granted} cores are used (OMP_NUM_THREADS={named})", fix
        )
    else:
        yield Finding("threads", "torch", "ok", f"{count} threads on {granted} cores")
    yield from _runtimes()


def _runtimes() -> Iterator[Finding]:
    import numba  # noqa: F401 (what it loads shall be seen)

    maps = Path("/proc/self/maps")
    if not maps.is_file():
        yield Finding("threads", "OpenMP", "ok", "this system does not tell which runtimes are loaded")
        return
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    loaded = sorted({Path(p).name for p in paths if re.match(r"lib(gomp|iomp5|omp)\b", Path(p).name)})
    fix = "Two runtimes are two pools of threads in each other's way: see which package brings its own."
    many = len(loaded) > 1
    yield Finding(
        "threads", "OpenMP", "note" if many else "ok",
        ", ".join(loaded) or "none, so kernels run on one thread", fix if many else "",
    )  # fmt: skip


def processor() -> Iterator[Finding]:
    """Instruction sets that matter here."""
    import torch

    from transduce.train.engine import fast_bf16

    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text()
        flags = set(text.split())
        model = re.search(r"model name\s*:\s*(.+)", text)
        yield Finding(
            "processor", "model", "ok", model[1] if model else platform.processor() or platform.machine()
        )
    present = [
        f for f in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd", "sve") if f in flags
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding(
        "processor", "features", "ok", f"torch uses {capability}; present: {', '.join(present) or 'not told'}"
    )
    fast = fast_bf16(torch.device("cpu"))
    yield Finding(
        "processor",
        "bf16",
        "ok",
        "products in bf16 are tried before each training"
        if fast
        else "no fast bf16 products here: training uses float32",
    )


def memory() -> Iterator[Finding]:
    """The allocator, and memory that is free."""
    from transduce.core.heap import keep_large_blocks

    preload = os.environ.get("LD_PRELOAD", "")
    if keep_large_blocks():
        yield Finding(
            "memory",
            "allocator",
            "ok",
            "glibc, large blocks are kept in the process" + (f" (LD_PRELOAD={preload})" if preload else ""),
        )
    else:
        libc = " ".join(platform.libc_ver()).strip() or platform.system()
        yield Finding("memory", "allocator", "ok", f"not glibc's ({libc}); large blocks are left to it")
    free = _free_memory()
    if free is not None:
        little = free < LITTLE_MEMORY
        fix = "Close other programs, or train with a smaller --batch-symbols." if little else ""
        yield Finding("memory", "free", "note" if little else "ok", size(free), fix)


def _free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, or of its container where that is less."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        free = 1024 * int(found[1])
    except (OSError, TypeError):
        return None
    try:
        limit = int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text())
        return max(0, min(free, limit))
    except (OSError, ValueError):  # no limit
        return free


def devices() -> Iterator[Finding]:
    """Accelerators, and what distributed training could use."""
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(number)
            yield Finding(
                "devices",
                f"cuda:{number}",
                "ok",
                f"{p.name}, {size(p.total_memory)}, capability {p.major}.{p.minor}",
            )
    elif Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        built = (
            "is built without CUDA"
            if not torch.version.cuda
            else f"(CUDA {torch.version.cuda}) cannot use it"
        )
        fix = "Install the torch build for your driver (see nvidia-smi): pytorch.org/get-started/locally."
        yield Finding("devices", "cuda", "note", f"an NVIDIA card seems to be here, but torch {built}", fix)
    else:
        yield Finding("devices", "cuda", "ok", "none; everything runs on the CPU")
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "ok", "there, use --device mps")
    distributed = torch.distributed
    if distributed.is_available():
        names = [n for n in ("gloo", "nccl", "mpi") if getattr(distributed, f"is_{n}_available")()]
        yield Finding("devices", "distributed", "ok", f"backends: {', '.join(names)}")
    else:
        yield Finding(
            "devices",
            "distributed",
            "note",
            "this torch is built without torch.distributed",
            "Install the usual torch build to train on several devices.",
        )


def kernels() -> Iterator[Finding]:
    """numba, where its machine code is kept, and the runtime that starts it."""
    import llvmlite
    import numba

    yield Finding("kernels", "numba", "ok", f"{numba.__version__}, llvmlite {llvmlite.__version__}")
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        yield Finding(
            "kernels",
            "compiler",
            "problem",
            "NUMBA_DISABLE_JIT is set, so no kernel can be compiled",
            "Unset NUMBA_DISABLE_JIT.",
        )
    from transduce.ops import kernels as module

    places = [Path(p) for p in [os.environ.get("NUMBA_CACHE_DIR")] if p]
    places += [Path(module.__file__).parent / "__pycache__", user_cache()]
    place = next((p for p in places if writable(p)), None)
    if place is None:
        fix = (
            "Set NUMBA_CACHE_DIR to a folder that can be written; every process compiles its kernels anew. "
            f"Tried: {', '.join(map(str, places))}."
        )
        yield Finding("kernels", "cache", "note", "no folder for compiled kernels can be written", fix)
    else:
        yield Finding("kernels", "cache", "ok", str(place))
    started = (
        "torch's own OpenMP runtime"
        if module._runtime is not None
        else "one thread: torch has no GNU OpenMP entry here"
    )
    yield Finding("kernels", "started by", "ok" if module._runtime is not None else "note", started)


def ops() -> Iterator[Finding]:
    """Every op on one of its own cases: which backend serves it, why others refuse, and that it agrees."""
    import torch

    import transduce.ops as package
    from transduce.core import state as states
    from transduce.ops.dispatch import known_ops

    for path in sorted(Path(package.__file__).parent.glob("*.py")):
        if re.search(r"^@op\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            importlib.import_module(f"{package.__name__}.{path.stem}")
    for name, op in sorted(known_ops().items()):
        case = next(iter(op.all_cases()), None)
        if case is None or not op.__module__.startswith(package.__name__):
            continue
        args, kwargs = _single(case.args), {k: _single(v) for k, v in case.kwargs.items()}
        refusals = {b: op.refusal(b, *args, **kwargs) for b in op.registered}
        used = next(b for b, reason in refusals.items() if reason is None)
        spare = [b for b, reason in refusals.items() if reason is None and b != used]
        began = time.perf_counter()
        with torch.no_grad():
            got, wanted = (states.leaves(op.run(b, *args, **kwargs)) for b in (used, "reference"))
        off = max(
            (float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True) if a.numel()), default=0.0
        )
        spent = time.perf_counter() - began
        wrong = not off <= 1e-3 * max(1.0, case.scale)
        said = [used + (f" (compiled just now, {spent:.1f} s)" if spent > 2 else "")]
        said += [f"{b} refuses: {reason}" for b, reason in refusals.items() if reason]
        said += [f"spare: {', '.join(spare)}"] if spare else []
        said += [f"differs from the reference by {off:.2g}"] if wrong else []
        fix = "Delete the kernel cache named above and try again; if it stays, report it." if wrong else ""
        yield Finding("ops", name, "problem" if wrong else "ok", "; ".join(said), fix)


def _single(value: Any) -> Any:
    """The same inputs in single precision, in which models run."""
    import torch

    if isinstance(value, tuple):
        return tuple(map(_single, value))
    kinds = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    return value.to(kinds[value.dtype]) if getattr(value, "dtype", None) in kinds else value
