"""Gated linear recurrences: gates that read the input only make the state a scan, parallel over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.scan import linear_scan

from .masking import valid_resets


class MinGRU(Mixer):
    """h_t = (1 - z_t) * h_{t-1} + z_t * (W_h x_t), z_t = sigmoid(W_z x_t) (Feng et al. 2024, section 3.1).

    x: (B,T,dim) -> (B,T,dim). State: h (B,H) with H = expansion * dim; another width than ``dim`` gets a
    linear projection back. The plain scan is used: the paper's form in logarithms loses three digits in
    float32.
    """

    def __init__(self, dim: int, *, expansion: float = 1.0) -> None:
        super().__init__()
        self.hidden = round(dim * expansion)
        self.input = nn.Linear(dim, 2 * self.hidden)
        self.project = nn.Linear(self.hidden, dim) if self.hidden != dim else nn.Identity()

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.input.weight.new_zeros(batch, self.hidden)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        gate, candidate = self.input(zero_masked(x, mask)).chunk(2, -1)
        # A closed gate is exactly "the row does not advance".
        z = zero_masked(torch.sigmoid(gate), mask)
        h = linear_scan(1 - z, z * candidate, state, resets=valid_resets(resets, mask))
        return self.project(h), None if state is None else h[:, -1].clone()
