"""Rows of numbers worked on a register at a time, for kernels that stream through memory.

A row function written as a loop is vectorized by LLVM behind a test that none of its arrays overlap; with six
arrays and short rows that test costs as much as the row. Here the arithmetic is written once over
:class:`Lanes`, and :func:`lanewise` makes the loop: blocks of one cache line, then the rest number by number.
The caller promises that an output is either the very array of an input or does not overlap it.

Rows that are visited in falling order are also walked in falling order, so that the processor sees one falling
stream, which it fetches ahead of time, instead of jumps (measured: half the time of a backward scan).

Imports numba; import it lazily. numba's cache of machine code looks at the file of a kernel only: after a change
here, delete ops/__pycache__.
"""

from __future__ import annotations

from typing import Callable, Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LINE_BYTES = 64
_CONTRACT = ("contract",)


class Lanes:
    """Some numbers of a row, in registers, while a kernel is being compiled: the operands of ``lanewise``
    functions. Complex numbers are kept as two vectors."""

    def __init__(self, builder: ir.IRBuilder, re: ir.Value, im: ir.Value | None = None) -> None:
        self._builder, self.re, self.im = builder, re, im

    def _plus(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self._builder.fadd(x, y, flags=_CONTRACT)

    def _times(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self._builder.fmul(x, y, flags=_CONTRACT)

    def _minus(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self._builder.fsub(x, y, flags=_CONTRACT)

    def __add__(self, other: Lanes) -> Lanes:
        im = None if self.im is None else self._plus(self.im, other.im)
        return Lanes(self._builder, self._plus(self.re, other.re), im)

    def __sub__(self, other: Lanes) -> Lanes:
        im = None if self.im is None else self._minus(self.im, other.im)
        return Lanes(self._builder, self._minus(self.re, other.re), im)

    def __mul__(self, other: Lanes) -> Lanes:
        product = self._times(self.re, other.re)
        if self.im is None:
            return Lanes(self._builder, product)
        re = self._minus(product, self._times(self.im, other.im))
        im = self._plus(self._times(self.re, other.im), self._times(self.im, other.re))
        return Lanes(self._builder, re, im)

    def __truediv__(self, other: Lanes) -> Lanes:
        if self.im is not None:
            raise TypeError("lanes divide real numbers only")
        return Lanes(self._builder, self._builder.fdiv(self.re, other.re, flags=_CONTRACT))

    def conj(self) -> Lanes:
        im = None if self.im is None else self._builder.fneg(self.im)
        return Lanes(self._builder, self.re, im)


class _Rows:
    """Loads and stores of one block of every row."""

    def __init__(self, builder: ir.IRBuilder, real: ir.Type, is_complex: bool, lanes: int) -> None:
        self._builder, self._real, self._complex, self._lanes = builder, real, is_complex, lanes
        self._bytes = 8 if isinstance(real, ir.DoubleType) else 4

    def _address(self, base: ir.Value, index: ir.Value) -> tuple[ir.Value, ir.Type]:
        """Of the block that begins at element ``index``, with the type to load there."""
        parts = 2 if self._complex else 1
        numbers = self._builder.bitcast(base, self._real.as_pointer())
        start = self._builder.gep(numbers, [self._builder.mul(index, index.type(parts))])
        kind = ir.VectorType(self._real, self._lanes * parts) if self._lanes * parts > 1 else self._real
        return self._builder.bitcast(start, kind.as_pointer()), kind

    def _every_other(self, vector: ir.Value, first: int) -> ir.Value:
        i32 = ir.IntType(32)
        if self._lanes == 1:
            return self._builder.extract_element(vector, i32(first))
        mask = ir.Constant(ir.VectorType(i32, self._lanes), [2 * k + first for k in range(self._lanes)])
        return self._builder.shuffle_vector(vector, vector, mask)

    def load(self, base: ir.Value, index: ir.Value) -> Lanes:
        address, _ = self._address(base, index)
        value = self._builder.load(address, align=self._bytes)
        if not self._complex:
            return Lanes(self._builder, value)
        return Lanes(self._builder, self._every_other(value, 0), self._every_other(value, 1))

    def repeat(self, number: ir.Value) -> Lanes:
        """A real number in every lane."""
        if self._lanes == 1:
            return Lanes(self._builder, number)
        i32, kind = ir.IntType(32), ir.VectorType(self._real, self._lanes)
        first = self._builder.insert_element(ir.Constant(kind, ir.Undefined), number, i32(0))
        everywhere = ir.Constant(ir.VectorType(i32, self._lanes), [0] * self._lanes)
        return Lanes(self._builder, self._builder.shuffle_vector(first, first, everywhere))

    def store(self, value: Lanes, base: ir.Value, index: ir.Value) -> None:
        address, kind = self._address(base, index)
        whole = value.re
        if self._complex:
            whole = self._interleave(value, kind)
        self._builder.store(whole, address, align=self._bytes)

    def _interleave(self, value: Lanes, kind: ir.Type) -> ir.Value:
        i32 = ir.IntType(32)
        if self._lanes == 1:
            start = self._builder.insert_element(ir.Constant(kind, ir.Undefined), value.re, i32(0))
            return self._builder.insert_element(start, value.im, i32(1))
        order = [k // 2 + k % 2 * self._lanes for k in range(2 * self._lanes)]
        mask = ir.Constant(ir.VectorType(i32, 2 * self._lanes), order)
        return self._builder.shuffle_vector(value.re, value.im, mask)


def lanewise(compute: Callable[..., Sequence[Lanes]], *, inputs: int, falling: bool = False) -> Callable:
    """A function for use in kernels: ``step((x, y, out))`` on contiguous rows of one length and dtype.

    The first ``inputs`` rows are read, ``compute`` gets their :class:`Lanes` and returns those of the rows
    that follow. Behind the rows there may be real numbers, ``step((x, out, factor))``: ``compute`` gets each as
    :class:`Lanes`, too, behind those of the rows. With ``falling`` the row is walked from its end.
    """

    @intrinsic
    def step(typingctx, rows):  # noqa: ANN001, ANN202 (numba's own signature)
        kinds = [kind for kind in rows if isinstance(kind, types.Array)]
        numbers = list(rows)[len(kinds) :]
        dtype = kinds[0].dtype
        if any(not isinstance(n, types.Float) for n in numbers) or numbers and isinstance(dtype, types.Complex):
            raise TypeError(f"lanewise takes rows and then real numbers beside real rows, got {rows}")
        if any(k.ndim != 1 or k.layout != "C" or k.dtype != dtype for k in kinds):
            raise TypeError(f"lanewise needs contiguous rows of one dtype, got {kinds}")

        def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
            given = cgutils.unpack_tuple(builder, args[0])
            views = [
                context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, given)
            ]
            bases = [view.data for view in views]
            length = builder.extract_value(views[0].shape, 0)
            is_complex = isinstance(dtype, types.Complex)
            scalar = dtype.underlying_float if is_complex else dtype
            real = ir.DoubleType() if scalar.bitwidth == 64 else ir.FloatType()
            lanes = _LINE_BYTES * 8 // dtype.bitwidth
            factors = [
                context.cast(builder, value, kind, dtype)
                for kind, value in zip(numbers, given[len(kinds) :])
            ]
            blocks = builder.udiv(length, length.type(lanes))
            whole = builder.mul(blocks, length.type(lanes))

            def walk(count: ir.Value, first: ir.Value, width: int) -> None:
                memory = _Rows(builder, real, is_complex, width)
                same = [memory.repeat(factor) for factor in factors]
                with cgutils.for_range(builder, count) as loop:
                    step = loop.index
                    if falling:
                        step = builder.sub(builder.sub(count, step), step.type(1))
                    at = builder.add(first, builder.mul(step, step.type(width)))
                    operands = [memory.load(base, at) for base in bases[:inputs]]
                    for value, base in zip(compute(*operands, *same), bases[inputs:], strict=True):
                        memory.store(value, base, at)

            pieces = [(blocks, length.type(0), lanes), (builder.sub(length, whole), whole, 1)]
            for piece in reversed(pieces) if falling else pieces:
                walk(*piece)
            return context.get_dummy_value()

        return types.none(rows), codegen

    return step
