"""Inputs of checks of the classical recurrent networks."""

from __future__ import annotations

from typing import Iterator

import torch

from .dispatch import Case


def recurrent_cases(gates: int, extras: tuple[str, ...]) -> Iterator[Case]:
    """Cases of the op with that many gates. ``extras``: what follows the weight, "bias" (D) or "state"
    (B,D)."""
    g = torch.Generator().manual_seed(gates)

    def case(
        name: str, batch: int, steps: int, width: int, *, flags: str = "", tiny=False, scale=1.0, heads=1
    ) -> Case:
        pre = torch.randn(batch, steps, gates * width, dtype=torch.float64, generator=g) * scale
        weight = torch.randn(gates * width, width // heads, dtype=torch.float64, generator=g) / width**0.5
        rest = [
            torch.randn(*((width,) if e == "bias" else (batch, width)), dtype=torch.float64, generator=g)
            for e in extras
        ]
        kwargs = {f: torch.rand(batch, steps, generator=g) < 0.6 for f in flags.split()}
        return Case(name, (pre, weight, *rest), kwargs, grad=tuple(range(2 + len(rest))), tiny=tiny)

    yield case("tiny", 2, 3, 2, tiny=True)
    yield case("tiny, mask and resets", 2, 4, 2, flags="mask resets", tiny=True)
    yield case("tiny, heads", 2, 3, 4, tiny=True, heads=2)
    yield case("heads", 5, 11, 15, flags="mask resets", heads=3)
    yield case("one row, heads of 8", 1, 20, 24, heads=3)
    yield case("one step", 5, 1, 7)
    yield case("one row", 1, 19, 11)
    yield case("odd", 7, 23, 13)
    yield case("mask", 6, 17, 9, flags="mask")
    yield case("resets", 6, 17, 9, flags="resets")
    yield case("saturated gates", 3, 9, 5, flags="mask", scale=100.0)
