"""Every kernel compiled for a GPU that need not be there: ``triton_compile.py [MODULE:KERNEL ...]``.

A process of its own, without TRITON_INTERPRET, because triton decides at its import whether kernels are compiled.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURE, SHARED = 90, 227 << 10
"""The device, and the bytes of shared memory that a program may have there."""
BYTES = ("resets", "held", "mask", "wins")
NUMBERS = ("steps", "heads", "rows", "width", "values", "slots", "lines", "order", "to_row", "to_column")
NUMBERS += tuple(f"{x}_{of}" for x in "axh" for of in ("row", "line", "step", "channel", "part"))
CHUNKS = {"chunk": 32, "wide": 64, "block": 32, "warps": 8}
WIDE = {"chunk": 16, "wide": 256, "block": 16, "warps": 8}
STEPS = {"restarts": True, "chunk": 32, "wide": 64, "warps": 2}
HEAD = {"restarts": True, "block": 16, "wide": 64, "warps": 8}
TILE = {"restarts": True, "span": 64, "block": 32, "warps": 4}
KERNELS: dict[str, list[dict[str, Any]]] = {
    "scan_triton:_scan": [
        {"back": False, "reverse": False, "masked": False, "imaginary": False, **TILE},
        {"back": True, "reverse": True, "masked": True, "imaginary": True, **TILE},
    ],
    "softmax_scan_triton:_average": [{"masked": True, **TILE}],
    "block_scan_triton:_walk": [
        {"back": back, "added": True, "masked": True, "restarts": True, "size": 3, "room": 4, "group": 64, "warps": 4}
        for back in (False, True)
    ],
    "selective_scan_triton:_forward": [{"keep": True, "room": 16, **TILE}],
    "selective_scan_triton:_backward": [{"room": 16, **TILE}],
    "matrix_state_triton:_states": [
        {"back": False, "single": False, **CHUNKS},
        {"back": True, "single": True, **CHUNKS},
    ],
    "matrix_state_triton:_outputs": [
        {"single": False, **CHUNKS},
        {"single": True, **CHUNKS},
        {"single": False, **WIDE},
    ],
    "matrix_state_triton:_gradients": [
        {"single": False, **CHUNKS},
        {"single": True, **CHUNKS},
        {"single": False, **WIDE},
    ],
    "delta_triton:_forward": [{"keeps": True, "block": 16, **STEPS}],
    "delta_triton:_backward": [{"block": 16, **STEPS}],
    "orthogonal_triton:_forward": [{"keeps": True, "project": True, "tall": 16, **STEPS}],
    "orthogonal_triton:_backward": [{"project": True, "tall": 16, **STEPS}, {"project": False, "tall": 16, **STEPS}],
    "rnn_triton:_gru": [HEAD],
    "rnn_triton:_gru_back": [HEAD],
    "rnn_triton:_lstm": [{"masked": True, **HEAD}, {"masked": False, **HEAD}],
    "rnn_triton:_lstm_back": [{"masked": True, **HEAD}, {"masked": False, **HEAD}],
    "slstm_triton:_slstm": [{"masked": True, **HEAD}],
    "slstm_triton:_slstm_back": [{"masked": True, **HEAD}, {"masked": False, **HEAD}],
}
"""Constants and warps to compile for: every branch of a kernel once, sizes as its launcher chooses them."""


def build(name: str, constants: dict[str, Any], ones: bool) -> None:
    """``ones``: every size is 1, which triton compiles in as a constant; tiles are small there, which is quicker."""
    module, function = name.split(":")
    kernel = getattr(importlib.import_module(f"transduce.ops.{module}"), function)
    chosen = {key: value for key, value in constants.items() if key != "warps"}
    kinds = dict.fromkeys(BYTES, "*u8") | dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(chosen, "constexpr")
    if ones:
        known = [x for x in NUMBERS if x in kernel.arg_names]
        kinds, chosen = kinds | dict.fromkeys(known, "constexpr"), chosen | dict.fromkeys(known, 1)
        chosen |= {"wide": 16} if "wide" in chosen else {}
    source = ASTSource(
        fn=kernel, signature={x: kinds.get(x, "*fp32") for x in kernel.arg_names}, constexprs=chosen
    )
    options = {"num_warps": constants["warps"]}
    made = triton.compile(source, target=GPUTarget("cuda", ARCHITECTURE, 32), options=options)
    assert made.asm["cubin"] and made.metadata.shared <= SHARED, f"{name} {constants}: {made.metadata}"


def main() -> None:
    for name in sys.argv[1:] or KERNELS:
        for constants in KERNELS[name]:
            build(name, constants, False)
        build(name, KERNELS[name][0], True)
        print(name)


if __name__ == "__main__":
    main()
