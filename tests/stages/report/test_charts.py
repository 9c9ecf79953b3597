"""Charts: everything lies in the drawing, in the page's colours, and every label says the value beside it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from thousandfold.stages.report.charts import (
    Curve,
    Range,
    curve_chart,
    frontier_chart,
    networks_chart,
    range_chart,
    tick_label,
)

Points = list[tuple[float, float]]


def drawing_of(chart: str) -> ElementTree.Element:
    """Return a chart, parsed, after a look that nothing reaches over its edges and no colour is fixed."""
    root = ElementTree.fromstring(chart)
    _, _, width, height = (float(part) for part in str(root.get("viewBox")).split())
    for element in root.iter("text"):
        x, y = float(str(element.get("x"))), float(str(element.get("y")))
        length = 7.0 * len(str(element.text))  # at the size of tick labels
        before = {"middle": 0.5, "end": 1.0}.get(style_of(element).get("text-anchor", ""), 0.0) * length
        assert x - before >= 0 and x - before + length <= width, element.text
        assert 0 <= y <= height, element.text
    for points in [*lines(root), marks(root)]:
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points), points
    assert not re.search(r"#[0-9a-f]{6};|\b(nan|inf)\b|http:|url\(|font-family", chart)
    return root


def style_of(element: ElementTree.Element) -> dict[str, str]:
    return dict(part.split(": ") for part in str(element.get("style", "")).split("; ") if part)


def texts(root: ElementTree.Element) -> list[str]:
    return [str(element.text) for element in root.iter("text")]


def lines(root: ElementTree.Element, colour: str = "", width: str = "") -> list[Points]:
    """Return the corners of every line and area; of those alone that have a colour and a width."""
    found = []
    for element in root.iter("path"):
        style = style_of(element)
        if element.get("id") or colour not in str(style) or width not in style.get("stroke-width", ""):
            continue
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", str(element.get("d")))]
        found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def marks(root: ElementTree.Element, fill: str = "") -> Points:
    """Return where the round marks are; of those alone that are filled like this, "" for all."""
    uses = [element for element in root.iter("use") if fill in style_of(element).get("fill", "none")]
    found = [(float(str(use.get("x"))), float(str(use.get("y")))) for use in uses]
    return [place for place in found if place[0]]  # a band is put at 0


def test_long_numbers_are_short_labels() -> None:
    assert [tick_label(value) for value in (0.5, 100.0, 250_000.0, 0.00125, -4e-5, 0.0)] == [
        "0.5", "100", "250k", "1.25e-3", "-4e-5", "0",
    ]  # fmt: skip
    assert [tick_label(value, 3) for value in (1234.5, 0.000131, 42.63)] == ["1.23k", "1.31e-4", "42.6"]


def test_a_curve_ends_at_its_last_value_within_its_band() -> None:
    xs, values = [0.0, 1e6, 2e6, 3e6], [0.1, 0.4, 0.6, 0.8]
    low, high = ([value + side for value in values] for side in (-0.1, 0.1))
    chart = curve_chart(Curve("success", xs, values, low, high, is_fraction=True), "steps")
    root = drawing_of(chart)
    assert {"0.800", "success", "steps", "0", "0.2", "1", "2M"} <= set(texts(root))
    (curve,) = lines(root, "accent")
    assert curve == marks(root) and [x for x, _ in curve] == sorted(x for x, _ in curve)
    rise = [curve[0][1] - y for _, y in curve]
    assert [each / rise[-1] for each in rise] == pytest.approx([0, 3 / 7, 5 / 7, 1], abs=1e-3)
    assert chart.count("fill-opacity") == 1, "the band"
    assert root.get("aria-label") == "success over steps, from 0.1 to 0.8"
    assert curve_chart(Curve("success", xs, values, low, high, is_fraction=True), "steps") == chart


@pytest.mark.parametrize(
    "points",
    [[(5.0, 1.0)], [(0.0, 0.0), (0.0, 0.0)], [(1.0, -4.0), (2.0, 1e9)], [(1.0, 0.00129), (5.0, 0.000131)]],
)
def test_odd_curves_are_drawn(points: Points) -> None:
    xs, values = zip(*points, strict=True)
    root = drawing_of(curve_chart(Curve("loss", xs, values), "updates"))
    assert tick_label(values[-1], 3) in texts(root), "its last value stands beside its end"
    assert len(marks(root)) == len(points)


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    xs = [float(k) for k in range(5001)]
    chart = curve_chart(Curve("loss", xs, [k % 7 for k in xs[:-1]] + [9.0]), "updates")
    (curve,) = lines(drawing_of(chart), "accent")
    assert len(curve) <= 400 and curve[-1][1] == min(y for _, y in curve)
    assert "from 0 to 9" in chart


def test_a_row_of_a_range_chart_lies_where_its_values_are() -> None:
    rows = [Range("a", "0.900", 0.9, (0.8, 0.95)), Range("b", "0.700", 0.7, (0.6, 0.8), (0.5, 0.9), True)]
    root = drawing_of(range_chart(rows, "success", top_value=1.0))
    (other,), (student,) = marks(root, "other"), marks(root, "accent")
    ((left, right),) = lines(root, "other", "6")
    assert student[0] < left[0] < other[0] < right[0] and left[1] == other[1] < student[1]
    assert "a: 0.900; b: 0.700" in str(root.get("aria-label"))
    assert {"a", "b", "0.900", "0.700", "1"} <= set(texts(root))


def test_a_reference_is_marked_beside_the_rows() -> None:
    rows = [Range("calls", "p50 10", 10.0, (10.0, 20.0))]
    root = drawing_of(range_chart(rows, "µs", log=True, reference=(100.0, "period 100 µs")))
    (mark,) = (points for points in lines(root, "soft") if len(points) == 2)
    assert {"period 100 µs", "p50 10", "10", "20", "50", "100"} <= set(texts(root))
    assert mark[0][0] == mark[1][0] > marks(root)[0][0]


def test_a_frontier_marks_front_teacher_and_the_chosen_student() -> None:
    def student(depth: int, p99: float, on_front: bool) -> dict[str, object]:
        measured = {"retention": 0.9 + depth / 100, "retention_interval": [0.85, 0.99]}
        return measured | {"depth": depth, "width": 32, "p99_us": p99, "on_front": on_front}

    rows = [student(1, 6.0, True), student(4, 20.0, True), student(2, 30.0, False), {"p99_us": None}]
    teacher = {"depth": 16, "width": 128, "p99_us": 50.0, "success": 0.9}
    root = drawing_of(frontier_chart({"rows": rows, "teacher": teacher}, (4, 32)))
    assert [len(marks(root, fill)) for fill in ("accent", "card", "none")] == [2, 1, 1]
    assert marks(root, "none")[0] == marks(root, "accent")[1], "the ring is around 4 × 32"
    assert {"teacher 16 × 128", "1 × 32", "4 × 32"} <= set(texts(root)) and "2 × 32" not in texts(root)
    told = [str(title.text) for title in root.iter("title")]
    assert told == [
        "2 × 32: 0.920, p99 30.0 µs",
        "1 × 32: 0.910, p99 6.0 µs",
        "4 × 32: 0.940, p99 20.0 µs",
        "this report’s student",
    ]


def test_networks_are_drawn_to_scale() -> None:
    root = drawing_of(networks_chart([("teacher", 16, 128, False), ("student", 4, 32, True)]))
    teacher, student = lines(root, "other"), lines(root, "accent")
    assert [len(teacher), len(student)] == [16, 4]
    lengths = [layers[0][1][0] - layers[0][0][0] for layers in (teacher, student)]
    assert lengths[0] / lengths[1] == pytest.approx(4.0, rel=0.01)


def test_a_thousand_layers_are_one_block() -> None:
    root = drawing_of(networks_chart([("teacher", 1024, 64, False), ("student", 4, 64, True)]))
    assert len(lines(root, "other")) == 1
    assert "teacher: 1024 layers of 64 units" in str(root.get("aria-label"))
