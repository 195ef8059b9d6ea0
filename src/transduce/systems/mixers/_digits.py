"""Handwritten digits as sequences of grey values, for the checks of mixers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from transduce.data.corpora.digits import load_images


class Sequences(NamedTuple):
    """``inputs`` (N,T,F) of mean 0 and deviation 1 over the training part, and ``labels`` (N,)."""

    inputs: Tensor
    labels: Tensor


def digits(side: int, *, by_columns: bool = False) -> dict[str, Sequences]:
    """The small digits scaled to ``side`` x ``side``, pixel by pixel from the top left, row after row or column after
    column, T = side * side steps of one number: "train" (1,400, the validation part included) and "test" (397)."""
    parts = load_images()
    rows = {"train": ("train", "valid"), "test": ("test",)}
    found: dict[str, Sequences] = {}
    for name, kept in rows.items():
        pixels = torch.from_numpy(np.concatenate([parts[k].pixels for k in kept])).float()[:, None]
        if side != pixels.shape[-1]:
            pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)
        if by_columns:
            pixels = pixels.mT
        labels = torch.from_numpy(np.concatenate([parts[k].digits for k in kept])).long()
        found[name] = Sequences(pixels.flatten(1)[..., None], labels)
    mean, deviation = found["train"].inputs.mean(), found["train"].inputs.std()
    return {name: Sequences((s.inputs - mean) / deviation, s.labels) for name, s in found.items()}
