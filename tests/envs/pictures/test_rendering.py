from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures import rendering
from thousandfold.envs.registry import compile_task, get_task, task_names
from thousandfold.envs.task import MazePicture, ScenePicture, TaskError

pytest.importorskip("matplotlib")
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from thousandfold.envs.pictures.rendering import draw_arrows, draw_paths, has_plan

pytestmark = pytest.mark.pictures

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
    draw_paths(path, compile_task("point_u_maze"), **arguments)  # pyright: ignore[reportArgumentType]
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


def test_unequal_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 paths, 2 goals and 1 successes"):
        draw(tmp_path / "paths.png", [True])
    assert list(tmp_path.iterdir()) == []


def varied(**changes: Any) -> CompiledTask:
    return CompiledTask(dataclasses.replace(get_task("point_u_maze"), **changes))


@pytest.mark.parametrize("goal_position", [None, (0,), (0, 2)])
def test_a_goal_that_is_no_place_in_the_plane_has_no_picture(
    tmp_path: Path, goal_position: tuple[int, ...] | None
) -> None:
    task = varied(scene=ScenePicture(goal_position=goal_position))
    assert not has_plan(task)
    with pytest.raises(TaskError, match="no goal in the plane"):
        draw_paths(tmp_path / "p.png", task, PATHS, GOALS, np.ones(2, bool), "")
    assert list(tmp_path.iterdir()) == []


def axes_of(monkeypatch: pytest.MonkeyPatch, task: CompiledTask, paths: Any, goals: Any) -> Axes:
    """Return the axes of what is drawn, in place of the file."""
    figures = unwritten(monkeypatch)
    draw_paths("none.png", task, paths, np.array(goals), np.zeros(len(paths), bool), "")
    figures[0].canvas.draw()
    (axes,) = figures[0].axes
    return axes


def unwritten(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list of the figures that are drawn from now on, in place of their files."""
    figures: list[Any] = []

    @contextmanager
    def keep(path: Path, width: float, height: float, title: str, facts: Sequence[str]) -> Iterator[Figure]:
        figures.append(figure := Figure(figsize=(width, height)))
        FigureCanvasAgg(figure)
        yield figure

    monkeypatch.setattr(rendering, "house_figure", keep)
    return figures


def test_the_legend_counts_what_was_reached_and_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = unwritten(monkeypatch)
    draw(Path("none.png"), [True, False])
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["reached (1)", "missed (1)", "start", "goal"]


def test_a_picture_without_arrows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, task = unwritten(monkeypatch), compile_task("point_u_maze")
    draw_arrows("none.png", task, np.zeros((0, 2)), np.zeros((0, 2)), "Failures", none="None: all reached.")
    draw_arrows("none.png", task, STARTS, GOALS, "Failures", none="None: all reached.")
    empty, full = ([text.get_text() for text in figure.axes[0].texts] for figure in figures)
    assert empty == ["None: all reached."] and "None: all reached." not in full


def test_numbers_that_are_no_place_are_named_with_their_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = unwritten(monkeypatch)
    draw_arrows("none.png", compile_task("half_cheetah"), np.zeros((3, 1)), np.ones((3, 1)), "Failures")
    (axes,) = figures[0].axes
    assert axes.get_xlabel().endswith("(m)") and axes.get_ylabel() == "episode"


def labels(axes: Axes) -> tuple[list[str], list[str]]:
    xs, ys = (
        [tick.get_text() for tick in ticks] for ticks in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    return xs, ys


def test_a_maze_of_large_cells_has_a_tick_at_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    task = varied(maze=MazePicture("##### #RG.# #####", 4.0))
    axes = axes_of(monkeypatch, task, [np.array([[4.0, 4.0], [4.0, 8.0]])], [[4.0, 8.0]])
    assert labels(axes) == (["4"], ["4", "8", "12"])
    assert axes.get_xlim() == pytest.approx((0.6, 7.4)) and axes.get_ylim() == pytest.approx((0.6, 15.4))
    walls = [patch for patch in axes.patches if patch.get_width() == 4.0]  # pyright: ignore
    assert len(walls) == 12


def test_the_walls_stand_where_the_maze_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    task = varied(maze=MazePicture("##### #RG.# #####", 4.0, (-4.0, 6.0)))
    axes = axes_of(monkeypatch, task, [np.array([[0.0, 10.0], [0.0, 14.0]])], [[0.0, 14.0]])
    assert labels(axes) == (["0"], ["10", "14", "18"])
    assert axes.get_xlim() == pytest.approx((-3.4, 3.4)) and axes.get_ylim() == pytest.approx((6.6, 21.4))
    walls = [patch.get_xy() for patch in axes.patches if patch.get_width() == 4.0]  # pyright: ignore
    assert min(walls) == (-6.0, 4.0) and max(walls) == (2.0, 20.0)


def test_open_ground_shows_every_path_and_whole_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    task = varied(maze=None)
    paths = [np.array([[0.0, 0.0], [-4.0, 3.0]]), np.array([[0.0, 0.0], [1.0, 1.0]])]
    axes = axes_of(monkeypatch, task, paths, [[10.0, 0.0], [0.0, 10.0]])
    # x from −4 to 10 + radius 0.3, y from −0.3 to 10.3, each 5 % wider at both ends.
    assert axes.get_xlim() == pytest.approx((-4 - 0.05 * 14.3, 10.3 + 0.05 * 14.3))
    assert axes.get_ylim() == pytest.approx((-0.3 - 0.05 * 10.6, 10.3 + 0.05 * 10.6))
    assert axes.get_aspect() == 1.0 and axes.get_xlabel() == "x (m)"
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    assert all(np.array_equal(line, path) for line, path in zip(lines, paths, strict=True))


def test_a_straight_path_over_open_ground_is_no_hairline(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = axes_of(monkeypatch, varied(maze=None), [np.array([[0.0, 0.0], [9.4, 0.0]])], [[9.7, 0.0]])
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert right - left == pytest.approx(11.0)
    assert top - bottom == pytest.approx(0.45 * 11.0)


def test_other_numbers_of_the_goal_can_be_x_and_y(monkeypatch: pytest.MonkeyPatch) -> None:
    task = varied(maze=None, scene=ScenePicture(goal_position=(1, 0)))
    axes = axes_of(monkeypatch, task, [np.array([[0.0, 1.0], [2.0, 3.0]])], [[2.0, 5.0]])
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[1.0, 0.0], [3.0, 2.0]]


def test_every_task_with_a_maze_has_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [get_task(name) for name in task_names() if get_task(name).maze is not None]
    assert len(tasks) >= 3
    for task in tasks:
        compiled, rows = CompiledTask(task), np.array(str(task.maze and task.maze.layout).split())
        _, _, goals = compiled.sample_start("evaluation", np.random.default_rng(0), 4)
        axes = axes_of(monkeypatch, compiled, list(goals[:, None]), goals)
        xs, ys = labels(axes)
        assert (len(xs), len(ys)) == (len(rows) - 2, len(rows[0]) - 2), task.name
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        stars = np.asarray(axes.collections[0].get_offsets())
        assert ((stars > (left, bottom)) & (stars < (right, top))).all(), task.name


@pytest.mark.parametrize("name", ["arm_grasp", "half_cheetah", "humanoid", "point_u_maze"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_arrows_of_any_number_of_goals_of_any_kind(name: str, count: int, tmp_path: Path) -> None:
    task = compile_task(name)
    goals = task.sample_start("evaluation", np.random.default_rng(0), count)[2]
    draw_arrows(tmp_path / "arrows.png", task, goals, goals + 1.0, "goals")
    assert (tmp_path / "arrows.png").read_bytes().startswith(b"\x89PNG")
