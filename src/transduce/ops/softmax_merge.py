"""Softmax averages as a merge: the state of a set of weighted values, and how the states of two sets become one.

A set of scores s_i and values v_i is kept as one vector [m, u, w] with ``m = max s_i``, ``u = sum e^(s_i - m)`` and
``w = sum e^(s_i - m) v_i``; its softmax average is w / u, and no exponential of a positive number is ever taken. A
single pair is [s, 1, v], the empty set is [-inf, 0, 0]. Merging is associative, so averages over all prefixes of a
sequence can be found one by one, in chunks, or in logarithmic depth.

What :mod:`transduce.ops.softmax_scan` and :mod:`transduce.ops.wkv` share.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def leaf(scores: Tensor, values: Tensor) -> Tensor:
    """The states of single pairs: scores (...), values (...,V) -> (...,2+V)"""
    return torch.cat((scores[..., None], torch.ones_like(scores)[..., None], values), -1)


def empty_like(state: Tensor) -> Tensor:
    """[-inf, 0, 0], one vector that stands for every place of ``state`` (...,2+V)."""
    nothing = torch.zeros(state.shape[-1], dtype=state.dtype, device=state.device)
    return torch.cat((torch.full_like(nothing[:1], -math.inf), nothing[1:]))


def merge(older: Tensor, newer: Tensor, fade: Tensor | float = 0.0) -> Tensor:
    """The state of both sets, (...,2+V), when every score of the older one has sunk by ``fade`` (...,1) >= 0.

    A fade of inf forgets the older set. At equal peaks the gradient of m goes to the older one.
    """
    old_peak, new_peak = older[..., :1] - fade, newer[..., :1]
    peak = torch.where(new_peak > old_peak, new_peak, old_peak)
    level = torch.where(torch.isneginf(peak), 0, peak)  # two empty sets: no difference of infinities
    sums = older[..., 1:] * torch.exp(old_peak - level) + newer[..., 1:] * torch.exp(new_peak - level)
    return torch.cat((peak, sums), -1)


def average(state: Tensor) -> Tensor:
    """w / u, and 0 for the empty set: (...,2+V) -> (...,V)"""
    mass = state[..., 1:2]
    return state[..., 2:] / torch.where(mass == 0, 1, mass)


def prefixes(leaves: Tensor, fades: Tensor, start: Tensor) -> Tensor:
    """The states before the first step and behind every step, (B,T+1,H,2+V), in log2(T) rounds of merging.

    leaves (B,T,H,2+V); fades (B,T,H,1), by how much the past sinks when each step is added; start (B,H,2+V).
    """
    states = torch.cat((start[:, None], leaves), 1)
    fades = torch.cat((torch.zeros_like(start[:, None, :, :1]), fades), 1)
    reach = 1
    while reach < states.shape[1]:
        joined = merge(states[:, :-reach], states[:, reach:], fades[:, reach:])
        states = torch.cat((states[:, :reach], joined), 1)
        fades = torch.cat((fades[:, :reach], fades[:, :-reach] + fades[:, reach:]), 1)
        reach *= 2
    return states


def peak_gradient(grad: Tensor, raises: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the gradient of the last peak belongs: to the score of the last step that raised it.

    grad (B,H) of m behind the last step; raises (B,T,H) bool. Returns the gradient of the scores (B,T,H), that of the
    first state's peak (B,H), and the number of that step, from 1; 0 where the first state still holds the peak.
    """
    steps = raises.shape[1]
    count = torch.arange(1, steps + 1, device=grad.device)[None, :, None]
    last = torch.where(raises, count, 0).amax(1)
    spread = grad.new_zeros(grad.shape[0], steps + 1, *grad.shape[1:]).scatter_(1, last[:, None], grad[:, None])
    return spread[:, 1:], spread[:, 0], last


def check_flags(name: str, shape: tuple[int, int], mask: Tensor | None, resets: Tensor | None) -> None:
    for label, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and (flags.shape != shape or flags.dtype != torch.bool):
            raise ValueError(
                f"{name} needs a bool {label} of shape {tuple(shape)}, got {flags.dtype} {tuple(flags.shape)}"
            )


def work_dtype(name: str, *tensors: Tensor | None) -> torch.dtype:
    """What is computed in: float64 when any input is, else float32."""
    kinds = [t.dtype for t in tensors if t is not None]
    if not all(kind.is_floating_point for kind in kinds):
        raise ValueError(f"{name} needs floating point numbers, got {', '.join(map(str, kinds))}")
    return torch.float64 if torch.float64 in kinds else torch.float32


def start_state(name: str, like: Tensor, width: int, start: Tensor | None, work: torch.dtype) -> Tensor:
    """``start`` checked, or the empty one: (B,H,width) for ``like`` (B,T,H,...)."""
    shape = (like.shape[0], like.shape[2], width)
    if start is not None:
        if start.shape != shape:
            raise ValueError(f"{name} needs a start of shape {shape}, got {tuple(start.shape)}")
        return start.to(work)
    return empty_like(like.new_zeros(width, dtype=work)).expand(shape)
