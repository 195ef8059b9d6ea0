"""Functions of single numbers for kernels, written so that a loop over them vectorises: float32, good to 2e-7.

Imports numba; import it lazily. numba's cache of machine code looks at the file of a kernel only: after a change here,
delete ops/__pycache__.
"""

from __future__ import annotations

import numba
import numpy as np

from .kernels import float_from_bits

_F = np.float32
inline = numba.njit(fastmath={"contract"}, error_model="numpy", inline="always")
row_function = numba.njit(fastmath={"contract"}, error_model="numpy")


@inline
def exp(x):  # noqa: ANN001, ANN202
    """e^x to 2e-7: 2^n times a polynomial on [-ln2/2, ln2/2]. NaN stays NaN; beyond +-88 it is inf or 0,
    which makes a gate exactly 0 or 1."""
    x = _F(89.0) if x > _F(89.0) else x
    x = _F(-88.0) if x < _F(-88.0) else x
    n = np.floor(x * _F(1.44269504) + _F(0.5))
    x = (x - n * _F(0.693359375)) - n * _F(-2.12194440e-4)
    p = _F(1.9875691500e-4)
    p = p * x + _F(1.3981999507e-3)
    p = p * x + _F(8.3334519073e-3)
    p = p * x + _F(4.1665795894e-2)
    p = p * x + _F(1.6666665459e-1)
    p = p * x + _F(5.0000001201e-1)
    p = (p * x) * x + x + _F(1.0)
    return p * float_from_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@inline
def sigmoid(x):  # noqa: ANN001, ANN202
    return _F(1.0) / (_F(1.0) + exp(-x))


@inline
def tanh(x):  # noqa: ANN001, ANN202
    s = x * x
    small = x + x * s * (
        _F(-0.333333333) + s * (_F(0.133333333) + s * (_F(-0.0539682540) + s * _F(0.0218694885)))
    )
    large = _F(1.0) - _F(2.0) / (exp(x + x) + _F(1.0))
    return small if s < _F(0.09) else large


@inline
def log_sigmoid(x):  # noqa: ANN001, ANN202
    """min(x, 0) - log(1 + e), e = exp(-|x|); the logarithm by the series of artanh(e / (2 + e)), at most 1/3."""
    e = exp(-abs(x))
    s = e / (_F(2.0) + e)
    q = s * s
    p = _F(1 / 15)
    p = p * q + _F(1 / 13)
    p = p * q + _F(1 / 11)
    p = p * q + _F(1 / 9)
    p = p * q + _F(1 / 7)
    p = p * q + _F(1 / 5)
    p = p * q + _F(1 / 3)
    low = x if x < _F(0.0) else _F(0.0)
    return low - _F(2.0) * (s + s * q * p)
