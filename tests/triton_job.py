"""The law of ops for their Triton kernels, in Triton's interpreter: ``triton_job.py MODULE:OP ...``.

A process of its own, because triton decides at its import whether kernels are compiled or interpreted.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace

import numpy as np
import torch
from triton.runtime.interpreter import ScanOps

from transduce.ops import triton_parts
from transduce.ops.dispatch import Case
from transduce.testing import check_op

MOST = 250
"""Numbers in the largest argument of a case, beyond which the interpreter takes too long."""


def numbers(case: Case) -> int:
    return max(x.numel() for x in case.args if isinstance(x, torch.Tensor))


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
    triton_parts.STEPS = triton_parts.CHANNELS = 4  # small cases take several tiles
    for name in sys.argv[1:]:
        module, op = name.split(":")
        op = getattr(importlib.import_module(f"transduce.ops.{module}"), op)
        assert "triton" in op.backends
        # Numerical gradients, which tiny cases also get, take hundreds of calls: those of the reference suffice here.
        cases = [replace(case, tiny=False) for case in op.all_cases() if numbers(case) < MOST]
        record = check_op(op, ["triton"], dtypes=[torch.float32], cases=cases)
        refused = sorted({f"{c.case}: {c.refused}" for c in record if c.refused is not None})
        print(op.name, len(record), *refused, sep="\n")


if __name__ == "__main__":
    main()
