"""Scales, ticks, and charts: every position lies in the drawing, and every label says the value beside it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from thousandfold.stages.report.charts import (
    Curve,
    Range,
    curve_chart,
    descent_lanes,
    frontier_chart,
    lineage_gutter,
    networks_chart,
    range_chart,
)
from thousandfold.stages.report.svg_plot import Scale, even_ticks, log_ticks, scale_over, thinned, tick_label


def numbers_of(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(str(element.get(name))) for name in names if element.get(name) is not None]


def drawing_of(chart: str) -> ElementTree.Element:
    """Return a chart, parsed, after a look that nothing reaches over its edges."""
    root = ElementTree.fromstring(chart)
    _, _, width, height = (float(part) for part in str(root.get("viewBox")).split())
    for element in root.iter():
        across, down = numbers_of(element, "x", "x1", "x2", "cx"), numbers_of(element, "y", "y1", "y2", "cy")
        if steps := element.get("d"):
            pairs = [float(number) for number in re.findall(r"-?[\d.]+", steps)]
            across, down = across + pairs[::2], down + pairs[1::2]
        if element.tag == "text":
            length = 7.0 * len(str(element.text))  # of text at the size of ticks
            before = {"start": 0.0, "middle": 0.5, "end": 1.0}[str(element.get("text-anchor"))] * length
            across = [across[0] - before, across[0] - before + length]
        assert all(0 <= value <= width for value in across), (element.attrib, element.text)
        assert all(0 <= value <= height for value in down), element.attrib
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [str(element.text) for element in root.iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.95, 1.0, [0.95, 0.96, 0.97, 0.98, 0.99, 1.0]),
        (-3.0, 12.0, [-2.5, 0.0, 2.5, 5.0, 7.5, 10.0]),
        (0.0, 1e6, [0.0, 2e5, 4e5, 6e5, 8e5, 1e6]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert even_ticks(low, high) == expected


def test_logarithmic_ticks_are_thinner_over_many_decades() -> None:
    assert log_ticks(6.0, 60.0) == [10.0, 20.0, 50.0]
    assert log_ticks(5.0, 1e5) == [10.0, 100.0, 1e3, 1e4, 1e5]


def test_positions_follow_values() -> None:
    assert Scale(0.0, 10.0, 100.0, 0.0).at(2.5) == 75.0
    log = Scale(1.0, 100.0, 0.0, 300.0, log=True)
    assert log.at(10.0) == pytest.approx(150.0)
    assert log.at(1e6) == 300.0  # beyond the end
    flat = scale_over([2.0, 2.0], 0.0, 1.0)
    assert flat.low < 2.0 < flat.high


def test_long_numbers_are_short_labels() -> None:
    assert [tick_label(value) for value in (0.5, 100.0, 250_000.0, 0.00125, -4e-5, 0.0)] == [
        "0.5", "100", "250k", "1.25e-3", "-4e-5", "0",
    ]  # fmt: skip
    assert [tick_label(value, 3) for value in (1234.5, 0.000131, 42.63)] == ["1.23k", "1.31e-4", "42.6"]


def test_a_thinned_curve_keeps_its_ends() -> None:
    points = [(float(k), float(k)) for k in range(5001)]
    kept = thinned(points)
    assert len(kept) <= 401 and kept[0] == points[0] and kept[-1] == points[-1]
    assert thinned(points[:7]) == points[:7]


def test_a_curve_ends_at_its_last_value_within_its_band() -> None:
    points = [(100.0 * k, 0.1 * k) for k in range(1, 9)]
    low, high = ([(x, y + d) for x, y in points] for d in (-0.1, 0.1))
    root = drawing_of(curve_chart(Curve("success", points, low, high, is_fraction=True), "steps"))
    assert "0.800" in texts(root) and "success" in texts(root) and "steps" in texts(root)
    assert {"band", "curve", "mark"} <= {str(element.get("class")) for element in root.iter()}


@pytest.mark.parametrize(
    "points",
    [[(5.0, 1.0)], [(0.0, 0.0), (0.0, 0.0)], [(1.0, -4.0), (2.0, 1e9)], [(1.0, 0.00129), (5.0, 0.000131)]],
)
def test_odd_curves_are_drawn(points: list[tuple[float, float]]) -> None:
    chart = curve_chart(Curve("loss", points), "updates")
    root = drawing_of(chart)
    assert not re.search(r"\b(nan|inf)\b", chart)
    assert tick_label(points[-1][1], 3) in texts(root), "its last value stands beside its end"
    assert sum(element.get("class") == "mark" for element in root.iter("circle")) == len(points)


def test_a_row_of_a_range_chart_lies_where_its_values_are() -> None:
    rows = [Range("a", "0.900", 0.9, (0.8, 0.95)), Range("b", "0.700", 0.7, (0.6, 0.8), (0.5, 0.9), True)]
    root = drawing_of(range_chart(rows, "success", top_value=1.0))
    dots = {str(each.get("class")): float(str(each.get("cx"))) for each in root.iter("circle")}
    thick = [each for each in root.iter("line") if "thick" in str(each.get("class"))]
    assert dots["dot student"] < dots["dot other"]
    assert float(str(thick[0].get("x1"))) < dots["dot other"] < float(str(thick[0].get("x2")))
    assert "a: 0.900; b: 0.700" in str(root.get("aria-label"))


def test_a_reference_is_marked_beside_the_rows() -> None:
    rows = [Range("calls", "p50 10", 10.0, (10.0, 20.0))]
    root = drawing_of(range_chart(rows, "µs", log=True, reference=(100.0, "period 100 µs")))
    (mark,) = [each for each in root.iter("line") if each.get("class") == "reference"]
    assert "period 100 µs" in texts(root)
    assert float(str(mark.get("x1"))) > max(float(str(each.get("cx"))) for each in root.iter("circle"))


def test_a_frontier_marks_front_teacher_and_the_chosen_student() -> None:
    def student(depth: int, p99: float, on_front: bool) -> dict[str, object]:
        measured = {"retention": 0.9 + depth / 100, "retention_interval": [0.85, 0.99]}
        return measured | {"depth": depth, "width": 32, "p99_us": p99, "on_front": on_front}

    rows = [student(1, 6.0, True), student(4, 20.0, True), student(2, 30.0, False), {"p99_us": None}]
    teacher = {"depth": 16, "width": 128, "p99_us": 50.0, "success": 0.9}
    root = drawing_of(frontier_chart({"rows": rows, "teacher": teacher}, (4, 32)))
    kinds = [str(each.get("class")) for each in root.iter("circle")]
    assert kinds.count("dot student") == 2 and kinds.count("dot hollow") == 1 and kinds.count("ring") == 1
    assert "teacher 16 × 128" in texts(root)


def test_networks_are_drawn_to_scale() -> None:
    root = drawing_of(networks_chart([("teacher", 16, 128, False), ("student", 4, 32, True)]))
    layers = {
        kind: [e for e in root.iter("line") if kind in str(e.get("class"))] for kind in ("other", "student")
    }
    assert [len(found) for found in layers.values()] == [16, 4]
    lengths = [float(str(e[0].get("x2"))) - float(str(e[0].get("x1"))) for e in layers.values()]
    assert lengths[0] / lengths[1] == pytest.approx(4.0, rel=0.01)


def test_a_thousand_layers_are_one_block() -> None:
    root = drawing_of(networks_chart([("teacher", 1024, 64, False), ("student", 4, 64, True)]))
    blocks = [element for element in root.iter("path") if "block" in str(element.get("class"))]
    assert len(blocks) == 1 and "teacher: 1024 layers of 64 units" in str(root.get("aria-label"))


def test_lines_of_descent_that_run_beside_one_another_have_lanes_of_their_own() -> None:
    edges = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (3, 4), (3, 5)]
    lanes = descent_lanes(edges)
    assert {edge for edge, lane in lanes.items() if lane == 0} == {(0, 1), (1, 2), (2, 3), (3, 4)}
    outer = [edge for edge in edges if lanes[edge]]
    for one in outer:
        for other in outer:
            beside = one != other and one[0] < other[1] and other[0] < one[1]
            assert not (beside and lanes[one] == lanes[other]), (one, other)
    assert lanes[3, 5] == 1  # below the others


def test_a_gutter_has_a_knot_a_row_and_a_line_an_edge() -> None:
    gutter, width = lineage_gutter([[], [0], [0, 1]], 100.0)
    root = ElementTree.fromstring(gutter)
    assert [float(str(knot.get("cy"))) for knot in root.iter("circle")] == [50.0, 150.0, 250.0]
    assert len(list(root.iter("path"))) == 3 and float(str(root.get("width"))) == round(width)
