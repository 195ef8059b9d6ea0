"""Mixers over sequences put to work on grids: one scan along each axis."""

from __future__ import annotations

from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked


class AlongAxes(nn.Module):
    """y[i, j] = across(row i)[j] + down(column j)[i] for a grid (B,H,W,D) -> (B,H,W,D).

    Every row of the grid is a sequence for ``across`` and every column one for ``down``; None leaves an axis out. Make
    them :class:`Bidirectional` for grids that have no first corner. ``mask`` (B,H,W): False for cells that are not
    there; what they hold has no influence. The 2-D use of HGRN (Qin et al. 2023, arXiv 2311.04823, appendix B).
    """

    def __init__(self, across: Mixer | None, down: Mixer | None) -> None:
        super().__init__()
        if across is None and down is None:
            raise ValueError("a grid needs a mixer along at least one of its axes")
        self.across, self.down = across, down

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"a grid has the shape (batch, height, width, channels), got {tuple(x.shape)}")
        found = []
        if self.across is not None:
            found.append(_along_rows(self.across, x, mask))
        if self.down is not None:
            turned = None if mask is None else mask.transpose(1, 2)
            found.append(_along_rows(self.down, x.transpose(1, 2), turned).transpose(1, 2))
        return found[0] if len(found) == 1 else found[0] + found[1]


def _along_rows(mixer: Mixer, x: Tensor, mask: Tensor | None) -> Tensor:
    rows = x.shape[:2]
    y, _ = mixer(x.flatten(0, 1), mask=None if mask is None else mask.flatten(0, 1))
    # what a mixer gives at masked steps is unspecified, and would be added to what the other axis gives
    return zero_masked(y, None if mask is None else mask.flatten(0, 1)).unflatten(0, rows)
