from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from envs.compiled_task import CompiledTask
from envs.registry import compile_task, get_task
from envs.task import TaskError

pytest.importorskip("matplotlib")
from matplotlib.image import imread

from envs.rendering import draw_maze_paths

STARTS = np.array([[1.0, 1.0], [1.1, 0.9]])
GOALS = np.array([[3.0, 1.0], [3.0, 2.0]])
PATHS = [np.linspace(start, (1.0, 3.0), 20) for start in STARTS]


def colours(picture: Path) -> set[tuple[int, ...]]:
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    return set(map(tuple, pixels.reshape(-1, 3).tolist()))


def draw(path: Path, successes: list[bool], **changes: object) -> Path:
    arguments = {
        "paths": PATHS,
        "goals": GOALS,
        "successes": np.array(successes),
        "title": "a title",
        **changes,
    }
    draw_maze_paths(path, compile_task("point_u_maze"), **arguments)  # pyright: ignore[reportArgumentType]
    return path


def test_writes_a_png_and_nothing_else(tmp_path: Path) -> None:
    picture = draw(tmp_path / "paths.png", [True, False])
    assert [path.name for path in tmp_path.iterdir()] == ["paths.png"]
    height, width, _ = imread(picture).shape
    assert 400 < width < 1600 and 400 < height < 1600


def test_success_has_a_colour_of_its_own(tmp_path: Path) -> None:
    """The legend shows both colours in one pair of lines; what the paths add is many times that."""

    def count(successes: list[bool]) -> tuple[int, int]:
        pixels = (imread(draw(tmp_path / "p.png", successes))[..., :3] * 255).round().astype(int)
        bluish = pixels[..., 2] - pixels[..., 0] > 60
        reddish = pixels[..., 0] - pixels[..., 2] > 120
        return int(bluish.sum()), int(reddish.sum())

    blue_when_reached, red_when_reached = count([True, True])
    blue_when_missed, red_when_missed = count([False, False])
    assert blue_when_reached > 2 * blue_when_missed
    assert red_when_missed > 2 * red_when_reached


def test_walls_and_floor_are_drawn(tmp_path: Path) -> None:
    seen = colours(draw(tmp_path / "paths.png", [True, True]))
    assert {(0xC9, 0xCE, 0xD6), (255, 255, 255)} <= seen


def test_no_paths_is_a_picture_of_the_maze(tmp_path: Path) -> None:
    picture = draw(tmp_path / "maze.png", [], paths=[], goals=np.zeros((0, 2)))
    assert picture.stat().st_size > 1000


def test_replaces_a_picture_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "paths.png").write_text("an older picture")
    assert draw(tmp_path / "paths.png", [True, True]).read_bytes().startswith(b"\x89PNG")


def test_a_failed_write_leaves_the_old_picture_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def full_disk(self: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "paths.png").write_text("an older picture")
    monkeypatch.setattr(FigureCanvasAgg, "print_png", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw(tmp_path / "paths.png", [True, True])
    assert [path.name for path in tmp_path.iterdir()] == ["paths.png"]
    assert (tmp_path / "paths.png").read_text() == "an older picture"


def test_unequal_numbers_and_tasks_without_a_maze_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 paths, 2 goals and 1 successes"):
        draw(tmp_path / "paths.png", [True])
    open_floor = CompiledTask(dataclasses.replace(get_task("point_u_maze"), maze=None))
    with pytest.raises(TaskError, match="no maze to draw"):
        draw_maze_paths(tmp_path / "p.png", open_floor, PATHS, GOALS, np.ones(2, bool), "")
    assert list(tmp_path.iterdir()) == []
