"""Functions on vectors of float32 numbers, written in LLVM's intermediate representation.

Numbers are computed `LANES` at a time. A function is given one pointer, to 64-bit integers: the next part of
its work, the number of parts, and arguments of its own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from thousandfold.models.compiled_kernels import LANES

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_SHORTS, _INTEGERS, _FLOATS = (ir.VectorType(each, LANES) for each in (_I16, _I32, _F32))
# 2ʳ for |r| ≤ ½: after the seventh order of its Taylor series comes less than float32's rounding.
_POWER_OF_TWO = [math.log(2.0) ** k / math.factorial(k) for k in range(8)]
_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127


class MachineCode:
    """The functions of a module, compiled for this processor.

    Args:
        module: what was written; the functions that are asked for by name are in it.

    Raises:
        RuntimeError: LLVM does not compile it for this processor.
    """

    def __init__(self, module: ir.Module) -> None:
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

    def address(self, name: str) -> int:
        """Return where a function begins."""
        return self._engine.get_function_address(name)


class Vector:
    """`LANES` float32 numbers of a function that is being written, with Python's operators."""

    def __init__(self, builder: Any, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: Vector) -> Vector:
        return self._with(self.builder.fadd, other)

    def __sub__(self, other: Vector) -> Vector:
        return self._with(self.builder.fsub, other)

    def __mul__(self, other: Vector) -> Vector:
        return self._with(self.builder.fmul, other)

    def __truediv__(self, other: Vector) -> Vector:
        return self._with(self.builder.fdiv, other)

    def _with(self, operation: Callable[..., ir.Value], other: Vector) -> Vector:
        # A product and a sum may become one instruction, which rounds once.
        return Vector(self.builder, operation(self.value, other.value, flags=("contract",)))


class Floats:
    """float32 numbers in memory."""

    def __init__(self, code: Writer, address: ir.Value) -> None:
        self._code, self._address = code, address

    def load(self, index: ir.Value) -> Vector:
        """Return a vector from there."""
        pointer = self._code.pointer(self._address, index, _F32)
        return Vector(self._code.builder, self._code.builder.load(pointer, typ=_FLOATS, align=4))

    def store(self, vector: Vector, index: ir.Value) -> None:
        """Write a vector there."""
        self._code.builder.store(vector.value, self._code.pointer(self._address, index, _F32), align=4)

    def add(self, vector: Vector, index: ir.Value) -> None:
        """Add a vector to what is there."""
        self.store(self.load(index) + vector, index)

    def load_one(self, index: ir.Value) -> ir.Value:
        """Return the number there."""
        return self._code.builder.load(self._code.pointer(self._address, index, _F32), typ=_F32)

    def store_one(self, value: ir.Value, index: ir.Value) -> None:
        """Write a number there."""
        self._code.builder.store(value, self._code.pointer(self._address, index, _F32))

    def add_one(self, value: ir.Value, index: ir.Value) -> None:
        """Add a number to what is there."""
        self.store_one(self._code.builder.fadd(self.load_one(index), value), index)


class Rows:
    """Rows in memory, float32 or bfloat16, which is float32's upper half."""

    def __init__(self, code: Writer, address: ir.Value, width: int, rounded: bool) -> None:
        self._code, self._address, self._width, self._rounded = code, address, width, rounded

    def load(self, row: ir.Value, column: ir.Value) -> Vector:
        """Return a vector from a row."""
        builder, pointer = self._code.builder, self._pointer(row, column)
        if not self._rounded:
            return Vector(builder, builder.load(pointer, typ=_FLOATS, align=4))
        upper = builder.zext(builder.load(pointer, typ=_SHORTS, align=2), _INTEGERS)
        return Vector(builder, builder.bitcast(builder.shl(upper, _every(16)), _FLOATS))

    def store(self, vector: Vector, row: ir.Value, column: ir.Value) -> None:
        """Write a vector to a row."""
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
        index = builder.add(builder.mul(row, self._code.integer(self._width)), column)
        return self._code.pointer(self._address, index, _I16 if self._rounded else _F32)


class Accumulator:
    """A sum, or the largest, of vectors."""

    def __init__(self, code: Writer, start: float) -> None:
        self._code, self._slot = code, code.allocate(_FLOATS)
        self.set(code.constant(start))

    def set(self, vector: Vector) -> None:
        """Begin anew with a vector."""
        self._code.builder.store(vector.value, self._slot)

    def get(self) -> Vector:
        """Return the vector so far."""
        builder = self._code.builder
        return Vector(builder, builder.load(self._slot, typ=_FLOATS))

    def add(self, vector: Vector) -> None:
        """Add a vector."""
        self.set(self.get() + vector)

    def keep_larger(self, vector: Vector) -> None:
        """Take each lane of a vector that is larger."""
        self.set(self._code.select(self.get(), ">", vector, self.get(), vector))

    def sum(self) -> ir.Value:
        """Return the sum over the lanes, a number."""
        kind = ir.FunctionType(_F32, [_F32, _FLOATS])
        reduce = self._code.declared(f"llvm.vector.reduce.fadd.v{LANES}f32", kind)
        given = [ir.Constant(_F32, 0.0), self.get().value]
        return self._code.builder.call(reduce, given, fastmath=("reassoc",))

    def largest(self) -> ir.Value:
        """Return the largest of the lanes, a number."""
        kind = ir.FunctionType(_F32, [_FLOATS])
        reduce = self._code.declared(f"llvm.vector.reduce.fmax.v{LANES}f32", kind)
        return self._code.builder.call(reduce, [self.get().value])


class Writer:
    """Writes one function of one pointer to integers."""

    def __init__(self, module: ir.Module, name: str) -> None:
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType()])
        self.function = ir.Function(module, kind, name)
        self._entry = self.function.append_basic_block()
        # Slots are allocated in the entry block, which leads to the rest when all is written.
        body = self.function.append_basic_block()
        ir.IRBuilder(self._entry).branch(body)
        # llvmlite's own types say that its builder returns nothing.
        self.builder: Any = ir.IRBuilder(body)

    def allocate(self, kind: ir.Type) -> ir.Value:
        """Return memory of the function's own for one value."""
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
        """Return where an element of an array lies."""
        return self.builder.gep(address, [index], inbounds=True, source_etype=kind)

    def integer(self, value: int) -> ir.Value:
        """Return a 64-bit integer."""
        return ir.Constant(_I64, value)

    def smaller(self, one: ir.Value, other: ir.Value) -> ir.Value:
        """Return the smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", one, other), one, other)

    def constant(self, value: float) -> Vector:
        """Return a constant in every lane."""
        return Vector(self.builder, _every(value))

    def splat(self, number: ir.Value) -> Vector:
        """Return a number in every lane."""
        one = self.builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, ir.Constant(_I32, 0))
        lanes = ir.Constant(_INTEGERS, [0] * LANES)
        return Vector(self.builder, self.builder.shuffle_vector(one, one, lanes))

    def first(self, vector: Vector) -> ir.Value:
        """Return the number in the first lane."""
        return self.builder.extract_element(vector.value, ir.Constant(_I32, 0))

    def scaled(self, number: ir.Value, factor: float) -> ir.Value:
        """Return a number times a constant."""
        return self.builder.fmul(number, ir.Constant(_F32, factor))

    def root(self, x: Vector) -> Vector:
        """Return √x."""
        function = self.declared(f"llvm.sqrt.v{LANES}f32", ir.FunctionType(_FLOATS, [_FLOATS]))
        return Vector(self.builder, self.builder.call(function, [x.value]))

    def select(self, left: Vector, comparison: str, right: Vector, this: Vector, other: Vector) -> Vector:
        """Return `this` where left and right compare so, `other` elsewhere, and where one of them is NaN."""
        holds = self.builder.fcmp_ordered(comparison, left.value, right.value)
        return Vector(self.builder, self.builder.select(holds, this.value, other.value))

    def sigmoid(self, x: Vector) -> Vector:
        """Return 1/(1 + e⁻ˣ)."""
        one = self.constant(1.0)
        return one / (one + self.exp(x * self.constant(-1.0)))

    def exp(self, x: Vector) -> Vector:
        """Return eˣ = 2ᵗ for t = x/ln 2, held where 2ᵗ is a normal number."""
        builder = self.builder
        t = x * self.constant(1.0 / math.log(2.0))
        for beyond, bound in (("<", -126.0), (">", 126.0)):
            # NaN stays.
            t = self.select(t, beyond, self.constant(bound), self.constant(bound), t)
        # What NaN is as an integer is undefined. Truncation of a positive number rounds down; + ½ makes that
        # to the nearest.
        number = builder.select(builder.fcmp_ordered("ord", t.value, t.value), t.value, _every(0.0))
        moved = Vector(builder, number) + self.constant(_EXPONENT_BIAS + 0.5)
        biased = builder.fptosi(moved.value, _INTEGERS)
        rest = t - (Vector(builder, builder.sitofp(biased, _FLOATS)) - self.constant(float(_EXPONENT_BIAS)))
        power = self.constant(_POWER_OF_TWO[-1])
        for coefficient in reversed(_POWER_OF_TWO[:-1]):
            power = power * rest + self.constant(coefficient)
        whole = builder.bitcast(builder.shl(biased, _every(_MANTISSA_BITS)), _FLOATS)
        return power * Vector(builder, whole)

    def argument(self, index: int) -> ir.Value:
        """Return an integer that the function was given."""
        pointer = self.pointer(self.function.args[0], self.integer(index), _I64)
        return self.builder.load(pointer, typ=_I64)

    def floats_at(self, index: int) -> Floats:
        """Return the numbers whose address is an argument."""
        return Floats(self, self.builder.inttoptr(self.argument(index), ir.PointerType()))

    def rows_at(self, index: int, width: int, rounded: bool) -> Rows:
        """Return the rows of `width` numbers whose address is an argument."""
        return Rows(self, self.builder.inttoptr(self.argument(index), ir.PointerType()), width, rounded)

    def scratch(self, count: int) -> Floats:
        """Return memory of the function's own for so many numbers."""
        return Floats(self, self.allocate(ir.ArrayType(_F32, count)))

    def accumulator(self, start: float = 0.0) -> Accumulator:
        """Return an accumulator with `start` in every lane."""
        return Accumulator(self, start)

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

    def vectors(self, count: ir.Value) -> Any:
        """Write a loop over the vectors of so many numbers; its index counts numbers."""
        return self.loop(self.integer(0), count, LANES)

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
