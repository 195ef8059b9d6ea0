"""The law of ops for their Triton kernels, in Triton's interpreter: ``triton_job.py MODULE:OP ...``.

Prints a line of JSON for each: how many comparisons, which refusals, what broke. A process of its own, because triton decides at its import whether kernels are compiled or interpreted.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import ScanOps

from transduce.ops import triton_parts
from transduce.ops.dispatch import Case, Op
from transduce.testing import check_op

MOST = {"gru": 2500, "lstm": 3500, "slstm": 1200}
"""Numbers in the largest argument of a case beyond which the interpreter takes too long, by the op; 250 for others."""
STEPS = 6
"""Cases of recurrences with a matrix as their state are cut to so many steps of one head of one row, unless they are
tiny."""


def fits(op: Op, case: Case) -> bool:
    matrix = case.args[0].dim() == 4
    return matrix or max(x.numel() for x in case.args if isinstance(x, torch.Tensor)) < MOST.get(op.name, 250)


def smaller(case: Case) -> Case:
    """Without numerical gradients, which take hundreds of calls; those of the reference suffice here."""
    first = case.args[0]
    if first.dim() != 4 or case.tiny:
        return replace(case, tiny=False)

    def cut(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if x.shape[:3] == first.shape[:3]:
            return x[:1, :STEPS, :1]
        if x.shape == first.shape[:2]:
            return x[:1, :STEPS]
        return x[:1, :1] if x.dim() > 3 else x[:1]  # an initial state; what each head has

    kwargs = {name: cut(x) for name, x in case.kwargs.items()}
    return replace(case, args=tuple(map(cut, case.args)), kwargs=kwargs)


def whole_rows(self: ScanOps, parts: tuple) -> list:
    """The interpreter joins the elements of a tile one by one, each through a dozen calls: minutes for a small tile.
    This joins whole rows, in the same order."""
    data = [np.moveaxis(p.handle.data, self.axis, 0) for p in parts]
    found = [[row[:1]] for row in data]
    for i in range(1, len(data[0])):
        before = [self.to_tensor(f[-1], p.dtype) for f, p in zip(found, parts)]
        now = [self.to_tensor(d[i : i + 1], p.dtype) for d, p in zip(data, parts)]
        joined = self.combine_fn.fn(*before, *now)
        for f, one in zip(found, joined if isinstance(joined, tuple) else (joined,)):
            f.append(one.handle.data)
    rows = [np.moveaxis(np.concatenate(f), 0, self.axis) for f in found]
    return [self.to_tensor(np.ascontiguousarray(r), p.dtype) for r, p in zip(rows, parts)]


def main() -> None:
    torch.set_num_threads(1)
    ScanOps.generic_scan = whole_rows
    # Small cases take several tiles.
    triton_parts.STEPS = triton_parts.CHANNELS = triton_parts.CHUNK = triton_parts.COLUMNS = triton_parts.ROWS = 4
    triton_parts.VALUES = triton_parts.KEYS = 16
    for name in sys.argv[1:]:
        module, op = name.split(":")
        op = getattr(importlib.import_module(f"transduce.ops.{module}"), op)
        assert "triton" in op.backends
        cases = [case for case in map(smaller, op.all_cases()) if fits(op, case)]
        cases = cases[:: 2 if len(cases) > 10 else 1]
        found: dict[str, Any] = {"op": name, "comparisons": 0, "refused": [], "broken": ""}
        try:
            record = check_op(op, ["triton"], dtypes=[torch.float32], cases=cases)
            found["comparisons"] = len(record)
            found["refused"] = sorted({f"{c.case}: {c.refused}" for c in record if c.refused is not None})
        except AssertionError as broken:
            found["broken"] = str(broken)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
