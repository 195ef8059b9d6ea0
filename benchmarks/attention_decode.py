"""Decoding through one causal attention layer, token after token: ``python -m benchmarks.attention_decode``.

A layer of width 512 with 8 heads and no positions takes the last 16 of 64 to 4096 tokens one at a time; everything
before is in its cache already. Times are for one token of all rows, projections included. Contestants: our
``Attention`` with its arena, room reserved or growing; the cache that most code has, ``torch.cat`` at every step;
a buffer written in place, read up to the present step or whole under a mask; and the caches of ``transformers``.
All of them attend by torch's ``scaled_dot_product_attention`` and must give what the whole sequence gives.

Limit: the bytes of keys, values and weights, each read once, at the rate at which this process sums as many.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any, Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Benchmark, Result, measure, run, seconds

DIM, HEADS, STEPS = 512, 8, 16
LENGTHS, BATCHES = (64, 256, 1024, 4096), (1, 8)
CASES = [f"batch {batch} length {length}" for batch in BATCHES for length in LENGTHS]


class Layer(nn.Module):
    """The projections of a causal attention layer; ``forward`` is the whole sequence at once."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.output = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,T,D) -> three times (B,H,T,K)"""
        return self.project(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        return self.output(F.scaled_dot_product_attention(q, k, v, **how).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(*self.qkv(x), is_causal=True)


State = Any
Step = Callable[[Tensor, State], tuple[Tensor, State]]
"""One token (B,1,D) and the cache before it -> its output and the cache behind it."""
Contestant = tuple[Step, Callable[[], State], Callable[[State], Iterable[Tensor]]]
"""A step, what makes the cache that holds the prefix, and the tensors that a cache consists of."""


def ours(layer: Layer, prefix: Tensor, reserved: bool) -> Contestant:
    from transduce.core.state import fork, leaves
    from transduce.nn.attention import Attention

    mixer = Attention(DIM, HEADS, position=None).eval()
    mixer.project.load_state_dict(layer.project.state_dict())
    mixer.output.load_state_dict(layer.output.state_dict())
    room = prefix.shape[1] + STEPS if reserved else None
    _, filled = mixer(prefix, mixer.init_state(prefix.shape[0], capacity=room))
    return mixer, partial(fork, filled), leaves


def joined(layer: Layer, prefix: Tensor) -> Contestant:
    """Keys and values of all steps in tensors that are made anew at every step."""

    def step(x: Tensor, past: State) -> tuple[Tensor, State]:
        q, k, v = layer.qkv(x)
        past = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        return layer.mix(q, *past), past

    _, k, v = layer.qkv(prefix)
    return step, lambda: (k, v), lambda past: past


def preallocated(layer: Layer, prefix: Tensor, masked: bool) -> Contestant:
    """One buffer (B,H,capacity,K) each, written in place; a later call overwrites what an earlier one wrote."""
    _, k, v = layer.qkv(prefix)
    length = prefix.shape[1] + STEPS
    keys, values = (torch.cat((t, torch.zeros_like(t[:, :, :STEPS])), 2) for t in (k, v))
    slots = torch.arange(length)

    def step(x: Tensor, at: State) -> tuple[Tensor, State]:
        q, k, v = layer.qkv(x)
        keys[:, :, at : at + 1], values[:, :, at : at + 1] = k, v
        if masked:
            return layer.mix(q, keys, values, attn_mask=(slots <= at)[None, None, None]), at + 1
        return layer.mix(q, keys[:, :, : at + 1], values[:, :, : at + 1]), at + 1

    return step, lambda: prefix.shape[1], lambda at: (keys, values)


def dynamic(layer: Layer, prefix: Tensor) -> Contestant:
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(*layer.qkv(prefix)[1:], 0)

    def step(x: Tensor, past: State) -> tuple[Tensor, State]:
        q, k, v = layer.qkv(x)
        return layer.mix(q, *past.update(k, v, 0)), past

    return step, partial(copy.deepcopy, cache), lambda past: (past.layers[0].keys, past.layers[0].values)


def static(layer: Layer, prefix: Tensor) -> Contestant:
    from transformers import PretrainedConfig, StaticCache

    length = prefix.shape[1] + STEPS
    config = PretrainedConfig(
        num_hidden_layers=1, num_attention_heads=HEADS, num_key_value_heads=HEADS, hidden_size=DIM, head_dim=DIM // HEADS
    )
    cache = StaticCache(config=config, max_cache_len=length)
    slots = torch.arange(length)
    cache.update(*layer.qkv(prefix)[1:], 0)

    def step(x: Tensor, past: State) -> tuple[Tensor, State]:
        past, at = past
        q, k, v = layer.qkv(x)
        mask = (slots <= at)[None, None, None]
        return layer.mix(q, *past.update(k, v, 0), attn_mask=mask), (past, at + 1)

    content = lambda past: (past[0].layers[0].keys, past[0].layers[0].values)
    return step, lambda: (copy.deepcopy(cache), prefix.shape[1]), content


PEERS: dict[str, Callable[[Layer, Tensor], Contestant]] = {
    "transduce Attention, room kept": partial(ours, reserved=True),
    "transduce Attention, growing": partial(ours, reserved=False),
    "torch cat + SDPA": joined,
    "torch buffer + SDPA": partial(preallocated, masked=False),
    "torch buffer, masked + SDPA": partial(preallocated, masked=True),
    "transformers DynamicCache": dynamic,
    "transformers StaticCache": static,
}
ENVIRONMENTS = {name: "transformers" for name in PEERS if name.startswith("transformers")}


def reading(count: int) -> float:
    """Seconds to sum this many float32 numbers."""
    x = torch.ones(count)
    return min(seconds(x.sum, budget=0.5))


@torch.no_grad()
def child(case: str, peer: str) -> Result:
    _, batch, _, length = case.split(" ")
    torch.manual_seed(0)
    layer = Layer().eval()
    x = torch.randn(int(batch), int(length), DIM)
    prefix, tokens = x[:, :-STEPS], x[:, -STEPS:].split(1, 1)
    kept = 2 * x.numel() + sum(p.numel() for p in layer.parameters())
    limit = reading(kept)
    step, prepare, content = PEERS[peer](layer, prefix)

    def decode(state: State) -> tuple[list[Tensor], State]:
        outputs = []
        for token in tokens:
            y, state = step(token, state)
            outputs.append(y)
        return outputs, state

    truth = copy.deepcopy(layer).double()(x.double())[:, -STEPS:]
    outputs, state = decode(prepare())
    error = float((torch.cat(outputs, 1) - truth).abs().max())
    kept_mib = sum(t.numel() * t.element_size() for t in content(state)) / 2**20
    if not error < 1e-4:
        return Result(case, peer, limit_ms=limit * 1e3, problem=f"wrong: off by {error:.2g}")
    del truth, x, outputs, state
    result = measure(case, peer, decode, limit, prepare=prepare, repeats=STEPS, budget=1.0)
    return replace(result, units=int(batch), unit="tokens", note=f"cache {kept_mib:.2f} MiB")


def law() -> None:
    from transduce.nn.attention import Attention
    from transduce.testing.mixers import check_mixer

    check_mixer(partial(Attention, heads=HEADS, position=None), dim=4 * HEADS)


def main() -> int:
    ops, laws = ("transduce.ops.attention:attention",), {"Attention without positions": law}
    peers = lambda case: list(PEERS)
    return run(Benchmark("attention_decode", __doc__, CASES, peers, child, ops, laws, ENVIRONMENTS))


if __name__ == "__main__":
    raise SystemExit(main())
