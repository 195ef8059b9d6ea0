"""How attention learns about order: rotary, sinusoidal, ALiBi, relative bias.

Each acts in one of three places, and does nothing in the others: on the inputs, on queries and keys, or as a
bias on the scores. Positions count the valid steps of a row since its last reset, so padding and packing do
not shift them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from transduce.core.errors import nearest

_THETA = 10000.0


def angles(position: Tensor, width: int) -> Tensor:
    """position * 10000^(-2i/width) for i < width/2: (...) -> (..., width/2), in float32 at least."""
    dtype = torch.float64 if position.dtype == torch.float64 else torch.float32
    exponent = torch.arange(0, width, 2, device=position.device, dtype=dtype) / width
    return position.to(dtype)[..., None] * torch.exp(exponent * -math.log(_THETA))


def rotary(x: Tensor, position: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + K/2) of x (B,T,H,K) by angle position * theta_i; position (B,T) or (1,T).

    The product of a rotated query and a rotated key depends on the difference of their positions only.
    Su et al. 2021 (arXiv 2104.09864, section 3.2.2), with halves instead of neighbours as pairs.
    """
    angle = angles(position.double() if x.dtype == torch.float64 else position, x.shape[-1])[..., None, :]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def sinusoidal(position: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """(..., width): sin(p theta_i) in the first half of the channels, cos(p theta_i) in the second.

    Vaswani et al. 2017 (arXiv 1706.03762, section 3.5), with the channels in another order.
    """
    angle = angles(position.double() if dtype == torch.float64 else position, width + width % 2)
    return torch.cat((angle.sin(), angle.cos()), -1)[..., :width].to(dtype)


def alibi_slopes(heads: int) -> Tensor:
    """(heads,): 2^(-8/n), 2^(-16/n), ... for the power of two n at most ``heads``; the rest interleave 2n.

    Press et al. 2022 (arXiv 2108.12409, section 3, and its footnote on other head counts).
    """
    n = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / n) for h in range(n)]
    slopes += [2 ** (-4 * (2 * h + 1) / n) for h in range(heads - n)]
    return torch.tensor(slopes, dtype=torch.float64)


class Position(nn.Module):
    """No positions, and the places where the others act."""

    def add(self, x: Tensor, position: Tensor) -> Tensor:
        """On the inputs: (B,T,D) and (B,T) -> (B,T,D)"""
        return x

    def rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """On queries or keys: (B,T,H,K) and (B,T) -> (B,T,H,K)"""
        return x

    def bias(self, distance: Tensor, dtype: torch.dtype) -> Tensor | None:
        """On the scores: query minus key position (B,T,S) -> (B,H,T,S), or None."""
        return None


class Rotary(Position):
    """:func:`rotary` on queries and keys, or on the first ``channels`` of every head only.

    What is left unturned compares contents wherever they stand (De et al. 2024, arXiv 2402.19427, as released, turns
    half a head).
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.channels = channels

    def rotate(self, x: Tensor, position: Tensor) -> Tensor:
        if self.channels is None:
            return rotary(x, position)
        turned, left = x.split((self.channels, x.shape[-1] - self.channels), -1)
        return torch.cat((rotary(turned, position), left), -1)


class Sinusoidal(Position):
    """:func:`sinusoidal` added to the inputs of the layer."""

    def add(self, x: Tensor, position: Tensor) -> Tensor:
        return x + sinusoidal(position, x.shape[-1], x.dtype)


class Alibi(Position):
    """bias = -slope_h |distance|, :func:`alibi_slopes`; nothing is learned."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(heads).float(), persistent=False)

    def bias(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        return -self.slopes.to(dtype)[:, None, None] * distance.abs().to(dtype)[:, None]


class RelativeBias(Position):
    """bias = r_h(clip(distance, -reach, reach)), a learned number for each head and clipped distance.

    The scalar bias of T5 (Raffel et al. 2020, arXiv 1910.10683, section 2.1) on the clipped distances of Shaw
    et al. 2018 (arXiv 1803.02155, section 3.2) instead of T5's logarithmic buckets. Starts at zero.
    """

    def __init__(self, heads: int, reach: int = 128) -> None:
        super().__init__()
        self.reach = reach
        self.table = nn.Parameter(torch.zeros(2 * reach + 1, heads))

    def bias(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        places = distance.clamp(-self.reach, self.reach) + self.reach
        return nn.functional.embedding(places, self.table.to(dtype)).permute(0, 3, 1, 2)


POSITIONS = ("rotary", "half-rotary", "sinusoidal", "relative", "alibi")


def make_position(name: str | None, *, heads: int, width: int) -> Position:
    """The position scheme of that name for heads of ``width`` channels; None makes one that does nothing."""
    if name is None:
        return Position()
    if name == "rotary":
        if width % 2:
            raise ValueError(f"rotary positions need an even head width, got {width}; change dim or heads")
        return Rotary()
    if name == "half-rotary":
        if width % 4:
            raise ValueError(
                f"half-rotary positions need a head width that is a multiple of 4, got {width}; change dim or heads"
            )
        return Rotary(width // 2)
    if name == "sinusoidal":
        return Sinusoidal()
    if name == "alibi":
        return Alibi(heads)
    if name == "relative":
        return RelativeBias(heads)
    raise ValueError(
        f'unknown position "{name}": use one of {", ".join(POSITIONS)} or None.{nearest(name, POSITIONS)}'
    )
