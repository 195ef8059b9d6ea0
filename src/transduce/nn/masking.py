"""Small helpers of mixers for masks and resets."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_resets(resets: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Resets that count: a row that does not advance at a step does not restart there either. (B,T) bool."""
    return resets if resets is None or mask is None else resets & mask


def only_pads_right(mask: Tensor | None) -> bool:
    """True when every row is known to be some valid steps and then only padding.

    It reads the mask's values. That would stall an accelerator, and a traced graph cannot hold the question,
    so the answer there is False, which only means that nothing is known.
    """
    if mask is None:
        return True
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not bool((mask[:, 1:] & ~mask[:, :-1]).any())


def left_aligned(data: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The valid steps of each row moved to the front in their order: (B,T,...) and its mask."""
    if mask is None or only_pads_right(mask):
        return data, mask
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    moved = data.gather(1, order.view(*order.shape, *([1] * (data.dim() - 2))).expand_as(data))
    return moved, mask.gather(1, order)


def positions(
    x: Tensor, count: Tensor | None, mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Valid steps of its row before each step since the last reset, and behind the last step.

    x: (B,T,...). count: (B,), steps before this chunk; None for a fresh start. Resets at masked steps must
    have been removed (:func:`valid_resets`). Returns (B,T), or (1,T) where all rows are alike, and (B,).
    """
    batch, steps = x.shape[:2]
    if mask is None and resets is None:
        run = torch.arange(steps, device=x.device)[None]
        at = run if count is None else count[:, None] + run
        return at, (at[:, -1] + 1).expand(batch)
    ones = torch.ones(batch, steps, dtype=torch.long, device=x.device) if mask is None else mask.long()
    through = ones.cumsum(1)
    before = through - ones
    begun = torch.zeros_like(before[:, 0]) if count is None else count
    if resets is None:
        return begun[:, None] + before, begun + through[:, -1]
    base = torch.where(resets, before, -1).cummax(1).values  # steps before the latest reset, -1 for none yet
    offset = torch.where(base >= 0, -base, begun[:, None])
    return before + offset, through[:, -1] + offset[:, -1]
