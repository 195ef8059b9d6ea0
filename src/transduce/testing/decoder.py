"""The laws of a decoder, checked on a whole model: what objectives and searches rely on.

1. *stepping*: one symbol at a time gives the scores of the whole target at once (teacher forcing).
2. *ragged chunks*: so does any chunking, with rows that advance separately under a mask.
3. *one call*: ``start(continues=False)`` scores as ``start(continues=True)``, and a reserved capacity changes
   nothing.
4. *rows*: a row scores alone, without its padding, as in the batch; what padding holds has no influence.
5. *old states*: a state may be continued again after another continuation of it.
6. *beams*: after ``expand``, ``reorder``, ``select_groups`` a row goes on as if it had been fed its own past.
7. *gradients*: the likelihood has the same finite gradients stepped and at once; they reach every parameter.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from transduce.core import state as states
from transduce.core.protocols import Model
from transduce.core.seq import BOS, Batch

from .rows import agree, in_double, row_of
from .tolerances import tolerance


@dataclass(frozen=True)
class _Trial:
    """A model in float64, a batch with targets, and the scores (B,U,V) of teacher forcing."""

    model: Model
    batch: Batch
    forced: Tensor
    generator: torch.Generator

    @property
    def valid(self) -> Tensor:
        return self.batch.target.valid()

    def compare(self, law: str, what: str, got: Tensor) -> None:
        agree(law, what, got[self.valid], self.forced[self.valid], tolerance("decoder", torch.float64))


def check_decoder(model: Model, batch: Batch, *, seed: int = 0) -> None:
    """Check the laws above on a copy of ``model`` in float64 and evaluation mode.

    ``batch``: at least two rows with targets of at least three symbols, of different lengths, so that there
    is padding to tell apart; sources likewise where the model has any. Raises AssertionError that names the
    first broken law.
    """
    assert batch.target is not None and batch.size >= 2 and batch.target.steps >= 3, (
        "check_decoder needs a batch of two rows or more with targets of three symbols or more"
    )
    model, batch = copy.deepcopy(model).double().eval(), in_double(batch)
    with torch.no_grad():
        dist, _ = model(batch.previous, model.start(batch, continues=False), mask=batch.target.mask)
        trial = _Trial(model, batch, dist.scores, torch.Generator().manual_seed(seed))
        for law in (_stepping, _ragged_chunks, _one_call, _rows, _old_states, _beams):
            law(trial)
    _gradients(trial)


def _stepping(trial: _Trial) -> None:
    trial.compare("stepping", "the score of a symbol", stepped_scores(trial.model, trial.batch))


def stepped_scores(model: Model, batch: Batch) -> Tensor:
    """The scores (B,U,V) of the batch's targets, one call a symbol."""
    state, scores = model.start(batch), []
    for prev, keep in zip(batch.previous.split(1, 1), batch.target.valid().split(1, 1)):
        dist, state = model(prev, state, mask=None if bool(keep.all()) else keep)
        scores.append(dist.scores)
    return torch.cat(scores, 1)


def _ragged_chunks(trial: _Trial) -> None:
    """Each call offers five places to every row, which fills some of them, at any place in the chunk."""
    model, previous, left = trial.model, trial.batch.previous, trial.batch.target.lengths.clone()
    state, position = model.start(trial.batch), torch.zeros_like(left)
    found = torch.zeros_like(trial.forced)
    rows = torch.arange(len(left))[:, None].expand(-1, 5)
    while bool((left > 0).any()):
        places = torch.rand(len(left), 5, generator=trial.generator) < 0.6
        mask = places & (places.cumsum(1) <= left[:, None])
        at = (position[:, None] + mask.cumsum(1) - 1).clamp(0, previous.shape[1] - 1)
        prev = torch.where(mask, previous.gather(1, at), BOS)
        dist, state = model(prev, state, mask=mask)
        found[rows[mask], at[mask]] = dist.scores[mask]
        position, left = position + mask.sum(1), left - mask.sum(1)
    trial.compare("ragged chunks", "the score of a symbol", found)


def _one_call(trial: _Trial) -> None:
    model, batch = trial.model, trial.batch
    for capacity in (None, 2, batch.target.steps):
        dist, _ = model(batch.previous, model.start(batch, capacity=capacity), mask=batch.target.mask)
        trial.compare("one call", f"the score of a symbol with capacity {capacity}", dist.scores)


def _rows(trial: _Trial) -> None:
    law, model, batch = "rows", trial.model, trial.batch
    allowed = tolerance("decoder", torch.float64)
    for i in range(batch.size):
        alone = row_of(batch, i)
        dist, _ = model(alone.previous, model.start(alone, continues=False))
        alone_scores = _as_wide(dist.scores[0], trial.forced)
        agree(law, f"the score of row {i} alone", alone_scores, trial.forced[i][trial.valid[i]], allowed)
    if batch.source is None or batch.source.mask is None:
        return
    data, valid = batch.source.data, batch.source.valid()
    poison = torch.full_like(data, float("nan")) if data.is_floating_point() else data[:, :1].expand_as(data)
    keep = valid.view(*valid.shape, *([1] * (data.dim() - 2)))
    poisoned = replace(batch, source=batch.source.with_data(torch.where(keep, data, poison)))
    dist, _ = model(batch.previous, model.start(poisoned, continues=False), mask=batch.target.mask)
    trial.compare(law, "the score of a symbol with other padding in the source", dist.scores)


def _as_wide(scores: Tensor, like: Tensor) -> Tensor:
    """Scores (...,V) of a row alone as wide as those of its batch. Symbols that are places in the source end where the
    row's source ends, so what the batch has beyond must be impossible."""
    return F.pad(scores, (0, like.shape[-1] - scores.shape[-1]), value=float("-inf"))


def _old_states(trial: _Trial) -> None:
    model, batch = trial.model, trial.batch
    previous, mask = batch.previous, trial.valid
    _, middle = model(previous[:, :1], model.start(batch), mask=mask[:, :1])
    model(previous.flip(1), middle)
    dist, _ = model(previous[:, 1:], middle, mask=mask[:, 1:])
    found = torch.cat((trial.forced[:, :1], dist.scores), 1)
    trial.compare("old states", "the score after another continuation", found)


def _beams(trial: _Trial) -> None:
    """Three beams read random symbols and swap places; each must end as a row that is fed its own history."""
    model, batch, k, steps = trial.model, trial.batch, 3, 4
    size, num_symbols = batch.size, trial.forced.shape[-1]
    history = torch.full((size, k, 1), BOS)
    state = states.expand(model.start(batch), k)
    groups = torch.arange(size)
    for step in range(steps):
        dist, state = model(history[:, :, -1].reshape(-1, 1), state)
        for i, group in enumerate(groups.tolist()):
            for j in range(k):
                single, _ = model(history[i, j][None], model.start(row_of(batch, group)))
                agree(
                    "beams", f"the score of beam {j} of row {group} after {step} reorders",
                    dist.scores[i * k + j, -1], _as_wide(single.scores[0, -1], dist.scores),
                    tolerance("decoder", torch.float64),
                )
        parents = torch.randint(k, (len(groups), k), generator=trial.generator)
        chosen = torch.randint(num_symbols, (len(groups), k), generator=trial.generator)
        state = states.reorder(state, parents)
        past = history.gather(1, parents[..., None].expand(-1, -1, history.shape[-1]))
        history = torch.cat((past, chosen[..., None]), -1)
        if step == 1:
            kept = torch.arange(1, size)
            state, history, groups = states.select_groups(state, kept, k), history[kept], groups[kept]


def _gradients(trial: _Trial) -> None:
    law, model, batch = "gradients", trial.model, trial.batch
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def gradients_of(scores: Tensor) -> tuple[Tensor | None, ...]:
        log_p = scores.gather(-1, batch.target.data[..., None])[..., 0]
        loss = -log_p[trial.valid].sum()
        return torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)

    if not named:
        return
    dist, _ = model(batch.previous, model.start(batch, continues=False), mask=batch.target.mask)
    at_once, stepped = gradients_of(dist.scores), gradients_of(stepped_scores(model, batch))
    for (name, _), want, got in zip(named, at_once, stepped):
        assert want is not None, f'law "{law}": no gradient reaches the parameter {name}'
        assert got is not None, f'law "{law}": stepped, no gradient reaches the parameter {name}'
        assert bool(want.isfinite().all()), f'law "{law}": the gradient of {name} is not finite'
        agree(law, f"the gradient of {name}", got, want, tolerance("decoder gradient", torch.float64))
