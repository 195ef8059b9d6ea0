"""When a call is being traced (``torch.export``, ``torch.compile``, ``vmap``), compiled kernels must step
aside."""

from __future__ import annotations

import functools
import importlib.util

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
