"""The law of ops: every backend computes what the reference computes, values and gradients.

::

    from transduce.testing.ops import check_op
    from transduce.ops.scan import linear_scan

    check_op(linear_scan)         # raises AssertionError with every violation, else returns the record

The truth is the reference in float64. Every backend, the reference itself included, is compared with it on
every case of the op, in each dtype, within :mod:`transduce.testing.tolerances`:

1. values, and gradients for random output gradients, on contiguous and on strided inputs;
2. the gradient of each input alone (a backend may skip what nobody asked for);
3. on ``tiny`` cases in float64: a numerical gradient check;
4. inputs are left untouched, and a second run gives the same bits;
5. where a case has a step mask ``mask`` (B,T): NaN in the masked steps of every (B,T,...) input reaches
   neither the values at valid steps nor any gradient. Outputs at masked steps are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..ops.dispatch import Case, Op
from .tolerances import tolerance

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


@dataclass(frozen=True)
class OpCheck:
    """One comparison: the worst error, relative to the larger of the case's scale and the value, and its
    limit.

    ``refused`` holds the reason where the backend does not serve the case, and then nothing was compared.
    """

    backend: str
    case: str
    dtype: torch.dtype
    what: str
    error: float = 0.0
    limit: float = 0.0
    refused: str | None = None

    @property
    def ok(self) -> bool:
        return self.error <= self.limit

    def __str__(self) -> str:
        where = f"{self.backend}, case {self.case!r}, {str(self.dtype).removeprefix('torch.')}"
        if self.refused is not None:
            return f"{where}: refused, {self.refused}"
        return f"{where}: {self.what} off by {self.error:.2g}, limit {self.limit:.2g}"


def check_op(
    op: Op,
    backends: Sequence[str] | None = None,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    cases: Sequence[Case] | None = None,
) -> list[OpCheck]:
    """Check ``op`` as described at the top of this module.

    Args:
        op: what ``@op`` returned.
        backends: names to check, default all. A named backend that refuses every case is a failure.
        dtypes: real dtypes to run in; complex inputs take the matching complex one.
        cases: inputs, default the op's own. Floating point arguments are cast to each dtype.

    Returns the record of all comparisons and refusals. Raises AssertionError that lists every violation.
    """
    cases = op.all_cases() if cases is None else list(cases)
    assert cases, f"op {op.name} has no cases to check"
    names = list(op.backends if backends is None else backends)
    record = [check for case in cases for dtype in dtypes for check in _check_case(op, names, case, dtype)]
    broken = [str(check) for check in record if not check.ok]
    for name in names:
        mine = [check for check in record if check.backend == name]
        if all(check.refused is not None for check in mine):
            broken.append(f"{name} refused every case: {mine[0].refused}")
    assert not broken, f"op {op.name} breaks its law:\n  " + "\n  ".join(broken)
    return record


def _check_case(op: Op, names: Sequence[str], case: Case, dtype: torch.dtype) -> list[OpCheck]:
    args, kwargs = _cast(case.args, dtype), _cast_named(case.kwargs, dtype)
    wide = _cast_named(kwargs, torch.float64)
    mask = _step_mask(kwargs)
    truth = _run(lambda *a: op.reference(*a, **wide), _cast(args, torch.float64), case.grad, mask)
    found: list[OpCheck] = []
    for name in names:
        reason = op.refusal(name, *args, **kwargs)
        if reason is not None:
            found.append(OpCheck(name, case.name, dtype, "refusal", refused=reason))
        else:
            subject = _Subject(op, name, case, dtype, args, kwargs, mask)
            found.extend(subject.check(truth))
    return found


@dataclass(frozen=True)
class _Run:
    """Outputs, and gradients by position of the arguments (None where not asked for)."""

    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class _Subject:
    """One backend on one case in one dtype."""

    op: Op
    backend: str
    case: Case
    dtype: torch.dtype
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: Tensor | None

    def __call__(self, *args: Any) -> Any:
        return self.op.run(self.backend, *args, **self.kwargs)

    def run(self, args: Sequence[Any], grad: Sequence[int]) -> _Run:
        return _run(self, args, grad, self.mask)

    def check(self, truth: _Run) -> list[OpCheck]:
        args, grad = self.args, self.case.grad
        before = _copies(args)
        first, second = self.run(args, grad), self.run(args, grad)
        strided = _run(lambda *a: self(*map(_strided, a)), args, grad, self.mask)
        found = [
            *self._compare("", first, truth),
            *self._compare(" of strided inputs", strided, truth),
            self._exact("an input, which must stay as it was,", _same(args, before)),
            self._exact(
                "a second run", _same(first.outputs + first.gradients, second.outputs + second.gradients)
            ),
        ]
        if self.mask is not None:
            poisoned = self.run(_poisoned(args, self.mask), grad)
            found += self._compare(" with NaN in masked steps", poisoned, truth)
        for position in grad if len(grad) > 1 else ():
            alone = self.run(args, (position,))
            found += self._compare(", asked for alone,", alone, truth)
        if self.case.tiny and self.dtype == torch.float64 and grad:
            found.append(self._exact("the numerical gradient", self._agrees_numerically()))
        return found

    def _compare(self, how: str, got: _Run, truth: _Run) -> list[OpCheck]:
        found = []
        for i, (mine, true) in enumerate(zip(got.outputs, truth.outputs)):
            error = _error(_valid(mine, self.mask), _valid(true, self.mask), self.case.scale)
            found.append(self._record(f"output {i}{how}", error, tolerance("op", self.dtype)))
        for i, (mine, true) in enumerate(zip(got.gradients, truth.gradients)):
            if mine is not None and true is not None:
                # a gradient's natural scale is its own: decays of long sums and tiny factors both occur
                error = _error(mine, true, max(1.0, float(true.abs().max()) if true.numel() else 0.0))
                limit = tolerance("op gradient", self.dtype)
                found.append(self._record(f"gradient of argument {i}{how}", error, limit))
        return found

    def _record(self, what: str, error: float, limit: float) -> OpCheck:
        return OpCheck(self.backend, self.case.name, self.dtype, what, error, limit)

    def _exact(self, what: str, same: bool) -> OpCheck:
        return self._record(what, 0.0 if same else float("inf"), 0.0)

    def _agrees_numerically(self) -> bool:
        leaves = _leaves(self.args, self.case.grad)

        def outputs(*wanted: Tensor) -> tuple[Tensor, ...]:
            full = list(leaves)
            for position, t in zip(self.case.grad, wanted):
                full[position] = t
            return tuple(_zero_invalid(o, self.mask) for o in _as_tuple(self(*full)))

        wanted = tuple(leaves[i] for i in self.case.grad)
        return torch.autograd.gradcheck(outputs, wanted, raise_exception=False)


def _run(fn: Callable[..., Any], args: Sequence[Any], grad: Sequence[int], mask: Tensor | None) -> _Run:
    leaves = _leaves(args, grad)
    outputs = _as_tuple(fn(*leaves))
    values = tuple(o.detach() for o in outputs)
    if not grad:
        return _Run(values, tuple(None for _ in args))
    cotangents = [_zero_invalid(_noise(o, seed), mask) for seed, o in enumerate(values)]
    live = [(o, c) for o, c in zip(outputs, cotangents) if o.requires_grad]
    wanted = [leaves[i] for i in grad]
    found = torch.autograd.grad([o for o, _ in live], wanted, [c for _, c in live], allow_unused=True)
    by_position = {i: torch.zeros_like(leaves[i]) if g is None else g for i, g in zip(grad, found)}
    return _Run(values, tuple(by_position.get(i) for i in range(len(args))))


# ---------------------------------------------------------------- inputs


def _leaves(args: Sequence[Any], grad: Sequence[int]) -> list[Any]:
    return [t.detach().clone().requires_grad_() if i in grad else t for i, t in enumerate(args)]


def _copies(args: Sequence[Any]) -> list[Any]:
    return [t.clone() if isinstance(t, Tensor) else t for t in args]


def _cast_one(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_complex():
        return value.to(_COMPLEX[dtype])
    return value.to(dtype) if value.is_floating_point() else value


def _cast(args: Sequence[Any], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(_cast_one(a, dtype) for a in args)


def _cast_named(kwargs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: _cast_one(value, dtype) for name, value in kwargs.items()}


def _strided(value: Any) -> Any:
    """The same numbers with gaps between them in memory."""
    return torch.stack((value, value), -1)[..., 0] if isinstance(value, Tensor) else value


def _step_mask(kwargs: Mapping[str, Any]) -> Tensor | None:
    mask = kwargs.get("mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 and mask.dtype == torch.bool else None


def _covers(mask: Tensor | None, value: Any) -> bool:
    return (
        mask is not None
        and isinstance(value, Tensor)
        and value.dim() > 2
        and value.shape[:2] == mask.shape
        and (value.is_floating_point() or value.is_complex())
    )


def _poisoned(args: Sequence[Any], mask: Tensor) -> list[Any]:
    poisoned = _copies(args)
    for value in poisoned:
        if _covers(mask, value):
            value[~mask] = float("nan")
    return poisoned


def _noise(like: Tensor, seed: int) -> Tensor:
    """The same random numbers for every dtype, so that gradients of different dtypes can be compared."""
    wide = torch.complex128 if like.is_complex() else torch.float64
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, dtype=wide, generator=generator).to(like.device, like.dtype)


# ---------------------------------------------------------------- comparing


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _valid(output: Tensor, mask: Tensor | None) -> Tensor:
    return output[mask] if _covers(mask, output) else output


def _zero_invalid(output: Tensor, mask: Tensor | None) -> Tensor:
    if not _covers(mask, output):
        return output
    return torch.where(mask.view(*mask.shape, *([1] * (output.dim() - 2))), output, 0)


def _error(got: Tensor, true: Tensor, scale: float) -> float:
    """Largest error relative to the larger of ``scale`` and the true value; infinite for NaN or a wrong
    shape."""
    if got.shape != true.shape:
        return float("inf")
    if got.numel() == 0:
        return 0.0
    if got.is_complex():
        got, true = torch.view_as_real(got.resolve_conj()), torch.view_as_real(true.resolve_conj())
    error = ((got.double() - true.double()).abs() / true.double().abs().clamp(min=scale)).max()
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def _same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return all(
        torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) if isinstance(a, Tensor) else a is b
        for a, b in zip(left, right)
    )
