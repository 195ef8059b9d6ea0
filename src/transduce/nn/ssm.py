"""State space layers: linear recurrences whose transitions are the same at every step."""

from __future__ import annotations

import math
from typing import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.diagonal_scan import diagonal_scan


class LRU(Mixer):
    """The linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349, section 3)::

        h_t = lambda * h_{t-1} + gamma * (B x_t),   y_t = Re(C h_t) + d * x_t,   lambda = exp(-exp(nu) + i exp(theta))

    with h complex (N,). x: (B,T,dim) -> (B,T,dim). State: (B,2,N), real and imaginary parts, in float32 or better. At
    the start |lambda|^2 is uniform between ``ring[0]^2`` and ``ring[1]^2``, the phase uniform between 0 and
    ``max_phase`` radians a step, and gamma = sqrt(1 - |lambda|^2), so that white input gives every mode the same
    variance; gamma is a free parameter from then on. ``normalise=False`` starts it at one.

    ``rate_factors``: nu, theta and gamma are learned at a quarter of the rate of the rest, and without weight decay.
    """

    rate_factors: Mapping[str, float] = {"nu": 0.25, "theta": 0.25, "log_gamma": 0.25}

    def __init__(
        self,
        dim: int,
        state: int | None = None,
        *,
        ring: tuple[float, float] = (0.9, 0.999),
        max_phase: float = 2 * math.pi,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        low, high = ring
        if not (0 <= low < high <= 1 and max_phase > 0):
            raise ValueError(f"LRU needs 0 <= ring[0] < ring[1] <= 1 and max_phase > 0, got {ring} and {max_phase}")
        self.dim, self.modes = dim, state or dim
        square = low**2 + (high**2 - low**2) * torch.rand(self.modes, dtype=torch.float64)
        square = square.clamp(1e-12, 1 - 1e-12)  # neither end has a logarithm of its logarithm
        phase = (max_phase * torch.rand(self.modes, dtype=torch.float64)).clamp(min=1e-12)
        gamma = (1 - square).sqrt() if normalise else torch.ones_like(square)
        self.nu = nn.Parameter((-0.5 * square.log()).log().float())
        self.theta = nn.Parameter(phase.log().float())
        self.log_gamma = nn.Parameter(gamma.log().float())
        self.input = nn.Parameter(torch.randn(2, self.modes, dim) / math.sqrt(2 * dim))
        self.output = nn.Parameter(torch.randn(2, dim, self.modes) / math.sqrt(self.modes))
        self.skip = nn.Parameter(torch.randn(dim))

    def decays(self) -> Tensor:
        """lambda as (2,N), real and imaginary parts, in float32 or better."""
        nu, theta = (p.to(torch.promote_types(p.dtype, torch.float32)) for p in (self.nu, self.theta))
        modulus, phase = torch.exp(-torch.exp(nu)), torch.exp(theta)
        return torch.stack((modulus * phase.cos(), modulus * phase.sin()))

    def init_state(self, batch: int, *, capacity: int | None = None) -> Tensor:
        dtype = torch.promote_types(self.nu.dtype, torch.float32)
        return self.nu.new_zeros(batch, 2, self.modes, dtype=dtype)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        drive = F.linear(x, (self.input * self.log_gamma.exp()[:, None]).flatten(0, 1)).unflatten(-1, (2, -1))
        h = diagonal_scan(self.decays(), drive, state, mask=mask, resets=resets)
        real, imaginary = self.output.unbind(0)
        y = F.linear(h.flatten(2).to(x.dtype), torch.cat((real, -imaginary), 1))
        return torch.addcmul(y, self.skip, x), None if state is None else h[:, -1].clone()

    def extra_repr(self) -> str:
        return f"{self.dim}, modes={self.modes}"
