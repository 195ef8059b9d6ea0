"""Running softmax averages: the op of fixed scores and the one with decay, each against its law and its formula."""

import math

import pytest
import torch

from transduce.ops.softmax_scan import softmax_scan
from transduce.ops.wkv import wkv
from transduce.testing.ops import check_op

BACKENDS = ("numba", "doubling", "reference")


def inputs(batch=2, steps=9, heads=3, width=4, scale=1.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    scores = scale * torch.randn(batch, steps, heads, generator=g, dtype=torch.float64)
    return scores.to(dtype), torch.randn(batch, steps, heads, width, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("op", [softmax_scan, wkv], ids=lambda op: op.name)
def test_every_backend_obeys_the_law(op):
    record = check_op(op)
    assert {c.backend for c in record if c.refused is None} == set(BACKENDS)
