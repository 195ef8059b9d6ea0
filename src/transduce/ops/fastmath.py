"""Elementwise functions of float32 numbers for the loops of compiled kernels, written so that LLVM vectorises them.

numba calls the C library for ``exp``, one number at a time; these are a few multiplications each. Imports numba;
import it lazily. numba's cache of machine code looks at the file of a kernel only: after a change here, delete
ops/__pycache__.
"""

from __future__ import annotations

import numba
import numpy as np

from .kernels import float_from_bits

F = np.float32
inlined = numba.njit(fastmath={"contract"}, error_model="numpy", inline="always")
"""For the arithmetic of one number: becomes part of the loop that calls it."""
row_function = numba.njit(fastmath={"contract"}, error_model="numpy")
"""For a loop over one row."""


@inlined
def exp(x):  # noqa: ANN001, ANN201
    """e^x to 2e-7: 2^n times a polynomial on [-ln2/2, ln2/2]. NaN stays NaN; beyond +-88 it is inf or 0,
    which makes a gate exactly 0 or 1."""
    x = F(89.0) if x > F(89.0) else x
    x = F(-88.0) if x < F(-88.0) else x
    n = np.floor(x * F(1.44269504) + F(0.5))
    x = (x - n * F(0.693359375)) - n * F(-2.12194440e-4)
    p = F(1.9875691500e-4)
    p = p * x + F(1.3981999507e-3)
    p = p * x + F(8.3334519073e-3)
    p = p * x + F(4.1665795894e-2)
    p = p * x + F(1.6666665459e-1)
    p = p * x + F(5.0000001201e-1)
    p = (p * x) * x + x + F(1.0)
    return p * float_from_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@inlined
def sigmoid(x):  # noqa: ANN001, ANN201
    """1 / (1 + e^-x)"""
    return F(1.0) / (F(1.0) + exp(-x))


@inlined
def tanh(x):  # noqa: ANN001, ANN201
    """By its series near zero, where 1 - 2 / (e^2x + 1) would cancel."""
    s = x * x
    small = x + x * s * (F(-0.333333333) + s * (F(0.133333333) + s * (F(-0.0539682540) + s * F(0.0218694885))))
    large = F(1.0) - F(2.0) / (exp(x + x) + F(1.0))
    return small if s < F(0.09) else large


@inlined
def one_minus_exp(x):  # noqa: ANN001, ANN201
    """1 - e^x for x <= 0, to 2e-7 of its own size: by the series near zero, where the difference would cancel."""
    p = F(1.0) + x * F(1.0 / 8.0)
    p = F(1.0) + x * F(1.0 / 7.0) * p
    p = F(1.0) + x * F(1.0 / 6.0) * p
    p = F(1.0) + x * F(1.0 / 5.0) * p
    p = F(1.0) + x * F(1.0 / 4.0) * p
    p = F(1.0) + x * F(1.0 / 3.0) * p
    p = F(1.0) + x * F(1.0 / 2.0) * p
    return -x * p if x > F(-0.5) else F(1.0) - exp(x)


@inlined
def log_sigmoid(x):  # noqa: ANN001, ANN201
    """min(x, 0) - log(1 + e), e = exp(-|x|); the logarithm by the series of artanh(e / (2 + e)), at most 1/3."""
    e = exp(-abs(x))
    s = e / (F(2.0) + e)
    q = s * s
    p = F(1 / 15)
    p = p * q + F(1 / 13)
    p = p * q + F(1 / 11)
    p = p * q + F(1 / 9)
    p = p * q + F(1 / 7)
    p = p * q + F(1 / 5)
    p = p * q + F(1 / 3)
    low = x if x < F(0.0) else F(0.0)
    return low - F(2.0) * (s + s * q * p)
