"""Convolution over a grid of target and source positions: causal along the target, centred along the source.

The rows that later outputs still need are handed on as a tail, so a grid can be computed row by row.
"""

from __future__ import annotations

from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from transduce.core.seq import zero_masked
from transduce.ops.conv import _pack
from transduce.ops.dispatch import Case, op


@op
def causal_conv2d(
    x_BUSC: Tensor,
    weight_ECHW: Tensor,
    bias_E: Tensor | None = None,
    tail_BLSC: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y[u,s] = bias + sum_{i<H, j<W} w_ij x[u - (H-1-i), s + j - (W-1)//2], and the last L = H-1 rows.

    Row u reads rows up to u. A k x k kernel whose rows behind the centre are zero is H = k//2 + 1, W = k:
    only the rows that count are stored and computed. Outside the grid lie zeros; cells of padding inside it
    are the caller's to zero. tail_BLSC: the L rows before the first one, zeros where None. mask: (B,U); a
    masked row is skipped: it enters neither outputs nor tail, and its own output is unspecified.

    Returns y (B,U,S,E) and the tail (B,L,S,C). Raises ValueError for a tail of another length.
    """
    rows, reach = x_BUSC.shape[1], weight_ECHW.shape[2] - 1
    x_BUSC = zero_masked(x_BUSC, mask)
    places = None
    if mask is not None:
        places = mask.long().cumsum(1) - 1
        x_BUSC = _pack(x_BUSC, mask, places)
    z = torch.cat((_tail_or_zeros(tail_BLSC, x_BUSC, reach), x_BUSC), 1)
    cells, width = x_BUSC.shape[2], weight_ECHW.shape[3]
    before = (width - 1) // 2
    sides = F.pad(z, (0, 0, before, width - 1 - before))
    y = bias_E if bias_E is not None else z.new_zeros(())
    for i in range(reach + 1):
        for j in range(width):
            y = y + F.linear(sides[:, i : i + rows, j : j + cells], weight_ECHW[:, :, i, j])
    if places is None:
        return y, z[:, rows:]
    at = lambda index, of: index[..., None, None].expand(-1, -1, *of.shape[2:])
    recent = mask.sum(1)[:, None] + torch.arange(reach, device=z.device)
    return y.gather(1, at(places.clamp(min=0), y)), z.gather(1, at(recent, z))


def _refuses_masks(
    x_BUSC: Tensor,
    weight_ECHW: Tensor,
    bias_E: Tensor | None = None,
    tail_BLSC: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> str | None:
    return None if mask is None else "a mask skips rows, which a dense convolution cannot"


@causal_conv2d.backend("conv2d", when=_refuses_masks)
def causal_conv2d_dense(
    x_BUSC: Tensor,
    weight_ECHW: Tensor,
    bias_E: Tensor | None = None,
    tail_BLSC: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """torch's convolution. With channels last the grid already lies as its kernels want it."""
    reach, width = weight_ECHW.shape[2] - 1, weight_ECHW.shape[3]
    z = torch.cat((_tail_or_zeros(tail_BLSC, x_BUSC, reach), x_BUSC), 1)
    before = (width - 1) // 2
    image = z.permute(0, 3, 1, 2)
    if width % 2 == 0:  # one more tap to the right
        image = F.pad(image, (before, width - 1 - before))
        before = 0
    y = F.conv2d(image, weight_ECHW, bias_E, padding=(0, before))
    return y.permute(0, 2, 3, 1), z[:, x_BUSC.shape[1] :]


def _tail_or_zeros(tail: Tensor | None, x: Tensor, reach: int) -> Tensor:
    if tail is None:
        return x.new_zeros(x.shape[0], reach, *x.shape[2:])
    if tail.shape[1] != reach:
        raise ValueError(f"this convolution needs a tail of {reach} rows, got {tail.shape[1]}")
    return tail


@causal_conv2d.cases
def causal_conv2d_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    everything = (0, 1, 2, 3)
    mask = torch.rand(3, 6, generator=generator) < 0.6
    tiny = (normal(2, 3, 3, 2), normal(2, 2, 2, 3), normal(2), normal(2, 1, 3, 2))
    yield Case("tiny", tiny, grad=everything, tiny=True)
    masked = (normal(3, 6, 2, 2), normal(2, 2, 2, 3), normal(2), normal(3, 1, 2, 2))
    yield Case("tiny, masked", masked, {"mask": mask}, grad=everything, tiny=True)
    yield Case(
        "five by five",
        (normal(2, 7, 6, 5), normal(4, 5, 3, 5), normal(4), normal(2, 2, 6, 5)),
        grad=everything,
    )
    yield Case(
        "one row", (normal(3, 1, 4, 5), normal(4, 5, 2, 3), normal(4), normal(3, 1, 4, 5)), grad=everything
    )
    yield Case("one cell, no tail, no bias", (normal(2, 1, 1, 5), normal(4, 5, 3, 5)), grad=(0, 1))
    yield Case("even width", (normal(2, 4, 5, 3), normal(4, 3, 2, 4), normal(4)), grad=(0, 1, 2))
    yield Case("kernel of one", (normal(2, 4, 5, 3), normal(4, 3, 1, 1), normal(4)), grad=(0, 1, 2))
    x = normal(3, 6, 4, 5).masked_fill(~mask[..., None, None], float("nan"))
    yield Case(
        "NaN under the mask",
        (x, normal(4, 5, 2, 3), normal(4), normal(3, 1, 4, 5)),
        {"mask": mask},
        grad=(1, 2, 3),
    )
