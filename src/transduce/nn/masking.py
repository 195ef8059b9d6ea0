"""Small helpers of mixers for masks and resets."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_resets(resets: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Resets that count: a row that does not advance at a step does not restart there either. (B,T) bool."""
    return resets if resets is None or mask is None else resets & mask


def only_pads_right(mask: Tensor | None) -> bool:
    """True when every row is some valid steps and then only padding. Reads the mask's values."""
    return mask is None or not bool((mask[:, 1:] & ~mask[:, :-1]).any())
