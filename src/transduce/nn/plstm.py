"""pLSTM: linear recurrences with sources, transitions and marks, along a sequence, over a grid and over a graph.

K. Poeppel, R. Freinschlag, T. Schmied, W. Lin, S. Hochreiter, pLSTM: parallelizable Linear Source Transition Mark
networks, arXiv 2506.11997. Everywhere a cell x_n makes a query, a key, a value and gates; what is kept is a matrix on
every edge, and each head's reading is normalised before the output projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.dag_scan import Dag, dag_scan
from transduce.ops.grid_scan import grid_scan
from transduce.ops.retention import retention

from .masking import valid_resets

MODES = ("P", "D")


class _Heads(nn.Module):
    """Queries, keys and values of all heads, and the way out: W_o (gain * rms_norm of each head's reading)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"pLSTM needs a width that is a multiple of its {heads} heads, got {dim}")
        self.heads, self.width = heads, dim // heads
        self.input = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.gain = nn.Parameter(torch.ones(heads, self.width))

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.input(x).unflatten(-1, (3, self.heads, self.width)).unbind(-3)
        return q * self.width**-0.5, k, v

    def write(self, y: Tensor, like: Tensor) -> Tensor:
        return self.output((F.rms_norm(y, (self.width,), eps=1e-6) * self.gain).flatten(-2).to(like.dtype))


def _gates(dim: int, num: int, bias: float, spread: float = 0.1) -> nn.Linear:
    """A linear map to gates before their sigmoid; it starts at ``bias``, whatever x is, nearly."""
    made = nn.Linear(dim, num)
    nn.init.normal_(made.weight, std=spread * dim**-0.5)
    nn.init.constant_(made.bias, bias)
    return made


class PLSTM(Mixer):
    """C_t = s_t k_t v_t^T + f_t C_{t-1},  y_t = (d_t k_t v_t^T + m_t C_{t-1})^T q_t in each head; W_o rms_norm(y).

    pLSTM on a path, x: (B,T,dim) -> (B,T,dim). All gates are numbers between 0 and 1 made from x_t; f = sigmoid(.)^c
    with c = ``sharpness``. State: C (B,H,K,K), float32 or better.
    """

    def __init__(self, dim: int, heads: int = 4, *, sharpness: float = 0.25) -> None:
        super().__init__()
        self.inner, self.sharpness = _Heads(dim, heads), sharpness
        self.gates = _gates(dim, 3 * heads, 0.0)
        self.fade = _gates(dim, heads, 3.0)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        like = self.inner.output.weight
        dtype = torch.promote_types(like.dtype, torch.float32)
        return like.new_zeros(batch, self.inner.heads, self.inner.width, self.inner.width, dtype=dtype)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        q, k, v = self.inner.read(x)
        source, mark, direct = torch.sigmoid(self.gates(x)).unflatten(-1, (3, -1)).unbind(-2)
        # A masked step writes and forgets nothing, but a later query may stand at it, so the scan knows no mask.
        log_fade = zero_masked(self.sharpness * F.logsigmoid(self.fade(x)), mask)
        k_kept = zero_masked(source, mask)[..., None] * k
        # Step t asks for C_{t-1}: the scan answers it at the step before, and what entered answers the first one.
        ahead = torch.cat((q[:, 1:], torch.zeros_like(q[:, :1])), 1)
        after, memory = retention(ahead, k_kept, v, log_fade, state, resets=resets)
        first = torch.zeros_like(after[:, :1])
        if state is not None:
            first = (q[:, :1, :, None].to(state.dtype) @ state[:, None]).squeeze(-2).to(after.dtype)
        before = torch.cat((first, after[:, :-1]), 1)
        if resets is not None:
            before = torch.where(resets[..., None, None], 0, before)
        here = (q * k).sum(-1, keepdim=True) * v
        y = self.inner.write(direct[..., None] * here + mark[..., None] * before, x)
        return y, None if state is None else memory


def _fan(heads: int) -> Tensor:
    """Biases of the angles, (H): spread over [-2, 2] among the heads h, h + 4, h + 8 .. that start with the same flip,
    so that these look into the whole of its quarter of the plane; 0, half to the right and half down, for one alone."""
    fan = torch.zeros(heads)
    for flip in range(min(4, heads)):
        own = fan[flip::4]
        if len(own) > 1:
            own.copy_(torch.linspace(-2, 2, len(own)))
    return fan


class PLSTM2D(nn.Module):
    """pLSTM over a grid in all four pairs of directions: (B,Y,X,dim) -> (B,Y,X,dim).

    ``mode`` "P" (directed propagation): with an angle o = sigmoid(b_h + w . x / (2 dim)), b_h spread over [-2, 2] among
    the heads of a flip and w zero at first, and transition and source strengths t and s between 0 and 1,
    t_lr = t_ur = o t, t_ud = t_ld = 1 - o t, s_r = o s, s_d = 1 - s_r, m_l = m_u: each edge hands on exactly what it
    has, so nothing explodes and signals travel in a direction. "D" (diffusive): straight on and one of the turns
    only, all at most 1: a single path leads from one edge to another; which turn it is changes from head to head. The
    recurrence is :func:`transduce.ops.grid_scan.grid_scan`; the outputs of the four flips are averaged. q, k and v are
    shared by the flips, gates are not: each head's marks start open for one flip and nearly closed for the others,
    because a mean over four equal flips tells no direction from another, and training leaves that point late; so it
    does where the heads that share a flip do not look into the whole of its quarter of the plane.

    mask (B,Y,X), False: the cell takes no part and stops what passes; what x holds there has no influence.
    """

    def __init__(self, dim: int, heads: int = 4, *, mode: str = "P", sharpness: float = 0.25) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f'mode is "P" or "D", not {mode!r}')
        self.inner, self.mode, self.sharpness = _Heads(dim, heads), mode, sharpness
        # P: source, mark, direct; D: source right and down, mark left and up, direct.
        self.soft = _gates(dim, 4 * heads * (3 if mode == "P" else 5), 0.0, spread=0.3)
        marks = self.soft.bias.data.view(4, heads, -1)[..., slice(1, 2) if mode == "P" else slice(2, 4)]
        its_own = torch.arange(4)[:, None] == torch.arange(heads) % 4
        marks.copy_(torch.where(its_own, 3.0, -3.0)[..., None])
        self.fade = _gates(dim, 4 * heads * (1 if mode == "P" else 3), 3.0)
        self.angle = _gates(dim, 4 * heads, 0.0) if mode == "P" else None
        if self.angle is not None:
            nn.init.zeros_(self.angle.weight)
            self.angle.bias.data.view(4, heads).copy_(_fan(heads))
        turns = (torch.arange(heads) + torch.arange(heads) // 4) % 2 == 0  # both kinds among the heads of a flip, too
        self.register_buffer("turns_down", turns, persistent=False)

    def gates(self, x: Tensor) -> Tensor:
        """(B,Y,X,dim) -> (4,B,Y,X,H,9), for each flip, in the order of :data:`transduce.ops.grid_scan.GATES`."""
        split = lambda y: y.unflatten(-1, (4, self.inner.heads, -1)).movedim(-3, 0)
        soft = torch.sigmoid(split(self.soft(x))).unbind(-1)
        fade = torch.exp(self.sharpness * F.logsigmoid(split(self.fade(x)))).unbind(-1)
        if self.angle is not None:
            source, mark, direct = soft
            bias, weight = self.angle.bias, self.angle.weight
            o = torch.sigmoid(split(bias + F.linear(x, weight) / (2 * x.shape[-1])).squeeze(-1))
            right, down = o * fade[0], 1 - o * fade[0]
            return torch.stack((o * source, 1 - o * source, right, down, down, right, mark, mark, direct), -1)
        (right, down, left, up, direct), (straight, fall, turn) = soft, fade
        to_down, to_right = turn * self.turns_down, turn * ~self.turns_down
        return torch.stack((right, down, straight, fall, to_down, to_right, left, up, direct), -1)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = torch.where(mask[..., None], x, 0)
        q, k, v = self.inner.read(x)
        gates = self.gates(x)
        if mask is not None:
            gates = torch.where(mask[..., None, None], gates, 0)
        flips = ((), (2,), (1,), (1, 2))
        turned = [torch.cat([t.flip(axes) for axes in flips]) for t in (q, k, v)]
        y = grid_scan(*turned, torch.cat([g.flip(axes) for g, axes in zip(gates, flips)]))
        y = sum(part.flip(axes) for part, axes in zip(y.chunk(4), flips)) / 4
        return self.inner.write(y, x)


class PLSTMGraph(nn.Module):
    """pLSTM over a directed acyclic graph, along its edges and against them: (B,N,dim) -> (B,N,dim).

    Source and transitions of a node are shared among the edges that go on, t_(e,e') = f_n / |Out(n)| and
    s_e = s_n / |Out(n)|, so what a node passes on is never more than what it got, whatever the graph; marks and direct
    gates are those of the node. Both readings are averaged. An undirected graph is directed by any order of its
    nodes. The recurrence is :func:`transduce.ops.dag_scan.dag_scan`.
    """

    def __init__(self, dim: int, heads: int = 4, *, sharpness: float = 0.25) -> None:
        super().__init__()
        self.inner, self.sharpness = _Heads(dim, heads), sharpness
        self.soft = _gates(dim, 2 * 3 * heads, 0.0)
        self.fade = _gates(dim, 2 * heads, 3.0)

    def forward(self, x: Tensor, graph: Dag) -> Tensor:
        q, k, v = self.inner.read(x)
        soft = torch.sigmoid(self.soft(x)).unflatten(-1, (2, 3, -1)).unbind(-3)
        fade = torch.exp(self.sharpness * F.logsigmoid(self.fade(x))).unflatten(-1, (2, -1)).unbind(-2)
        y = 0
        for way, gates, keep in zip((graph, graph.reversed()), soft, fade):
            source, mark, direct = gates.unbind(-2)
            tails, heads = way.edges.to(x.device).unbind(1)
            share = 1 / torch.bincount(tails, minlength=way.num_nodes).clamp_min(1).to(x.dtype)[:, None]
            through = heads[way.turns.to(x.device)[:, 0]]
            y = y + dag_scan(
                q, k, v, (source * share)[:, tails], (keep * share)[:, through], mark[:, heads], direct, way
            )
        return self.inner.write(y / 2, x)
