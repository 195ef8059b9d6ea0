"""Taps: named places inside a model whose tensors can be read or replaced from outside.

A module writes ``w = tap(self, "weights", w)``. That costs one global look-up until somebody listens::

    with record(model, "*.weights") as seen:
        model(...)
    seen["decoder.attend.weights"]          # list of tensors, one a call

    with replace(model, {"encoder.0.gate": lambda t: torch.ones_like(t)}):
        model(...)
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

_listener: ContextVar[Callable[[nn.Module, str, Tensor], Tensor] | None] = ContextVar("tap", default=None)


def tap(module: nn.Module, name: str, value: Tensor) -> Tensor:
    """Offer ``value`` under ``<path of module>.<name>``; returns it, or what a listener put in its place."""
    if torch.compiler.is_compiling():  # a compiled graph has nobody to listen, and cannot trace a context variable
        return value
    listener = _listener.get()
    return value if listener is None else listener(module, name, value)


def listening() -> bool:
    """True when somebody records: fused kernels that hide a tapped tensor step aside then."""
    return not torch.compiler.is_compiling() and _listener.get() is not None


@contextmanager
def _listen(model: nn.Module, on_tap: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    paths = {id(m): path for path, m in model.named_modules()}
    outer = _listener.get()

    def listener(module: nn.Module, name: str, value: Tensor) -> Tensor:
        if outer is not None:
            value = outer(module, name, value)
        path = paths.get(id(module))
        return value if path is None else on_tap(f"{path}.{name}" if path else name, value)

    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def record(model: nn.Module, pattern: str = "*") -> Iterator[dict[str, list[Tensor]]]:
    """Collect every tapped tensor whose full name matches the shell-style ``pattern``."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> Tensor:
        if fnmatchcase(name, pattern):
            seen.setdefault(name, []).append(value)
        return value

    with _listen(model, note):
        yield seen


@contextmanager
def replace(model: nn.Module, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace tapped tensors by ``edits[full name](tensor)`` while the block runs."""
    with _listen(model, lambda name, value: edits[name](value) if name in edits else value):
        yield
