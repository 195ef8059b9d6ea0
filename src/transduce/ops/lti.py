"""Linear time-invariant state spaces, one a channel: by steps, by blocks, and as a convolution by FFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import torch
from torch import Tensor

from ..core.seq import zero_masked
from .dispatch import Case, op
from .hippo import delay, discretize, legs
from .tracing import full_precision

_BLOCK = 64
"""Steps that a product with a Toeplitz matrix takes at a time; a longer stretch is convolved by FFT, or cut."""
_RESET_BLOCK = 32
"""The same where resets make the matrix a different one for every row."""
_KERNEL_NUMBERS = 1 << 24
"""As many numbers may the responses of all states hold (128 MiB in float64) before a sequence is cut into blocks."""


def _check(a: Tensor, b: Tensor, c: Tensor | None, u: Tensor, x0: Tensor | None) -> None:
    if a.dim() not in (2, 3) or b.dim() != 2 or u.dim() != 3 or (a.dim() == 3 and a.shape[1] != a.shape[2]):
        raise ValueError(
            "lti needs a (H,N,N) or its diagonals (H,N), b (H,N) and u (B,T,H), "
            f"got {tuple(a.shape)}, {tuple(b.shape)} and {tuple(u.shape)}"
        )
    size, channels = b.shape[-1], u.shape[2]
    fits = all(t is None or (t.shape[0] in (1, channels) and t.shape[-1] == size) for t in (a, b, c))
    if not fits or (c is not None and c.dim() != 3):
        shown = ", ".join("None" if t is None else str(tuple(t.shape)) for t in (a, b, c))
        raise ValueError(
            f"lti needs as many channels as u has, {channels}, or 1 and the same N in a, b and c (H,M,N), got {shown}"
        )
    if c is None and (a.is_complex() or b.is_complex()):
        raise ValueError("lti gives the states as its output for real systems only: pass c for a complex one")
    if x0 is not None and x0.shape != (u.shape[0], channels, size):
        raise ValueError(f"lti needs x0 of shape {(u.shape[0], channels, size)}, got {tuple(x0.shape)}")


def _check_steps(u: Tensor, mask: Tensor | None, resets: Tensor | None) -> None:
    for label, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and (flags.shape != u.shape[:2] or flags.dtype != torch.bool):
            raise ValueError(
                f"lti needs a bool {label} of shape {tuple(u.shape[:2])}, got {flags.dtype} {tuple(flags.shape)}"
            )


def _dtypes(a: Tensor, b: Tensor, c: Tensor | None, u: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """What inputs are read in, and what states are kept in: float32 or better, complex where the system is."""
    real = torch.float64 if any(t is not None and t.real.dtype == torch.float64 for t in (a, b, c, u)) else torch.float32
    is_complex = any(t is not None and t.is_complex() for t in (a, b, c))
    return real, real.to_complex() if is_complex else real


def _move(a: Tensor, x: Tensor) -> Tensor:
    """A x for each channel, x (B,H,N)."""
    return a * x if a.dim() == 2 else (x[..., None, :] @ a.mT)[..., 0, :]


def _read(c: Tensor | None, x: Tensor) -> Tensor:
    """Re(C x), (..., H, M); the state itself where there is no C."""
    if c is None:
        return x
    y = (x[..., None, :] @ c.mT)[..., 0, :]
    return y.real if y.is_complex() else y


@op
def lti(
    a: Tensor,
    b: Tensor,
    c: Tensor | None,
    u: Tensor,
    x0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    final: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """x_t = A x_(t-1) + b u_t,  y_t = Re(C x_t), a single-input system for each channel.

    Args:
        a: (H,N,N), or (H,N) for diagonal matrices; real or complex (a complex a is diagonal). H may be 1 in a, b and c:
            then all channels share it.
        b: (H,N).
        c: (H,M,N), M outputs a channel; None gives the states themselves (M = N, real systems only).
        u: (B,T,H), real.
        x0: (B,H,N), None means zero.
        mask: (B,T) bool. False: the row keeps its state, what u holds there (NaN included) has no influence, and the
            output there is unspecified.
        resets: (B,T) bool. True: the state is zero before the step. A reset at a masked step has no effect.
        final: whether the state behind the last step is wanted; else None stands in its place.

    Returns y (B,T,H,M) in the dtype of ``u`` and the state behind the last step (B,H,N), float32 or better. Autocast does
    not reach inside.

    Backends, in order: ``blocks`` (any device, two steps or more), ``reference``. The former computes the response
    C A^j b to an impulse by repeated squaring, in float64 where the device has it, and convolves with it: by a product
    with its Toeplitz matrix up to 64 steps, by FFT with zero padding beyond. A sequence with an initial state, or with
    resets, is cut into blocks from state to state. The responses of all states take H N T numbers, so a sequence
    for which that is more than 2^24 is cut as well.

    Raises ValueError for shapes that do not fit. Source: A. Gu et al., Linear State-Space Layers, arXiv 2110.13985,
    sections 2 and 3.1.
    """
    _check(a, b, c, u, x0)
    _check_steps(u, mask, resets)
    real, work = _dtypes(a, b, c, u)
    a, b, c = a.to(work), b.to(work), None if c is None else c.to(work)
    x = _start(b, u, x0, work)
    masks = (None,) * u.shape[1] if mask is None else mask[..., None, None].unbind(1)
    restarts = (None,) * u.shape[1] if resets is None else resets[..., None, None].unbind(1)
    outputs: list[Tensor] = []
    with full_precision(u):
        for u_t, valid, restart in zip(zero_masked(u, mask).to(real).unbind(1), masks, restarts):
            before = x if restart is None else torch.where(restart, 0, x)
            after = _move(a, before) + b * u_t[..., None]
            x = after if valid is None else torch.where(valid, after, x)
            outputs.append(_read(c, x))
    return torch.stack(outputs, 1).to(u.dtype), x if final else None


def _start(b: Tensor, u: Tensor, x0: Tensor | None, work: torch.dtype) -> Tensor:
    if x0 is not None:
        return x0.to(work)
    return torch.zeros(u.shape[0], u.shape[2], b.shape[-1], dtype=work, device=u.device)


# ---------------------------------------------------------------- responses


def _product(a: Tensor, x: Tensor) -> Tensor:
    """A X for X (H,N,K); for diagonal A, given as (H,N)."""
    return a[..., None] * x if a.dim() == 2 else a @ x


def _square(a: Tensor) -> Tensor:
    return a * a if a.dim() == 2 else a @ a


def responses(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """A^j b for j < ``steps``: (H,N,steps), by repeated squaring of A."""
    found, power = b[..., None], a
    while found.shape[-1] < steps:
        more = _product(power, found)
        found = torch.cat((found.expand(len(more), -1, -1), more), -1)
        if found.shape[-1] < steps:
            power = _square(power)
    return found[..., :steps]


def _observations(a: Tensor, c: Tensor | None, steps: int) -> Tensor:
    """C A^(j+1) for j < ``steps``: (H,steps,M,N)."""
    if c is None:
        c = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)[None]
    times = (lambda rows, m: rows * m[:, None, None]) if a.dim() == 2 else (lambda rows, m: rows @ m[:, None])
    found, power = times(c[:, None], a), a
    while found.shape[1] < steps:
        more = times(found, power)
        found = torch.cat((found.expand(len(more), -1, -1, -1), more), 1)
        if found.shape[1] < steps:
            power = _square(power)
    return found[:, :steps]


@dataclass(frozen=True)
class _System:
    """The matrices of a system in the dtype of its states, and what a block of up to ``size`` steps needs of them."""

    response: Tensor
    """A^j b, (H,N,size)."""
    kernel: Tensor
    """Re(C A^j b), (H,M,size)."""
    observation: Tensor | None
    """C A^(j+1), (H,size,M,N); None where no block has an initial state."""
    squares: tuple[Tensor, ...]
    """A, A^2, A^4, ... as far as ``size`` steps need them."""


def _system(a: Tensor, b: Tensor, c: Tensor | None, size: int, carried: bool, work: torch.dtype) -> _System:
    # Powers of matrices far from normal (LegS) lose digits, so they are taken in float64 where there is one.
    if a.device.type != "mps":
        wide = torch.complex128 if work.is_complex else torch.float64
        a, b, c = a.to(wide), b.to(wide), None if c is None else c.to(wide)
    response = responses(a, b, size)
    kernel = response if c is None else c @ response
    kernel = kernel.real if kernel.is_complex() else kernel
    squares = [a]
    while carried and 2 ** len(squares) <= size:
        squares.append(_square(squares[-1]))
    real = torch.empty((), dtype=work).real.dtype
    return _System(
        response.to(work),
        kernel.to(real),
        _observations(a, c, size).to(work) if carried else None,
        tuple(s.to(work) for s in squares),
    )


# ---------------------------------------------------------------- blocks


def _why_not_blocks(
    a: Tensor,
    b: Tensor,
    c: Tensor | None,
    u: Tensor,
    x0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    final: bool = True,
) -> str | None:
    if a.dim() == 3 and a.is_complex():
        return "complex systems are diagonal"
    return "a single step is cheaper as a recurrence" if u.dim() == 3 and u.shape[1] < 2 else None


@lti.backend("blocks", when=_why_not_blocks)
def _blocks(
    a: Tensor,
    b: Tensor,
    c: Tensor | None,
    u: Tensor,
    x0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    final: bool = True,
) -> tuple[Tensor, Tensor | None]:
    _check(a, b, c, u, x0)
    _check_steps(u, mask, resets)
    real, work = _dtypes(a, b, c, u)
    inputs, steps = zero_masked(u, mask).to(real), u.shape[1]
    places = None
    if mask is not None:  # the valid steps of a row are moved to its front, so that lags count them alone
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        inputs = inputs.gather(1, order[..., None].expand_as(inputs))
        resets = None if resets is None else (resets & mask).gather(1, order)
    count = None if mask is None else mask.sum(1)
    whole = x0 is None and resets is None and steps * b.shape[-1] * max(len(a), len(b)) <= _KERNEL_NUMBERS
    size = steps if whole else min(steps, _BLOCK if resets is None else _RESET_BLOCK)
    x, outputs = x0 if x0 is None else x0.to(work), []
    with full_precision(u):
        system = _system(a, b, c, size, x0 is not None or size < steps, work)
        for start in range(0, steps, size):
            piece = inputs[:, start : start + size]
            cut = None if resets is None else resets[:, start : start + size].long().cumsum(1)
            outputs.append(_outputs(system, piece, x, cut))
            if final or start + size < steps:
                left = None if count is None else (count - start).clamp(0, piece.shape[1])
                x = _carried(system, piece, x, left, cut)
    y = torch.cat(outputs, 1)
    if places is not None:
        y = y.gather(1, places[..., None, None].expand_as(y))
    return y.to(u.dtype), x if final else None


def _outputs(system: _System, u: Tensor, x: Tensor | None, cut: Tensor | None) -> Tensor:
    """(B,T,H,M) of one block. ``cut`` (B,T): how many resets there have been, None for no resets at all."""
    steps = u.shape[1]
    kernel = system.kernel[..., :steps]
    y = _convolved(kernel, u) if steps > _BLOCK else _multiplied(kernel, u, cut)
    if x is None:
        return y
    seen = system.observation[:, :steps]
    if len(seen) == 1:
        from_start = torch.einsum("lmn,bhn->blhm", seen[0], x)
    else:
        from_start = torch.einsum("hlmn,bhn->blhm", seen, x)
    from_start = from_start.real if from_start.is_complex() else from_start
    return y + (from_start if cut is None else torch.where((cut == 0)[..., None, None], from_start, 0))


def _convolved(kernel: Tensor, u: Tensor) -> Tensor:
    steps = u.shape[1]
    size = 1 << (2 * steps - 1).bit_length()  # zeros behind both, so that nothing wraps around
    # transforms along the last dimension: half again as fast as along the first but one
    spectrum = torch.fft.rfft(u.mT, size)[:, :, None] * torch.fft.rfft(kernel, size)
    return torch.fft.irfft(spectrum, size)[..., :steps].permute(0, 3, 1, 2)


def _multiplied(kernel: Tensor, u: Tensor, cut: Tensor | None) -> Tensor:
    steps = u.shape[1]
    at = torch.arange(steps, device=u.device)
    lag = at[:, None] - at
    toeplitz = torch.where(lag >= 0, kernel[..., lag.clamp(min=0)], 0)  # (H,M,T,T)
    shared = len(kernel) == 1
    if cut is None:
        return torch.einsum("mts,bsh->bthm", toeplitz[0], u) if shared else torch.einsum("hmts,bsh->bthm", toeplitz, u)
    same = (cut[:, :, None] == cut[:, None, :])[..., None]
    seen = torch.where(same, u[:, None], 0)  # (B,T,S,H)
    if shared:
        return torch.einsum("mts,btsh->bthm", toeplitz[0], seen)
    return torch.einsum("hmts,btsh->bthm", toeplitz, seen)


def _carried(system: _System, u: Tensor, x: Tensor | None, count: Tensor | None, cut: Tensor | None) -> Tensor:
    """The state behind a block of which the first ``count`` (B,) steps of each row are valid, None for all."""
    steps = u.shape[1]
    if cut is not None:
        u = torch.where((cut == cut[:, -1:])[..., None], u, 0)
    if count is not None:  # valid steps to the right end, where their distance from the end is what it is to be
        source = torch.arange(steps, device=u.device) - (steps - count)[:, None]
        u = torch.where((source >= 0)[..., None], u.gather(1, source.clamp(min=0)[..., None].expand_as(u)), 0)
    response = system.response[..., :steps].flip(-1)
    if len(response) == 1:
        fresh = torch.einsum("nt,bth->bhn", response[0], u.to(response.dtype))
    else:
        fresh = torch.einsum("hnt,bth->bhn", response, u.to(response.dtype))
    if x is None:
        return fresh
    for k, square in enumerate(system.squares):
        if count is not None:
            x = torch.where((count >> k & 1).bool()[:, None, None], _move(square, x), x)
        elif steps >> k & 1:
            x = _move(square, x)
    return fresh + (x if cut is None else torch.where((cut[:, -1] == 0)[:, None, None], x, 0))


# ---------------------------------------------------------------- cases


@lti.cases
def lti_cases() -> Iterator[Case]:
    """Dense, shared, diagonal and complex systems; one step, odd and long stretches, marks, no state, no C."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*size, dtype=dtype, generator=g)

    def case(name: str, kind: str, shape: tuple[int, int, int, int], *, tiny: bool = False, **marks: float) -> Case:
        batch, steps, channels, size = shape
        dtype = torch.complex128 if kind == "complex" else torch.float64
        c: Tensor | None = normal(channels, 2, size, dtype=dtype)
        if kind == "states":
            a, b = discretize(*delay(size, 40.0), torch.ones(1, dtype=torch.float64), "zoh")
            c = None
        elif kind == "dense":
            a, b = discretize(*legs(size), 0.02 + 0.1 * torch.rand(channels, generator=g, dtype=torch.float64))
        else:
            a, b = normal(channels, size, dtype=dtype), normal(channels, size, dtype=dtype)
            a = 0.98 * a / (a.abs() + 0.1)
        flags = {k: torch.rand(batch, steps, generator=g) < share for k, share in marks.items()}
        args = (a, b, c, normal(batch, steps, channels), normal(batch, channels, size, dtype=dtype))
        return Case(name, args, flags, grad=tuple(i for i in range(5) if args[i] is not None), tiny=tiny)

    yield case("tiny", "dense", (2, 4, 2, 3), tiny=True)
    yield case("tiny states", "states", (2, 4, 1, 3), tiny=True, mask=0.6, resets=0.3)
    yield case("tiny diagonal", "diagonal", (2, 4, 2, 2), tiny=True, mask=0.6)
    yield case("tiny complex", "complex", (2, 5, 2, 2), tiny=True, mask=0.6, resets=0.3)
    yield case("one step", "dense", (2, 1, 3, 4))
    yield case("several blocks", "dense", (2, 131, 3, 5))
    yield case("several blocks, marks", "dense", (3, 75, 3, 4), mask=0.7, resets=0.1)
    yield case("states of shared systems", "states", (2, 67, 3, 6), mask=0.7)
    yield case("complex, several blocks", "complex", (2, 70, 3, 4), resets=0.1)
    for kind in ("dense", "complex"):
        full = case("", kind, (2, 150, 3, 4))
        yield Case(f"{kind}, by FFT", full.args[:4], grad=(0, 1, 2, 3))
    masked = case("", "states", (2, 90, 2, 5), mask=0.7)
    yield Case("states, by FFT, masked", masked.args[:4], masked.kwargs, grad=(0, 1, 3))
