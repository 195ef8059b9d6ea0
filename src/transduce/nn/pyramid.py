"""The gated recursive convolution: a sequence folded into one vector, level by level."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn

from transduce.core.seq import Seq, zero_masked
from transduce.core.tap import tap


class GatedPyramid(nn.Module):
    """grConv (Cho et al. 2014, arXiv 1409.1259, section 3.2): T inputs -> one vector through T-1 levels.

    h^0_j = U x_j. With the weights shared by all levels, node j of level t reads its two children::

        [w_c, w_l, w_r] = softmax(G_l h^{t-1}_j + G_r h^{t-1}_{j+1})          three numbers a node
        h^t_j = w_c phi(W_l h^{t-1}_j + W_r h^{t-1}_{j+1}) + w_l h^{t-1}_j + w_r h^{t-1}_{j+1}

    The code of row b is the apex of its own triangle, h^{T_b - 1}_1, so padding never enters. O(T^2) nodes,
    T-1 sequential levels, each one batched convolution of width 2. The gates of level t are tapped as
    ``gates`` (B, T-t, 3), in the order merge, left, right.
    """

    def __init__(self, input_width: int, width: int, phi: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.width = width
        self.phi = phi
        self.enter = nn.Linear(input_width, width, bias=False)
        self.left = nn.Linear(width, width + 3)
        self.right = nn.Linear(width, width + 3, bias=False)

    def forward(self, x: Seq) -> Tensor:
        """(B,T,D) -> (B,width)"""
        h = self.enter(zero_masked(x.data, x.mask))
        lengths = x.lengths
        apex = h[:, 0]
        for level in range(1, x.steps):
            h = self.fold(h)
            apex = (
                torch.where((lengths == level + 1)[:, None], h[:, 0], apex) if x.mask is not None else h[:, 0]
            )
        return apex

    def fold(self, h: Tensor) -> Tensor:
        """One level: (B,n,width) -> (B,n-1,width)"""
        below = self.left(h)[:, :-1] + self.right(h)[:, 1:]
        candidate, gates = below.split((self.width, 3), -1)
        merge, left, right = tap(self, "gates", torch.softmax(gates, -1)).split(1, -1)
        return merge * self.phi(candidate) + left * h[:, :-1] + right * h[:, 1:]


def read_tree(gates: list[Tensor], row: int, length: int) -> tuple | int:
    """The binary tree that a pyramid's gates choose for one row: nested pairs of input positions.

    From the apex down: a node whose merge gate is largest is a bracket over its two children; otherwise it
    passes one child through (section 4.2 of the paper). ``gates``: the tapped tensors, level 1 first. Where
    both children are merged a position can stand in the tree twice, since neighbouring nodes overlap; the
    left child then keeps what it covers.
    """

    def node(level: int, j: int) -> tuple | int:
        if level == 0:
            return j
        choice = int(gates[level - 1][row, j].argmax())
        if choice == 1:
            return node(level - 1, j)
        if choice == 2:
            return node(level - 1, j + 1)
        return (node(level - 1, j), node(level - 1, j + 1))

    return node(length - 1, 0)


def brackets(tree: tuple | int) -> set[tuple[int, int]]:
    """The spans (first, last input position) of all brackets of a tree from :func:`read_tree`."""
    spans: set[tuple[int, int]] = set()

    def visit(node: tuple | int) -> tuple[int, int]:
        if isinstance(node, int):
            return node, node
        (first, a), (b, last) = visit(node[0]), visit(node[1])
        span = (min(first, b), max(a, last))
        spans.add(span)
        return span

    visit(tree)
    return spans
