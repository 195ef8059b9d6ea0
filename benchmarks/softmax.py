"""Running softmax averages, of fixed scores and with decay (RWKV-4), against what torch and JAX offer:
``python -m benchmarks.softmax [--keep-heap]``.

Limit: the bytes that cannot be avoided, moved by torch's own addition on arrays of the same size. Of fixed scores: read
the values, write the averages (for training also read gradient, averages and values, write the values' gradient); the
scores are one number a head. With decay: read k and v, write y (for training also read the gradient, k, v and y, write
two gradients). Install the contestants with ``pip install '.[bench]' jax``.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from benchmarks.harness import Benchmark, Result, measure, run, seconds

SCAN, WKV = "softmax_scan 4x2048x4x64", "wkv 4x2048x256"
CASES = [f"{kind} {op}" for op in (SCAN, WKV) for kind in ("forward", "forward+backward")]
STREAMS = {(SCAN, "forward"): 2, (SCAN, "forward+backward"): 6, (WKV, "forward"): 3, (WKV, "forward+backward"): 9}
Fn = Callable[..., Tensor]


def ours(backend: str) -> dict[str, Fn]:
    from transduce.ops.softmax_scan import softmax_scan
    from transduce.ops.wkv import wkv

    return {SCAN: lambda s, v: softmax_scan.run(backend, s, v)[0], WKV: lambda *a: wkv.run(backend, *a)[0]}


def torch_loop() -> dict[str, Fn]:
    """The recurrences with running maximum as they are usually written, over unbind."""

    def scan(scores: Tensor, values: Tensor) -> Tensor:
        peak, mass, total, found = torch.full_like(scores[:, 0], -1e30), 0.0, 0.0, []
        for s, v in zip(scores.unbind(1), values.unbind(1)):
            above = torch.maximum(peak, s)
            keep, weight = torch.exp(peak - above), torch.exp(s - above)
            mass, total = keep * mass + weight, keep[..., None] * total + weight[..., None] * v
            peak = above
            found.append(total / mass[..., None])
        return torch.stack(found, 1)

    def mix(k: Tensor, v: Tensor, rate: Tensor, bonus: Tensor) -> Tensor:
        peak, mass, total, found = torch.full_like(k[:, 0], -1e30), 0.0, 0.0, []
        for k_t, v_t in zip(k.unbind(1), v.unbind(1)):
            above = torch.maximum(peak, k_t + bonus)
            past, now = torch.exp(peak - above), torch.exp(k_t + bonus - above)
            found.append((past * total + now * v_t) / (past * mass + now))
            above = torch.maximum(peak - rate, k_t)
            past, now = torch.exp(peak - rate - above), torch.exp(k_t - above)
            mass, total, peak = past * mass + now, past * total + now * v_t, above
        return torch.stack(found, 1)

    return {SCAN: scan, WKV: mix}


def one_query() -> dict[str, Fn]:
    """Causal attention in which every query is the same: keys hold the scores in their first channel."""

    def scan(scores: Tensor, values: Tensor) -> Tensor:
        keys = torch.nn.functional.pad(scores[..., None], (0, 7)).transpose(1, 2)
        queries = torch.zeros_like(keys)
        queries[..., 0] = 1
        y = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values.transpose(1, 2), is_causal=True, scale=1.0
        )
        return y.transpose(1, 2)

    return {SCAN: scan}


TORCH_PEERS: dict[str, Callable[[], dict[str, Fn]]] = {
    "transduce numba": lambda: ours("numba"),
    "transduce doubling": lambda: ours("doubling"),
    "torch loop (unbind)": torch_loop,
    "torch attention, one query": one_query,
}
JAX = "jax.lax.scan"


def peers(case: str) -> list[str]:
    names = [*TORCH_PEERS, JAX]
    return names if SCAN in case else [name for name in names if "one query" not in name]


def inputs(op: str) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    if op == SCAN:
        return torch.randn(4, 2048, 4, generator=g), torch.randn(4, 2048, 4, 64, generator=g)
    k, v = (torch.randn(4, 2048, 256, generator=g) for _ in range(2))
    return k, v, torch.rand(256, generator=g), torch.randn(256, generator=g)


def jax_call(op: str, kind: str, args: tuple[Tensor, ...], grad: Tensor) -> tuple[Callable[[], object], Tensor]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    def scan(*args):  # noqa: ANN002, ANN202
        if op == SCAN:
            scores, values, rate, bonus = *args, 0.0, 0.0
            scores = scores[..., None] + jnp.zeros_like(values)
        else:
            scores, values, rate, bonus = args

        def step(state, x):  # noqa: ANN001, ANN202
            peak, mass, total = state
            s, v = x
            above = jnp.maximum(peak - rate, s)
            past, now = jnp.exp(peak - rate - above), jnp.exp(s - above)
            after = above, past * mass + now, past * total + now * v
            if op == SCAN:
                return after, after[2] / after[1]
            level = jnp.maximum(peak, s + bonus)
            past, now = jnp.exp(peak - level), jnp.exp(s + bonus - level)
            return after, (past * total + now * v) / (past * mass + now)

        start = jnp.full_like(values[:, 0], -1e30), jnp.zeros_like(values[:, 0]), jnp.zeros_like(values[:, 0])
        return jnp.moveaxis(jax.lax.scan(step, start, (jnp.moveaxis(scores, 1, 0), jnp.moveaxis(values, 1, 0)))[1], 0, 1)

    given, jg = [jnp.asarray(a.numpy()) for a in args], jnp.asarray(grad.numpy())
    forward = jax.jit(scan)
    backward = jax.jit(jax.grad(lambda *a: (scan(*a) * jg).sum(), tuple(range(len(args)))))
    timed = forward if kind == "forward" else backward
    return lambda: jax.block_until_ready(timed(*given)), torch.from_numpy(np.array(forward(*given)))


def torch_call(op: str, kind: str, peer: str, args: tuple[Tensor, ...], grad: Tensor) -> tuple[Callable[[], object], Tensor]:
    fn = TORCH_PEERS[peer]()[op]
    with torch.no_grad():
        y = fn(*args)
    if kind == "forward":
        return torch.no_grad()(lambda: fn(*args)), y
    leaves = [a.clone().requires_grad_() for a in args]
    return lambda: torch.autograd.grad(fn(*leaves), leaves, grad), y


def child(case: str, peer: str) -> Result:
    kind, op = case.split(" ", 1)
    args = inputs(op)
    grad = torch.randn(args[1].shape, generator=torch.Generator().manual_seed(1))
    out = torch.empty_like(grad)
    limit = min(seconds(lambda: torch.add(args[1], grad, out=out), budget=0.5)) / 3 * STREAMS[op, kind]
    truth = torch_loop()[op](*(a.double() for a in args))
    call, y = jax_call(op, kind, args, grad) if peer == JAX else torch_call(op, kind, peer, args, grad)
    error = float((y - truth).abs().max())
    if not error < 1e-4:
        return Result(case, peer, limit_ms=limit * 1e3, problem=f"wrong: off by {error:.2g}")
    del y, truth
    return measure(case, peer, call, limit)


def main() -> int:
    ops = ("transduce.ops.softmax_scan:softmax_scan", "transduce.ops.wkv:wkv")
    return run(Benchmark("softmax", __doc__, CASES, peers, child, ops))


if __name__ == "__main__":
    raise SystemExit(main())
