"""State space layers: linear recurrences whose transitions are the same at every step."""

from __future__ import annotations

import math
from typing import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.diagonal_scan import diagonal_scan
from transduce.ops.hippo import discretize, legs
from transduce.ops.lti import lti

from .combine import Pointwise, Serial


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
        return y + self.skip * x, None if state is None else h[:, -1].clone()

    def extra_repr(self) -> str:
        return f"{self.dim}, modes={self.modes}"


def lru_block(
    dim: int,
    state: int | None = None,
    *,
    ring: tuple[float, float] = (0.9, 0.999),
    max_phase: float = 2 * math.pi,
    normalise: bool = True,
    dropout: float = 0.0,
) -> Mixer:
    """LRU, GELU, dropout, then a gated linear unit W_1 x * sigmoid(W_2 x): the branch of Orvieto et al. 2023 (section 2).

    Put it behind a norm and around it a residual (:func:`transduce.nn.stack.mixer_stack`).
    """
    unit = LRU(dim, state, ring=ring, max_phase=max_phase, normalise=normalise)
    gate = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, 2 * dim), nn.GLU(-1))
    return Serial(unit, Pointwise(gate))


def _wide(like: Tensor) -> torch.dtype:
    """The dtype of states beside weights or inputs like this: float32 or better."""
    return torch.promote_types(like.dtype, torch.float32)


def _finest(like: Tensor) -> torch.dtype:
    """The dtype to make a system discrete in: float64 where the device has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _log_steps(dim: int, steps: tuple[float, float]) -> Tensor:
    """(dim,): logarithms of step lengths, uniform between those of the given ends."""
    low, high = steps
    if not 0 < low <= high:
        raise ValueError(f"the lengths of steps lie between two positive numbers, got {steps}")
    return math.log(low) + math.log(high / low) * torch.rand(dim)


class S4D(Mixer):
    """A diagonal state space for each channel (Gu et al. 2022, arXiv 2206.11893), and a map over the channels::

        x' = A x + u,  y = 2 Re(C x) + d u  for each channel of u,    out = W gelu(y) + b

    with A_n = -exp(a_n) + i w_n for ``state`` / 2 modes, which stand for conjugate pairs. At the start A_n = -1/2 + i pi
    n (S4D-Lin, section 4.2), C is white, and the channels' step lengths lie log-uniformly between the two ``steps``.
    ``discretization``: "zoh", "bilinear", or another of :func:`transduce.ops.hippo.discretize`.

    (B,T,dim) -> (B,T,dim). State: complex (B,dim,state/2). In training a sequence is convolved by FFT: O(T log T) time,
    and dim * state/2 * T numbers for the impulse responses.

    ``rate_factors``: A and the step lengths are learned at a tenth of the rate of the rest, and without weight decay.
    """

    rate_factors: Mapping[str, float] = {"log_decay": 0.1, "frequency": 0.1, "log_step": 0.1}

    def __init__(
        self,
        dim: int,
        state: int = 32,
        *,
        steps: tuple[float, float] = (1e-3, 1e-1),
        discretization: str | float = "zoh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if state < 2 or state % 2:
            raise ValueError(f"S4D keeps conjugate pairs, so its state is an even number, not {state}")
        modes = state // 2
        self.dim, self.modes, self.discretization = dim, modes, discretization
        self.log_step = nn.Parameter(_log_steps(dim, steps))
        self.log_decay = nn.Parameter(torch.full((dim, modes), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(modes, dtype=torch.float32).repeat(dim, 1))
        self.output = nn.Parameter(torch.randn(2, dim, modes) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(dim))
        self.dropout, self.mix = nn.Dropout(dropout), nn.Linear(dim, dim)
        self.system()  # refuses a discretization that does not exist

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """The discrete A (H,N), B (H,N) and C (H,1,N), complex."""
        fine, wide = _finest(self.skip), _wide(self.skip).to_complex()
        a = torch.complex(-self.log_decay.to(fine).exp(), self.frequency.to(fine))
        a, b = discretize(a, torch.ones_like(a), self.log_step.to(fine).exp(), self.discretization)
        c = 2 * torch.complex(*self.output.to(_wide(self.skip)).unbind(0))
        return a.to(wide), b.to(wide), c[:, None]

    def resample(self, factor: float) -> S4D:
        """Read the same continuous signal sampled at steps ``factor`` times as long: multiplies the step lengths."""
        with torch.no_grad():
            self.log_step.add_(math.log(factor))
        return self

    def init_state(self, batch: int, *, capacity: int | None = None) -> Tensor:
        return self.skip.new_zeros(batch, self.dim, self.modes, dtype=_wide(self.skip).to_complex())

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        y, after = lti(*self.system(), x, state, mask=mask, resets=resets, final=state is not None)
        y = self.dropout(F.gelu(y[..., 0] + self.skip * x))
        return self.mix(y), after

    def extra_repr(self) -> str:
        return f"{self.dim}, state={2 * self.modes}, discretization={self.discretization!r}"


class LSSL(Mixer):
    """The linear state space layer (Gu et al. 2021, arXiv 2110.13985): a dense system for each channel, then a map over
    the channels::

        x' = A x + B u,  y = C x + d u  for each channel of u, y of ``outputs`` numbers,    out = W gelu(y) + b

    (B,T,dim) -> (B,T,dim). State: (B,dim,N). A and B are shared by the channels, which differ in their step lengths
    (log-uniform between the two ``steps``), C and d. They begin as ``system(N)`` gives them, HiPPO-LegS by default.

    ``trained=False`` keeps A, B and the step lengths. ``trained=True`` learns them, A within the class of the paper
    (section 4.2), A = -P (D + T^-1) Q with diagonal P, D, Q and tridiagonal T, which holds LegS exactly: T^-1 is then
    the lower triangle of ones. Simplified: the matrix is written out and its powers are taken densely, O(N^2 T) a
    channel and dim * N * T numbers for the impulse responses, where the paper proposes tridiagonal solves.

    Raises ValueError for ``trained=True`` with another system than LegS, which is not of that class.

    ``rate_factors``: A, B and the step lengths are learned at a tenth of the rate of the rest, without weight decay.
    """

    rate_factors: Mapping[str, float] = dict.fromkeys(
        ("log_step", "left", "right", "diagonal", "inner", "input"), 0.1
    )

    def __init__(
        self,
        dim: int,
        state: int = 32,
        *,
        outputs: int = 1,
        system: Callable[[int], tuple[Tensor, Tensor]] = legs,
        trained: bool = False,
        steps: tuple[float, float] = (1e-3, 1e-1),
        discretization: str | float = "bilinear",
    ) -> None:
        super().__init__()
        self.dim, self.size, self.trained, self.discretization = dim, state, trained, discretization
        if trained and system is not legs:
            raise ValueError("LSSL learns A in a class that holds LegS: leave system as it is, or say trained=False")
        a, b = system(state)
        log_step = _log_steps(dim, steps)
        if trained:
            n = torch.arange(state, dtype=torch.float32)
            self.left, self.right = nn.Parameter(b.float()), nn.Parameter(b.float())
            self.diagonal = nn.Parameter(-n / (2 * n + 1))
            self.inner = nn.Parameter(torch.stack((-torch.ones(state), torch.ones(state), torch.zeros(state))))
            self.input, self.log_step = nn.Parameter(b.float()), nn.Parameter(log_step)
        else:
            self.register_buffer("matrix", a)
            self.register_buffer("input", b)
            self.register_buffer("log_step", log_step)
        self.output = nn.Parameter(torch.randn(dim, outputs, state) / math.sqrt(state))
        self.skip = nn.Parameter(torch.randn(dim, outputs))
        self.mix = nn.Linear(dim * outputs, dim)
        self._kept: tuple[list[Tensor], tuple[Tensor, Tensor]] | None = None
        self.system()  # refuses a discretization that does not exist

    def continuous(self) -> tuple[Tensor, Tensor]:
        """A (N,N) and B (N,) of the differential equation."""
        fine = _finest(self.skip)
        if not self.trained:
            return self.matrix.to(fine), self.input.to(fine)
        below, middle, above = self.inner.to(fine).unbind(0)
        t = torch.diag(middle) + torch.diag(below[1:], -1) + torch.diag(above[:-1], 1)
        inside = torch.diag(self.diagonal.to(fine)) + torch.linalg.inv(t)
        return -self.left.to(fine)[:, None] * inside * self.right.to(fine), self.input.to(fine)

    def _sources(self) -> list[Tensor]:
        if self.trained:
            return [self.log_step, self.input, self.left, self.right, self.diagonal, self.inner]
        return [self.log_step, self.input, self.matrix]

    def system(self) -> tuple[Tensor, Tensor]:
        """The discrete A (H,N,N) and B (H,N). Where no gradient is wanted the last ones are kept as long as every number
        they were made of is the same."""
        learned = self.trained and torch.is_grad_enabled()
        keeps = not (learned or torch.compiler.is_compiling())
        if keeps and self._kept is not None:
            same = zip(self._sources(), self._kept[0], strict=True)
            if all(now.dtype == then.dtype and now.device == then.device and torch.equal(now, then) for now, then in same):
                return self._kept[1]
        step = self.log_step.to(_finest(self.skip)).exp()
        made = tuple(t.to(_wide(self.skip)) for t in discretize(*self.continuous(), step, self.discretization))
        if keeps:
            self._kept = [s.detach().clone() for s in self._sources()], made
        return made

    def resample(self, factor: float) -> LSSL:
        """Read the same continuous signal sampled at steps ``factor`` times as long: multiplies the step lengths."""
        with torch.no_grad():
            self.log_step.add_(math.log(factor))
        return self

    def init_state(self, batch: int, *, capacity: int | None = None) -> Tensor:
        return self.skip.new_zeros(batch, self.dim, self.size, dtype=_wide(self.skip))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        a, b = self.system()
        c, final = self.output.to(a.dtype), state is not None
        y, after = lti(a, b, c, x, state, mask=mask, resets=resets, final=final)
        y = F.gelu(y + self.skip * x[..., None]).flatten(2)
        return self.mix(y), after

    def extra_repr(self) -> str:
        return f"{self.dim}, state={self.size}, discretization={self.discretization!r}, trained={self.trained}"
