"""Tiles of a matrix state that stay in registers while time passes, for the kernels of :mod:`.matrix_state_numba`.

The recurrence S_t = diag(a_t) S_(t-1) + k_t v_t^T costs three operations a number and step, no more than matrix products
over chunks of 64 steps do, if S is not carried to memory and back. A tile is ``ROWS`` rows of ``VECTORS`` vectors; its sweep over
a chunk of time loads what is needed of each step once and touches the state's memory only before and behind. Nothing is
approximated and no decay is too strong, since every step is taken.

A *lane* of a vector is a channel of the values in :func:`values_sweep` (rows are key channels) and of the keys in
:func:`keys_sweep` and :func:`keys_sweep_back` (rows are value channels), so that every sum over rows is a sum of vectors.

Imports numba; import it lazily. numba's cache of machine code looks at the file of a kernel only: after a change
here, delete ops/__pycache__.
"""

from __future__ import annotations

from typing import Callable

import llvmlite.binding
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvmlite.binding.get_host_cpu_features()
_WIDE = _FEATURES.get("avx512f", False)
_BYTES = 64 if _WIDE else 32 if _FEATURES.get("avx2", False) else 16
VECTORS = 2
ROWS = 8 if _WIDE or not _FEATURES.get("sse2", False) else 4
"""With 32 registers 16 hold the state, with 16 registers 8 do; the rest is for what a step brings."""

Tile = list[list[ir.Value]]
_CONTRACT = ("contract",)
_I64 = ir.IntType(64)


def block(dtype: torch.dtype) -> int:
    """Channels across a tile; sizes of keys and values must be multiples of it."""
    return VECTORS * _BYTES // torch.empty((), dtype=dtype).element_size()


class Sweep:
    """One pass over steps while it is compiled: pointers, numbers, and a tile of the state in registers."""

    def __init__(self, builder: ir.IRBuilder, pointers: list[ir.Value], numbers: list[ir.Value]) -> None:
        self.builder, self.pointers, self.numbers = builder, pointers, numbers
        self.real = pointers[0].type.pointee
        size = 8 if isinstance(self.real, ir.DoubleType) else 4
        self.lanes, self.align = _BYTES // size, size
        self.kind = ir.VectorType(self.real, self.lanes)
        self.zero = ir.Constant(self.kind, [0.0] * self.lanes)

    def at(self, base: ir.Value, index: ir.Value, row: ir.Value | int = 0) -> ir.Value:
        """The address ``base + index + row``."""
        if isinstance(row, int):
            row = _I64(row)
        return self.builder.gep(base, [self.builder.add(index, row)])

    def load(self, base: ir.Value, index: ir.Value, vector: int = 0) -> ir.Value:
        address = self.at(base, index, vector * self.lanes)
        return self.builder.load(self.builder.bitcast(address, self.kind.as_pointer()), align=self.align)

    def store(self, value: ir.Value, base: ir.Value, index: ir.Value, vector: int = 0) -> None:
        address = self.at(base, index, vector * self.lanes)
        self.builder.store(value, self.builder.bitcast(address, self.kind.as_pointer()), align=self.align)

    def spread(self, base: ir.Value, index: ir.Value, row: ir.Value | int = 0) -> ir.Value:
        """One number of memory in every lane."""
        number = self.builder.load(self.at(base, index, row), align=self.align)
        first = self.builder.insert_element(ir.Constant(self.kind, ir.Undefined), number, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, first, mask)

    def times(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.builder.fmul(x, y, flags=_CONTRACT)

    def plus(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x + y * z"""
        return self.builder.fadd(x, self.builder.fmul(y, z, flags=_CONTRACT), flags=_CONTRACT)

    def sums(self, base: ir.Value, index: ir.Value, first: ir.Value) -> list[list[ir.Value]]:
        """Two partial sums for each vector, so that chains of additions are short: nothing yet where ``first`` is
        not 0, else what other tiles have added."""
        fresh = self.builder.icmp_signed("!=", first, _I64(0))
        so_far = [self.builder.select(fresh, self.zero, self.load(base, index, j)) for j in range(VECTORS)]
        return [[s, self.zero] for s in so_far]

    def keep(self, sums: list[list[ir.Value]], base: ir.Value, index: ir.Value) -> None:
        for j, (even, odd) in enumerate(sums):
            self.store(self.builder.fadd(even, odd, flags=_CONTRACT), base, index, j)

    def run(self, steps: ir.Value, base: ir.Value, origin: ir.Value, stride: ir.Value, step: Callable) -> None:
        """Load the tile, call ``step(t, tile) -> tile`` while the loop is built, store the tile."""
        builder, slots = self.builder, []
        for r in range(ROWS):
            row = builder.add(origin, builder.mul(stride, _I64(r)))
            slots.append([cgutils.alloca_once_value(builder, self.load(base, row, j)) for j in range(VECTORS)])
        with cgutils.for_range(builder, steps) as loop:
            tile = step(loop.index, [[builder.load(slot) for slot in row] for row in slots])
            for row, values in zip(slots, tile):
                for slot, value in zip(row, values):
                    builder.store(value, slot)
        for r, row_slots in enumerate(slots):
            row = builder.add(origin, builder.mul(stride, _I64(r)))
            for j, slot in enumerate(row_slots):
                self.store(builder.load(slot), base, row, j)


def _sweeping(emit: Callable[[Sweep], None]) -> Callable:
    """For use in kernels: ``fn(pointers, numbers)``, tuples of pointers of one dtype and of integers."""

    @intrinsic
    def sweep(typingctx, pointers, numbers):  # noqa: ANN001, ANN202 (numba's own signature)
        def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
            integers = [
                context.cast(builder, value, kind, types.int64)
                for kind, value in zip(signature.args[1], cgutils.unpack_tuple(builder, args[1]))
            ]
            emit(Sweep(builder, cgutils.unpack_tuple(builder, args[0]), integers))
            return context.get_dummy_value()

        return types.none(pointers, numbers), codegen

    return sweep


def _values(late: bool) -> Callable[[Sweep], None]:
    def emit(s: Sweep) -> None:
        state, a, write, read, v, y = s.pointers
        at_state, at_a, at_key, at_v, by_state, by_a, by_channel, by_key, by_v, steps, first = s.numbers

        def step(t: ir.Value, tile: Tile) -> Tile:
            b = s.builder
            keys, values = (b.add(at, b.mul(t, by)) for at, by in ((at_key, by_key), (at_v, by_v)))
            decays = b.add(at_a, b.mul(t, by_a))
            v_t, sums, after = [s.load(v, values, j) for j in range(VECTORS)], s.sums(y, values, first), []
            for r, row in enumerate(tile):
                fade = s.spread(a, decays, b.mul(by_channel, _I64(r)))
                k_r, q_r = s.spread(write, keys, r), s.spread(read, keys, r)
                if not late:
                    row = [s.times(fade, x) for x in row]
                row = [s.plus(x, k_r, v_j) for x, v_j in zip(row, v_t)]
                for total, x in zip(sums, row):
                    total[r % 2] = s.plus(total[r % 2], q_r, x)
                after.append([s.times(fade, x) for x in row] if late else row)
            s.keep(sums, y, values)
            return after

        s.run(steps, state, at_state, by_state, step)

    return emit


def _keys(s: Sweep) -> None:
    state, a, k, v, grad, dq, before = s.pointers
    at_state, at_key, at_v, by_key, by_v, steps, first, packed = s.numbers
    width = _I64(VECTORS * s.lanes)

    def step(t: ir.Value, tile: Tile) -> Tile:
        b = s.builder
        keys, values = (b.add(at, b.mul(t, by)) for at, by in ((at_key, by_key), (at_v, by_v)))
        here = b.add(packed, b.mul(t, width))
        states = b.mul(here, _I64(ROWS))
        fade = [s.load(a, here, j) for j in range(VECTORS)]
        k_t = [s.load(k, keys, j) for j in range(VECTORS)]
        sums, after = s.sums(dq, keys, first), []
        for r, row in enumerate(tile):
            for j, x in enumerate(row):
                s.store(x, before, b.add(states, _I64(r * VECTORS * s.lanes)), j)
            v_r, g_r = s.spread(v, values, r), s.spread(grad, values, r)
            row = [s.plus(s.times(f, x), k_j, v_r) for f, x, k_j in zip(fade, row, k_t)]
            for total, x in zip(sums, row):
                total[r % 2] = s.plus(total[r % 2], x, g_r)
            after.append(row)
        s.keep(sums, dq, keys)
        return after

    s.run(steps, state, at_state, width, step)


def _keys_back(graded: bool) -> Callable[[Sweep], None]:
    def emit(s: Sweep) -> None:
        state, a, q, v, grad, dk, da, before = s.pointers
        at_state, at_key, at_v, by_key, by_v, steps, first, packed = s.numbers
        width = _I64(VECTORS * s.lanes)

        def step(back: ir.Value, tile: Tile) -> Tile:
            b = s.builder
            t = b.sub(b.sub(steps, back), _I64(1))
            keys, values = (b.add(at, b.mul(t, by)) for at, by in ((at_key, by_key), (at_v, by_v)))
            here = b.add(packed, b.mul(t, width))
            states = b.mul(here, _I64(ROWS))
            fade = [s.load(a, here, j) for j in range(VECTORS)]
            q_t = [s.load(q, keys, j) for j in range(VECTORS)]
            sums, decays, after = s.sums(dk, keys, first), s.sums(da, keys, first) if graded else [], []
            for r, row in enumerate(tile):
                v_r, g_r = s.spread(v, values, r), s.spread(grad, values, r)
                row = [s.plus(x, q_j, g_r) for x, q_j in zip(row, q_t)]
                for j, (total, x) in enumerate(zip(sums, row)):
                    total[r % 2] = s.plus(total[r % 2], x, v_r)
                    if graded:
                        past = s.load(before, b.add(states, _I64(r * VECTORS * s.lanes)), j)
                        decays[j][r % 2] = s.plus(decays[j][r % 2], x, past)
                after.append([s.times(f, x) for f, x in zip(fade, row)])
            s.keep(sums, dk, keys)
            if graded:
                s.keep(decays, da, keys)
            return after

        s.run(steps, state, at_state, width, step)

    return emit


values_sweep = _sweeping(_values(late=False))
"""S <- a_t S + k_t v_t^T, then y_t += S^T q_t. Pointers state, a, k, q, v, y; numbers: where state, a, k and q, v and y
begin, the distance of two rows of the state, of two steps of a, of two channels of a (0 for one decay a head), of two
steps of k and q and of v and y, the steps, and whether y is set rather than added to."""
values_sweep_back = _sweeping(_values(late=True))
"""D <- D + k_t v_t^T, y_t += D^T q_t, D <- a_t D, with the same arguments; distances may be negative, time then falls."""
keys_sweep = _sweeping(_keys)
"""before_t = S, S <- diag(a_t) S + k_t v_t^T, dq_t += S grad_t. Pointers state, a, k, v, grad, dq, before, where state,
a and before are packed; numbers: where state, k and dq, v and grad begin, two distances of steps, the steps,
whether dq is set rather than added to, and where this thread's packed decays begin."""
keys_sweep_back = _sweeping(_keys_back(graded=False))
"""From the last step to the first: D <- D + q_t grad_t^T, dk_t += D v_t, D <- diag(a_t) D. Pointers state, a, q, v,
grad, dk, da, before; numbers as for :func:`keys_sweep`."""
keys_sweep_back_graded = _sweeping(_keys_back(graded=True))
"""The same, and da_t += sum over values of D * before_t."""
