"""Recurrences whose gates read the input only: minGRU, minLSTM, HGRU, RG-LRU, from the gates' pre-activations.

Each is a linear recurrence h_t = a_t * h_(t-1) + b_t whose a and b are functions of one packed product with the
input. Computing those functions takes several passes over memory, more than the recurrence itself; on the CPU one
kernel does both.
"""

from __future__ import annotations

from typing import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.seq import zero_masked
from .dispatch import Case, on_tensors, op
from .gated_fused import run_fused, why_not_fused
from .scan import linear_scan
from .tracing import why_traced

_HALF = (torch.float16, torch.bfloat16)
STEEPEST = 1000.0
"""Bound on the derivative of the square root in :func:`rg_lru`, as in the released code."""


def _check(name: str, pre: Tensor, parts: int, h0: Tensor | None, states: int, flags: tuple) -> int:
    """The width D of a (B,T,parts D) tensor, after a look at all shapes. ``states``: h0 is (B, states D)."""
    if pre.dim() != 3 or pre.shape[2] % parts:
        raise ValueError(f"{name} needs pre of shape (B,T,{parts}D), got {tuple(pre.shape)}")
    width = pre.shape[2] // parts
    if h0 is not None and h0.shape != (pre.shape[0], states * width):
        raise ValueError(f"{name} needs h0 of shape {(pre.shape[0], states * width)}, got {tuple(h0.shape)}")
    for label, flag in zip(("mask", "resets"), flags):
        if flag is not None and (flag.shape != pre.shape[:2] or flag.dtype != torch.bool):
            raise ValueError(
                f"{name} needs a bool {label} of shape {tuple(pre.shape[:2])}, got {flag.dtype} {tuple(flag.shape)}"
            )
    return width


def _check_vector(name: str, label: str, vector: Tensor | None, width: int) -> None:
    if vector is not None and vector.shape != (width,):
        raise ValueError(f"{name} needs {label} of shape ({width},), got {tuple(vector.shape)}")


def _wide(x: Tensor) -> Tensor:
    """Half precision is computed in float32."""
    return x.float() if x.dtype in _HALF else x


def _result_dtype(x: Tensor, h0: Tensor | None) -> torch.dtype:
    return x.dtype if h0 is None else torch.promote_types(x.dtype, h0.dtype)


def _recur(
    scan: Callable[..., Tensor],
    terms: tuple[Tensor, Tensor],
    h0: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
) -> Tensor:
    """h_t = a_t h_(t-1) + b_t for ``terms`` = (a, b); a masked step has a = 1 and b = 0."""
    a, b = terms
    if mask is not None:
        a, b = torch.where(mask[..., None], a, torch.ones_like(a)), zero_masked(b, mask)
        resets = None if resets is None else resets & mask
    return scan(a, b, None if h0 is None else _wide(h0), resets=resets)


# ---------------------------------------------------------------- minGRU


def _min_gru(scan, pre, h0, mask, resets):  # noqa: ANN001, ANN202
    _check("min_gru", pre, 2, h0, 1, (mask, resets))
    gate, value = _wide(zero_masked(pre, mask)).chunk(2, -1)
    h = _recur(scan, (torch.sigmoid(-gate), torch.sigmoid(gate) * value), h0, mask, resets)
    return h.to(_result_dtype(pre, h0))


@op
def min_gru(
    pre: Tensor, h0: Tensor | None = None, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    """h_t = (1 - z_t) * h_(t-1) + z_t * v_t with z_t = sigmoid(k_t), for all t: (B,T,D).

    Args:
        pre: (B,T,2D), k and v side by side.
        h0: (B,D), the state before the first step; None means zero.
        mask: (B,T) bool. False: the state stays, what ``pre`` holds there (NaN included) has no influence.
        resets: (B,T) bool. True: the state is zero before the step. A reset at a masked step has no effect.

    Returns:
        h in the promoted dtype of ``pre`` and ``h0``; half precision is computed in float32.

    Backends, in order: ``numba`` (float32 on the CPU: gates and recurrence in one pass, forward and backward),
    ``scan`` (the gates by torch, then :func:`linear_scan`), ``reference``. The first two can be differentiated once.

    Raises ValueError for shapes that do not fit. Source: L. Feng et al., Were RNNs All We Needed?, arXiv
    2410.01201, section 3.1.
    """
    return _min_gru(linear_scan.reference, pre, h0, mask, resets)


@min_gru.backend("numba", when=on_tensors(why_not_fused))
def _min_gru_numba(pre, h0=None, *, mask=None, resets=None):  # noqa: ANN001, ANN202
    width = _check("min_gru", pre, 2, h0, 1, (mask, resets))
    return run_fused("min_gru", width, (None, pre, None, None), h0, mask, resets)


@min_gru.backend("scan", when=on_tensors(why_traced))
def _min_gru_scan(pre, h0=None, *, mask=None, resets=None):  # noqa: ANN001, ANN202
    return _min_gru(linear_scan, pre, h0, mask, resets)


# ---------------------------------------------------------------- minLSTM


def _min_lstm(scan, pre, h0, mask, resets):  # noqa: ANN001, ANN202
    _check("min_lstm", pre, 3, h0, 1, (mask, resets))
    forget, write, value = _wide(zero_masked(pre, mask)).chunk(3, -1)
    # f / (f + i) = sigmoid(log f - log i), which is defined where both gates underflow
    log_ratio = F.logsigmoid(forget) - F.logsigmoid(write)
    h = _recur(scan, (torch.sigmoid(log_ratio), torch.sigmoid(-log_ratio) * value), h0, mask, resets)
    return h.to(_result_dtype(pre, h0))


@op
def min_lstm(
    pre: Tensor, h0: Tensor | None = None, *, mask: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    """h_t = (f_t h_(t-1) + i_t v_t) / (f_t + i_t) with f = sigmoid(p), i = sigmoid(q), for all t: (B,T,D).

    ``pre`` (B,T,3D) holds p, q and v side by side. All else as for :func:`min_gru`. Source: arXiv 2410.01201,
    section 3.2, with the normalised gates.
    """
    return _min_lstm(linear_scan.reference, pre, h0, mask, resets)


@min_lstm.backend("numba", when=on_tensors(why_not_fused))
def _min_lstm_numba(pre, h0=None, *, mask=None, resets=None):  # noqa: ANN001, ANN202
    width = _check("min_lstm", pre, 3, h0, 1, (mask, resets))
    return run_fused("min_lstm", width, (None, pre, None, None), h0, mask, resets)


@min_lstm.backend("scan", when=on_tensors(why_traced))
def _min_lstm_scan(pre, h0=None, *, mask=None, resets=None):  # noqa: ANN001, ANN202
    return _min_lstm(linear_scan, pre, h0, mask, resets)


# ---------------------------------------------------------------- HGRU


def _check_hgru(pre, floor, angle, h0, flags) -> int:  # noqa: ANN001
    width = _check("hgru", pre, 2 if angle is None else 3, h0, 1 if angle is None else 2, flags)
    _check_vector("hgru", "floor", floor, width)
    _check_vector("hgru", "angle", angle, width)
    return width


def _hgru(scan, pre, floor, angle, h0, mask, resets):  # noqa: ANN001, ANN202
    width = _check_hgru(pre, floor, angle, h0, (mask, resets))
    forget, value = _wide(zero_masked(pre, mask)).split((width, pre.shape[2] - width), -1)
    open_ = torch.sigmoid(-forget)  # 1 - lambda, without cancellation where lambda is close to one
    if floor is not None:
        open_ = (1 - _wide(floor)) * open_
    value = F.silu(value)
    if angle is None:
        h = _recur(scan, (1 - open_, open_ * value), h0, mask, resets)
    else:
        turn = torch.polar(torch.ones_like(_wide(angle)), _wide(angle))
        b = torch.complex(*(open_ * part for part in value.chunk(2, -1)))
        start = None if h0 is None else torch.complex(*_wide(h0).chunk(2, -1))
        h = _recur(scan, ((1 - open_) * turn, b), start, mask, resets)
        h = torch.cat((h.real, h.imag), -1)
    return h.to(_result_dtype(pre, h0))


@op
def hgru(
    pre: Tensor,
    floor: Tensor | None = None,
    angle: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """h_t = lambda_t e^(i angle) * h_(t-1) + (1 - lambda_t) * SiLU(v_t), lambda_t = floor + (1 - floor) sigmoid(p_t).

    Args:
        pre: (B,T,3D), p and the real and imaginary parts of v side by side; SiLU acts on either part. Without
            ``angle`` everything is real and ``pre`` is (B,T,2D).
        floor: (D,), lower bound of the forget gate, at least 0 and below 1; None means 0.
        angle: (D,), the turn of the state in one step, in radians.
        h0: (B,2D), real and imaginary parts of the state before the first step, or (B,D) without ``angle``; None
            means zero.
        mask, resets: as for :func:`min_gru`. At a masked step the state does not turn either.

    Returns:
        h (B,T,2D), real and imaginary parts side by side, or (B,T,D).

    Backends and errors as for :func:`min_gru`. Source: Z. Qin et al., Hierarchically Gated Recurrent Neural Network
    for Sequence Modeling, arXiv 2311.04823, section 3.2.
    """
    return _hgru(linear_scan.reference, pre, floor, angle, h0, mask, resets)


@hgru.backend("numba", when=on_tensors(why_not_fused))
def _hgru_numba(pre, floor=None, angle=None, h0=None, *, mask=None, resets=None):  # noqa: ANN001, ANN202
    width = _check_hgru(pre, floor, angle, h0, (mask, resets))
    kind = "hgru" if angle is None else "complex_hgru"
    return run_fused(kind, width, (None, pre, floor, angle), h0, mask, resets)


@hgru.backend("scan", when=on_tensors(why_traced))
def _hgru_scan(pre, floor=None, angle=None, h0=None, *, mask=None, resets=None):  # noqa: ANN001, ANN202
    return _hgru(linear_scan, pre, floor, angle, h0, mask, resets)


# ---------------------------------------------------------------- RG-LRU


class _BoundedSqrt(torch.autograd.Function):
    """sqrt(x) with a derivative of at most :data:`STEEPEST`: at x = 0 it is infinite, and one step whose decay is
    nearly one would decide the whole gradient."""

    @staticmethod
    def forward(ctx, x):  # noqa: ANN001, ANN205 (torch's own signature)
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        (x,) = ctx.saved_tensors
        return grad * (4 * x).clamp_min(STEEPEST**-2).rsqrt()


def _check_rg_lru(x, pre, log_decay, h0, flags) -> int:  # noqa: ANN001
    width = _check("rg_lru", pre, 2, h0, 1, flags)
    _check_vector("rg_lru", "log_decay", log_decay, width)
    if x.shape != (*pre.shape[:2], width):
        raise ValueError(f"rg_lru needs x of shape {(*pre.shape[:2], width)}, got {tuple(x.shape)}")
    return width


def _rg_lru(scan, x, pre, log_decay, h0, mask, resets):  # noqa: ANN001, ANN202
    _check_rg_lru(x, pre, log_decay, h0, (mask, resets))
    dtype = _result_dtype(x, h0)
    x, pre = (_wide(zero_masked(t, mask)) for t in (x, pre))
    r, i = torch.sigmoid(pre).chunk(2, -1)
    log_a = r * _wide(log_decay)
    scale = _BoundedSqrt.apply(-torch.expm1(2 * log_a))
    if resets is not None:
        scale = torch.where(resets[..., None], torch.ones_like(scale), scale)
    return _recur(scan, (torch.exp(log_a), scale * (i * x)), h0, mask, resets).to(dtype)


@op
def rg_lru(
    x: Tensor,
    pre: Tensor,
    log_decay: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """h_t = a_t * h_(t-1) + sqrt(1 - a_t^2) * (i_t * x_t), a_t = exp(r_t log_decay), [r, i] = sigmoid(pre): (B,T,D).

    Args:
        x: (B,T,D).
        pre: (B,T,2D), pre-activations of the recurrence gate r and of the input gate i side by side.
        log_decay: (D,), below 0: the logarithm of the decay under a fully open gate.
        h0: (B,D), the state before the first step; None means zero.
        mask: (B,T) bool, as for :func:`min_gru`.
        resets: (B,T) bool. True: the step is the first of a history, a_t = 0 and the factor before (i_t * x_t) is 1.

    The derivative of the square root is bounded by :data:`STEEPEST`. Returns, backends and errors as for
    :func:`min_gru`. Source: S. De et al., Griffin, arXiv 2402.19427, section 2.4 and appendix A.
    """
    return _rg_lru(linear_scan.reference, x, pre, log_decay, h0, mask, resets)


@rg_lru.backend("numba", when=on_tensors(why_not_fused))
def _rg_lru_numba(x, pre, log_decay, h0=None, *, mask=None, resets=None):  # noqa: ANN001, ANN202
    width = _check_rg_lru(x, pre, log_decay, h0, (mask, resets))
    return run_fused("rg_lru", width, (x, pre, log_decay, None), h0, mask, resets)


@rg_lru.backend("scan", when=on_tensors(why_traced))
def _rg_lru_scan(x, pre, log_decay, h0=None, *, mask=None, resets=None):  # noqa: ANN001, ANN202
    return _rg_lru(linear_scan, x, pre, log_decay, h0, mask, resets)


# ---------------------------------------------------------------- cases


def _shapes() -> Iterator[tuple[str, tuple[int, int, int], dict[str, Tensor], float, bool]]:
    """(name, (B,T,D), marks, size of the pre-activations, tiny) of the cases that all four have."""
    g = torch.Generator().manual_seed(0)

    def flags(*names: str, batch: int, steps: int) -> dict[str, Tensor]:
        share = {"mask": 0.7, "resets": 0.3}
        return {name: torch.rand(batch, steps, generator=g) < share[name] for name in names}

    yield "tiny", (2, 4, 3), {}, 1.0, True
    yield "tiny, mask and resets", (2, 5, 2), flags("mask", "resets", batch=2, steps=5), 1.0, True
    yield "one step", (3, 1, 5), {}, 1.0, False
    yield "odd, resets", (3, 37, 19), flags("resets", batch=3, steps=37), 1.0, False
    yield "two threads, one row, mask", (1, 257, 131), flags("mask", batch=1, steps=257), 1.0, False
    yield "two threads, three rows", (3, 65, 131), flags("mask", "resets", batch=3, steps=65), 1.0, False
    yield "saturated gates", (2, 33, 18), {}, 30.0, False
    yield "gates beyond the range of exp", (2, 9, 18), {}, 300.0, False


def _cases(parts: int, states: int, vectors: Callable[[int, torch.Generator], tuple], x: bool) -> Iterator[Case]:
    g = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)
    for name, (batch, steps, width), marks, size, tiny in _shapes():
        pre = normal(batch, steps, parts, width)
        pre *= torch.tensor([size if part < parts - states or x else 1.0 for part in range(parts)])[:, None]
        args = ((normal(batch, steps, width),) if x else ()) + (pre.flatten(2), *vectors(width, g))
        start = normal(batch, states * width)
        yield Case(name, (*args, start), marks, tuple(range(len(args) + 1)), tiny, scale=3.0)
        if name.startswith("odd"):
            yield Case("no initial state", args, marks, tuple(range(len(args))), scale=3.0)


@min_gru.cases
def min_gru_cases() -> Iterator[Case]:
    """Odd lengths, one step, flags, saturation."""
    return _cases(2, 1, lambda width, g: (), False)


@min_lstm.cases
def min_lstm_cases() -> Iterator[Case]:
    """As for min_gru; saturation makes both gates underflow."""
    return _cases(3, 1, lambda width, g: (), False)


@hgru.cases
def hgru_cases() -> Iterator[Case]:
    """Real and complex, with floors that leave almost no room and none."""

    def vectors(width: int, g: torch.Generator) -> tuple:
        floor = torch.rand(width, dtype=torch.float64, generator=g)
        return floor, 3 * torch.randn(width, dtype=torch.float64, generator=g)

    yield from _cases(3, 2, vectors, False)
    for case in _cases(2, 1, lambda width, g: (vectors(width, g)[0], None), False):
        grad = tuple(i for i in case.grad if i != 2)
        yield Case(f"real, {case.name}", case.args, case.kwargs, grad, case.tiny, case.scale)
    g = torch.Generator().manual_seed(2)
    pre, start = (torch.randn(*size, dtype=torch.float64, generator=g) for size in ((2, 9, 10), (2, 5)))
    yield Case("real, no floor", (pre, None, None, start), grad=(0, 3), scale=3.0)


@rg_lru.cases
def rg_lru_cases() -> Iterator[Case]:
    """Decays as at the start of training, and so slow that 1 - a^2 has to be computed with care."""
    fast = lambda width, g: (-8 * torch.rand(width, dtype=torch.float64, generator=g) - 1e-2,)
    yield from _cases(2, 1, fast, True)
    slow = lambda width, g: (-(10 ** (-1 - 4 * torch.rand(width, dtype=torch.float64, generator=g))),)
    for case in _cases(2, 1, slow, True):
        if not case.tiny:
            yield Case(f"slow, {case.name}", case.args, case.kwargs, case.grad, scale=case.scale)
