"""A decoder that is a convolutional network over the grid of all (target, source) pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transduce.core.dist import Dist
from transduce.core.protocols import Decoder
from transduce.core.seq import Seq, zero_masked
from transduce.core.state import Shared, State
from transduce.nn.grid import Aggregate, DenseGrid
from transduce.nn.masking import left_aligned

CELLS_AT_ONCE = 1 << 16
"""Cells that are computed at once when no gradient is wanted."""


@dataclass(frozen=True)
class GridState:
    """``source``: embeddings (G,S,E) and their mask (G,S) or None, shared by beams. ``rows``: what the grid
    carries from row to row; None under ``continues=False``."""

    source: Shared
    rows: State


class GridDecoder(Decoder):
    """p(y_u | y_<u, x) = head(dropout(W aggregate_s(grid(X)[u, s]))), X[u, s] = [E_x x_s ; E_y y_{u-1}].

    Every cell of the grid reads source and target together, so there is neither an encoder nor attention: the
    memory is the embedded source. Row u of X holds y_{u-1} and the grid is causal in u. A step computes one
    row, O(S), from the last rows that the layers keep. Elbayad et al. 2018 (arXiv 1808.03867), section 3.

    With a gradient the whole grid is held, O(S U) cells; without one it is walked in pieces of at most
    ``cells`` cells, with the same result, so that scoring long pairs needs no more memory than decoding them.

    Args:
        embed: ids (B,U) -> (B,U,E_y).
        grid: layers over the grid.
        attend: collapses the source axis; named so because its weights are what other decoders' attention is.
        head: (B,U,D) -> Dist, where D is the width of ``readout``.
        readout: width that the aggregated channels are mapped to: that of a tied embedding, for one.
        dropout: on the embeddings of either side and on the readout.
    """

    def __init__(
        self,
        embed: nn.Module,
        grid: DenseGrid,
        attend: Aggregate,
        head: nn.Module,
        *,
        readout: int,
        dropout: float = 0.0,
        cells: int = CELLS_AT_ONCE,
    ) -> None:
        super().__init__()
        self.embed, self.grid, self.attend, self.head = embed, grid, attend, head
        self.readout = nn.Linear(attend.width, readout)
        self.dropout = nn.Dropout(dropout)
        self.cells = cells

    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> GridState:
        if memory is None:
            raise ValueError("this decoder reads a source: give start() a memory")
        data, valid = left_aligned(memory.data, memory.mask)
        source = Shared((self.dropout(zero_masked(data, valid)), valid), batch // memory.batch)
        return GridState(source, self.grid.init_state(batch, memory.steps) if continues else None)

    def forward(
        self, prev: Tensor, state: GridState, *, mask: Tensor | None = None
    ) -> tuple[Dist, GridState]:
        source, valid = state.source.flat()
        target, rows = self.dropout(zero_masked(self.embed(prev), mask)), state.rows
        at_once = max(1, self.cells // (source.shape[0] * source.shape[1]))
        if torch.is_grad_enabled() or prev.shape[1] <= at_once:
            found, rows = self._rows(source, target, rows, valid, mask)
        else:
            going = rows if rows is not None else self.grid.init_state(*source.shape[:2])
            pieces: list[Tensor] = []
            masks = (None,) * prev.shape[1] if mask is None else mask.split(at_once, 1)
            for piece, keep in zip(target.split(at_once, 1), masks):
                vector, going = self._rows(source, piece, going, valid, keep)
                pieces.append(vector)
            found, rows = torch.cat(pieces, 1), None if rows is None else going
        return self.head(self.dropout(self.readout(found))), GridState(state.source, rows)

    def _rows(
        self, source: Tensor, target: Tensor, rows: State, valid: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        """source (B,S,E), target (B,U,E) -> (B,U,width)"""
        size = (target.shape[0], target.shape[1], source.shape[1], -1)
        x = torch.cat((source[:, None].expand(size), target[:, :, None].expand(size)), -1)
        y, rows = self.grid(x, rows, valid=valid, mask=mask)
        return self.attend(y, valid), rows
