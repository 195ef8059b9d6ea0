"""Products of few rows with a matrix that is packed once and used at every step, inside a kernel.

A library's product packs its operands at every call, or walks them as they lie; with 1 to 32 rows that costs as much as
the arithmetic. Here the matrix stands in panels of some columns, so that a step reads it in one stream, and a tile of
rows times one panel stays in registers over the whole depth. The tile is chosen by :mod:`transduce.ops.tuner` for the
registers of the machine. Imports numba; import it lazily. numba's cache of machine code looks at the file of a kernel
only: after a change here, delete ops/__pycache__.
"""

from __future__ import annotations

from typing import Callable

import llvmlite.binding
import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from .tuner import Problem

_CONTRACT = ("contract",)
_IN_FLIGHT = 8
"""Sums that must grow side by side, because a multiply-add takes four cycles and up to two begin in each: a tile of few
rows therefore takes several steps of the depth at a time."""


def choose_tile(registers: int, lanes: int) -> tuple[int, int]:
    """(rows, columns) of the tile: as many accumulators as fit beside one row of the panel and one number of the rows;
    at most 8 rows, so that batches of everyday sizes are cut into few tiles, and panels of at most two cache lines."""
    problem = Problem()
    rows, vectors = problem.variable("rows", range(1, 9)), problem.variable("vectors", range(1, 9))
    problem.require(rows * vectors + vectors + 1 <= registers, (vectors * lanes).divides(32))
    best = problem.best(rows * vectors)
    return best["rows"], best["vectors"] * lanes


def _machine() -> tuple[int, int]:
    """Vector registers, and float32 numbers in one."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 32, 16
    if features.get("avx2"):
        return 16, 8
    return (32, 4) if features.get("neon") else (16, 4)


_REGISTERS, _LANES = _machine()
ROWS, COLUMNS = choose_tile(_REGISTERS, _LANES)


def pack(matrix: Tensor) -> Tensor:
    """(H,K,N), multiplied from the left by rows (B,K), -> panels (H,ceil(N/COLUMNS),K,COLUMNS), padded with zeros."""
    heads, depth, width = matrix.shape
    panels = -(-width // COLUMNS)
    padded = torch.nn.functional.pad(matrix, (0, panels * COLUMNS - width))
    return padded.view(heads, depth, panels, COLUMNS).transpose(1, 2).contiguous()


def padded(width: int) -> int:
    """What the rows of a product's output hold: the width, rounded up to whole panels."""
    return -(-width // COLUMNS) * COLUMNS


def _tile(rows: int, add: bool) -> Callable[..., None]:
    """``tile(x, row, packed, panel, out)``: out[row:row+rows, panel] = (or +=) x[row:row+rows] @ packed[panel]."""

    @intrinsic
    def tile(typingctx, x, row, packed, panel, out):  # noqa: ANN001, ANN202 (numba's own signature)
        def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
            views = {i: context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 4)}
            depth = builder.extract_value(views[0].shape, 1)
            stride = builder.extract_value(views[4].shape, 1)
            number = ir.FloatType()
            vector = ir.VectorType(number, _LANES)
            count, word, i32 = COLUMNS // _LANES, depth.type, ir.IntType(32)
            first = builder.mul(args[1], depth)
            x_rows = [
                builder.gep(views[0].data, [builder.add(first, builder.mul(depth, word(r)))]) for r in range(rows)
            ]
            panel_at = builder.mul(builder.mul(args[3], depth), word(COLUMNS))
            weights = builder.gep(views[2].data, [panel_at])
            out_at = builder.add(builder.mul(args[1], stride), builder.mul(args[3], word(COLUMNS)))

            def places(base, start):  # noqa: ANN001, ANN202
                """Addresses of the vectors of a panel's row that begins at element ``start``."""
                return [
                    builder.bitcast(builder.gep(base, [builder.add(start, word(v * _LANES))]), vector.as_pointer())
                    for v in range(count)
                ]

            turns = max(1, _IN_FLIGHT // (rows * count))
            outs = [
                p for r in range(rows) for p in places(views[4].data, builder.add(out_at, builder.mul(stride, word(r))))
            ]
            sums = [[cgutils.alloca_once(builder, vector) for _ in outs] for _ in range(turns)]
            nothing = ir.Constant(vector, [0.0] * _LANES)
            for turn, totals in enumerate(sums):
                for total, place in zip(totals, outs):
                    builder.store(builder.load(place, align=4) if add and not turn else nothing, total)
            same = ir.Constant(ir.VectorType(i32, _LANES), [0] * _LANES)

            def accumulate(k, totals):  # noqa: ANN001, ANN202
                line = [builder.load(p, align=4) for p in places(weights, builder.mul(k, word(COLUMNS)))]
                for r in range(rows):
                    one = builder.load(builder.gep(x_rows[r], [k]), align=4)
                    one = builder.insert_element(ir.Constant(vector, ir.Undefined), one, i32(0))
                    one = builder.shuffle_vector(one, one, same)
                    for v in range(count):
                        total = totals[r * count + v]
                        product = builder.fmul(one, line[v], flags=_CONTRACT)
                        builder.store(builder.fadd(builder.load(total), product, flags=_CONTRACT), total)

            whole = builder.udiv(depth, word(turns))
            with cgutils.for_range(builder, whole) as loop:
                start = builder.mul(loop.index, word(turns))
                for turn, totals in enumerate(sums):
                    accumulate(builder.add(start, word(turn)), totals)
            if turns > 1:
                with cgutils.for_range(builder, depth, start=builder.mul(whole, word(turns))) as loop:
                    accumulate(loop.index, sums[0])
            for *others, first, place in zip(*sums[1:], sums[0], outs):
                total = builder.load(first)
                for other in others:
                    total = builder.fadd(total, builder.load(other))
                builder.store(total, place, align=4)
            return context.get_dummy_value()

        return types.none(x, types.intp, packed, types.intp, out), codegen

    return tile


def _multiplier(add: bool) -> Callable[..., None]:
    whole, four, two, one = (_tile(rows, add) for rows in (ROWS, 4, 2, 1))

    @numba.njit(error_model="numpy")
    def multiply(x, packed, out, first, last):  # noqa: ANN001, ANN202
        """x (n,K), packed (panels,K,COLUMNS), out (n, panels * COLUMNS), all contiguous; panels first to last - 1."""
        n = x.shape[0]
        for panel in range(first, last):
            row = 0
            while n - row >= ROWS:
                whole(x, row, packed, panel, out)
                row += ROWS
            while n - row >= 4:
                four(x, row, packed, panel, out)
                row += 4
            if n - row >= 2:
                two(x, row, packed, panel, out)
                row += 2
            if n - row >= 1:
                one(x, row, packed, panel, out)

    return multiply


multiply, multiply_add = _multiplier(False), _multiplier(True)
"""out = x @ W and out += x @ W for W packed by :func:`pack`, to be called from kernels."""
