"""Scoring and aligning given targets with teacher forcing."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from transduce.core.errors import UserError
from transduce.core.protocols import Hypothesis, Model
from transduce.core.seq import EOS, Batch, Seq
from transduce.core.tap import record


@torch.no_grad()
def score(model: Model, batch: Batch) -> Tensor:
    """log p(y | x) = sum_u log p(y_u | y_<u, x) of each row's whole target, EOS included, in nats: (B,)"""
    if batch.target is None:
        raise UserError("Scoring needs a batch with targets.")
    start = model.start(batch, continues=False)
    dist, _ = model(batch.previous, start, mask=batch.target.mask, **batch.marks)
    log_p = dist.log_prob(batch.target.data)
    return torch.where(batch.target.valid(), log_p, torch.zeros_like(log_p)).sum(1)


@torch.no_grad()
def align(
    model: Model, batch: Batch, hypotheses: Sequence[Hypothesis], pattern: str = "*attend.weights"
) -> list[Tensor]:
    """Attention of each hypothesis to its source, one (U,S) matrix a row, EOS as the last target row.

    ``hypotheses``: one for each row of the batch. The model reads them as if they were given; every tapped
    tensor whose name matches ``pattern`` and that attends to the source counts, averaged over heads and
    layers. An empty list comes back for a model that attends to no source.
    """
    if batch.source is None:
        return []
    if len(hypotheses) != batch.size:
        raise UserError(f"align needs one hypothesis a row, got {len(hypotheses)} for {batch.size} rows.")
    target = Seq.from_lists([[*h.ids, EOS] for h in hypotheses])
    forced = Batch(batch.source, target.to(batch.source.data.device), batch.rows)
    with record(model, pattern) as seen:
        model(forced.previous, model.start(forced, continues=False), mask=forced.target.mask)
    sources, targets = batch.source.lengths.tolist(), target.lengths.tolist()
    layers: list[Tensor] = []
    for calls in seen.values():
        found = [w.mean(1) if w.dim() == 4 else w for w in calls]
        # A loop over depth taps the whole target once a depth step, a decoder that steps through it once a symbol.
        whole = all(w.shape[1] == target.steps for w in found)
        for joined in found if whole else [torch.cat(found, 1)]:
            if joined.shape[1:] == (target.steps, batch.source.steps):
                layers.append(joined.float())
    if not layers:
        return []
    mean = torch.stack(layers).mean(0)
    return [mean[i, :u, :s] for i, (u, s) in enumerate(zip(targets, sources))]
