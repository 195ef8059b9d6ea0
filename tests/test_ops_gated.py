"""The gated recurrences as ops: every backend against the reference, and what the reference promises."""

import pytest
import torch

from transduce.ops.gated import hgru, min_gru, min_lstm, rg_lru
from transduce.testing.ops import check_op

OPS = {op.name: op for op in (min_gru, min_lstm, hgru, rg_lru)}


@pytest.mark.parametrize("name", OPS)
def test_every_backend_agrees_with_the_reference(name):
    record = check_op(OPS[name])
    served = {c.backend for c in record if c.refused is None and c.dtype == torch.float32}
    assert served == {"numba", "scan", "reference"}
