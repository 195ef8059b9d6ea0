"""Every kernel compiled for GPUs that need not be there: ``triton_compile.py``, without TRITON_INTERPRET.

A process of its own, because triton decides at its import whether kernels are compiled or interpreted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BYTES_OF_SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}
"""What a program may take of it, by the architecture."""
OTHERS = {"resets": "*u8"}
"""Kinds of what is neither a number nor a tensor of floats."""
COUNTS = ("steps", "heads", "width", "values", "slots")


def tiles(**constants: list[Any]) -> list[dict[str, Any]]:
    """All combinations."""
    found: list[dict[str, Any]] = [{}]
    for name, options in constants.items():
        found = [{**one, name: option} for one in found for option in options]
    return found


BOTH = [False, True]
SIZES = {"chunk": [32], "wide": [16, 64], "block": [32]}
KERNELS = {
    "scan_triton:_scan": tiles(
        later=BOTH, reverse=BOTH, restarts=[True], imaginary=BOTH, span=[64], block=[32]
    ),
    "matrix_state_triton:_states": tiles(back=BOTH, single=BOTH, **SIZES),
    "matrix_state_triton:_outputs": tiles(single=BOTH, chunk=[32], wide=[16, 64, 256], block=[32]),
    "matrix_state_triton:_gradients": tiles(single=BOTH, chunk=[32], wide=[16, 64, 256], block=[32]),
}


def build(name: str, constants: dict[str, Any], architecture: int, kind: str) -> None:
    module, function = name.split(":")
    kernel = getattr(importlib.import_module(f"transduce.ops.{module}"), function)
    signature = {
        x: "constexpr" if x in constants else "i32" if x in COUNTS else OTHERS.get(x, kind) for x in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    warps = 8 if constants.get("wide", 0) > 64 else 4
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    assert made.asm["cubin"] and made.metadata.shared <= BYTES_OF_SHARED_MEMORY[architecture], made.metadata
    print(name, constants, architecture, kind, made.metadata.shared)


def main() -> None:
    chosen = sys.argv[1:] or list(KERNELS)
    for name in chosen:
        for constants in KERNELS[name]:
            build(name, constants, 90, "*fp32")


if __name__ == "__main__":
    main()
