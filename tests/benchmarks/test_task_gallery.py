"""The page of all tasks: what it says of each, and that it is complete."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.task_gallery import (
    FAMILIES,
    HEIGHT,
    PAGE,
    PICTURES,
    SIX_TASKS,
    WIDTH,
    draw,
    draw_six,
    page,
    row,
)
from tests.envs.opengl_here import needs_opengl
from thousandfold.envs.registry import task_names


def test_a_row_has_the_sizes_of_its_task() -> None:
    assert row("point_u_maze") == (
        "| ![point_u_maze](pictures/tasks/point_u_maze.png) | **`point_u_maze`** – point mass around the "
        "bend of a U<br>state 4, goal 2, action 2<br>100 steps of 0.1 s<br>success: < 0.3 m<br>episodes: "
        "`training`, `training_from_start`, `evaluation`<br>`thousandfold/PointUMaze-v0` |"
    )


def test_a_row_tells_every_region_and_every_radius() -> None:
    text = row("arm_grasp")
    assert "success: mean of 2 points < 0.05 m and `sensordata:finger_gap[0]` < 0.02 m (easy < 0.15" in text


def test_every_task_is_of_one_family() -> None:
    for name in task_names():
        assert sum(family.has(name) for family in FAMILIES) == 1, name


def test_the_committed_page_has_every_task_and_its_picture() -> None:
    listed = re.findall(r"^\| !\[(\w+)\]\(pictures/tasks/\1\.png\)", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(task_names())
    assert sorted(path.stem for path in PICTURES.glob("*.png")) == sorted(task_names())
    for path in PICTURES.glob("*.png"):
        assert Image.open(path).size == (WIDTH, HEIGHT)
        assert path.stat().st_size <= 60 * 1024, path.name


def test_the_committed_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(task_names())


@needs_opengl
def test_a_picture_is_drawn_whole(tmp_path: Path) -> None:
    picture = Image.open(draw("point_u_maze", tmp_path))
    assert picture.size == (WIDTH, HEIGHT)
    colours = {colour for _, colour in picture.getcolors(WIDTH * HEIGHT) or []}
    assert any(blue > red + 60 for red, _, blue in colours)  # the robot
    assert any(red > blue + 60 and green > blue + 60 for red, green, blue in colours)  # the goal


def test_six_tasks_stand_side_by_side(tmp_path: Path) -> None:
    whole = Image.open(draw_six(tmp_path / "six.png")).convert("RGB")
    assert whole.size == (3 * WIDTH + 12, 2 * HEIGHT + 6)
    last = Image.open(PICTURES / f"{SIX_TASKS[-1]}.png").convert("RGB")
    corner = whole.crop((2 * (WIDTH + 6), HEIGHT + 6, 2 * (WIDTH + 6) + WIDTH, 2 * HEIGHT + 6))
    difference = np.abs(np.asarray(corner, int) - np.asarray(last, int))
    assert difference.mean() < 4  # but for its palette
