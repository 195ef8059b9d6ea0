"""What the layers of other packages are wrapped in, to be compared with ours. Nothing of transduce is imported here."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor, nn

BATCH, STEPS, MORE, DIM = 2, 37, 3, 16
"""The sequence that is compared, and the steps taken one by one behind it."""

Step = Callable[[Tensor], Tensor]


@dataclass
class Witness:
    """``run(x)`` computes the whole sequence from a fresh start. ``begin()`` makes a ``feed``, a function that takes
    chunks one after the other, and ``states()`` which tells the state behind what was fed. ``settings`` are for our
    layer; ``note``: what had to be changed or worked around. ``inputs`` makes of noise (B,T,width) what may be fed.
    Everything happens ``within`` a context, backward passes too."""

    package: str
    layer: str
    module: nn.Module
    run: Step
    begin: Callable[[], tuple[Step, Callable[[], dict[str, Tensor]]]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    width: int = DIM
    inputs: Step = lambda noise: noise
    within: Callable[[], AbstractContextManager[None]] = nullcontext


def randomize(module: nn.Module, dtype: torch.dtype, **special: Callable[[Tensor], Tensor]) -> None:
    """Weights that no default hides behind: normal, scaled by what they read, and ``special`` ones by name."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64)
            last = name.rsplit(".", 1)[-1]
            if last in special:
                value = special[last](noise)
            elif p.dim() > 1 and "conv" not in name:
                value = noise / p.shape[-1] ** 0.5
            else:
                value = 0.5 * noise
            if p.is_complex():
                imaginary = torch.randn(p.shape, generator=g, dtype=torch.float64) / p.shape[-1] ** 0.5
                value = torch.complex(value, imaginary)
                value = special.get(f"complex {last}", lambda z: z)(value)
                p.data = p.data.to(dtype.to_complex())
            p.copy_(value)
    if not any(p.is_complex() for p in module.parameters()):
        module.to(dtype)
    for p in module.parameters():
        p.data = p.data if p.is_complex() else p.data.to(dtype)
    module.eval()


@contextmanager
def float32_means(dtype: torch.dtype) -> Iterator[None]:
    """For witnesses that name float32 where they mean the dtype they are used in, or make buffers of no named dtype."""
    before = torch.get_default_dtype()
    with patch.object(torch, "float32", dtype), patch.object(torch, "float", dtype):
        with patch.object(Tensor, "float", lambda self: self.to(dtype)):
            torch.set_default_dtype(dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(before)


def dynamic_cache(config: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=config)


def split(x: Tensor, sizes: dict[str, Any]) -> dict[str, Tensor]:
    """x (B,T,sum of the sizes) -> tensors (B,T,*size), in that order."""
    parts = x.split([math.prod(size) for size in sizes.values()], -1)
    return {name: part.unflatten(-1, tuple(size)) for (name, size), part in zip(sizes.items(), parts)}
