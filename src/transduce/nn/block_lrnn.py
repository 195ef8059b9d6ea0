"""Linear recurrences with dense blocks that the input chooses, and where those blocks come from.

What the blocks can be decides what the layer can count: diagonal transitions of size at most one commute and fade,
permutations (which stochastic and orthogonal blocks contain) do neither.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.block_scan import block_scan

from .masking import valid_resets


def _mlp(dim: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out))


class PNormBlocks(nn.Module):
    """A = C / max_j |C_j|_p with C the blocks of an MLP of x, each column centred: (B,T,dim) -> (B,T,H,b,b).

    C_j are the columns of a block; p = 1.2 as published. The bound is a heuristic: it allows a spectral norm above 1
    for some blocks, and shrinks a centred permutation of 8 to spectral radius 0.74, so exact counting is out of reach.
    Fan et al., arXiv 2309.07412, section 4.
    """

    additive = True

    def __init__(self, dim: int, heads: int, size: int, *, p: float = 1.2) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"centred columns need blocks of at least 2 by 2, not {size}")
        self.heads, self.size, self.p = heads, size, p
        self.blocks = _mlp(dim, heads * size, heads * size * size)

    def forward(self, x: Tensor) -> Tensor:
        c = self.blocks(x).unflatten(-1, (self.heads, self.size, self.size))
        c = c - c.mean(-2, keepdim=True)
        longest = torch.linalg.vector_norm(c, self.p, dim=-2, keepdim=True).amax(-1, keepdim=True)
        return c / longest.clamp_min(1e-6)


class OrthogonalBlocks(nn.Module):
    """A = (I - S)(I + S)^-1 with S skew-symmetric from an MLP of x: rotations, (B,T,dim) -> (B,T,H,b,b).

    The Cayley transform: no eigenvalue is -1, so a half turn is only approached. Nothing fades or grows.
    """

    additive = True

    def __init__(self, dim: int, heads: int, size: int) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"rotations need blocks of at least 2 by 2, not {size}")
        self.heads, self.size = heads, size
        self.angles = _mlp(dim, heads * size, heads * size * (size - 1) // 2)
        self.register_buffer("upper", torch.triu_indices(size, size, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = self.angles(x).unflatten(-1, (self.heads, -1))
        half = angles.new_zeros(*angles.shape[:-1], self.size, self.size)
        half[..., self.upper[0], self.upper[1]] = angles
        skew, identity = half - half.mT, torch.eye(self.size, dtype=x.dtype, device=x.device)
        return torch.linalg.solve(identity + skew, identity - skew)  # both factors commute


class StochasticBlocks(nn.Module):
    """A = softmax over the rows of c times an MLP of x: every column is a distribution, (B,T,dim) -> (B,T,H,b,b).

    The state of a block keeps its sum: started as a distribution it stays one, a finite automaton in superposition,
    and a sharp softmax is an exact map of states onto states; ``sharpness`` is c, which brings that within reach of
    few updates. Nothing is added to the state (``additive`` is False): what is to be remembered is what the automaton's
    state says. A norm right behind the layer hides that states fade, and with it the reason to become exact.
    """

    additive = False

    def __init__(self, dim: int, heads: int, size: int, *, sharpness: float = 4.0) -> None:
        super().__init__()
        self.heads, self.size, self.sharpness = heads, size, sharpness
        self.logits = _mlp(dim, heads * size, heads * size * size)

    def forward(self, x: Tensor) -> Tensor:
        return (self.sharpness * self.logits(x)).unflatten(-1, (self.heads, self.size, self.size)).softmax(-2)


class BlockLRNN(Mixer):
    """h_t = A(x_t) h_(t-1) + v(x_t) with block-diagonal A, from a learned h_0; y_t = h_t.

    x: (B,T,dim) -> (B,T,dim), in dim / size blocks of ``size``. ``blocks(dim, heads, size)`` makes A from x: one of
    :class:`PNormBlocks` (as published), :class:`OrthogonalBlocks`, :class:`StochasticBlocks`, or any module with the
    same output and a flag ``additive``; where that is False there is no v. v is an MLP of x. State: h (B,H,b).

    Raises ValueError where ``size`` does not divide ``dim``. Source: T.-H. Fan, T.-C. Chi, A. Rudnicky, Advancing
    Regular Language Reasoning in Linear Recurrent Neural Networks, arXiv 2309.07412, section 4.
    """

    def __init__(
        self, dim: int, *, size: int = 8, blocks: Callable[[int, int, int], nn.Module] = PNormBlocks
    ) -> None:
        super().__init__()
        if size < 1 or dim % size:
            raise ValueError(f"BlockLRNN needs a width that is a multiple of the block size {size}, got {dim}")
        self.heads, self.size = dim // size, size
        self.blocks = blocks(dim, self.heads, size)
        self.values = _mlp(dim, dim, dim) if self.blocks.additive else None
        self.start = nn.Parameter(torch.randn(self.heads, size))

    def _first(self, batch: int) -> Tensor:
        start = self.start.to(torch.promote_types(self.start.dtype, torch.float32))
        if self.values is None:
            start = start.softmax(-1)
        return start.expand(batch, -1, -1)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self._first(batch).clone()

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        a = self.blocks(x)
        v = None if self.values is None else self.values(x).unflatten(-1, (self.heads, self.size))
        if resets is not None:
            # The scan begins anew from zero; what this step makes of the learned first state is added to it.
            begun = (a @ self._first(len(x))[:, None, ..., None].to(a.dtype)).squeeze(-1)
            begun = torch.where(resets[..., None, None], begun, 0)
            v = begun if v is None else v + begun
        first = self._first(len(x)) if state is None else state
        h = block_scan(a, v, first, mask=mask, resets=resets)
        return h.flatten(2).to(x.dtype), None if state is None else h[:, -1].clone()
