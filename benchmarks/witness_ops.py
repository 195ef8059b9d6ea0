"""The plain torch functions that flash-linear-attention checks its kernels against.

Nothing of transduce is imported here. Each is fed tensors, not the input of a layer: x (B,T,width) holds the function's
arguments side by side, so that the gradient of x is that of all of them.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.witness_parts import Step, Witness, float32_means, split

HEADS, KEYS, VALUES = 3, 4, 5
Parts = dict[str, Tensor]
Rule = Callable[[Parts, Tensor | None], tuple[Tensor, Tensor | None]]
"""Arguments (B,T,...) and the state before them, None at the start -> outputs (B,T,...) and the state behind them."""

MATRIX = {"q": (HEADS, KEYS), "k": (HEADS, KEYS), "v": (HEADS, VALUES)}
PER_HEAD, PER_KEY, VECTOR = (HEADS,), (HEADS, KEYS), (HEADS * KEYS,)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def _twice_sigmoid(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(x)


_RANGES: dict[str, Step] = {"g": F.logsigmoid, "beta": torch.sigmoid}
"""From normal noise to arguments that the functions are meant for."""


def _witness(layer: str, rule: Rule, sizes: dict[str, tuple[int, ...]], **how: Any) -> Callable[[torch.dtype], Witness]:
    """``ranges`` as in ``_RANGES``, ``continues=False`` for a function that takes no state, and ``note``."""
    ranges = _RANGES | how.get("ranges", {})

    def inputs(noise: Tensor) -> Tensor:
        parts = {name: ranges.get(name, lambda z: z)(part) for name, part in split(noise, sizes).items()}
        return torch.cat([part.flatten(2) for part in parts.values()], -1)

    def build(dtype: torch.dtype) -> Witness:
        def call(x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
            with float32_means(dtype):
                y, state = rule(split(x, sizes), state)
            return y.flatten(2), state

        def begin() -> tuple[Step, Callable[[], Parts]]:
            kept: list[Any] = [None]

            def feed(x: Tensor) -> Tensor:
                y, kept[0] = call(x, kept[0])
                return y

            return feed, lambda: {"memory": kept[0]}

        return Witness(
            "fla-core", layer, nn.Module(), lambda x: call(x, None)[0], begin if how.get("continues", True) else None,
            {"parts": {name: list(size) for name, size in sizes.items()}}, how.get("note", ""),
            sum(math.prod(size) for size in sizes.values()), inputs,
        )  # fmt: skip

    return build


def _heads_first(p: Parts) -> Parts:
    return {name: part.transpose(1, 2) for name, part in p.items()}


# ---------------------------------------------------------------- fading memories


def retention(p: Parts, state: Tensor | None) -> tuple[Tensor, None]:
    from fla.ops.retention.naive import naive_retention

    return naive_retention(**_heads_first(p)).transpose(1, 2), None


def simple_gla(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    return naive_recurrent_simple_gla(**p, initial_state=state)


def simple_gla_chunks(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.simple_gla.naive import naive_chunk_simple_gla

    return naive_chunk_simple_gla(**p, initial_state=state, output_final_state=True, chunk_size=8)


def linear_attention(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn

    return naive_recurrent_linear_attn(**p, initial_state=state, output_final_state=True)


def gla(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.gla.naive import naive_recurrent_gla

    return naive_recurrent_gla(p["q"], p["k"], p["v"], p["g"], state, output_final_state=True)


# ---------------------------------------------------------------- corrected memories


def delta(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.delta_rule.naive import delta_rule_recurrence

    y, state = delta_rule_recurrence(**_heads_first(p), initial_state=state)
    return y.transpose(1, 2), state


def delta_chunks(p: Parts, state: Tensor | None) -> tuple[Tensor, None]:
    from fla.ops.delta_rule.naive import delta_rule_chunkwise

    y, _ = delta_rule_chunkwise(**_heads_first(p), chunk_size=p["q"].shape[1])
    return y.transpose(1, 2), None


def gated_delta(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    return naive_recurrent_gated_delta_rule(**p, initial_state=state, output_final_state=True)


def gated_delta_chunks(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule

    return naive_chunk_gated_delta_rule(**p, chunk_size=8, initial_state=state, output_final_state=True)


def kda(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.kda.naive import naive_recurrent_kda

    return naive_recurrent_kda(**p, initial_state=state, output_final_state=True)


def dplr(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    q, k, v, g, e, r = _heads_first(p).values()
    y, state = dplr_recurrence(q, k, v, e, -r, g, initial_state=state)
    return y.transpose(1, 2), state


# ---------------------------------------------------------------- a vector


def hgrn(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    gate = F.logsigmoid(p["gate"])
    return naive_recurrent_hgrn(F.silu(p["value"]) * (1 - gate.exp()), gate, state, output_final_state=True)


def scan(p: Parts, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    return naive_recurrent_hgrn(p["x"], p["g"], state, output_final_state=True)


_STRONG = {"k": _unit, "beta": _twice_sigmoid}
OPS: dict[str, Callable[[torch.dtype], Witness]] = {
    "op retention": _witness("naive_retention", retention, MATRIX, continues=False),
    "op simple-gla": _witness("naive_recurrent_simple_gla", simple_gla, MATRIX | {"g": PER_HEAD}),
    "op simple-gla chunks": _witness("naive_chunk_simple_gla", simple_gla_chunks, MATRIX | {"g": PER_HEAD}),
    "op linear-attention": _witness("naive_recurrent_linear_attn", linear_attention, MATRIX),
    "op gla": _witness("naive_recurrent_gla", gla, MATRIX | {"g": PER_KEY}),
    "op delta": _witness("delta_rule_recurrence", delta, MATRIX | {"beta": PER_HEAD}, ranges=_STRONG),
    "op delta chunks": _witness(
        "delta_rule_chunkwise", delta_chunks, MATRIX | {"beta": PER_HEAD}, ranges=_STRONG, continues=False
    ),
    "op gated-delta": _witness(
        "naive_recurrent_gated_delta_rule", gated_delta, MATRIX | {"beta": PER_HEAD, "g": PER_HEAD}, ranges=_STRONG
    ),
    "op gated-delta chunks": _witness(
        "naive_chunk_gated_delta_rule", gated_delta_chunks, MATRIX | {"beta": PER_HEAD, "g": PER_HEAD}, ranges=_STRONG
    ),
    "op kda": _witness(
        "naive_recurrent_kda", kda, MATRIX | {"g": PER_KEY, "beta": PER_HEAD}, ranges={"k": _unit}
    ),
    "op dplr": _witness(
        "dplr_recurrence", dplr, MATRIX | {"g": PER_KEY, "e": PER_KEY, "r": PER_KEY},
        ranges={"e": _unit, "r": lambda z: 0.5 * _unit(z)},
    ),
    "op hgrn": _witness(
        "naive_recurrent_hgrn", hgrn, {"gate": VECTOR, "value": VECTOR},
        note="the gates of HGRN are written out in front of it, as in the layer that calls it",
    ),
    "op scan": _witness("naive_recurrent_hgrn", scan, {"x": VECTOR, "g": VECTOR}),
}  # fmt: skip
