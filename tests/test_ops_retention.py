from __future__ import annotations

import pytest
import torch

from transduce.ops.retention import retention
from transduce.testing.ops import check_op


def test_every_backend_obeys_the_law():
    record = check_op(retention)
    assert {c.backend for c in record if c.refused is None} == {"chunked", "reference"}
