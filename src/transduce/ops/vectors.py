"""Vectors as values inside kernels: as many numbers as a cache line holds, in a register, with ``+``, ``-``, ``*``.

Where :mod:`transduce.ops.lanes` makes a loop over rows, here the kernel itself is written over vectors, so that a
sum, a state or a gate stays in a register across an inner loop of any shape. ``load(p, i)`` reads the numbers from
element ``i`` of a pointer on, ``load_one(p, i)`` a vector of one number for what is left at the end of a row; the
same source then serves both::

    for n in range(states):
        h = exp2(dt * load(a, k)) * load(state, k) + u * spread(u, b[n])

A product that is added is fused where the processor can. Imports numba; import it lazily. numba's cache of machine
code looks at the file of a kernel only: after a change here, delete ops/__pycache__.
"""

from __future__ import annotations

import operator
from typing import Callable

from llvmlite import ir
from numba import types
from numba.core import errors
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

_LINE_BYTES = 64
_CONTRACT = ("contract",)


class Vector(types.Type):
    """numba's type of ``lanes`` numbers of one dtype in a register."""

    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


def _real(dtype: types.Float) -> ir.Type:
    return ir.DoubleType() if dtype.bitwidth == 64 else ir.FloatType()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:  # noqa: ANN001 (numba's own signature)
        super().__init__(dmm, fe_type, ir.VectorType(_real(fe_type.dtype), fe_type.lanes))


# ---------------------------------------------------------------- arithmetic


def _arithmetic(symbol: Callable, instruction: str) -> None:
    @infer_global(symbol)
    class Typed(AbstractTemplate):
        def generic(self, args, kws):  # noqa: ANN001, ANN202
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(symbol, Vector, Vector)
    def lowered(context, builder, sig, args):  # noqa: ANN001, ANN202
        return getattr(builder, instruction)(*args, flags=_CONTRACT)


for _symbol, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _arithmetic(_symbol, _instruction)


# ---------------------------------------------------------------- memory


def _address(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())


def _loader(whole: bool) -> Callable:
    @intrinsic
    def load(typingctx, pointer, index):  # noqa: ANN001, ANN202
        dtype = pointer.dtype
        vector = Vector(dtype, _LINE_BYTES * 8 // dtype.bitwidth if whole else 1)

        def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
            place = _address(builder, *args, context.get_value_type(vector))
            return builder.load(place, align=dtype.bitwidth // 8)

        return vector(pointer, types.int64), codegen

    return load


load, load_one = _loader(True), _loader(False)


@intrinsic
def store(typingctx, pointer, index, vector):  # noqa: ANN001, ANN201
    """Write the numbers of ``vector`` from element ``index`` on."""
    if not isinstance(vector, Vector) or vector.dtype != pointer.dtype:
        raise errors.TypingError(f"a {vector} cannot be stored through a {pointer}")

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        place = _address(builder, args[0], args[1], args[2].type)
        builder.store(args[2], place, align=vector.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, vector), codegen


@intrinsic
def lanes_of(typingctx, pointer):  # noqa: ANN001, ANN201
    """How many numbers :func:`load` reads through this pointer."""
    lanes = _LINE_BYTES * 8 // pointer.dtype.bitwidth

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        return ir.Constant(ir.IntType(64), lanes)

    return types.int64(pointer), codegen


def _splat(builder: ir.IRBuilder, number: ir.Value, lanes: int) -> ir.Value:
    kind, i32 = ir.VectorType(number.type, lanes), ir.IntType(32)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, i32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))


@intrinsic
def spread(typingctx, like, number):  # noqa: ANN001, ANN201
    """The vector, as long as ``like``, of which every number is ``number``."""

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        return _splat(builder, context.cast(builder, args[1], number, like.dtype), like.lanes)

    return like(like, number), codegen


@intrinsic
def total(typingctx, vector):  # noqa: ANN001, ANN201
    """The sum of the numbers of a vector, always added in the same order: halves onto halves."""

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        i32, (value,), lanes = ir.IntType(32), args, vector.lanes
        while lanes > 1:
            lanes //= 2
            order = lambda first: ir.Constant(ir.VectorType(i32, lanes), [first + k for k in range(lanes)])
            low, high = (builder.shuffle_vector(value, value, order(first)) for first in (0, lanes))
            value = builder.fadd(low, high)
        return builder.extract_element(value, i32(0))

    return vector.dtype(vector), codegen


# ---------------------------------------------------------------- exponential

_POWERS = {
    32: (
        0.6931471880262288,
        0.24022650760568126,
        0.05550357114219078,
        0.009618082557277854,
        0.0013390863364671215,
        0.00015453162945119471,
    ),
    64: (
        0.6931471805599453,
        0.24022650695910097,
        0.05550410866482159,
        0.009618129107606893,
        0.0013333558146417868,
        0.00015403530441745252,
        1.5252733828937739e-05,
        1.3215442578805038e-06,
        1.0178062839675945e-07,
        7.072588017007814e-09,
        4.4548968925469486e-10,
    ),
}
"""By bits of the dtype: coefficients of (2^f - 1)/f on [-1/2, 1/2], by interpolation in Chebyshev's points."""
_FRACTION_BITS, _EXPONENT_LIMIT = {32: 23, 64: 52}, {32: (-126.0, 127.0), 64: (-1022.0, 1023.0)}


@intrinsic
def exp2(typingctx, vector):  # noqa: ANN001, ANN201
    """2^x of every number, to two units in the last place; exactly 1 at 0; NaN stays NaN.

    x is first brought into the range of normal numbers, so where 2^x would underflow the smallest of these
    (1e-38 in float32) comes back instead of zero.
    """
    bits, kind = vector.dtype.bitwidth, _real(vector.dtype)

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        fixed = lambda value: ir.Constant(ir.VectorType(kind, vector.lanes), [kind(value)] * vector.lanes)
        whole = ir.VectorType(ir.IntType(bits), vector.lanes)
        plus = lambda a, b: builder.fadd(a, b, flags=_CONTRACT)
        times = lambda a, b: builder.fmul(a, b, flags=_CONTRACT)
        (x,) = args
        low, high = (fixed(limit) for limit in _EXPONENT_LIMIT[bits])
        x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
        x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
        # A number this large has no bits behind the point: adding it rounds x to an integer, which then stands in
        # the lowest bits, and shifting those into the exponent's place drops everything else of it.
        magic = fixed(1.5 * 2.0 ** _FRACTION_BITS[bits])
        rounded = builder.fadd(x, magic)
        f = builder.fsub(x, builder.fsub(rounded, magic))
        p = fixed(_POWERS[bits][-1])
        for coefficient in reversed(_POWERS[bits][:-1]):
            p = plus(times(p, f), fixed(coefficient))
        p = plus(times(p, f), fixed(1.0))
        shift = ir.Constant(whole, [ir.IntType(bits)(_FRACTION_BITS[bits])] * vector.lanes)
        scale = builder.shl(builder.bitcast(rounded, whole), shift)
        return builder.bitcast(builder.add(builder.bitcast(p, whole), scale), x.type)

    return vector(vector), codegen
