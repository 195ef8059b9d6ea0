"""Pictures of an arrow and a disc: does the one point at the other?

The answer is a matter of geometry over the whole picture, so it does not change with the number of pixels, and a
network that has learned it on small pictures can be asked about larger ones.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor


class Pictures(NamedTuple):
    """``images`` (B,size,size) from 0 (black) to 1 (white); ``labels`` (B,): 1 where the arrow points at the disc."""

    images: Tensor
    labels: Tensor


_LONGEST, _SHORTEST, _SMALL, _LARGE, _MARGIN = 0.3, 0.15, 0.08, 0.15, 0.185
"""Lengths of arrows, radii of discs and the least distance of their centres from the border, in sides of the drawn
scene."""


def arrow_pointing(
    size: int = 48, *, drawn_for: int | None = None, line: float | None = None
) -> Callable[[int, torch.Generator], Pictures]:
    """Pictures of ``size`` by ``size`` pixels, black on white, half of them with the label 1.

    A disc of radius r and an arrow stand at random, at least 2r apart in either direction. Label 1: the arrow's line
    meets the disc even if it were smaller, r / 1.2; label 0: not even one of 1.2 r. All lengths grow with the
    picture; ``drawn_for`` keeps those of the arrow and the disc as in pictures of that size, and leaves more room
    between them. Lines are one pixel wide in pictures of 48, and scale likewise; ``line`` is another width in pixels.

    Source: the task of K. Poeppel et al., pLSTM, arXiv 2506.11997, section 5.1, whose pictures have 192 pixels to
    learn from, with discs of radius 15 to 30 and arrows of 15 to 30, and 384 to be asked about, with the same discs
    and arrows; its lines are 2 pixels wide in all of them. Our arrows are longer for their picture, since one of 4
    pixels shows no angle.
    """
    if size < 16:
        raise ValueError(f"a picture needs 16 pixels at least to show an arrow, not {size}")
    scale = (size if drawn_for is None else drawn_for) / size
    width = scale * size / 48 if line is None else line

    def draw(batch: int, generator: torch.Generator) -> Pictures:
        uniform = lambda low, high, *shape: low + (high - low) * torch.rand(batch, *shape, generator=generator)
        radius, length = scale * uniform(_SMALL, _LARGE), scale * uniform(_SHORTEST, _LONGEST)
        edge = scale * _MARGIN  # so that nothing leaves the picture, whichever way the arrow points
        room = 1 - 2 * edge
        arrow = uniform(0, room, 2)
        apart = 2 * radius[:, None] + torch.rand(batch, 2, generator=generator) * (room - 4 * radius[:, None])
        disc = (arrow + apart) % room
        labels = torch.randint(2, (batch,), generator=generator)
        way = disc - arrow
        distance = way.norm(dim=1)
        cone = torch.asin(torch.where(labels == 1, radius / 1.2, 1.2 * radius) / distance)
        inside = cone * uniform(-1, 1)
        outside = cone + (2 * math.pi - 2 * cone) * uniform(0, 1)
        angle = torch.atan2(way[:, 1], way[:, 0]) + torch.where(labels == 1, inside, outside)
        heading = torch.stack((angle.cos(), angle.sin()), 1)
        ink = _draw(size, width, (arrow + edge, heading, length), (disc + edge, radius))
        return Pictures(1 - ink, labels)

    return draw


def _draw(size: int, width: float, arrow: tuple[Tensor, Tensor, Tensor], disc: tuple[Tensor, Tensor]) -> Tensor:
    """Ink (B,size,size): lines so many pixels wide, with soft edges, by the distance of every pixel's centre."""
    at = (torch.arange(size) + 0.5) / size
    points = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)  # (size,size,2), x first
    (middle, heading, length), (centre, radius) = arrow, disc
    tip, tail = middle + heading * length[:, None] / 2, middle - heading * length[:, None] / 2
    distances = [_from_segment(points, tail, tip)]
    for turn in (0.8 * math.pi, -0.8 * math.pi):
        cos, sin = math.cos(turn), math.sin(turn)
        back = torch.stack((cos * heading[:, 0] - sin * heading[:, 1], sin * heading[:, 0] + cos * heading[:, 1]), 1)
        distances.append(_from_segment(points, tip, tip + 0.45 * length[:, None] * back))
    distances.append(((points - centre[:, None, None]) ** 2).sum(-1).sqrt() - radius[:, None, None])  # < 0 inside
    nearest = torch.stack(distances).amin(0)
    return (width / 2 + 0.5 - nearest * size).clamp(0, 1)


def _from_segment(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(B,size,size): distance of each point from the segment of each row."""
    along = (end - start)[:, None, None]
    offset = points - start[:, None, None]
    share = ((offset * along).sum(-1, keepdim=True) / (along**2).sum(-1, keepdim=True)).clamp(0, 1)
    return ((offset - share * along) ** 2).sum(-1).sqrt()
