"""The two kernels of `compiled_info_nce`."""

from __future__ import annotations

import math

from llvmlite import ir

from thousandfold.models.compiled_kernels import LANES
from thousandfold.models.vector_code import Floats, MachineCode, Vector, Writer

# Sums of squares that are held in registers at a time: those of so many rows and a vector of columns.
_ROWS_AT_A_TIME = 8


def compile_kernels(dim: int) -> MachineCode:
    """Return the functions ``forward`` and ``backward`` for embeddings of `dim` numbers."""
    module = ir.Module()
    _write_forward(Writer(module, "forward"), dim)
    _write_backward(Writer(module, "backward"))
    return MachineCode(module)


def _write_forward(code: Writer, dim: int) -> None:
    """Arguments: rows, stride, first; addresses of rows and columns of embeddings, energies and statistics.

    Columns are read (stride / LANES, dim, LANES). Energies are written (rows, stride), −‖row − column‖₂, and
    of each row in (5, rows): that of its own column, which is first + row; the largest; Σ exp(e − largest);
    how many are not below its own; their sum, without those of −∞.
    """
    builder = code.builder
    rows, stride = code.argument(2), code.argument(3)
    embeddings, columns, energies, statistics = (code.floats_at(index) for index in (5, 6, 7, 8))
    at_a_time = code.integer(_ROWS_AT_A_TIME)
    blocks = builder.sdiv(builder.add(rows, code.integer(_ROWS_AT_A_TIME - 1)), at_a_time)
    with code.parts() as part, code.share(part, code.integer(0), blocks) as block:
        start = builder.mul(block, at_a_time)
        last = code.smaller(builder.add(start, at_a_time), rows)
        # The last block computes the last row again in the place of rows that there are not.
        of_block = [
            code.smaller(builder.add(start, code.integer(each)), builder.sub(rows, code.integer(1)))
            for each in range(_ROWS_AT_A_TIME)
        ]
        with code.vectors(stride) as column:
            sums = [code.accumulator() for _ in of_block]
            panel = builder.mul(column, code.integer(dim))
            with code.loop(code.integer(0), code.integer(dim)) as index:
                own = columns.load(builder.add(panel, builder.mul(index, code.integer(LANES))))
                for row, total in zip(of_block, sums, strict=True):
                    place = builder.add(builder.mul(row, code.integer(dim)), index)
                    apart = own - code.splat(embeddings.load_one(place))
                    total.add(apart * apart)
            for row, total in zip(of_block, sums, strict=True):
                energy = code.constant(0.0) - code.root(total.get())
                energies.store(energy, builder.add(builder.mul(row, stride), column))
        with code.loop(start, last) as row:
            _write_statistics(code, energies, statistics, row)
    builder.ret_void()


def _write_statistics(code: Writer, energies: Floats, statistics: Floats, row: ir.Value) -> None:
    builder = code.builder
    rows, stride, first = (code.argument(index) for index in (2, 3, 4))
    begin, zero, infinite = builder.mul(row, stride), code.constant(0.0), code.constant(-math.inf)
    positive = energies.load_one(builder.add(begin, builder.add(first, row)))
    largest, not_below = code.accumulator(-math.inf), code.accumulator()
    total, exponentials = code.accumulator(), code.accumulator()
    with code.vectors(stride) as column:
        energy = energies.load(builder.add(begin, column))
        largest.keep_larger(energy)
        not_below.add(code.select(energy, ">=", code.splat(positive), code.constant(1.0), zero))
        total.add(code.select(energy, "==", infinite, zero, energy))
    most = largest.largest()
    with code.vectors(stride) as column:
        exponentials.add(code.exp(energies.load(builder.add(begin, column)) - code.splat(most)))
    for kind, number in enumerate((positive, most, exponentials.sum(), not_below.sum(), total.sum())):
        statistics.store_one(number, builder.add(builder.mul(rows, code.integer(kind)), row))


def _write_backward(code: Writer) -> None:
    """Arguments: rows, stride, first; addresses of energies, of logarithms and two gradients.

    The logarithms of the rows' sums of exponentials, and the gradients with respect to the rows' positives
    and to the logarithms, are (rows,). Each energy gives way to the gradient with respect to it, divided by
    it, and 0 where it is 0.
    """
    builder = code.builder
    rows, stride, first = (code.argument(index) for index in (2, 3, 4))
    energies, logarithms, of_positive, of_logarithm = (code.floats_at(index) for index in (5, 6, 7, 8))
    zero = code.constant(0.0)

    def divided(gradient: Vector, energy: Vector) -> Vector:
        return code.select(energy, "==", zero, zero, gradient / energy)

    with code.parts() as part, code.share(part, code.integer(0), rows) as row:
        begin, own = builder.mul(row, stride), builder.add(first, row)
        logarithm, factor = code.splat(logarithms.load_one(row)), code.splat(of_logarithm.load_one(row))
        positive = code.splat(energies.load_one(builder.add(begin, own)))
        beside = code.first(divided(code.splat(of_positive.load_one(row)), positive))
        with code.vectors(stride) as column:
            place = builder.add(begin, column)
            energy = energies.load(place)
            energies.store(divided(factor * code.exp(energy - logarithm), energy), place)
        energies.add_one(beside, builder.add(begin, own))
    builder.ret_void()
