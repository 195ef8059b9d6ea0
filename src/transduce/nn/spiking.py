"""Neurons that spike along the sequence, and the norm that sets their currents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.core.tap import tap
from transduce.ops.spike import lif

_HALF = (torch.float16, torch.bfloat16)


class LIF(Mixer):
    """Leaky integrate-and-fire neurons whose time is the sequence: currents (B,T,dim) -> spikes, 0 or 1.

    u_t = v_{t-1} + (x_t - v_{t-1}) / tau,  s_t = [u_t >= threshold],  v_t = (1 - s_t) u_t. State: v (B,dim). Backward
    through a surrogate (:func:`transduce.ops.spike.lif`). The spikes are offered to taps as ``spikes``.
    """

    def __init__(self, dim: int, *, tau: float = 2.0, threshold: float = 1.0) -> None:
        super().__init__()
        self.dim, self.tau, self.threshold = dim, tau, threshold
        self.register_buffer("like", torch.zeros(()), persistent=False)  # knows dtype and device

    def init_state(self, batch: int, *, capacity: int | None = None) -> Tensor:
        return self.like.new_zeros(batch, self.dim, dtype=torch.promote_types(self.like.dtype, torch.float32))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        spikes, v = lif(x, state, tau=self.tau, threshold=self.threshold, mask=mask, resets=resets)
        return tap(self, "spikes", spikes), None if state is None else v

    def extra_repr(self) -> str:
        return f"{self.dim}, tau={self.tau:g}, threshold={self.threshold:g}"


class BatchNorm(Mixer):
    """y = gain * (x - mean) / sqrt(var + eps) + bias with one mean and variance a channel (Ioffe and Szegedy 2015).

    While training, they are those of all valid steps of the batch, so a step then sees the others, later ones included;
    a running average is kept and used in evaluation, and wherever a state is passed: there the layer is a fixed map of
    each step, and streaming is exact. A mixer without a state of its own, because it wants the mask. ``gain``: its first
    value, so the deviation of y before training.
    """

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-5, gain: float = 1.0) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.full((dim,), float(gain))), nn.Parameter(torch.zeros(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return ()

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        mean, variance = self.mean, self.variance
        if self.training and state is None:
            if mask is None and x.shape[0] * x.shape[1] > 1 and x.dtype == self.weight.dtype and x.dtype not in _HALF:
                return self._fused(x), state
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            seen = wide.flatten(0, 1) if mask is None else wide[mask]
            if len(seen) > 1:  # a single step has no variance: the running one serves it
                mean, variance = seen.mean(0), seen.var(0, correction=0)
                self._remember(mean, variance)
        return (x - mean) * (self.weight * torch.rsqrt(variance + self.eps)) + self.bias, state

    def _fused(self, x: Tensor) -> Tensor:
        """The same in one kernel of torch, several times as fast in training, where every step counts."""
        y, mean, scale = torch.native_batch_norm(
            x.flatten(0, 1), self.weight, self.bias, None, None, True, 0.0, self.eps
        )
        self._remember(mean, scale.detach().pow(-2).sub(self.eps).clamp(min=0))
        return y.view_as(x)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
        self.variance.lerp_(variance.to(self.variance.dtype), self.momentum)
