"""Mixers over sequences put over a grid."""

from __future__ import annotations

from torch import Tensor, nn

from transduce.core.protocols import Mixer


class FourWay(nn.Module):
    """Any mixer over a grid: along rows and columns, forwards and backwards, each with weights of its own, averaged.

    (B,Y,X,dim) -> (B,Y,X,dim) from four mixers (B,T,dim) -> (B,T,dim), causal or not. mask (B,Y,X) is handed on.
    """

    def __init__(self, *mixers: Mixer) -> None:
        super().__init__()
        if len(mixers) != 4:
            raise ValueError(f"FourWay needs four mixers: right, left, down, up; got {len(mixers)}")
        self.mixers = nn.ModuleList(mixers)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        total = 0
        for i, mixer in enumerate(self.mixers):
            order = (lambda t: t.transpose(1, 2)) if i >= 2 else (lambda t: t)
            turn = (lambda t: t.flip(2)) if i % 2 else (lambda t: t)
            lines = turn(order(x))
            valid = None if mask is None else turn(order(mask)).flatten(0, 1)
            y, _ = mixer(lines.flatten(0, 1), mask=valid)
            total = total + order(turn(y.unflatten(0, lines.shape[:2])))
        return total / 4
