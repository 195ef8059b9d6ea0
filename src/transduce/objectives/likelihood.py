"""Maximum likelihood under teacher forcing."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from transduce.core.dist import Categorical, Dist
from transduce.core.protocols import Loss, Model
from transduce.core.seq import Batch
from transduce.ops.likelihood import cross_entropy

TokenWeights = Callable[[Tensor, Batch, int], Tensor]
"""(log p of the targets (B,U) without gradient, batch, step) -> weight of each target symbol (B,U)."""


class Likelihood:
    """Cross entropy with label smoothing.

    L = sum_u w_u [ -(1 - e) log p(y_u) - e/V sum_v log p(v) ] / sum_u w_u over the valid target symbols,
    EOS included.

    ``label_smoothing``: e in [0,1) (Szegedy et al. 2016, section 7). ``token_weights``: a hook that weights
    single symbols (loss reweighting, curricula); 1 where it is absent. The reported part ``nll`` is always
    the plain unweighted mean of -log p(y_u) in nats, whatever is minimised; ``accuracy`` is the share of
    symbols that are the mode.
    """

    def __init__(self, label_smoothing: float = 0.0, token_weights: TokenWeights | None = None) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.token_weights = token_weights

    def __call__(
        self, model: Model, batch: Batch, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        if batch.target is None:
            raise ValueError("likelihood needs a batch with targets")
        target, valid = batch.target.data, batch.target.valid()
        start = model.start(batch, continues=False)
        dist, _ = model(batch.previous, start, mask=batch.target.mask, **batch.marks)
        cost, known, mode = self._cost(dist, target)
        weight = valid.to(cost.dtype)
        count = weight.sum()
        if self.token_weights is not None:
            weight = weight * self.token_weights(known, batch, step)
        cost = torch.where(valid, cost * weight, torch.zeros((), dtype=cost.dtype, device=cost.device))
        parts = {
            "nll": -torch.where(valid, known, torch.zeros_like(known)).sum() / count,
            "accuracy": ((mode == target) & valid).sum() / count,
        }
        return Loss(cost.sum() / weight.sum().clamp_min(1e-9), parts, weight=int(valid.sum()))

    def _cost(self, dist: Dist, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cost of each target symbol (B,U), its log p without gradient, and the most likely symbol."""
        if isinstance(dist, Categorical):
            return cross_entropy(dist.logits, target, smoothing=self.label_smoothing)
        if self.label_smoothing == 0.0:
            log_p = dist.log_prob(target)
            return -log_p, log_p.detach(), dist.mode()
        scores = dist.scores
        log_p = scores.gather(-1, target[..., None])[..., 0]
        cost = -(1.0 - self.label_smoothing) * log_p - self.label_smoothing * scores.mean(-1)
        return cost, log_p.detach(), dist.mode()
