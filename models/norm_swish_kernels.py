"""The two kernels of `compiled_norm_swish`, written in LLVM's intermediate representation.

Numbers are computed `LANES` at a time, in float32. A kernel is a function of one pointer, to 64-bit integers:
the next part to compute, the number of parts, and what `forward` and `backward` list.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from thousandfold.models.norm_swish import LANES, LAYER_NORM_EPS

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_SHORTS, _INTEGERS, _FLOATS = (ir.VectorType(each, LANES) for each in (_I16, _I32, _F32))
# 2ʳ for |r| ≤ ½: after the seventh order of its Taylor series comes less than float32's rounding.
_POWER_OF_TWO = [math.log(2.0) ** k / math.factorial(k) for k in range(8)]
_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127


class Compiled:
    """Machine code of both kernels for rows of one width.

    Args:
        width: numbers in a row, a multiple of `LANES`.
        rounded: whether rows are kept in bfloat16.

    Attributes:
        forward, backward: addresses of the kernels.
    """

    def __init__(self, width: int, rounded: bool) -> None:
        module = ir.Module()
        _write_forward(_Writer(module, "forward", width, rounded))
        _write_backward(_Writer(module, "backward", width, rounded))
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        parsed = llvm.parse_assembly(str(module))
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(parsed, passes)
        # The engine owns the code: it must live as long as the addresses are used.
        self._engine = llvm.create_mcjit_compiler(parsed, machine)
        self._engine.finalize_object()
        self.forward = self._engine.get_function_address("forward")
        self.backward = self._engine.get_function_address("backward")


def _write_forward(code: _Writer) -> None:
    """Arguments: rows; addresses of the products, the Dense's bias, w, b, the moments (2, rows) and y."""
    rows = code.argument(2)
    products, outputs = code.rows_at(3), code.rows_at(8)
    shift, weight, bias, moments = (code.floats_at(index) for index in (4, 5, 6, 7))
    with code.parts() as part, code.share(part, code.integer(0), rows) as row:
        total = code.accumulator()
        with code.columns() as column:
            shifted = products.load(row, column) + shift.load(column)
            code.scratch.store(shifted, column)
            total.add(shifted)
        mean = code.scaled(total.sum(), 1.0 / code.width)
        squares = code.accumulator()
        with code.columns() as column:
            apart = code.scratch.load(column) - code.splat(mean)
            squares.add(apart * apart)
        reciprocal = code.reciprocal_root(code.scaled(squares.sum(), 1.0 / code.width))
        moments.store_one(mean, row)
        moments.store_one(reciprocal, code.builder.add(rows, row))
        with code.columns() as column:
            unit = (code.scratch.load(column) - code.splat(mean)) * code.splat(reciprocal)
            normed = unit * weight.load(column) + bias.load(column)
            outputs.store(normed * code.sigmoid(normed), row, column)
    code.builder.ret_void()


def _write_backward(code: _Writer) -> None:
    """Arguments: rows, frozen rows; addresses of what the forward pass had but for y, of ∂y, ∂x and the sums.

    The sums are (3, parts, width): of ∂w, ∂b and ∂x over the rows of a part that are not frozen.
    """
    rows, frozen = code.argument(2), code.argument(3)
    products, upstream, results = code.rows_at(4), code.rows_at(9), code.rows_at(10)
    shift, weight, bias, moments, sums = (code.floats_at(index) for index in (5, 6, 7, 8, 11))

    def of_row(row: ir.Value, summed: list[ir.Value]) -> None:
        mean = code.splat(moments.load_one(row))
        reciprocal = code.splat(moments.load_one(code.builder.add(rows, row)))
        total, aligned = code.accumulator(), code.accumulator()
        with code.columns() as column:
            unit = (products.load(row, column) + shift.load(column) - mean) * reciprocal
            normed = unit * weight.load(column) + bias.load(column)
            sigmoid, one = code.sigmoid(normed), code.constant(1.0)
            before_swish = upstream.load(row, column) * sigmoid * (one + normed * (one - sigmoid))
            if summed:
                sums.add(before_swish * unit, code.builder.add(summed[0], column))
                sums.add(before_swish, code.builder.add(summed[1], column))
            scaled = before_swish * weight.load(column)
            code.scratch.store(scaled, column)
            total.add(scaled)
            aligned.add(scaled * unit)
        centre = code.splat(code.scaled(total.sum(), 1.0 / code.width))
        slope = code.splat(code.scaled(aligned.sum(), 1.0 / code.width))
        with code.columns() as column:
            unit = (products.load(row, column) + shift.load(column) - mean) * reciprocal
            result = reciprocal * (code.scratch.load(column) - centre - unit * slope)
            if summed:
                sums.add(result, code.builder.add(summed[2], column))
            results.store(result, row, column)

    with code.parts() as part:
        with code.share(part, code.integer(0), frozen) as row:
            of_row(row, [])
        with code.builder.if_then(code.builder.icmp_signed("<", frozen, rows)):
            summed = _write_zero_sums(code, sums, part)
            with code.share(part, frozen, rows) as row:
                of_row(row, summed)
    code.builder.ret_void()


def _write_zero_sums(code: _Writer, sums: _Floats, part: ir.Value) -> list[ir.Value]:
    """Begin the three sums of a part, of (3, parts, width), at zero; return where each of them lies."""
    kinds = [code.builder.mul(code.argument(1), code.integer(kind)) for kind in range(3)]
    places = [code.builder.add(kind, part) for kind in kinds]
    blocks = [code.builder.mul(place, code.integer(code.width)) for place in places]
    with code.columns() as column:
        for block in blocks:
            sums.store(code.constant(0.0), code.builder.add(block, column))
    return blocks


class _Vector:
    """`LANES` float32 numbers of a function that is being written, with Python's operators."""

    def __init__(self, builder: Any, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: _Vector) -> _Vector:
        return self._with(self.builder.fadd, other)

    def __sub__(self, other: _Vector) -> _Vector:
        return self._with(self.builder.fsub, other)

    def __mul__(self, other: _Vector) -> _Vector:
        return self._with(self.builder.fmul, other)

    def __truediv__(self, other: _Vector) -> _Vector:
        return self._with(self.builder.fdiv, other)

    def _with(self, operation: Callable[..., ir.Value], other: _Vector) -> _Vector:
        # A product and a sum may become one instruction, which rounds once.
        return _Vector(self.builder, operation(self.value, other.value, flags=("contract",)))


class _Floats:
    """float32 numbers in memory."""

    def __init__(self, code: _Writer, address: ir.Value) -> None:
        self._code, self._address = code, address

    def load(self, index: ir.Value) -> _Vector:
        pointer = self._code.pointer(self._address, index, _F32)
        return _Vector(self._code.builder, self._code.builder.load(pointer, typ=_FLOATS, align=4))

    def store(self, vector: _Vector, index: ir.Value) -> None:
        self._code.builder.store(vector.value, self._code.pointer(self._address, index, _F32), align=4)

    def add(self, vector: _Vector, index: ir.Value) -> None:
        self.store(self.load(index) + vector, index)

    def load_one(self, index: ir.Value) -> ir.Value:
        return self._code.builder.load(self._code.pointer(self._address, index, _F32), typ=_F32)

    def store_one(self, value: ir.Value, index: ir.Value) -> None:
        self._code.builder.store(value, self._code.pointer(self._address, index, _F32))


class _Rows:
    """Rows in memory, float32 or bfloat16, which is float32's upper half."""

    def __init__(self, code: _Writer, address: ir.Value, rounded: bool) -> None:
        self._code, self._address, self._rounded = code, address, rounded

    def load(self, row: ir.Value, column: ir.Value) -> _Vector:
        builder, pointer = self._code.builder, self._pointer(row, column)
        if not self._rounded:
            return _Vector(builder, builder.load(pointer, typ=_FLOATS, align=4))
        upper = builder.zext(builder.load(pointer, typ=_SHORTS, align=2), _INTEGERS)
        return _Vector(builder, builder.bitcast(builder.shl(upper, _every(16)), _FLOATS))

    def store(self, vector: _Vector, row: ir.Value, column: ir.Value) -> None:
        builder, pointer = self._code.builder, self._pointer(row, column)
        if not self._rounded:
            builder.store(vector.value, pointer, align=4)
            return
        # To the nearest, ties to even: carry into the upper half.
        bits = builder.bitcast(vector.value, _INTEGERS)
        odd = builder.and_(builder.lshr(bits, _every(16)), _every(1))
        carried = builder.add(bits, builder.add(odd, _every(0x7FFF)))
        builder.store(builder.trunc(builder.lshr(carried, _every(16)), _SHORTS), pointer, align=2)

    def _pointer(self, row: ir.Value, column: ir.Value) -> ir.Value:
        builder = self._code.builder
        index = builder.add(builder.mul(row, self._code.integer(self._code.width)), column)
        return self._code.pointer(self._address, index, _I16 if self._rounded else _F32)


class _Accumulator:
    """A sum over columns."""

    def __init__(self, code: _Writer) -> None:
        self._code, self._slot = code, code.allocate(_FLOATS)
        code.builder.store(_every(0.0), self._slot)

    def add(self, vector: _Vector) -> None:
        builder = self._code.builder
        before = _Vector(builder, builder.load(self._slot, typ=_FLOATS))
        builder.store((before + vector).value, self._slot)

    def sum(self) -> ir.Value:
        """Return the sum over the lanes, a number."""
        builder = self._code.builder
        kind = ir.FunctionType(_F32, [_F32, _FLOATS])
        reduce = self._code.declared(f"llvm.vector.reduce.fadd.v{LANES}f32", kind)
        whole = builder.load(self._slot, typ=_FLOATS)
        return builder.call(reduce, [ir.Constant(_F32, 0.0), whole], fastmath=("reassoc",))


class _Writer:
    """Writes one function of one pointer to integers."""

    def __init__(self, module: ir.Module, name: str, width: int, rounded: bool) -> None:
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType()])
        self.function = ir.Function(module, kind, name)
        self._entry = self.function.append_basic_block()
        # Slots are allocated in the entry block, which leads to the rest when all is written.
        body = self.function.append_basic_block()
        ir.IRBuilder(self._entry).branch(body)
        # llvmlite's own types say that its builder returns nothing.
        self.builder: Any = ir.IRBuilder(body)
        self.width, self._rounded = width, rounded
        self.scratch = _Floats(self, self.allocate(ir.ArrayType(_F32, width)))

    def allocate(self, kind: ir.Type) -> ir.Value:
        builder: Any = ir.IRBuilder(self._entry)
        builder.position_at_start(self._entry)
        slot = builder.alloca(kind)
        slot.type = ir.PointerType()  # opaque, as LLVM has it: what is stored says what it is
        return slot

    def declared(self, name: str, kind: ir.FunctionType) -> ir.Function:
        """Return a function of LLVM's by name."""
        module = self.function.module
        return module.globals.get(name) or ir.Function(module, kind, name)

    def pointer(self, address: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
        return self.builder.gep(address, [index], inbounds=True, source_etype=kind)

    def integer(self, value: int) -> ir.Value:
        return ir.Constant(_I64, value)

    def constant(self, value: float) -> _Vector:
        return _Vector(self.builder, _every(value))

    def splat(self, number: ir.Value) -> _Vector:
        """Return a number in every lane."""
        one = self.builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, ir.Constant(_I32, 0))
        lanes = ir.Constant(_INTEGERS, [0] * LANES)
        return _Vector(self.builder, self.builder.shuffle_vector(one, one, lanes))

    def scaled(self, number: ir.Value, factor: float) -> ir.Value:
        return self.builder.fmul(number, ir.Constant(_F32, factor))

    def reciprocal_root(self, variance: ir.Value) -> ir.Value:
        """Return 1/√(variance + ε)."""
        root = self.declared("llvm.sqrt.f32", ir.FunctionType(_F32, [_F32]))
        moved = self.builder.fadd(variance, ir.Constant(_F32, LAYER_NORM_EPS))
        return self.builder.fdiv(ir.Constant(_F32, 1.0), self.builder.call(root, [moved]))

    def sigmoid(self, x: _Vector) -> _Vector:
        """Return 1/(1 + 2ᵗ) for t = −x/ln 2, held where 2ᵗ is a normal number."""
        builder, one = self.builder, self.constant(1.0)
        t = x * self.constant(-1.0 / math.log(2.0))
        for beyond, bound in (("<", -126.0), (">", 126.0)):
            # False for NaN, which stays.
            outside = builder.fcmp_ordered(beyond, t.value, _every(bound))
            t = _Vector(builder, builder.select(outside, _every(bound), t.value))
        # What NaN is as an integer is undefined. Truncation of a positive number rounds down; + ½ makes that
        # to the nearest.
        number = builder.select(builder.fcmp_ordered("ord", t.value, t.value), t.value, _every(0.0))
        moved = _Vector(builder, number) + self.constant(_EXPONENT_BIAS + 0.5)
        biased = builder.fptosi(moved.value, _INTEGERS)
        rest = t - (_Vector(builder, builder.sitofp(biased, _FLOATS)) - self.constant(float(_EXPONENT_BIAS)))
        power = self.constant(_POWER_OF_TWO[-1])
        for coefficient in reversed(_POWER_OF_TWO[:-1]):
            power = power * rest + self.constant(coefficient)
        whole = builder.bitcast(builder.shl(biased, _every(_MANTISSA_BITS)), _FLOATS)
        return one / (one + power * _Vector(builder, whole))

    def argument(self, index: int) -> ir.Value:
        pointer = self.pointer(self.function.args[0], self.integer(index), _I64)
        return self.builder.load(pointer, typ=_I64)

    def floats_at(self, index: int) -> _Floats:
        """Return the numbers whose address is an argument."""
        return _Floats(self, self.builder.inttoptr(self.argument(index), ir.PointerType()))

    def rows_at(self, index: int) -> _Rows:
        """Return the rows whose address is an argument."""
        return _Rows(self, self.builder.inttoptr(self.argument(index), ir.PointerType()), self._rounded)

    def accumulator(self) -> _Accumulator:
        return _Accumulator(self)

    @contextlib.contextmanager
    def loop(self, first: ir.Value, last: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """Write what follows as the body of a loop; its index is given."""
        builder, slot = self.builder, self.allocate(_I64)
        builder.store(first, slot)
        condition, body, after = (self.function.append_basic_block() for _ in range(3))
        builder.branch(condition)
        builder.position_at_end(condition)
        index = builder.load(slot, typ=_I64)
        builder.cbranch(builder.icmp_signed("<", index, last), body, after)
        builder.position_at_end(body)
        yield index
        builder.store(builder.add(index, self.integer(step)), slot)
        builder.branch(condition)
        builder.position_at_end(after)

    def columns(self) -> Any:
        """Write a loop over the vectors of a row; its index counts numbers."""
        return self.loop(self.integer(0), self.integer(self.width), LANES)

    @contextlib.contextmanager
    def share(self, part: ir.Value, first: ir.Value, last: ir.Value) -> Iterator[ir.Value]:
        """Write a loop over a part's share of some rows."""
        builder, count = self.builder, self.argument(1)
        rows = builder.sub(last, first)

        def bound(number: ir.Value) -> ir.Value:
            return builder.add(first, builder.sdiv(builder.mul(rows, number), count))

        with self.loop(bound(part), bound(builder.add(part, self.integer(1)))) as row:
            yield row

    @contextlib.contextmanager
    def parts(self) -> Iterator[ir.Value]:
        """Write a loop that takes numbers of parts from the counter, which is shared, until none is left."""
        builder, count = self.builder, self.argument(1)
        take, body, after = (self.function.append_basic_block() for _ in range(3))
        builder.branch(take)
        builder.position_at_end(take)
        part = builder.atomic_rmw("add", self.function.args[0], self.integer(1), "monotonic")
        builder.cbranch(builder.icmp_signed("<", part, count), body, after)
        builder.position_at_end(body)
        yield part
        builder.branch(take)
        builder.position_at_end(after)


def _every(value: float) -> ir.Constant:
    """Return a constant in every lane: integers for an int, float32 for a float."""
    return ir.Constant(_INTEGERS if isinstance(value, int) else _FLOATS, [value] * LANES)
