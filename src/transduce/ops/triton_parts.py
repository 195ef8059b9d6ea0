"""What the Triton kernels share: associative steps of recurrences, and how tiles are laid over (B,T,D).

A program owns a block of channels of one row and walks over time in tiles; inside a tile steps are joined in
parallel (``tl.associative_scan``), and the last state of a tile is carried to the next one. Imports triton: import
it lazily.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STEPS, CHANNELS = 64, 32
"""Steps and channels of a tile of an elementwise recurrence."""
CHUNK, VALUES, KEYS = 32, 32, 64
"""Steps of a chunk (between two stored states), and most columns and rows of a matrix state that meet it at a time."""
COLUMNS = 16
"""Most columns of a matrix state that a program holds in registers, to take it step by step."""
ROWS = 16
"""Rows of a batch in a program with a product for each step: the least side of a product of matrices."""
PRODUCTS = tl.constexpr("tf32x3")
"""How products of float32 matrices are taken: three products of its upper and lower halves, as precise as float32."""


@triton.jit
def real_step(a1, b1, r1, a2, b2, r2):  # noqa: ANN001, ANN201 (triton's own signature)
    """Two steps h -> a h + b as one, the earlier one first. r: the history restarts there, so that nothing of the
    earlier one, NaN included, passes."""
    keep = r2 == 0
    return tl.where(keep, a1 * a2, 0.0), tl.where(keep, a2 * b1 + b2, b2), r1 | r2


@triton.jit
def complex_step(ar1, ai1, br1, bi1, r1, ar2, ai2, br2, bi2, r2):  # noqa: ANN001, ANN201
    """The same in real and imaginary parts."""
    keep = r2 == 0
    ar, ai = ar1 * ar2 - ai1 * ai2, ar1 * ai2 + ai1 * ar2
    br, bi = ar2 * br1 - ai2 * bi1 + br2, ar2 * bi1 + ai2 * br1 + bi2
    return (
        tl.where(keep, ar, 0.0),
        tl.where(keep, ai, 0.0),
        tl.where(keep, br, br2),
        tl.where(keep, bi, bi2),
        r1 | r2,
    )


@triton.jit
def softmax_step(m1, u1, w1, r1, m2, u2, w2, r2):  # noqa: ANN001, ANN201
    """Two sets of scored values as one: m the largest score, u = sum e^(s - m), w = sum e^(s - m) v. r: the second one
    begins anew."""
    m1 = tl.where(r2 == 0, m1, float("-inf"))
    m = tl.maximum(m1, m2)
    level = tl.where(m == float("-inf"), 0.0, m)
    first, second = tl.exp(m1 - level), tl.exp(m2 - level)
    u = tl.where(first == 0.0, 0.0, u1) * first + u2 * second
    w = tl.where(first == 0.0, 0.0, w1) * first + w2 * second
    return m, u, w, r1 | r2


def tile(steps: int, width: int) -> tuple[int, int]:
    """Steps and channels of a tile for so many: powers of two, no larger than needed."""
    return min(STEPS, triton.next_power_of_2(steps)), min(CHANNELS, triton.next_power_of_2(width))


def power(size: int, most: int | None = None) -> int:
    """The power of two that covers ``size``, at least 16 (the least side of a product), at most ``most``."""
    found = max(16, triton.next_power_of_2(size))
    return found if most is None else min(found, most)


def warps(numbers: int) -> int:
    """Warps of a program that works on tiles of so many numbers: 16 of a tile to a thread, so that several tiles fit
    into its registers, and as few warps as that takes, since those of a program wait for each other."""
    return max(1, min(8, numbers // 512))


def cuts(flags: Tensor | None, otherwise: Tensor) -> Tensor:
    """Resets or a mask as bytes, for pointers to them; any tensor where there are none."""
    return otherwise if flags is None else flags.contiguous().view(torch.uint8)
