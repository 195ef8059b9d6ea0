"""Normalisation over channels. It stands outside recurrences, so no statistic is ever part of a state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = gain * x / sqrt(mean(x^2) + eps), over the last dimension (Zhang and Sennrich 2019, section 3).

    x: (..., dim), any leading shape; ``gain`` starts at one.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.dim,), self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}"


class LayerNorm(nn.Module):
    """y = gain * (x - mean) / sqrt(var + eps) + bias, over the last dimension (Ba et al. 2016, section 3).

    x: (..., dim), any leading shape. ``bias=False`` leaves the bias out.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}, bias={self.bias is not None}"
