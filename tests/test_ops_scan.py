from __future__ import annotations

import pytest
import torch

from transduce.ops.dispatch import use_backend
from transduce.ops.scan import linear_scan
from transduce.testing.ops import check_op


def test_every_backend_obeys_the_law():
    record = check_op(linear_scan)
    assert {c.backend for c in record if c.refused is None} == {"numba", "loop", "reference"}
