"""A plain training loop for labelled sequences that fit into memory, for the checks of systems."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .optim import parameter_groups, set_rate


def train_labels(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    epochs: int,
    *,
    batch: int = 32,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """AdamW on the cross-entropy of ``model(inputs)`` (N,V) and ``labels`` (N,); the mean loss of every epoch in nats.

    The rate rises over the first tenth of the steps and falls to zero with a cosine; gradients are clipped to norm 1;
    each epoch is a new order, which depends on ``seed`` only. Slow parameters as in
    :func:`transduce.train.optim.parameter_groups`. ``seed`` does not set the first weights. A model that answers several
    times while it is trained gives (N,V,K); each of the K answers then counts alike.
    """
    optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate)
    generator = torch.Generator().manual_seed(1_000_003 * seed + 7)
    total, step = epochs * -(-len(labels) // batch), 0
    cycle = _one_cycle(total)
    model.train()
    losses: list[float] = []
    for _ in range(epochs):
        found = 0.0
        for rows in torch.randperm(len(labels), generator=generator).split(batch):
            set_rate(optimiser, learning_rate * cycle(step))
            logits = model(inputs[rows])
            wanted = labels[rows] if logits.dim() == 2 else labels[rows, None].expand(-1, logits.shape[2])
            loss = F.cross_entropy(logits, wanted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            found, step = found + float(loss.detach()) * len(rows), step + 1
        losses.append(found / len(labels))
    model.eval()
    return losses


def _one_cycle(total: int) -> Callable[[int], float]:
    rise = max(1, total // 10)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = torch.tensor((step - rise) / max(1, total - rise))
        return float(0.5 * (1 + torch.cos(torch.pi * done)))

    return factor


@torch.no_grad()
def label_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, *, batch: int = 256) -> float:
    """Share of the rows whose label is the most likely one."""
    right = 0
    for x, y in zip(inputs.split(batch), labels.split(batch)):
        right += int((model(x).argmax(-1) == y).sum())
    return right / len(labels)
