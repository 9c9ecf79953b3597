"""The picture of a frontier, for every kind of table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.stages.frontier.frontier_runs import row, table
from thousandfold.stages.frontier.picture import draw_frontier
from thousandfold.stages.frontier.table import pareto_front

pytestmark = pytest.mark.pictures

ROOT = Path(__file__).resolve().parents[3]


def grid() -> list[dict[str, Any]]:
    rows = [
        row(f"{depth}x{width}", 1 - 0.3 * float(np.exp(-depth * width / 60)), 5 + depth * (1 + width / 64))
        for depth in (1, 2, 4, 8)
        for width in (32, 64, 128, 256)
    ]
    for entry, kept in zip(rows, pareto_front(rows), strict=True):
        entry["on_front"] = kept
    return rows


def drawn(path: Path, content: dict[str, Any]) -> np.ndarray:
    draw_frontier(path, content)
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_whole_grid(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "a.png", table(grid()))
    assert pixels.shape[1] == 1290
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xCC, 0x79, 0xA7)):
        assert (pixels == colour).all(-1).sum() > 50, "each depth has a colour"


def test_the_teacher_is_marked_where_its_latency_is_known(tmp_path: Path) -> None:
    known = drawn(tmp_path / "a.png", table(grid()))
    unknown = drawn(tmp_path / "b.png", table(grid(), p50_us=None, p99_us=None, depth=None, width=None))
    ink = (0x22, 0x22, 0x22)
    assert (known == ink).all(-1).sum() > (unknown == ink).all(-1).sum() + 100


@pytest.mark.parametrize("retention", [0.9, None])
def test_one_student_alone(tmp_path: Path, retention: float | None) -> None:
    """Without a retention the success is drawn, with its own interval."""
    assert drawn(tmp_path / "a.png", table([row("1x4", retention, 7.0)])).std() > 5


def test_labels_cover_no_mark_and_no_other_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thousandfold.stages.frontier import picture

    boxes: list[Any] = []
    place = picture._place

    def recording(*arguments: Any) -> Any:
        boxes.append(place(*arguments))
        return boxes[-1]

    monkeypatch.setattr(picture, "_place", recording)
    draw_frontier(tmp_path / "a.png", table(grid()))
    assert len(boxes) == 16
    pairs = [(a, b) for index, a in enumerate(boxes) for b in boxes[:index]]
    assert not any(a.overlaps(b) for a, b in pairs)


def test_labels_touch_no_mark_no_bar_and_not_the_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thousandfold.stages.frontier import picture

    covered: list[Any] = []
    place = picture._place

    def recording(axes: Any, row: Any, metric: str, taken: Any) -> Any:
        box = place(axes, row, metric, taken)
        covered.extend(other for other in taken if box.overlaps(other))
        return box

    monkeypatch.setattr(picture, "_place", recording)
    content = json.loads((ROOT / "benchmarks/results/frontier_grid.json").read_text())["table"]
    draw_frontier(tmp_path / "a.png", content)
    assert not covered
