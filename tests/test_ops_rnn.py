from __future__ import annotations

import pytest
import torch

from transduce.ops.rnn import elman, gru, gru_gates, lstm
from transduce.testing.ops import check_op


@pytest.mark.parametrize("op", [elman, gru, lstm], ids=lambda o: o.name)
def test_every_backend_obeys_the_law(op):
    record = check_op(op)
    assert {c.backend for c in record if c.refused is None} == set(op.backends)
