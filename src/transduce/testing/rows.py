"""Batches for the law suites: single rows, rows with given targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import torch
from torch import Tensor

from transduce.core.seq import Batch, Seq


def row_of(batch: Batch, i: int) -> Batch:
    """Row ``i`` as a batch of its own, without padding, under the name that it has in the batch."""
    rows = batch.rows if len(batch.rows) == batch.size else tuple(range(batch.size))
    return Batch(_row(batch.source, i), _row(batch.target, i), (rows[i],))


def _row(seq: Seq | None, i: int) -> Seq | None:
    if seq is None:
        return None
    return Seq(seq.data[i : i + 1][:, seq.valid()[i]], None)


def with_targets(row: Batch, targets: Sequence[Sequence[int]]) -> Batch:
    """A batch of one row, once for each of these targets."""
    source = row.source
    if source is not None:
        source = source.select(torch.zeros(len(targets), dtype=torch.long, device=source.data.device))
    return Batch(source, Seq.from_lists(targets))


def in_double(batch: Batch) -> Batch:
    """The batch with floating-point sources in float64."""
    source = batch.source
    if source is None or not source.data.is_floating_point():
        return batch
    return replace(batch, source=source.with_data(source.data.double()))


def agree(law: str, what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Raise AssertionError, naming the law, where two tensors differ by more than ``tolerance * max(1,
    |want|)``."""
    shapes = tuple(got.shape), tuple(want.shape)
    assert shapes[0] == shapes[1], f'law "{law}": {what} has shape {shapes[0]}, not {shapes[1]}'
    off = torch.where(got == want, torch.zeros_like(want), (got - want).abs() / want.abs().clamp_min(1.0))
    worst = float(off.max()) if off.numel() else 0.0
    assert worst <= tolerance, f'law "{law}": {what} differs by {worst:.2e}, allowed {tolerance:.0e}'
