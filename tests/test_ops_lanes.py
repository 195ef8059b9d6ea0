"""Row functions of kernels: numbers beside rows, and the exponential that works on whole registers."""

import math

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba")

from transduce.ops.kernels import Kernel, as_size
from transduce.ops.lanes import lanewise
from transduce.ops.lanes_math import exp, exp_pair

exp_row = lanewise(lambda x: (exp(x),), inputs=1)
pair_row = lanewise(lambda x: exp_pair(x), inputs=1)
axpy_row = lanewise(lambda x, y, a, b: (x * a + y * b,), inputs=2)
quotient_row = lanewise(lambda x, y: (x / y,), inputs=2, falling=True)


def _exp(data):
    size = as_size(data[2])
    exp_row((numba.carray(data[0], (size,)), numba.carray(data[1], (size,))))


def _pair(data):
    size = as_size(data[3])
    pair_row((numba.carray(data[0], (size,)), numba.carray(data[1], (size,)), numba.carray(data[2], (size,))))


def _axpy(data):
    size = as_size(data[3])
    axpy_row((numba.carray(data[0], (size,)), numba.carray(data[1], (size,)), numba.carray(data[2], (size,)), 2.5, -3.0))


def _quotient(data):
    size = as_size(data[3])
    quotient_row((numba.carray(data[0], (size,)), numba.carray(data[1], (size,)), numba.carray(data[2], (size,))))


KERNELS = {name: Kernel(fn) for name, fn in (("exp", _exp), ("pair", _pair), ("axpy", _axpy), ("quotient", _quotient))}


def run(name, *inputs, outputs=1):
    found = [torch.empty_like(inputs[0]) for _ in range(outputs)]
    KERNELS[name].launch(inputs[0].dtype, (*inputs, *found), [len(inputs[0])], 1)
    return found


@pytest.mark.parametrize("dtype, error", [(torch.float32, 3e-7), (torch.float64, 4e-16)], ids=["float32", "float64"])
def test_exponential(dtype, error):
    reach = 87.0 if dtype == torch.float32 else 708.0
    x = torch.cat((torch.linspace(-reach, reach, 100_003, dtype=dtype), torch.linspace(-1e-3, 1e-3, 101, dtype=dtype)))
    (y,) = run("exp", x)
    want = np.exp(x.numpy().astype(np.longdouble))
    assert float((np.abs(y.numpy().astype(np.longdouble) - want) / want).max()) < error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential_at_the_ends(dtype):
    """On a whole register and on the numbers left over."""
    x = torch.tensor([-math.inf, -1e30, -800.0, 0.0, math.nan, 1e30, math.inf] * 3, dtype=dtype)
    (y,) = run("exp", x)
    assert (y[:3] == 0).all() and y[3] == 1 and torch.isnan(y[4]) and (y[5:7] > 1e37).all()
    assert torch.equal(torch.nan_to_num(y[:7]), torch.nan_to_num(y[14:]))


def test_two_weights_from_one_difference():
    lead = torch.tensor([-math.inf, -40.0, -0.5, 0.0, 0.5, 40.0, math.inf] * 5, dtype=torch.float64)
    older, newer = run("pair", lead, outputs=2)
    torch.testing.assert_close(older, torch.exp(lead.clamp(max=0)))
    torch.testing.assert_close(newer, torch.exp((-lead).clamp(max=0)))


@pytest.mark.parametrize("size", [1, 16, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_beside_rows_and_quotients(size, dtype):
    x, y = torch.linspace(-3, 4, size, dtype=dtype), torch.linspace(1, 2, size, dtype=dtype)
    torch.testing.assert_close(run("axpy", x, y)[0], 2.5 * x - 3 * y)
    torch.testing.assert_close(run("quotient", x, y)[0], x / y)
