"""The elementwise linear recurrence against everything installable: ``python -m benchmarks.scan
[--keep-heap]``.

Limit: the bytes that cannot be avoided, moved by torch's own addition on arrays of the same size: read a and
b, write h (12 bytes an element forward); for training also read the gradient, a and h, write two gradients
(32 bytes in all). Install the contestants with ``pip install '.[bench]' jax``.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from benchmarks.harness import Benchmark, Result, measure, run, seconds

SIZES = {"8x512x256": (8, 512, 256), "4x4096x256": (4, 4096, 256), "1x65536x64": (1, 65536, 64)}
CASES = [f"{kind} {size}" for size in SIZES for kind in ("forward", "forward+backward")]
LIMIT_FACTOR = {"forward": 1.0, "forward+backward": 32 / 12}


def torch_loop(a: Tensor, b: Tensor) -> Tensor:
    h, states = torch.zeros_like(b[:, 0]), []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1)):
        h = torch.addcmul(b_t, a_t, h)
        states.append(h)
    return torch.stack(states, 1)


def ours(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    from transduce.ops.scan import linear_scan

    return lambda a, b: linear_scan.run(backend, a, b)


def mambapy() -> Callable[[Tensor, Tensor], Tensor]:
    from mambapy.pscan import pscan

    return lambda a, b: pscan(a[..., None], b[..., None])[..., 0]


def accelerated() -> Callable[[Tensor, Tensor], Tensor]:
    from accelerated_scan.ref import scan

    return lambda a, b: scan(a.mT.contiguous(), b.mT.contiguous()).mT


def associative() -> Callable[[Tensor, Tensor], Tensor]:
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return lambda a, b: associative_scan(combine, (a, b), dim=1, combine_mode="generic")[1]


TORCH_PEERS: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "transduce numba": lambda: ours("numba"),
    "transduce loop": lambda: ours("loop"),
    "torch loop (unbind)": lambda: torch_loop,
    "torch associative_scan": associative,
    "mambapy pscan": mambapy,
    "accelerated-scan reference": accelerated,
}
JAX = "jax.lax.scan"
PEERS = [*TORCH_PEERS, JAX]


def jax_call(kind: str, a: Tensor, b: Tensor, grad: Tensor) -> tuple[Callable[[], object], Tensor]:
    """The timed call and the states it computes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def scan(a, b):  # noqa: ANN001, ANN202
        def step(h, x):  # noqa: ANN001, ANN202
            h = x[0] * h + x[1]
            return h, h

        return jnp.moveaxis(
            jax.lax.scan(step, jnp.zeros_like(b[:, 0]), (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0)))[1],
            0,
            1,
        )

    ja, jb, jg = (jnp.asarray(x.numpy()) for x in (a, b, grad))
    forward = jax.jit(scan)
    backward = jax.jit(jax.grad(lambda a, b: (scan(a, b) * jg).sum(), (0, 1)))
    timed = forward if kind == "forward" else backward
    return lambda: jax.block_until_ready(timed(ja, jb)), torch.from_numpy(np.array(forward(ja, jb)))


def torch_call(
    kind: str, peer: str, a: Tensor, b: Tensor, grad: Tensor
) -> tuple[Callable[[], object], Tensor]:
    scan = TORCH_PEERS[peer]()
    with torch.no_grad():
        states = scan(a, b)
    if kind == "forward":
        return torch.no_grad()(lambda: scan(a, b)), states
    leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
    return lambda: torch.autograd.grad(scan(*leaves), leaves, grad), states


def memory_limit(a: Tensor, b: Tensor) -> float:
    """Seconds to read two arrays and write a third."""
    out = torch.empty_like(a)
    return min(seconds(lambda: torch.add(a, b, out=out), budget=0.5))


def child(case: str, peer: str) -> Result:
    kind, size = case.split(" ")
    g = torch.Generator().manual_seed(0)
    a = torch.rand(SIZES[size], generator=g)
    b, grad = (torch.randn(SIZES[size], generator=g) for _ in range(2))
    limit = memory_limit(a, b) * LIMIT_FACTOR[kind]
    with torch.no_grad():
        truth = torch_loop(a.double(), b.double())
    call, states = jax_call(kind, a, b, grad) if peer == JAX else torch_call(kind, peer, a, b, grad)
    error = float((states - truth).abs().max())
    if not error < 1e-3:
        return Result(case, peer, limit_ms=limit * 1e3, problem=f"wrong: off by {error:.2g}")
    del states, truth
    return measure(case, peer, call, limit)


def main() -> int:
    return run(Benchmark("scan", __doc__, CASES, lambda case: PEERS, child, ("transduce.ops.scan:linear_scan",)))


if __name__ == "__main__":
    raise SystemExit(main())
