"""Symbols to vectors and vectors to symbols."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.dist import Categorical


class Embed(nn.Module):
    """One learned vector a symbol: ids (...) -> (..., dim).

    ``scale=True`` multiplies by sqrt(dim) (Vaswani et al. 2017, section 3.4); the weights then start with
    standard deviation dim^-1/2, so that what comes out has unit variance either way and the matrix suits a
    tied :class:`Head`.
    """

    def __init__(self, num_symbols: int, dim: int, *, scale: bool = False) -> None:
        super().__init__()
        self.num_symbols, self.dim = num_symbols, dim
        self.factor = math.sqrt(dim) if scale else 1.0
        self.weight = nn.Parameter(torch.randn(num_symbols, dim) / self.factor)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = F.embedding(ids, self.weight)
        return vectors if self.factor == 1.0 else vectors * self.factor

    def extra_repr(self) -> str:
        return f"{self.num_symbols}, {self.dim}, factor={self.factor:.4g}"


class Head(nn.Module):
    """p(y | h) = softmax(W h + b): h (..., dim) -> :class:`Categorical` over ``num_symbols``.

    ``tied``: an :class:`Embed` whose matrix is used as W (Press and Wolf 2017); give it ``scale=True``, or
    the first logits are far too large.
    """

    def __init__(self, dim: int, num_symbols: int, *, tied: Embed | None = None, bias: bool = True) -> None:
        super().__init__()
        if tied is None:
            self.weight = nn.Parameter(torch.randn(num_symbols, dim) / math.sqrt(dim))
        elif tied.weight.shape != (num_symbols, dim):
            raise ValueError(
                f"a head of width {dim} over {num_symbols} symbols cannot share an embedding of shape "
                f"{tuple(tied.weight.shape)}; tie it to Embed({num_symbols}, {dim})"
            )
        else:
            self.weight = tied.weight
        self.bias = nn.Parameter(torch.zeros(num_symbols)) if bias else None

    def forward(self, h: Tensor) -> Categorical:
        return Categorical(F.linear(h, self.weight, self.bias))
