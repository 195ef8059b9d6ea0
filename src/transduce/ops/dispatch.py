"""Ops: a readable reference, faster backends that must agree with it, and a dispatcher that says why it chose.

::

    @op
    def scan(a, b): ...                      # the reference; reads like the equation

    @scan.backend("numba", when=on_tensors(why_not_kernel))
    def scan_numba(a, b): ...                # when(...) returns None to accept, or the reason to refuse

    @scan.cases
    def scan_cases(): yield Case("plain", args=(...), kwargs={...})

    scan(a, b)                               # the first backend that accepts, in order of registration
    with use_backend(scan="reference"): ...  # this block only
    scan.why(a, b)                           # {"numba": "the tensors are on cuda", "reference": "used"}
"""

from __future__ import annotations

import functools
import logging
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

logger = logging.getLogger("transduce.ops")

_forced: ContextVar[Mapping[str, str]] = ContextVar("forced_backends", default={})
_ops: dict[str, Op] = {}


@dataclass(frozen=True)
class Case:
    """Inputs of one check and benchmark. ``grad``: positions of ``args`` to differentiate; ``tiny``: small
    enough for a numerical gradient check in float64; ``scale``: typical size of the outputs."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    grad: tuple[int, ...] = ()
    tiny: bool = False
    scale: float = 1.0


class Op:
    """A function with interchangeable backends. Made by :func:`op`."""

    def __init__(self, reference: Callable[..., Any]) -> None:
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.reference = reference
        self._backends: dict[str, tuple[Callable[..., Any], Callable[..., str | None]]] = {}
        self._elsewhere: dict[str, Callable[[], str | None]] = {}
        self._make_cases: Callable[[], Iterable[Case]] | None = None
        self._told: set[tuple[str, str]] = set()
        self.matrix: Callable[..., Any] | None = None
        """For ops that are linear in their input over time: the token-to-token matrix they imply."""
        _ops[self.name] = self

    def backend(
        self,
        name: str,
        when: Callable[..., str | None] = lambda *a, **k: None,
        here: Callable[[], str | None] = lambda: None,
    ):
        """Add a backend. ``when`` sees the call's arguments and returns None, or why it cannot serve them; ``here``
        tells the same of this machine, whatever the arguments (a package or a device is missing)."""

        def add(fn: Callable[..., Any]) -> Callable[..., Any]:
            self._backends[name], self._elsewhere[name] = (fn, when), here
            return fn

        return add

    def cases(self, make: Callable[[], Iterable[Case]]) -> Callable[[], Iterable[Case]]:
        self._make_cases = make
        return make

    def all_cases(self) -> list[Case]:
        return list(self._make_cases()) if self._make_cases else []

    @property
    def backends(self) -> list[str]:
        """Names of those that can run on this machine, in the order of preference; the reference is last."""
        return [*(name for name in self._backends if self._elsewhere[name]() is None), "reference"]

    @property
    def registered(self) -> list[str]:
        """Names of all backends, those included that this machine cannot run."""
        return [*self._backends, "reference"]

    def why(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        """For these arguments: the backend that is used, and why each one before it refused."""
        verdicts: dict[str, str] = {}
        for name, (_, when) in self._backends.items():
            reason = when(*args, **kwargs)
            verdicts[name] = "used" if reason is None else reason
            if reason is None:
                return verdicts
        return {**verdicts, "reference": "used"}

    def refusal(self, backend: str, *args: Any, **kwargs: Any) -> str | None:
        """Why the named backend cannot serve these arguments; None when it can."""
        if backend == "reference":
            return None
        if backend not in self._backends:
            raise ValueError(f"{self.name} has no backend {backend!r}; it has {', '.join(self.registered)}")
        return self._backends[backend][1](*args, **kwargs)

    def run(self, backend: str, *args: Any, **kwargs: Any) -> Any:
        """Run one named backend, or raise ValueError with its reason to refuse."""
        reason = self.refusal(backend, *args, **kwargs)
        if reason is not None:
            raise ValueError(f"backend {backend!r} of {self.name} refuses: {reason}")
        fn = self.reference if backend == "reference" else self._backends[backend][0]
        return fn(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()  # then a context variable cannot be traced
        forced = None if compiling else _forced.get()
        if forced:
            name = forced.get(self.name, forced.get("*"))
            if name is not None and (name in self._backends or name == "reference"):
                return self.run(name, *args, **kwargs)
        for name, (fn, when) in self._backends.items():
            reason = when(*args, **kwargs)
            if reason is None:
                return fn(*args, **kwargs)
            if not compiling and (name, reason) not in self._told:
                self._told.add((name, reason))
                logger.info("%s: backend %s refused: %s", self.name, name, reason)
        return self.reference(*args, **kwargs)


def op(reference: Callable[..., Any]) -> Op:
    """Turn the readable reference of an operation into an :class:`Op`."""
    return Op(reference)


def on_tensors(reason: Callable[..., str | None]) -> Callable[..., str | None]:
    """A ``when`` that looks at nothing but the tensors of a call: ``reason(*tensors)``, those given by name included."""

    def when(*args: Any, **kwargs: Any) -> str | None:
        return reason(*[x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])

    return when


def several_steps(dims: int, least: int = 2) -> Callable[..., str | None]:
    """A ``when`` for what pays only over time: the first argument is (B,T,...) of ``dims`` dimensions, T >= ``least``.
    Another number of dimensions is accepted: the backend says what is wrong with it."""

    def when(first: Tensor, *_: Any, **__: Any) -> str | None:
        few = first.dim() == dims and first.shape[1] < least
        return f"fewer than {least} steps are cheaper as a recurrence" if few else None

    return when


def known_ops() -> dict[str, Op]:
    """Every op whose module has been imported, by name."""
    return dict(_ops)


@contextmanager
def use_backend(everywhere: str | None = None, **by_op: str) -> Iterator[None]:
    """Force backends inside the block: ``use_backend("reference")`` or ``use_backend(linear_scan="numba")``.

    A name given for all ops is ignored by those that lack it; a name given for one op must exist there.
    """
    for name, backend in by_op.items():
        known = _ops.get(name)
        if known is None or backend not in known.registered:
            options = ", ".join(known.registered) if known else "no such op; known: " + ", ".join(_ops)
            raise ValueError(f"use_backend({name}={backend!r}): {options}")
    merged = {**_forced.get(), **({"*": everywhere} if everywhere else {}), **by_op}
    token = _forced.set(merged)
    try:
        yield
    finally:
        _forced.reset(token)
