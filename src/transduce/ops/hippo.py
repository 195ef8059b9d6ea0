"""Continuous state spaces dx/dt = A x + B u that remember by projecting the past on polynomials, and how they are made
discrete. Everything is computed in float64; convert where you use it."""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = {"forward": 0.0, "bilinear": 0.5, "backward": 1.0}
"""Names of the generalised bilinear rule with their alpha; "zoh" (the input is held over a step) is the other method."""


def legs(size: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS: all of the past, compressed as time goes on; A (N,N) and B (N,).

    A_nk = -sqrt((2n+1)(2k+1)) for n > k, -(n+1) for n = k, 0 for n < k;  B_n = sqrt(2n+1).
    Source: Gu et al. 2020 (arXiv 2008.07669, theorem 2), without its factor 1/t, as in Gu et al. 2021.
    """
    root = torch.sqrt(2 * torch.arange(size, dtype=torch.float64) + 1)
    a = -torch.tril(root[:, None] * root, -1) - torch.diag(torch.arange(1, size + 1, dtype=torch.float64))
    return a, root


def legt(size: int, window: float) -> tuple[Tensor, Tensor]:
    """HiPPO-LegT: the last ``window`` units of time, in orthonormal Legendre polynomials; A (N,N) and B (N,).

    A_nk = -s_nk sqrt((2n+1)(2k+1)) / window with s = 1 for n >= k and (-1)^(n-k) for n < k;  B_n = sqrt(2n+1) / window.
    State n is the average over the window of u(t - window (1-x)) sqrt(2n+1) P_n(2x-1). Source: Gu et al. 2020
    (arXiv 2008.07669, theorem 1).
    """
    n = torch.arange(size, dtype=torch.float64)
    root = torch.sqrt(2 * n + 1)
    sign = torch.where(n[:, None] >= n, 1.0, 1.0 - 2.0 * ((n[:, None] - n) % 2))
    return -sign * root[:, None] * root / window, root / window


def delay(size: int, window: float) -> tuple[Tensor, Tensor]:
    """The delay line of the Legendre memory unit: A (N,N) and B (N,), real and stable.

    A_ij = (2i+1)/window * (-1 if i < j else (-1)^(i-j+1)),  B_i = (2i+1) (-1)^i / window. The input ``tau`` ago, for
    0 <= tau <= window, is about sum_i P_i(2 tau/window - 1) m_i (:func:`legendre`). Source: Voelker et al. 2019
    (Legendre Memory Units, NeurIPS, equations 1 and 2).
    """
    i = torch.arange(size, dtype=torch.float64)
    alternating = 1.0 - 2.0 * ((i[:, None] - i) % 2)
    a = torch.where(i[:, None] < i, -1.0, -alternating) * (2 * i + 1)[:, None] / window
    return a, (2 * i + 1) * (1.0 - 2.0 * (i % 2)) / window


def legendre(size: int, x: Tensor) -> Tensor:
    """P_0 .. P_(size-1) at ``x`` (...): (..., size), by the three-term recurrence."""
    found = [torch.ones_like(x), x]
    for n in range(1, size - 1):
        found.append(((2 * n + 1) * x * found[n] - n * found[n - 1]) / (n + 1))
    return torch.stack(found[:size], -1)


def discretize(a: Tensor, b: Tensor, step: Tensor, method: str | float = "bilinear") -> tuple[Tensor, Tensor]:
    """The discrete x_t = A' x_{t-1} + B' u_t of dx/dt = A x + B u for steps of length ``step`` (H,).

    Args:
        a: dense (N,N), one matrix for all channels; or the diagonals (H,N) or (1,N) of diagonal ones, real or complex,
            when ``b`` has two dimensions.
        b: (N,), or (H,N) or (1,N) for diagonal ``a``.
        step: (H,), positive.
        method: alpha of the generalised bilinear rule, A' = (I - alpha step A)^-1 (I + (1-alpha) step A),
            B' = step (I - alpha step A)^-1 B, as a number or by name ("forward" 0, "bilinear" 1/2, "backward" 1); or
            "zoh": A' = exp(step A), B' = integral of exp(s A) B over a step, exact for an input that is held.

    Returns A' (H,N,N) and B' (H,N); diagonal ``a`` gives (H,N) both. Differentiable in all three. Source: Gu et al.
    2021 (arXiv 2110.13985, section 2 and appendix B.3).
    """
    alpha = METHODS.get(method) if isinstance(method, str) else float(method)
    if method != "zoh" and (alpha is None or not 0 <= alpha <= 1):
        raise ValueError(f'the discretization is a number from 0 to 1, {", ".join(METHODS)} or zoh, not {method!r}')
    if b.dim() == 2:
        scaled = step[:, None] * a
        if method == "zoh":
            held = torch.exp(scaled)
            return held, (held - 1) / a * b
        below = 1 - alpha * scaled
        return (1 + (1 - alpha) * scaled) / below, step[:, None] * b / below
    size = a.shape[-1]
    if method == "zoh":
        # the exponential of the system whose extra, constant state is the input
        joined = torch.cat((torch.cat((a, b[:, None]), 1), a.new_zeros(1, size + 1)))
        held = torch.linalg.matrix_exp(step[:, None, None] * joined)
        return held[:, :size, :size], held[:, :size, size]
    eye = torch.eye(size, dtype=a.dtype, device=a.device)
    scaled = step[:, None, None] * a
    right = torch.cat((eye + (1 - alpha) * scaled, step[:, None, None] * b[None, :, None].expand(len(step), -1, 1)), 2)
    found = torch.linalg.solve(eye - alpha * scaled, right)
    return found[..., :size], found[..., size]
