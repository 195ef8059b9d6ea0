"""How much of the source a generating model still sees, by attention weights and by derivatives."""

from __future__ import annotations

import math
from typing import Sequence

import torch
from torch import Tensor

from transduce.core.errors import UserError
from transduce.core.protocols import Model
from transduce.core.seq import Batch
from transduce.core.tap import record, replace


@torch.no_grad()
def attention_mass(model: Model, batch: Batch, pattern: str = "*.weights") -> dict[str, Tensor]:
    """Share of attention that each target position spends on the source, (U,) by layer, mean over rows and
    heads.

    ``pattern``: taps whose weights (B,H,U,S+U) stand over the source's steps first and the target's behind
    them, in one softmax. Source and target must be without padding, so that every row counts the same.
    """
    _unpadded(batch)
    size = batch.source.steps
    with record(model, pattern) as seen:
        model(batch.previous, model.start(batch, continues=False))
    wanted = (batch.target.steps, size + batch.target.steps)
    found = {name: calls[-1] for name, calls in seen.items() if calls[-1].shape[-2:] == wanted}
    if not found:
        raise UserError("No attention of this model stands over source and target at once.")
    return {name: w[..., :size].sum(-1).mean((0, 1)) for name, w in found.items()}


def source_sensitivity(
    model: Model,
    batch: Batch,
    output: str,
    source: str = "source",
    *,
    places: Sequence[int] | None = None,
    probes: int = 8,
    seed: int = 0,
) -> Tensor:
    """Norm of the derivative of what position i computes with respect to the source's vectors, mean over
    rows, for the target positions ``places`` (from 0; all unless given): (len(places),)

    ||d out_i / d source||_F = sqrt(E_v |J_i^T v|^2) over random signs v, ``probes`` of them (Hutchinson
    1990). Both ends are taps of the model: ``output`` (B,U,D) and ``source`` (B,S,D). Every position costs
    one backward pass a probe.
    """
    _unpadded(batch)
    leaf: list[Tensor] = []

    def from_here(x: Tensor) -> Tensor:
        leaf.append(x.detach().requires_grad_())
        return leaf[0]

    with torch.enable_grad(), replace(model, {source: from_here}), record(model, output) as seen:
        model(batch.previous, model.start(batch, continues=False))
    if not leaf or not seen:
        raise UserError(f"This model has no taps named {source} and {output}.")
    out = next(iter(seen.values()))[-1]
    generator = torch.Generator().manual_seed(seed)
    norms: list[Tensor] = []
    steps = out.unbind(1)
    for out_i in steps if places is None else [steps[i] for i in places]:
        squared = torch.zeros(out.shape[0], dtype=out.dtype)
        for _ in range(probes):
            v = torch.randint(0, 2, out_i.shape, generator=generator).to(out_i) * 2 - 1
            (gradient,) = torch.autograd.grad((out_i * v).sum(), leaf[0], retain_graph=True)
            squared += gradient.square().sum((1, 2)) / probes
        norms.append(squared.sqrt().mean())
    return torch.stack(norms)


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line through (log x, log y)."""
    if len(x) != len(y) or len(x) < 2 or min(*x, *y) <= 0:
        raise ValueError("a slope needs at least two points, all above 0")
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v)) / sum((a - mean_u) ** 2 for a in u)


def _unpadded(batch: Batch) -> None:
    if (
        batch.source is None
        or batch.target is None
        or batch.source.mask is not None
        or batch.target.mask is not None
    ):
        raise UserError(
            "Positions are compared between rows: give sources of one length and targets of one length."
        )
