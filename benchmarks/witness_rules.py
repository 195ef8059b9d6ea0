"""Our operations as layers without weights, fed what :mod:`benchmarks.witness_ops` feeds to theirs."""

from __future__ import annotations

import math
from typing import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.witness_entry import Entry, Settings, Weights, first_named
from benchmarks.witness_parts import split
from transduce.core.protocols import Mixer
from transduce.core.state import State
from transduce.ops.delta import delta_rule
from transduce.ops.delta_general import generalised_delta_rule
from transduce.ops.gated import hgru
from transduce.ops.gla import gated_linear_attention
from transduce.ops.retention import retention
from transduce.ops.scan import linear_scan

Parts = dict[str, Tensor]
Rule = Callable[[Parts, Tensor | None], tuple[Tensor, Tensor]]


class Operation(Mixer):
    """x (B,T,width) holds the arguments of ``rule`` side by side, of the given sizes. The state is the matrices'
    (B,H,K,V), or (B,D) where no value is written into a matrix."""

    def __init__(self, rule: Rule, sizes: Mapping[str, list[int]]) -> None:
        super().__init__()
        self.rule, self.sizes = rule, dict(sizes)

    def init_state(self, batch: int, *, capacity: int | None = None) -> Tensor:
        if "q" in self.sizes:
            return torch.zeros(batch, *self.sizes["k"], self.sizes["v"][-1])
        return torch.zeros(batch, math.prod(next(iter(self.sizes.values()))))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        y, after = self.rule(split(x, self.sizes), state)
        return y.flatten(2), None if state is None else after


def _scaled(p: Parts) -> list[Tensor]:
    """q, k, v; nothing scales queries in ours."""
    return [p["q"] * p["q"].shape[-1] ** -0.5, p["k"], p["v"]]


def _retention(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    heads = torch.arange(p["q"].shape[2], dtype=p["q"].dtype)
    return retention(*_scaled(p), torch.log1p(-(2.0 ** (-5 - heads))), state)


def _undecayed(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    return retention(*_scaled(p), p["q"].new_zeros(p["q"].shape[2]), state)


def _simple_gla(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    return retention(*_scaled(p), p["g"], state)


def _gla(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    return gated_linear_attention(*_scaled(p), p["g"], state)


def _delta(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    return delta_rule(*_scaled(p), p["beta"], p.get("g"), state)


def _kda(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    q, k, v = _scaled(p)
    k_in = p["beta"][..., None] * k
    return generalised_delta_rule(q, k_in, v, p["g"], torch.stack((p["g"].exp() * k, k_in), 3), state)


def _dplr(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    return generalised_delta_rule(*_scaled(p), p["g"], torch.stack((p["e"], p["r"]), 3), state)


def _hgru(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    h = hgru(torch.cat((p["gate"], p["value"]), -1), None, None, state)
    return h, h[:, -1]


def _scan(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
    h = linear_scan(p["g"].exp(), p["x"], state)
    return h, h[:, -1]


def _entry(layer: str, rule: Rule) -> Entry:
    def build(weights: Weights, settings: Settings) -> Mixer:
        return Operation(rule, settings["parts"])

    return Entry(layer, build, dict, first_named("memory"), "fla")


RULES = {
    "op retention": _entry("retention", _retention),
    "op simple-gla": _entry("retention, decays of the input", _simple_gla),
    "op simple-gla chunks": _entry("retention, decays of the input", _simple_gla),
    "op linear-attention": _entry("retention, no decay", _undecayed),
    "op gla": _entry("gated_linear_attention", _gla),
    "op delta": _entry("delta_rule", _delta),
    "op delta chunks": _entry("delta_rule", _delta),
    "op gated-delta": _entry("delta_rule, decays", _delta),
    "op gated-delta chunks": _entry("delta_rule, decays", _delta),
    "op kda": _entry("generalised_delta_rule, one key", _kda),
    "op dplr": _entry("generalised_delta_rule", _dplr),
    "op hgrn": _entry("hgru, real", _hgru),
    "op scan": _entry("linear_scan", _scan),
}
