"""Linear attention with a matrix state at (B,T,H,d) = (4,2048,4,64): ``python -m benchmarks.matrix_state [--keep-heap]``.

Limit: the matrix products of the chunk form with 64 steps a chunk, four of 64 x 64 x 64 a head and chunk, by torch's own
batched product; three times that for training. A kernel that takes every step needs three quarters of those operations and
may come below. Softmax attention, of the same shapes, computes something else and is there to compare with. Install the
contestants with ``pip install --no-deps xlstm mlstm_kernels einops omegaconf dacite``.
"""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Benchmark, Result, measure, run, seconds

SHAPE, CHUNK = (4, 2048, 4, 64), 64
KINDS = ("retention", "GLA", "mLSTM")
CASES = [f"{kind} {way}" for kind in KINDS for way in ("forward", "forward+backward")]
Call = Callable[..., Tensor]


def inputs(kind: str) -> tuple[Tensor, ...]:
    """q, k, v and the logarithms of the gates: (H,), (B,T,H,K), or i and f (B,T,H)."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(SHAPE, generator=g) for _ in range(3))
    if kind == "retention":
        return q / 8, k, v, torch.log1p(-(2.0 ** (-5 - torch.arange(SHAPE[2]))))
    if kind == "GLA":
        return q / 8, k, v, F.logsigmoid(torch.randn(SHAPE, generator=g)) / 16
    return q, k, v, torch.randn(SHAPE[:3], generator=g), F.logsigmoid(3 + torch.randn(SHAPE[:3], generator=g))


def fading(kind: str, backend: str) -> Call:
    from transduce.ops.gla import gated_linear_attention
    from transduce.ops.retention import retention

    op = retention if kind == "retention" else gated_linear_attention
    return lambda *args: op.run(backend, *args)[0]


def our_mlstm() -> Call:
    from transduce.nn.mlstm import MLSTMState, matrix_memory

    batch, _, heads, width = SHAPE
    start = MLSTMState(
        torch.zeros(batch, heads, width, width), torch.zeros(batch, heads, width), torch.zeros(batch, heads)
    )
    return lambda *args: matrix_memory(*args, start)[0]


def chunked_retention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """The chunk form of the paper in plain torch under autograd."""
    q, k, v = (x.unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2, 4) for x in (q, k, v))
    step = torch.arange(CHUNK)
    gap = (step[:, None] - step).clamp_min(0) * log_decay[:, None, None]
    within = gap.exp().tril()[:, None]
    new = (k * ((CHUNK - 1 - step) * log_decay[:, None]).exp()[:, None, :, None]).mT @ v
    state, states, fade = torch.zeros_like(new[:, :, 0]), [], (CHUNK * log_decay).exp()[:, None, None]
    for written in new.unbind(2):
        states.append(state)
        state = fade * state + written
    past = (q * ((step + 1) * log_decay[:, None]).exp()[:, None, :, None]) @ torch.stack(states, 2)
    return ((((q @ k.mT) * within) @ v) + past).permute(0, 2, 3, 1, 4).flatten(1, 2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def xlstm_native(chunk: int) -> Call:
    from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_autograd

    def call(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        raw = f - torch.log(-torch.expm1(f))  # it takes what comes before log sigmoid
        gates = {"i": i.transpose(1, 2), "f": raw.transpose(1, 2)}
        return mlstm_chunkwise__native_autograd(*heads_first, **gates, chunk_size=chunk, eps=0.0).transpose(1, 2)

    return call


def loop(kind: str, args: tuple[Tensor, ...]) -> Tensor:
    """The equation in float64."""
    q, k, v, *gates = (x.double() for x in args)
    q_k_v = [x.unbind(1) for x in (q, k, v)]
    keep, put = torch.ones_like(q), torch.ones_like(q[..., :1])
    if kind == "mLSTM":
        keep, put, q_k_v[0] = gates[1].exp()[..., None].expand_as(q), gates[0].exp()[..., None], (q / 8).unbind(1)
    else:
        keep = (gates[0] if kind == "GLA" else gates[0][:, None].expand_as(q)).exp()
    state, total, outputs = 0.0, 0.0, []
    for q_t, k_t, v_t, keep_t, put_t in zip(*q_k_v, keep.unbind(1), put.unbind(1)):
        state = keep_t[..., None] * state + (put_t * k_t)[..., None] * v_t[..., None, :]
        total = keep_t * total + put_t * k_t
        y = (q_t[..., None] * state).sum(-2)
        outputs.append(y / (q_t * total).sum(-1, keepdim=True).abs().clamp_min(1) if kind == "mLSTM" else y)
    return torch.stack(outputs, 1)


SOFTMAX = "softmax attention, torch"
PEERS: dict[str, dict[str, Callable[[], Call]]] = {
    "retention": {
        "transduce numba": lambda: fading("retention", "numba"),
        "transduce chunked": lambda: fading("retention", "chunked"),
        "plain torch, chunks of 64": lambda: chunked_retention,
        SOFTMAX: lambda: softmax_attention,
    },
    "GLA": {
        "transduce numba": lambda: fading("GLA", "numba"),
        "transduce chunked": lambda: fading("GLA", "chunked"),
    },
    "mLSTM": {
        "transduce": our_mlstm,
        "xlstm native, chunks of 64": lambda: xlstm_native(64),
        "xlstm native, chunks of 256": lambda: xlstm_native(256),
    },
}


def product_limit() -> float:
    """Seconds of the products of a forward pass."""
    batch, steps, heads, _ = SHAPE
    x = torch.randn(batch * heads * steps // CHUNK, CHUNK, CHUNK, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(x)

    def products() -> None:
        for _ in range(4):
            torch.bmm(x, x, out=out)

    return min(seconds(products, budget=0.5))


def child(case: str, peer: str) -> Result:
    kind, way = case.split(" ")
    args, call = inputs(kind), PEERS[kind][peer]()
    limit = product_limit() * (1 if way == "forward" else 3)
    if peer != SOFTMAX:
        with torch.no_grad():
            truth = loop(kind, args)
            error = float((call(*args) - truth).abs().max() / truth.abs().max())
        if not error < 1e-4:
            return Result(case, peer, limit_ms=limit * 1e3, problem=f"wrong: off by {error:.2g}")
    if way == "forward":
        return measure(case, peer, torch.no_grad()(lambda: call(*args)), limit)
    free = 3 if kind == "retention" or peer == SOFTMAX else len(args)  # retention's decays are constants
    leaves = [x.clone().requires_grad_() for x in args[:free]]
    grad = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return measure(case, peer, lambda: torch.autograd.grad(call(*leaves, *args[free:]), leaves, grad), limit)


def main() -> int:
    peers = lambda case: list(PEERS[case.split(" ")[0]])
    ops = ("transduce.ops.retention:retention", "transduce.ops.gla:gated_linear_attention")
    return run(Benchmark("matrix_state", __doc__, CASES, peers, child, ops))


if __name__ == "__main__":
    raise SystemExit(main())
