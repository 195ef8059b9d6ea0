"""What our side of a comparison is made of: a layer of ours from the weights of another package's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping

import torch
from torch import Tensor

from transduce.core.protocols import Mixer
from transduce.core.state import leaves

Weights = Mapping[str, Tensor]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """``build(weights, settings)`` our layer; ``theirs`` and ``ours`` bring both states to the same names and shapes.
    ``home``: the virtual environment of the witness, None for this one."""

    layer: str
    build: Callable[[Weights, Settings], Mixer]
    theirs: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    ours: Callable[[Any], dict[str, Tensor]]
    home: str | None = "transformers"


def load(mixer: Mixer, weights: Weights) -> Mixer:
    """``weights`` by our names; every parameter must be named."""
    own = dict(mixer.named_parameters())
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    assert not missing and not unknown, f"not given {sorted(missing)}, unknown {sorted(unknown)}"
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])
    return mixer


def first_named(*names: str) -> Callable[[Any], dict[str, Tensor]]:
    return lambda state: dict(zip(names, leaves(state)))
