"""pLSTM's recurrence on a two-dimensional grid for one pair of directions, to the right and down: a matrix on every
edge, sources, transitions and marks at every cell."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Case, on_tensors, op
from .tracing import why_not_kernel

GATES = (
    "source right", "source down", "left to right", "up to down", "left to down", "up to right",
    "mark left", "mark up", "direct",
)  # fmt: skip
"""What the last dimension of ``gates`` holds, in this order."""


def _check(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> torch.dtype:
    """Shapes that fit together, and the dtype to work in: float64 when any input is, else float32."""
    if q.dim() != 5 or q.shape != k.shape or v.dim() != 5 or v.shape[:4] != q.shape[:4]:
        raise ValueError(
            "grid_scan needs q and k (B,Y,X,H,K) and v (B,Y,X,H,V), "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if gates.shape != (*q.shape[:4], len(GATES)):
        raise ValueError(
            f"grid_scan needs gates of shape {(*q.shape[:4], len(GATES))}, got {tuple(gates.shape)}"
        )
    return torch.float64 if any(t.dtype == torch.float64 for t in (q, k, v, gates)) else torch.float32


@op
def grid_scan(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """C_right = s_r k v^T + t_lr C_left + t_ur C_up,  C_down = s_d k v^T + t_ud C_up + t_ld C_left,
    y = (d k v^T + m_l C_left + m_u C_up)^T q, for the cells of a grid, from the upper left on: (B,Y,X,H,V).

    C_left of a cell is C_right of the cell to its left, C_up is C_down of the cell above; both are zero at the border.

    Args:
        q, k: (B,Y,X,H,K). Scale them as you need; nothing is scaled here.
        v: (B,Y,X,H,V).
        gates: (B,Y,X,H,9), in the order of :data:`GATES`: s_r, s_d, t_lr, t_ud, t_ld, t_ur, m_l, m_u, d. A cell whose
            gates are all zero takes no part.

    Returns y in float64 where an input is float64, else float32.

    Backends, in order: ``numba`` (CPU: one pass over the cells, analytic backward, once differentiable), ``parallel``
    (any device: the scalar that links every pair of cells, by merging neighbouring rectangles, log2 Y + log2 X rounds
    of matrix products, then attention with it; the grid is filled up with zeros to powers of two; O((YX)^2) memory),
    ``reference``. ``grid_scan.matrix`` gives the implied cell-to-cell matrix.

    Raises ValueError for shapes that do not fit. Source: K. Poeppel, R. Freinschlag, T. Schmied, W. Lin, S. Hochreiter,
    pLSTM: parallelizable Linear Source Transition Mark networks, arXiv 2506.11997, sections 3 and 4.
    """
    work = _check(q, k, v, gates)
    q, k, v, gates = (x.to(work) for x in (q, k, v, gates))
    zero = q.new_zeros(q.shape[0], *q.shape[3:], v.shape[-1])
    above, outputs = [zero] * q.shape[2], []
    for rows in zip(*(x.unbind(1) for x in (q, k, v, gates))):
        left = zero
        for x, (q_n, k_n, v_n, gate) in enumerate(zip(*(row.unbind(1) for row in rows))):
            up, kv = above[x], k_n[..., :, None] * v_n[..., None, :]
            s_r, s_d, t_lr, t_ud, t_ld, t_ur, m_l, m_u, d = gate[..., None, None].unbind(-3)
            outputs.append((q_n[..., None, :] @ (d * kv + m_l * left + m_u * up)).squeeze(-2))
            above[x] = s_d * kv + t_ud * up + t_ld * left
            left = s_r * kv + t_lr * left + t_ur * up
    return torch.stack(outputs, 1).unflatten(1, q.shape[1:3]) if outputs else torch.zeros_like(v)


# ---------------------------------------------------------------- compiled, with an analytic backward


@functools.cache
def _compiled() -> ModuleType:
    from . import grid_scan_numba  # imports numba

    return grid_scan_numba


class _GridScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, gates):  # noqa: ANN001, ANN205 (torch's own signature)
        y, states = _compiled().forward(q, k, v, gates, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(q, k, v, gates, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        found = _compiled().backward(grad.contiguous(), ctx.saved_tensors)
        return tuple(g if need else None for g, need in zip(found, ctx.needs_input_grad))


@grid_scan.backend("numba", when=on_tensors(why_not_kernel))
def _numba_backend(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    work = _check(q, k, v, gates)
    return _GridScan.apply(*(x.to(work).contiguous() for x in (q, k, v, gates)))


# ---------------------------------------------------------------- log-depth


class _Cells:
    """Rectangles of a grid and how they link what enters, what is inside and what leaves: all (B,H,rows,columns,...).

    Direction 0 is to the right, in which neighbours are merged, 1 is down. ``links[out, into]`` are matrices between
    borders, ``sends[out]`` from the cells inside to a border, ``reads[into]`` from a border to the cells inside,
    ``inside`` from cells to cells. ``order`` (rows,columns,n): which cell of the grid is the n-th inside.
    """

    def __init__(self, links, sends, reads, inside: Tensor, order: Tensor) -> None:  # noqa: ANN001
        self.links, self.sends, self.reads, self.inside, self.order = links, sends, reads, inside, order

    def turned(self) -> _Cells:
        """The same with the two directions exchanged."""
        links = {(out, into): self.links[1 - out, 1 - into].transpose(2, 3) for out, into in self.links}
        sends, reads = ([x[1].transpose(2, 3), x[0].transpose(2, 3)] for x in (self.sends, self.reads))
        return _Cells(links, sends, reads, self.inside.transpose(2, 3), self.order.transpose(0, 1))

    def merged(self) -> _Cells:
        """Neighbours in a row become one: what leaves the first to the right enters the second."""
        first = lambda x: x[:, :, :, 0::2]
        second = lambda x: x[:, :, :, 1::2]
        a, b = ({key: part(x) for key, x in self.links.items()} for part in (first, second))
        (sa0, sa1), (sb0, sb1) = ([part(x) for x in self.sends] for part in (first, second))
        (ra0, ra1), (rb0, rb1) = ([part(x) for x in self.reads] for part in (first, second))
        through, over = b[0, 0], b[1, 0]
        links = {
            (0, 0): through @ a[0, 0],
            (0, 1): torch.cat((through @ a[0, 1], b[0, 1]), -1),
            (1, 0): torch.cat((a[1, 0], over @ a[0, 0]), -2),
            (1, 1): _lower(a[1, 1], over @ a[0, 1], b[1, 1]),
        }
        sends = [torch.cat((through @ sa0, sb0), -1), _lower(sa1, over @ sa0, sb1)]
        reads = [torch.cat((ra0, rb0 @ a[0, 0]), -2), _lower(ra1, rb0 @ a[0, 1], rb1)]
        inside = _lower(first(self.inside), rb0 @ sa0, second(self.inside))
        return _Cells(links, sends, reads, inside, torch.cat((self.order[:, 0::2], self.order[:, 1::2]), -1))


def _lower(upper_left: Tensor, lower_left: Tensor, lower_right: Tensor) -> Tensor:
    """The block matrix [[upper_left, 0], [lower_left, lower_right]]."""
    nothing = upper_left.new_zeros(*upper_left.shape[:-1], lower_right.shape[-1])
    return torch.cat((torch.cat((upper_left, nothing), -1), torch.cat((lower_left, lower_right), -1)), -2)


def _linked(gates: Tensor) -> Tensor:
    """(B,Y,X,H,9) -> (B,H,YX,YX): by how much what cell s sends reaches cell n, ``direct`` on the diagonal."""
    _, rows, columns, _, _ = gates.shape
    tall, wide = (1 << (n - 1).bit_length() for n in (rows, columns))
    padded = F.pad(gates, (0, 0, 0, 0, 0, wide - columns, 0, tall - rows)).permute(0, 3, 1, 2, 4)
    s_r, s_d, t_lr, t_ud, t_ld, t_ur, m_l, m_u, d = padded[..., None, None].unbind(-3)
    order = torch.arange(tall * wide, device=gates.device).view(tall, wide, 1)
    links = {(0, 0): t_lr, (0, 1): t_ur, (1, 0): t_ld, (1, 1): t_ud}
    cells = _Cells(links, [s_r, s_d], [m_l, m_u], d, order)
    while cells.inside.shape[2:4] != (1, 1):
        if cells.inside.shape[3] > 1:
            cells = cells.merged()
        if cells.inside.shape[2] > 1:
            cells = cells.turned().merged().turned()
    back = cells.order.flatten().argsort().view(tall, wide)[:rows, :columns].flatten()
    return cells.inside[:, :, 0, 0].index_select(-1, back).index_select(-2, back)


@grid_scan.backend("parallel", when=lambda q, k, v, gates: None if q.numel() else "the grid is empty")
def _parallel_backend(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    work = _check(q, k, v, gates)
    values = v.to(work).flatten(1, 2).transpose(1, 2)
    return (grid_scan_matrix(q, k, gates) @ values).transpose(1, 2).unflatten(1, q.shape[1:3]).to(work)


def grid_scan_matrix(q: Tensor, k: Tensor, gates: Tensor) -> Tensor:
    """The matrix M (B,H,YX,YX) with ``y[n] = sum_s M[n, s] v[s]``, cells numbered row by row.

    M[n, s] = (q_n . k_s) times the sum over all paths from s to n, steps to the right and down, of the product of
    source, transitions and mark along them; M[n, n] = (q_n . k_n) d_n.
    """
    work = _check(q, k, k, gates)
    q, k = (x.to(work).flatten(1, 2).transpose(1, 2) for x in (q, k))
    return (q @ k.mT) * _linked(gates.to(work))


grid_scan.matrix = grid_scan_matrix


# ---------------------------------------------------------------- cases


@grid_scan.cases
def grid_scan_cases() -> Iterator[Case]:
    """Grids with and without padding to powers of two, single rows and columns, one cell, gates of one kind only."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def case(
        name: str, grid: tuple[int, int], heads: int = 2, width: tuple[int, int] = (3, 2), tiny: bool = False
    ) -> Case:
        cells = (2, *grid, heads)
        gates = 0.6 * torch.tanh(normal(*cells, len(GATES)))
        args = (normal(*cells, width[0]), normal(*cells, width[0]), normal(*cells, width[1]), gates)
        return Case(name, args, grad=(0, 1, 2, 3), tiny=tiny, scale=3.0)

    yield case("tiny", (2, 3), 1, (2, 2), tiny=True)
    yield case("one cell", (1, 1))
    yield case("one row", (1, 7))
    yield case("one column", (6, 1))
    yield case("padded", (5, 7), width=(4, 8))
    yield case("square", (8, 8), 1, (4, 4))
    yield case("long", (2, 9), width=(5, 9))
    q, k, v, gates = case("", (4, 5)).args
    yield Case("no gates", (q, k, v, torch.zeros_like(gates)), grad=(0, 1, 2, 3))
    yield Case("open gates", (q, k, v, torch.ones_like(gates)), grad=(0, 1, 2, 3), scale=100.0)
    straight = gates * torch.tensor([1, 1, 1, 1, 0, 0, 1, 1, 1.0], dtype=torch.float64)
    yield Case("no turns", (q, k, v, straight), grad=(0, 1, 2, 3), scale=3.0)
