"""The two kernels of `compiled_norm_swish`."""

from __future__ import annotations

from llvmlite import ir

from thousandfold.models.norm_swish import LAYER_NORM_EPS
from thousandfold.models.vector_code import Floats, MachineCode, Writer


def compile_kernels(width: int, rounded: bool) -> MachineCode:
    """Return the functions ``forward`` and ``backward`` for rows of one width.

    Args:
        width: numbers in a row, a multiple of `LANES`.
        rounded: whether rows are kept in bfloat16.
    """
    module = ir.Module()
    _write_forward(Writer(module, "forward"), width, rounded)
    _write_backward(Writer(module, "backward"), width, rounded)
    return MachineCode(module)


def _write_forward(code: Writer, width: int, rounded: bool) -> None:
    """Arguments: rows; addresses of the products, the Dense's bias, w, b, the moments (2, rows) and y."""
    rows = code.argument(2)
    products, outputs = (code.rows_at(index, width, rounded) for index in (3, 8))
    shift, weight, bias, moments = (code.floats_at(index) for index in (4, 5, 6, 7))
    scratch, columns = code.scratch(width), code.integer(width)
    with code.parts() as part, code.share(part, code.integer(0), rows) as row:
        total = code.accumulator()
        with code.vectors(columns) as column:
            shifted = products.load(row, column) + shift.load(column)
            scratch.store(shifted, column)
            total.add(shifted)
        mean = code.scaled(total.sum(), 1.0 / width)
        squares = code.accumulator()
        with code.vectors(columns) as column:
            apart = scratch.load(column) - code.splat(mean)
            squares.add(apart * apart)
        variance = code.splat(code.scaled(squares.sum(), 1.0 / width))
        reciprocal = code.constant(1.0) / code.root(variance + code.constant(LAYER_NORM_EPS))
        moments.store_one(mean, row)
        moments.store_one(code.first(reciprocal), code.builder.add(rows, row))
        with code.vectors(columns) as column:
            unit = (scratch.load(column) - code.splat(mean)) * reciprocal
            normed = unit * weight.load(column) + bias.load(column)
            outputs.store(normed * code.sigmoid(normed), row, column)
    code.builder.ret_void()


def _write_backward(code: Writer, width: int, rounded: bool) -> None:
    """Arguments: rows, frozen rows; addresses of what the forward pass had but for y, of ∂y, ∂x and the sums.

    The sums are (3, parts, width): of ∂w, ∂b and ∂x over the rows of a part that are not frozen.
    """
    rows, frozen = code.argument(2), code.argument(3)
    products, upstream, results = (code.rows_at(index, width, rounded) for index in (4, 9, 10))
    shift, weight, bias, moments, sums = (code.floats_at(index) for index in (5, 6, 7, 8, 11))
    scratch, columns = code.scratch(width), code.integer(width)

    def of_row(row: ir.Value, summed: list[ir.Value]) -> None:
        mean = code.splat(moments.load_one(row))
        reciprocal = code.splat(moments.load_one(code.builder.add(rows, row)))
        total, aligned = code.accumulator(), code.accumulator()
        with code.vectors(columns) as column:
            unit = (products.load(row, column) + shift.load(column) - mean) * reciprocal
            normed = unit * weight.load(column) + bias.load(column)
            sigmoid, one = code.sigmoid(normed), code.constant(1.0)
            before_swish = upstream.load(row, column) * sigmoid * (one + normed * (one - sigmoid))
            if summed:
                sums.add(before_swish * unit, code.builder.add(summed[0], column))
                sums.add(before_swish, code.builder.add(summed[1], column))
            scaled = before_swish * weight.load(column)
            scratch.store(scaled, column)
            total.add(scaled)
            aligned.add(scaled * unit)
        centre = code.splat(code.scaled(total.sum(), 1.0 / width))
        slope = code.splat(code.scaled(aligned.sum(), 1.0 / width))
        with code.vectors(columns) as column:
            unit = (products.load(row, column) + shift.load(column) - mean) * reciprocal
            result = reciprocal * (scratch.load(column) - centre - unit * slope)
            if summed:
                sums.add(result, code.builder.add(summed[2], column))
            results.store(result, row, column)

    with code.parts() as part:
        with code.share(part, code.integer(0), frozen) as row:
            of_row(row, [])
        with code.builder.if_then(code.builder.icmp_signed("<", frozen, rows)):
            summed = _write_zero_sums(code, sums, part, width)
            with code.share(part, frozen, rows) as row:
                of_row(row, summed)
    code.builder.ret_void()


def _write_zero_sums(code: Writer, sums: Floats, part: ir.Value, width: int) -> list[ir.Value]:
    """Begin the three sums of a part, of (3, parts, width), at zero; return where each of them lies."""
    kinds = [code.builder.mul(code.argument(1), code.integer(kind)) for kind in range(3)]
    places = [code.builder.add(kind, part) for kind in kinds]
    blocks = [code.builder.mul(place, code.integer(width)) for place in places]
    with code.vectors(code.integer(width)) as column:
        for block in blocks:
            sums.store(code.constant(0.0), code.builder.add(block, column))
    return blocks
