"""Pictures through OpenGL: where the goal is drawn, what the camera sees, and whose looks are changed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from tests.envs.opengl_here import needs_opengl
from tests.envs.user_tasks.user_pages import ARM, PAGE, write
from tests.envs.varied_tasks import varied_task
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import GoalEnv
from thousandfold.envs.pictures.scene_rendering import (
    SceneRenderer,
    apply_style,
    goal_marker,
    world_shape,
)
from thousandfold.envs.randomization import Factor
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.task import ScenePicture, SuccessRegion, TaskError

WIDTH, HEIGHT = 160, 120
DOWN = ScenePicture(lookat=(2.0, 2.0, 0.0), distance=10.0, azimuth=90.0, elevation=-90.0)
"""Straight down on the middle of the U-maze, x to the right and y upwards."""


def point_task(scene: ScenePicture = DOWN, **changes: Any) -> CompiledTask:
    return CompiledTask(dataclasses.replace(get_task("point_u_maze"), scene=scene, **changes))


def draw(task: CompiledTask, qpos: tuple[float, float], goal: Any = None, **options: Any) -> np.ndarray:
    with SceneRenderer(task, WIDTH, HEIGHT) as renderer:
        return renderer.draw(np.array(qpos), None if goal is None else np.array(goal), **options)


def pixel(x: float, y: float, height: float = 0.0) -> tuple[float, float]:
    """Return column and row of a point seen by `DOWN`: MuJoCo's camera opens 45° from top to bottom."""
    per_metre = HEIGHT / 2 / np.tan(np.radians(22.5)) / (DOWN.distance - height)
    return WIDTH / 2 + per_metre * (x - 2.0), HEIGHT / 2 - per_metre * (y - 2.0)


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return columns.mean() + 0.5, rows.mean() + 0.5


def changed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other.astype(int)).max(-1) > 12


@needs_opengl
def test_bodies_that_are_moved_from_outside_are_drawn_where_episodes_start(tmp_path: Path) -> None:
    """Training starts at a keyframe that moves the plate; evaluation leaves it where the model has it."""
    plate = '<body name="plate" mocap="true" pos="2 2 .1"><geom type="box" size=".5 .5 .05"/></body>'
    model = ARM.replace("<worldbody>", f"<worldbody>{plate}")
    model = model.replace('qpos="0.25 0.5"', 'qpos="0.25 0.5" mpos="2 3.5 .1"')
    page = PAGE.replace("reset: {keyframe: home}", "training: {reset: {keyframe: home}}")
    page += "scene: {lookat: [2, 2, 0], distance: 10, azimuth: 90, elevation: -90}\n"
    task = compile_task(str(write(tmp_path, page, model)))
    pictures = []
    for distribution in ("training", "evaluation"):
        with SceneRenderer(task, WIDTH, HEIGHT, distribution=distribution) as renderer:
            pictures.append(renderer.draw(np.zeros(2)))
    for x, y in ((2.0, 2.0), (2.0, 3.5)):
        column, row = map(int, pixel(x, y, 0.1))
        assert changed(*pictures)[row, column]


# -- where a goal is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal_position", "goal", "position", "dims"),
    [((0, 1), (3.0, 1.0), (3.0, 1.0, 0.7), 2), ((1, 0), (3.0, 1.0), (1.0, 3.0, 0.7), 2),
     ((0,), (3.0, 1.0), (3.0, 0.0, 0.7), 1)],
)  # fmt: skip
def test_marker_stands_where_the_scene_says(
    goal_position: tuple[int, ...], goal: tuple[float, float], position: tuple[float, ...], dims: int
) -> None:
    task = point_task(ScenePicture(goal_height=0.7, goal_position=goal_position))
    marker = goal_marker(task, np.array(goal))
    assert marker is not None
    assert (marker.position, marker.dims, marker.radius) == (position, dims, 0.3)


@pytest.mark.parametrize("goal_position", [None, (), (0, 2)])
def test_a_goal_that_is_no_position_has_no_marker(goal_position: tuple[int, ...] | None) -> None:
    assert goal_marker(point_task(ScenePicture(goal_position=goal_position)), np.zeros(2)) is None


def test_goals_over_several_points_stand_for_their_mean() -> None:
    finger, other = get_task("point_u_maze").achieved_goal[0], get_task("point_u_maze").observation[1]
    task = CompiledTask(
        dataclasses.replace(
            get_task("point_u_maze"),
            achieved_goal=(finger, other),
            success=(SuccessRegion(0.1, 0, 4, points=2),),
            distributions={
                name: dataclasses.replace(each, goals=FourNumbers())
                for name, each in get_task("point_u_maze").distributions.items()
            },
        )
    )
    positions = task.goal_positions(np.array([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0]]))
    assert positions is not None and positions.tolist() == [[2.0, 4.0], [0.0, 0.0]]


class FourNumbers:
    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.zeros((count, 4))


# -- what is drawn ------------------------------------------------------------------------------------


@needs_opengl
@pytest.mark.parametrize("goal", [(3.0, 1.0), (1.0, 3.0)])
def test_the_picture_changes_where_the_goal_is_and_nowhere_else(goal: tuple[float, float]) -> None:
    task = point_task()
    difference = changed(draw(task, (1.0, 1.0)), draw(task, (1.0, 1.0), goal))
    assert centre_of(difference) == pytest.approx(pixel(*goal), abs=1.0)
    columns = np.flatnonzero(difference.any(0))
    diameter = pixel(0.3, 0.0)[0] - pixel(-0.3, 0.0)[0]
    assert columns[-1] - columns[0] + 1 == pytest.approx(diameter, abs=2.0)


@needs_opengl
def test_the_picture_shows_where_the_robot_is() -> None:
    task = point_task()
    for place in ((1.0, 1.0), (3.0, 3.0)):
        picture = draw(task, place).astype(int)
        blue = (picture[..., 2] - picture[..., 0] > 60) & (picture[..., 2] > 90)
        assert centre_of(blue) == pytest.approx(pixel(*place, height=0.15), abs=1.5)


@needs_opengl
def test_a_goal_that_is_reached_has_another_colour() -> None:
    pictures = [draw(point_task(), (1.0, 1.0), (3.0, 1.0), reached=reached) for reached in (False, True)]
    column, row = (round(place) for place in pixel(3.2, 1.0))
    open_goal, reached_goal = (picture[row, column].astype(int) for picture in pictures)
    assert open_goal[0] > reached_goal[0] + 40  # from yellow-green to green
    assert reached_goal[1] > reached_goal[0] + 40


@needs_opengl
def test_a_trail_leads_through_what_was_achieved() -> None:
    trail = np.stack([np.full(400, 1.0), np.linspace(1.0, 3.0, 400)], axis=1)
    difference = changed(draw(point_task(), (1.0, 1.0)), draw(point_task(), (1.0, 1.0), trail=trail))
    rows = np.flatnonzero(difference.any(1))
    assert (rows[0], rows[-1]) == pytest.approx((pixel(1.0, 3.0)[1], pixel(1.0, 1.15)[1]), abs=2.0)
    assert centre_of(difference)[0] == pytest.approx(pixel(1.0, 0.0)[0], abs=1.0)


@needs_opengl
def test_a_camera_follows_its_body() -> None:
    task = point_task(dataclasses.replace(DOWN, follow="point", lookat=None))
    picture = draw(task, (3.0, 2.5)).astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 60) & (picture[..., 2] > 90)
    assert centre_of(blue) == pytest.approx((WIDTH / 2, HEIGHT / 2), abs=1.5)


@needs_opengl
@pytest.mark.parametrize("goal", [(31.0, 1.0), (1.0, 31.0)])
def test_a_camera_that_follows_sees_the_goal_too(goal: tuple[float, float]) -> None:
    task = point_task(dataclasses.replace(DOWN, follow="point", lookat=None), success=(SuccessRegion(2.0),))
    with SceneRenderer(task, WIDTH, HEIGHT) as renderer:
        picture = renderer.draw(np.array((1.0, 1.0)), np.array(goal)).astype(int)
    marked = (picture[..., 1] - picture[..., 2] > 60) & (picture[..., 0] > 120)
    rows, columns = np.nonzero(marked)
    assert rows.min() > 0 and rows.max() < HEIGHT - 1
    assert columns.min() > 0 and columns.max() < WIDTH - 1


@needs_opengl
def test_the_simulated_model_keeps_its_looks() -> None:
    task = point_task()
    before = [
        array.copy() for array in (task.model.geom_rgba, task.model.geom_size, task.model.vis.rgba.haze)
    ]
    draw(task, (1.0, 1.0), (3.0, 1.0))
    after = (task.model.geom_rgba, task.model.geom_size, task.model.vis.rgba.haze)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert (task.model.ngeom, task.model.ntex) == (get_task("point_u_maze").build_spec().compile().ngeom, 0)


@needs_opengl
def test_a_closed_renderer_says_so() -> None:
    renderer = SceneRenderer(point_task(), WIDTH, HEIGHT)
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError, match="the renderer is closed"):
        renderer.draw(np.zeros(2))


@needs_opengl
def test_renderers_of_several_sizes_do_not_disturb_each_other() -> None:
    task = point_task()
    with SceneRenderer(task, WIDTH, HEIGHT) as one, SceneRenderer(task, 64, 64) as other:
        first = one.draw(np.array((1.0, 1.0)))
        assert other.draw(np.array((3.0, 3.0))).shape == (64, 64, 3)
        assert np.array_equal(one.draw(np.array((1.0, 1.0))), first)


def test_a_body_to_follow_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(TaskError, match="no body named 'pint'; did you mean 'point'"):
        SceneRenderer(point_task(ScenePicture(follow="pint")), WIDTH, HEIGHT)


# -- looks --------------------------------------------------------------------------------------------

USERS_MODEL = """
<mujoco>
  <asset><texture name="mine" type="skybox" builtin="flat" rgb1="1 0 0" width="8" height="48"/></asset>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 1" rgba="0 1 0 1"/>
    <body><joint name="j"/><geom name="link" size="0.1" rgba="0.8 0.6 0.4 1"/></body>
  </worldbody>
</mujoco>
"""


def test_a_users_model_keeps_floor_colours_and_background() -> None:
    spec = mujoco.MjSpec.from_string(USERS_MODEL)
    apply_style(spec, distance=2.0, own=False)
    model = spec.compile()
    assert [model.tex(index).name for index in range(model.ntex)] == ["mine"]
    assert model.geom("floor").rgba == pytest.approx([0, 1, 0, 1])
    assert model.geom("link").rgba == pytest.approx([0.8, 0.6, 0.4, 1])
    assert model.geom("floor").size == pytest.approx([2, 2, 1])


def test_a_users_model_without_a_background_gets_one() -> None:
    spec = mujoco.MjSpec.from_string(USERS_MODEL.replace('type="skybox"', 'type="2d"'))
    apply_style(spec, distance=2.0, own=False)
    kinds = list(spec.compile().tex_type)
    assert kinds.count(int(mujoco.mjtTexture.mjTEXTURE_SKYBOX)) == 1


def test_a_model_of_ours_is_put_on_the_floor_and_turned_blue() -> None:
    spec = mujoco.MjSpec.from_string(USERS_MODEL)
    apply_style(spec, distance=12.0, own=True)
    model = spec.compile()
    assert model.geom("link").rgba == pytest.approx([0.13, 0.40, 0.67, 1])
    assert model.geom("floor").size[:2] == pytest.approx([0, 0])  # without an end
    floor = int(model.geom("floor").matid[0])
    assert model.mat_texrepeat[floor] == pytest.approx([0.25, 0.25])  # two squares of 2 m a repeat
    assert "mine" not in [model.tex(index).name for index in range(model.ntex)]


# -- as a Gymnasium environment -----------------------------------------------------------------------


@needs_opengl
def test_an_environment_draws_the_goal_it_was_given() -> None:
    env = GoalEnv(task=point_task(), render_mode="rgb_array")
    frames = []
    for goal in ((3.0, 1.0), (1.0, 3.0)):
        env.reset(seed=1, options={"goal": goal})
        frames.append(env.render())
    env.close()
    one, other = frames
    assert one is not None and other is not None and one.shape == (480, 480, 3)
    rows, columns = np.nonzero(changed(one, other))
    per_metre = 240 / np.tan(np.radians(22.5)) / DOWN.distance
    assert columns.min() == pytest.approx(240 - 1.3 * per_metre, abs=3)
    assert columns.max() == pytest.approx(240 + 1.3 * per_metre, abs=3)
    assert rows.max() == pytest.approx(240 + 1.3 * per_metre, abs=3)


# -- a stranger's robot is in its picture ------------------------------------------------------------


def users_task(folder: Path, model: str) -> CompiledTask:
    return compile_task(str(write(folder, PAGE, model)))


def pixels_of_the_arm(task: CompiledTask) -> int:
    """Return how many pixels change as the arm moves out of the picture of itself, without a goal."""
    with SceneRenderer(task, WIDTH, HEIGHT) as renderer:
        pose = task.sample_start("evaluation", np.random.default_rng(0), 1)[0][0]
        return int(changed(renderer.draw(pose), renderer.draw(pose + np.array([1.2, 0.5]))).sum())


@needs_opengl
@pytest.mark.parametrize(
    "geom",
    ['<geom group="3" ', '<geom group="5" rgba="1 0 0 1" ', '<geom rgba="1 0 0 0" '],
    ids=["collision alone", "a group that is never drawn", "transparent"],
)
def test_a_body_of_hidden_geoms_alone_is_drawn(tmp_path: Path, geom: str) -> None:
    drawn = pixels_of_the_arm(users_task(tmp_path, ARM))
    assert drawn > 200 and pixels_of_the_arm(users_task(tmp_path, ARM.replace("<geom ", geom))) > 0.8 * drawn


@needs_opengl
def test_hidden_geoms_beside_visible_ones_stay_hidden(tmp_path: Path) -> None:
    twice = ARM.replace('size=".02"', 'size=".02" group="2"').replace(
        "      <body name", '      <geom type="sphere" size=".2" group="3"/>\n      <body name'
    )
    one, other = (users_task(tmp_path, model) for model in (ARM, twice))
    assert pixels_of_the_arm(other) <= 1.1 * pixels_of_the_arm(one)


@needs_opengl
def test_bodies_without_geoms_show_their_inertia(tmp_path: Path) -> None:
    inertia = '<inertial pos=".1 0 0" mass="1" diaginertia=".001 .01 .01"/>'
    assert pixels_of_the_arm(users_task(tmp_path, re.sub("<geom[^>]*/>", inertia, ARM))) > 200


@needs_opengl
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("</worldbody>", '<geom type="box" size="50 50 .1" pos="0 0 -1" contype="0"/></worldbody>'),
        ("</worldbody>", '</worldbody><statistic center="30 0 0" extent="1"/>'),
    ],
    ids=["a floor that is a large box", "a centre that is elsewhere"],
)
def test_the_camera_finds_the_robot(tmp_path: Path, old: str, new: str) -> None:
    task = users_task(tmp_path, ARM.replace(old, new))
    assert pixels_of_the_arm(task) > 100


@needs_opengl
def test_a_world_whose_geoms_vary_is_drawn_as_it_is() -> None:
    task = varied_task([Factor("size", 0.4, 0.5, objects=("box",)), Factor("joint_zero", 0.8, 0.9)])
    simulator = CpuSimulator(task, 1, num_threads=1)
    qpos, shape = simulator.world_data(0).qpos, world_shape(simulator.world_model(0))
    with SceneRenderer(task, WIDTH, HEIGHT) as renderer:
        nominal, varied = renderer.draw(qpos), renderer.draw(qpos, shape=shape)
        assert changed(nominal, varied).mean() > 0.001
        assert np.array_equal(renderer.draw(qpos), nominal)
