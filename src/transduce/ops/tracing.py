"""When a call is being traced (``torch.export``, ``torch.compile``, ``vmap``), compiled kernels must step
aside."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from typing import ContextManager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


@functools.cache
def has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def why_traced(*tensors: Tensor | None) -> str | None:
    """None when every tensor holds numbers; otherwise the reason why only plain torch operations can serve
    them."""
    if torch.compiler.is_compiling():
        return "the call is being traced (torch.export or torch.compile)"
    for t in tensors:
        if t is not None and type(t) is not Tensor and isinstance(t, FakeTensor):
            return "a tensor has a shape but no numbers (fake tensor)"
        if t is not None and torch._C._functorch.is_functorch_wrapped_tensor(t):
            return "a function transform (torch.func) is active"
    return None


def why_not_kernel(*tensors: Tensor) -> str | None:
    """None when a compiled CPU kernel can serve these tensors, otherwise the reason why not."""
    for t in tensors:
        if not t.is_cpu:
            return f"a tensor is on {t.device}, the kernel runs on the CPU"
    traced = why_traced(*tensors)  # first: what follows cannot be traced
    return traced or (None if has_numba() else "numba is not installed")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


_NO_TRITON = "triton is not installed"


def why_no_triton() -> str | None:
    """None where kernels written in Triton can run on this machine, otherwise the reason why not."""
    if not _has_triton():
        return _NO_TRITON
    if not (torch.cuda.is_available() or _interpreted()):
        return "there is no CUDA device (TRITON_INTERPRET=1 runs the kernel step by step on the CPU, to test it)"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not_triton(*tensors: Tensor) -> str | None:
    """None when a kernel written in Triton can serve these tensors, otherwise the reason why not."""
    traced = why_traced(*tensors)
    if traced:
        return traced
    for t in tensors:
        if t.device.type != "cuda" and not (t.device.type == "cpu" and _interpreted()):
            return f"a tensor is on {t.device}, the kernel runs on CUDA devices"
        if t.device.type == "cuda" and t.device.index != torch.cuda.current_device():
            return f"a tensor is on {t.device}, the kernel runs on the current device"
    return None if _has_triton() else _NO_TRITON


def full_precision(like: Tensor) -> ContextManager[object]:
    """A block in which autocast does not round the products of what must be exact (powers, accumulators)."""
    kind = like.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)
