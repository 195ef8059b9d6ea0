"""The selective scan of Mamba against what is installable: ``python -m benchmarks.selective [--keep-heap] [--venvs
FOLDER]``.

Limit: the B*T*D*N exponentials alone, at the rate of torch's own exp on numbers that lie in the cache. A kernel whose
exponential is faster than torch's may stand below it. Sizes are batch x steps x channels x states.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from benchmarks.harness import Benchmark, Result, measure, run, seconds

SIZES = {"2x1024x512x16": (2, 1024, 512, 16), "1x4096x1024x16": (1, 4096, 1024, 16)}
CASES = [f"{kind} {size}" for size in SIZES for kind in ("forward", "forward+backward")]
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def torch_loop(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """As one would write it, with what does not depend on the state computed for all steps at once."""
    decay, new = torch.exp(dt[..., None] * a), (dt * x)[..., None] * b[:, :, None]
    h, outputs = torch.zeros_like(new[:, 0]), []
    for decay_t, new_t, c_t in zip(decay.unbind(1), new.unbind(1), c.unbind(1)):
        h = torch.addcmul(new_t, decay_t, h)
        outputs.append((h @ c_t[..., None]).squeeze(-1))
    return torch.stack(outputs, 1)


def ours(backend: str) -> Scan:
    from transduce.ops.selective_scan import selective_scan

    return lambda *tensors: selective_scan.run(backend, *tensors)[0]


def mambapy() -> Scan:
    from mambapy.mamba import MambaBlock

    # The method reads nothing of its block. It adds skip * x, which costs two passes over x.
    return lambda x, dt, a, b, c: MambaBlock.selective_scan(None, x, dt, a, b, c, x.new_zeros(x.shape[2]))


def transformers() -> Scan:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    def scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        y = mamba_selective_scan(*(t.mT for t in (x, dt)), a, *(t.mT for t in (b, c)))
        return (y[0] if isinstance(y, tuple) else y).mT

    return scan


PEERS: dict[str, Callable[[], Scan]] = {
    "transduce numba": lambda: ours("numba"),
    "transduce chunked": lambda: ours("chunked"),
    "torch loop (unbind)": lambda: torch_loop,
    "mambapy pscan": mambapy,
    "transformers": transformers,
}


def exponentials(count: int) -> float:
    """Seconds for so many exponentials."""
    block = torch.rand(1 << 16)
    out = torch.empty_like(block)
    return min(seconds(lambda: torch.exp(block, out=out), budget=0.3)) * count / block.numel()


def inputs(size: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Step widths and rates in the range of a fresh Mamba."""
    batch, steps, width, states = SIZES[size]
    g = torch.Generator().manual_seed(0)
    x, b, c = (torch.randn(batch, steps, n, generator=g) for n in (width, states, states))
    dt = 0.1 * torch.rand(batch, steps, width, generator=g)
    return x, dt, -torch.arange(1.0, states + 1).repeat(width, 1), b, c


def child(case: str, peer: str) -> Result:
    kind, size = case.split(" ")
    tensors = inputs(size)
    batch, steps, width, states = SIZES[size]
    limit = exponentials(batch * steps * width * states)
    scan = PEERS[peer]()
    with torch.no_grad():
        error = float((scan(*tensors) - torch_loop(*tensors)).abs().max())
    if not error < 1e-3:
        return Result(case, peer, limit_ms=limit * 1e3, problem=f"wrong: off by {error:.2g}")
    if kind == "forward":
        return measure(case, peer, torch.no_grad()(lambda: scan(*tensors)), limit)
    leaves = [t.requires_grad_() for t in tensors]
    grad = torch.randn(batch, steps, width, generator=torch.Generator().manual_seed(1))
    if peer == "transformers":
        return Result(case, peer, problem="not timed: its backward is quadratic in the steps")
    return measure(case, peer, lambda: torch.autograd.grad(scan(*leaves), leaves, grad), limit)


def main() -> int:
    homes = {"transformers": "transformers", "mambapy pscan": "bench"}
    peers = lambda case: list(PEERS)
    ops = ("transduce.ops.selective_scan:selective_scan",)
    return run(Benchmark("selective", __doc__, CASES, peers, child, ops, environments=homes))


if __name__ == "__main__":
    raise SystemExit(main())
