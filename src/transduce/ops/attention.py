"""Scaled dot-product attention with grouped heads, and the softmax that survives rows with nothing to attend
to."""

from __future__ import annotations

import math
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from transduce.ops.dispatch import Case, op


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension among the entries that ``mask`` allows; the others get exactly 0.

    A row that allows nothing gets zeros and passes no gradient. ``mask``: bool, broadcastable to ``scores``.
    """
    if mask is None:
        return torch.softmax(scores, -1)
    hidden = ~mask
    weights = torch.softmax(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), -1)
    return weights.masked_fill(hidden, 0.0)


def attention_weights(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """The weights that :func:`attention` averages the values with: (B,H,T,S), same arguments."""
    batch, steps, heads, width = q_BTHK.shape
    kv_heads = k_BSHK.shape[2]
    grouped = q_BTHK.reshape(batch, steps, kv_heads, heads // kv_heads, width)
    scores = torch.einsum("btgrk,bsgk->bgrts", grouped, k_BSHK).flatten(1, 2)
    scores = scores * (1.0 / math.sqrt(width) if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    return masked_softmax(scores, _with_causal(mask, q_BTHK, k_BSHK) if causal else mask)


def weighted_sum(weights_BHTS: Tensor, v_BSHK: Tensor) -> Tensor:
    """sum_s w_ts v_s with grouped heads: (B,H,T,S), (B,S,G,K) -> (B,T,H,K)"""
    kv_heads = v_BSHK.shape[2]
    grouped = weights_BHTS.unflatten(1, (kv_heads, weights_BHTS.shape[1] // kv_heads))
    return torch.einsum("bgrts,bsgk->btgrk", grouped, v_BSHK).flatten(2, 3)


@op
def attention(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """y_t = sum_s softmax_s(scale q_t . k_s + bias_ts) v_s, for every head: (B,T,H,K).

    Vaswani et al. 2017 (arXiv 1706.03762, section 3.2.1); grouped heads: Ainslie et al. 2023 (arXiv
    2305.13245).

    k_BSHK, v_BSHK: may have fewer heads, a divisor G of H; head h then reads group h // (H / G). v may have
    its own width. mask: bool, broadcastable to (B,H,T,S), True where t may attend to s; a row that may attend
    to nothing gives zeros. bias: broadcastable to (B,H,T,S), added to the scaled scores. scale: 1/sqrt(K)
    unless given. causal: t attends to s <= t, which needs as many queries as keys. Everything must be finite,
    also where the mask hides it.
    """
    return weighted_sum(
        attention_weights(q_BTHK, k_BSHK, mask=mask, bias=bias, scale=scale, causal=causal), v_BSHK
    )


@attention.backend("sdpa")
def attention_sdpa(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """torch's own fused kernels. A mask and a bias become one additive mask, which is what they accept."""
    if causal:
        if mask is not None or bias is not None:
            mask, causal = _with_causal(mask, q_BTHK, k_BSHK), False
        else:
            _check_square(q_BTHK, k_BSHK)
    if bias is not None:
        added = bias.to(q_BTHK.dtype)
        mask = added if mask is None else torch.where(mask, added, -math.inf)
    if mask is not None and mask.dim() < 4:
        mask = mask.view(*([1] * (4 - mask.dim())), *mask.shape)
    y_BHTK = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BSHK.transpose(1, 2),
        v_BSHK.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=q_BTHK.shape[2] != k_BSHK.shape[2],
    )
    return y_BHTK.transpose(1, 2)


def _check_square(q_BTHK: Tensor, k_BSHK: Tensor) -> None:
    if q_BTHK.shape[1] != k_BSHK.shape[1]:
        raise ValueError(
            f"causal attention needs as many queries as keys, got {q_BTHK.shape[1]} and {k_BSHK.shape[1]}; "
            "give a mask instead"
        )


def _with_causal(mask: Tensor | None, q_BTHK: Tensor, k_BSHK: Tensor) -> Tensor:
    _check_square(q_BTHK, k_BSHK)
    steps = q_BTHK.shape[1]
    causal_TS = torch.ones(steps, steps, dtype=torch.bool, device=q_BTHK.device).tril()
    return causal_TS if mask is None else causal_TS & mask


@attention.cases
def attention_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def qkv(
        batch: int, t: int, s: int, heads: int, kv_heads: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return (
            normal(batch, t, heads, width),
            normal(batch, s, kv_heads, width),
            normal(batch, s, kv_heads, width),
        )

    def allowed(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) > 0.4

    yield Case("tiny", qkv(2, 3, 4, 2, 1, 2), {"mask": allowed(2, 1, 3, 4)}, grad=(0, 1, 2), tiny=True)
    yield Case("plain", qkv(2, 5, 7, 4, 4, 8), grad=(0, 1, 2))
    yield Case("one query", qkv(3, 1, 33, 4, 2, 8), {"mask": allowed(3, 1, 1, 33)}, grad=(0, 1, 2))
    yield Case("one key", qkv(2, 3, 1, 2, 2, 5), grad=(0, 1, 2))
    yield Case("causal", qkv(2, 19, 19, 4, 4, 8), {"causal": True}, grad=(0, 1, 2))
    yield Case(
        "causal, grouped, odd", qkv(2, 67, 67, 6, 2, 10), {"causal": True, "scale": 0.2}, grad=(0, 1, 2)
    )
    yield Case(
        "causal and padded",
        qkv(2, 9, 9, 2, 2, 4),
        {"causal": True, "mask": allowed(2, 1, 1, 9)},
        grad=(0, 1, 2),
    )
    empty = allowed(2, 1, 6, 8)
    empty[0, :, 2] = False
    empty[1] = False
    yield Case("rows without a key", qkv(2, 6, 8, 4, 2, 4), {"mask": empty}, grad=(0, 1, 2))
    yield Case("bias", qkv(2, 6, 8, 4, 2, 4), {"mask": empty, "bias": normal(1, 4, 6, 8)}, grad=(0, 1, 2))
    yield Case("bias without mask", qkv(2, 6, 8, 4, 4, 4), {"bias": normal(2, 1, 6, 8)}, grad=(0, 1, 2))
    yield Case("mask of three dimensions", qkv(2, 6, 8, 4, 4, 4), {"mask": allowed(4, 6, 8)}, grad=(0, 1, 2))
    q, k, v = qkv(2, 6, 8, 2, 2, 4)
    yield Case("sharp", (q * 100, k * 10, v), {"mask": empty}, grad=(0, 1, 2))
    yield Case("transposed memory", tuple(t.transpose(0, 1) for t in qkv(4, 4, 4, 2, 2, 4)), grad=(0, 1, 2))
