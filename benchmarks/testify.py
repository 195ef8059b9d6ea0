"""Layers of other packages, run in their own process: ``python -m benchmarks.testify DTYPE FOLDER NAME ...``.

Each witness builds one layer with random weights, runs it and writes what it was and what came out to FOLDER. Nothing
of transduce is imported here, so a witness shares no code with what it speaks about. In float64 the casts to float32
that many of these layers contain are switched off: what is compared is the equation, not the casts.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.witness_attention import ATTENTION
from benchmarks.witness_fla import FLA
from benchmarks.witness_layers import LAYERS
from benchmarks.witness_ops import OPS
from benchmarks.witness_small import SMALL
from benchmarks.witness_parts import BATCH, MORE, STEPS, Witness

WITNESSES = LAYERS | ATTENTION | SMALL | FLA | OPS


def _keep_float64() -> None:
    """Casts of float64 tensors to float32 do nothing from now on."""
    cast_float, cast_to, cast_type = Tensor.float, Tensor.to, Tensor.type

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.dtype == torch.float64:
            args = tuple(a for a in args if a is not torch.float32)
            kwargs = {k: v for k, v in kwargs.items() if v is not torch.float32}
            if not args and not kwargs:
                return self
        return cast_to(self, *args, **kwargs)

    def type_(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self if self.dtype == torch.float64 and args == (torch.float32,) else cast_type(self, *args, **kwargs)

    def float_(self: Tensor, **how: Any) -> Tensor:
        return self if self.dtype == torch.float64 else cast_float(self, **how)

    float_.patched = True
    Tensor.float, Tensor.to, Tensor.type = float_, to, type_


def testify(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the layer ``name`` computes: weights, inputs, outputs, gradients, states, and what came of continuing."""
    if dtype == torch.float64 and not hasattr(Tensor.float, "patched"):
        _keep_float64()
    torch.manual_seed(0)
    witness = WITNESSES[name](dtype)
    with witness.within():
        return _heard(witness, dtype)


def _heard(witness: Witness, dtype: torch.dtype) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(BATCH, STEPS + MORE, witness.width, generator=g, dtype=torch.float64)
    x = witness.inputs(noise).to(dtype)
    leaf = x[:, :STEPS].clone().requires_grad_()
    y = witness.run(leaf)
    cotangent = torch.randn(y.shape, generator=g, dtype=torch.float64).to(dtype)
    (dx,) = torch.autograd.grad(y, leaf, cotangent)
    found = {
        "package": witness.package,
        "version": importlib.metadata.version(witness.package),
        "layer": witness.layer,
        "settings": witness.settings,
        "note": witness.note,
        "weights": {k: v.detach().clone() for k, v in witness.module.state_dict().items()},
        "x": x,
        "cotangent": cotangent,
        "y": y.detach(),
        "dx": dx,
    }
    if witness.begin is not None:
        with torch.no_grad():
            feed, states = witness.begin()
            feed(x[:, :STEPS])
            found["states"] = {k: v.detach().clone() for k, v in states().items()}
            found["stepped"] = torch.cat([feed(x_t[:, None]) for x_t in x[:, STEPS:].unbind(1)], 1)
            feed, _ = witness.begin()
            try:
                found["chunked"] = torch.cat((feed(x[:, :20]), feed(x[:, 20:])), 1)
            except (RuntimeError, ValueError, IndexError) as refused:
                found["chunked"] = f"refuses: {str(refused).splitlines()[0]}"
    return found


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.pt"


def main(dtype: str, folder: str, *names: str) -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # kernels without a device; it counts when they are first imported
    for name in names:
        try:
            found = testify(name, getattr(torch, dtype))
        except ImportError as absent:
            found = {"absent": str(absent)}
        torch.save(found, path_of(Path(folder), name))


if __name__ == "__main__":
    main(*sys.argv[1:])
