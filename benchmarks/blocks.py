"""Whole residual blocks x + mixer(norm x), projections included: ``python -m benchmarks.blocks --venvs DIR``.

Every block is as wide as its inputs and has the size that its authors or its package give it by default, so blocks
differ in parameters: the note behind a row says how many. Rows are compared with the LSTM's, the block that most
people would take. Ours come from :data:`transduce.nn.catalogue.MIXERS`; to add one, add its name to ``OURS``. Foreign
packages run in an environment of their own (``benchmarks/peers/bench.txt``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Benchmark, Result, measure, run

SIZES = {"4x512x256": (4, 512, 256), "1x4096x256": (1, 4096, 256)}
CASES = [f"{work} {size}" for size in SIZES for work in ("training", "inference")]
OURS = ("min-gru", "min-lstm", "lru", "rg-lru", "griffin", "hgrn", "mamba", "mamba2", "lstm", "gru")
"""Names in the catalogue of mixers. "griffin" is the RG-LRU with its projections, gate and convolution, "rg-lru" the
bare recurrence with its gates."""
Block = Callable[[Tensor], Tensor]


class Norm(nn.Module):
    """x + layer(norm x) around any module; ``first`` takes the sequence out of what the module returns."""

    def __init__(self, layer: nn.Module, width: int, first: bool = False) -> None:
        super().__init__()
        self.norm, self.layer, self.first = nn.LayerNorm(width), layer, first

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.norm(x))
        return x + (y[0] if self.first else y)


def ours(name: str, width: int) -> nn.Module:
    from transduce.nn import LayerNorm, Residual
    from transduce.nn.catalogue import MIXERS

    return Residual(MIXERS[name](width), norm=LayerNorm(width))


def min_gru_pytorch(width: int) -> nn.Module:
    from minGRU_pytorch import minGRU

    return Norm(minGRU(width), width)


def s5(width: int) -> nn.Module:
    from s5 import S5

    return Norm(S5(width), width)


def mambapy(width: int) -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return Norm(MambaBlock(MambaConfig(d_model=width, n_layers=1)), width)


FOREIGN: dict[str, Callable[[int], nn.Module]] = {
    "minGRU-pytorch": min_gru_pytorch,
    "s5-pytorch": s5,
    "mambapy MambaBlock": mambapy,
}
TORCH: dict[str, Callable[[int], nn.Module]] = {
    "torch nn.LSTM": lambda width: Norm(nn.LSTM(width, width, batch_first=True), width, first=True),
    "torch nn.GRU": lambda width: Norm(nn.GRU(width, width, batch_first=True), width, first=True),
}
PEERS = [*(f"transduce {name}" for name in OURS), *TORCH, *FOREIGN]


def block_of(peer: str, width: int) -> tuple[nn.Module, Block]:
    """The module and the same as a function of the sequence alone."""
    torch.manual_seed(0)
    if peer.startswith("transduce "):
        block = ours(peer.removeprefix("transduce "), width)
        return block, lambda x: block(x)[0]
    block = (TORCH | FOREIGN)[peer](width)
    return block, block


def child(case: str, peer: str) -> Result:
    work, size = case.split(" ")
    batch, steps, width = SIZES[size]
    block, call = block_of(peer, width)
    x, grad = torch.randn(batch, steps, width), torch.randn(batch, steps, width)
    if work == "inference":
        block.eval()
        found = measure(case, peer, torch.no_grad()(lambda: call(x)), None)
    else:
        x.requires_grad_()
        used = [x, *block.parameters()]
        found = measure(case, peer, lambda: torch.autograd.grad(call(x), used, grad, allow_unused=True), None)
    return replace(found, note=f"{sum(p.numel() for p in block.parameters()) / 1e3:.0f} k parameters")


def law(name: str) -> None:
    from transduce.nn.catalogue import MIXERS
    from transduce.testing import check_mixer

    check_mixer(MIXERS[name], dim=16)


def main() -> int:
    laws = {f"the mixer {name}": lambda name=name: law(name) for name in OURS}
    homes = dict.fromkeys(FOREIGN, "bench")
    return run(Benchmark("blocks", __doc__, CASES, lambda case: PEERS, child, laws=laws, environments=homes))


if __name__ == "__main__":
    raise SystemExit(main())
