"""A label for a picture of any size, from a grid of patches and layers over it."""

from __future__ import annotations

from typing import Literal, Sequence

import torch
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
    """Patches, a linear map, for each layer x <- x + layer(LN x), x <- x + FFN(LN x), then W pool(LN x) + b.

    (B,height,width) of numbers -> logits (B,num_labels). ``layers``: modules (B,Y,X,dim) -> (B,Y,X,dim), for example
    :class:`transduce.nn.PLSTM2D`, or attention in a :class:`Raster` (a vision transformer). ``positions``: learn a
    vector for each cell of a grid of so many rows and columns, which is stretched to larger pictures; None adds none.
    ``stem``: hidden units with GELU between a patch and its vector, without biases, so that a blank patch (zeros) is
    the zero vector and tells the first layer nothing; None is one linear map. ``local``: before each layer
    x <- x + conv(x), every channel over 3 by 3 cells, without biases likewise. ``pool``: the mean over all cells, or
    the largest value of each channel, which more blank cells around the same things do not change.
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
        stem: int | None = None,
        local: bool = False,
        pool: Literal["mean", "max"] = "mean",
    ) -> None:
        super().__init__()
        if pool not in ("mean", "max"):
            raise ValueError(f'pool is "mean" or "max", not {pool!r}')
        self.patch, self.pool = patch, pool
        pixels = patch * patch
        self.embed: nn.Module = nn.Linear(pixels, dim)
        if stem is not None:
            self.embed = nn.Sequential(nn.Linear(pixels, stem, bias=False), nn.GELU(), nn.Linear(stem, dim, bias=False))
        self.place = None
        if positions is not None:
            self.place = nn.Parameter(torch.empty(positions, positions, dim).normal_(std=0.02))
        self.layers = nn.ModuleList(layers)
        near = lambda: nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.convs = nn.ModuleList(near() for _ in layers) if local else None
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
        for i, (layer, feedforward) in enumerate(zip(self.layers, self.feedforwards)):
            if self.convs is not None:
                x = x + self.convs[i](x.movedim(-1, 1)).movedim(1, -1)
            x = x + layer(next(norms)(x))
            x = x + feedforward(next(norms)(x))
        x = next(norms)(x)
        return self.head(x.mean((1, 2)) if self.pool == "mean" else x.amax((1, 2)))
