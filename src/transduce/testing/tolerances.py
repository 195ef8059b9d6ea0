"""How far two computations of the same thing may differ. One table; an entry may shrink, never grow.

An entry is relative to the scale of the result: ``|got - want| <= entry * max(scale, |want|)``.
"""

from __future__ import annotations

import torch

TOLERANCES: dict[tuple[str, torch.dtype], float] = {
    ("op", torch.float64): 1e-11,
    ("op", torch.float32): 1e-5,
    ("op gradient", torch.float64): 1e-10,
    ("op gradient", torch.float32): 5e-5,
    ("mixer", torch.float64): 1e-10,
    ("mixer", torch.float32): 5e-5,
    ("mixer gradient", torch.float64): 1e-9,
    ("mixer gradient", torch.float32): 5e-4,
    ("decoder", torch.float64): 1e-10,
    ("decoder gradient", torch.float64): 1e-9,
    ("search", torch.float64): 1e-10,
}
"""(what, real dtype) -> largest error. Complex numbers count as their real and imaginary parts."""


def tolerance(what: str, dtype: torch.dtype) -> float:
    """The entry for ``what`` ("op", "op gradient", ...) computed in ``dtype``; complex dtypes use their real
    one."""
    return TOLERANCES[what, torch.empty((), dtype=dtype).real.dtype]
