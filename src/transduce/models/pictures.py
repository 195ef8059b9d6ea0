"""A label for a picture of any size, from a grid of patches and layers over it."""

from __future__ import annotations

from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.nn.feedforward import FeedForward
from transduce.nn.norm import LayerNorm


class Raster(nn.Module):
    """A mixer over the cells of a grid, row by row as one sequence: (B,Y,X,dim) -> (B,Y,X,dim)."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.mixer(x.flatten(1, 2))
        return y.unflatten(1, x.shape[1:3])


class PatchLabeller(nn.Module):
    """Patches, a linear map, for each layer x <- x + layer(LN x), x <- x + FFN(LN x), then W mean(LN x) + b.

    (B,height,width) of numbers -> logits (B,num_labels). ``layers``: modules (B,Y,X,dim) -> (B,Y,X,dim), for example
    :class:`transduce.nn.PLSTM2D`, or attention in a :class:`Raster` (a vision transformer). ``positions``: learn a
    vector for each cell of a grid of so many rows and columns, which is stretched to larger pictures; None adds none.
    Raises ValueError for a picture that patches do not tile. Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        dim: int,
        num_labels: int,
        *,
        patch: int = 6,
        positions: int | None = None,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch, dim)
        self.place = None
        if positions is not None:
            self.place = nn.Parameter(self.embed.weight.new_empty(positions, positions, dim).normal_(std=0.02))
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(LayerNorm(dim) for _ in range(2 * len(layers) + 1))
        self.feedforwards = nn.ModuleList(FeedForward(dim, 2 * dim) for _ in layers)
        self.head = nn.Linear(dim, num_labels)

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.dim() != 3 or any(n % self.patch for n in pictures.shape[1:]):
            raise ValueError(
                f"pictures (B,height,width) must have sides that are multiples of the patch size {self.patch}, "
                f"got {tuple(pictures.shape)}"
            )
        cells = pictures.unflatten(2, (-1, self.patch)).unflatten(1, (-1, self.patch)).transpose(2, 3)
        x = self.embed(cells.flatten(3))
        if self.place is not None:
            place = self.place.movedim(-1, 0)[None]
            if place.shape[2:] != x.shape[1:3]:
                place = F.interpolate(place, size=x.shape[1:3], mode="bilinear", align_corners=False)
            x = x + place[0].movedim(0, -1)
        norms = iter(self.norms)
        for layer, feedforward in zip(self.layers, self.feedforwards):
            x = x + layer(next(norms)(x))
            x = x + feedforward(next(norms)(x))
        return self.head(next(norms)(x).mean((1, 2)))
