"""A Franka Panda at a table: reach a point, grasp a cube, push it, pick it from one bin into the other.

Actions are absolute targets of four joints, and whether the gripper closes; the other joints are held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import mujoco

from thousandfold.envs.distributions import AffineGoals, BoxPositions, GoalsFromStarts, PositionDistribution
from thousandfold.envs.randomization import Factor
from thousandfold.envs.task import (
    Command,
    EpisodeDistribution,
    GoalTask,
    Reset,
    ScenePicture,
    SuccessRegion,
    Term,
    with_nominal,
)

PANDA_XML = Path(__file__).parents[1] / "assets" / "panda.xml"
CONTROL_DT_S = 0.05
CUBE_HALF_M = 0.03
CUBE_START_Z_M = 0.07
CUBE_RESTING_Z_M = CUBE_HALF_M
WALL_HALF_THICKNESS_M = 0.005
WALL_HALF_HEIGHT_M = 0.033
START = "start"

_JOINTS = tuple(f"joint{number}" for number in range(1, 8))
_ARM_COMMANDS = (
    Command("joint1", low=0.3491, high=2.7925),
    Command("joint2", low=0.0, high=1.48353),
    Command("joint3", "hold", low=0.0),
    Command("joint4", low=-3.0718, high=-0.0698),
    Command("joint5", "hold", low=0.0),
    Command("joint6", low=2.3562, high=3.7525),
    Command("joint7", "hold", low=1.4487),
)
_CLOSE_ABOVE_ZERO = Command("gripper", "switch", low=0.08, high=0.0)
_HOLD_OPEN = Command("gripper", "hold", low=0.08)

_JOINT_ANGLES = tuple(Term("qpos", joint, unit="rad") for joint in _JOINTS)
_CUBE = Term("qpos", "cube", columns=(0, 1, 2), unit="m")
_HAND = (Term("site_xpos", "hand", unit="m"), Term("sensordata", "hand_velocity", unit="m/s"))
_GAP = Term("sensordata", "finger_gap", unit="m")
_FINGERTIPS = (Term("site_xpos", "fingertip_left", unit="m"), Term("site_xpos", "fingertip_right", unit="m"))
# The point that the published goals are made for: a quarter of them is out of the fingertips' reach.
_WRIST = (Term("site_xpos", "wrist", unit="m"), Term("sensordata", "wrist_velocity", unit="m/s"))

_SCENE = ScenePicture(
    lookat=(0.0, 0.42, 0.2), distance=1.8, azimuth=-125.0, elevation=-30.0, goal_position=(0, 1, 2)
)
Center = tuple[float, float]
Position = tuple[float, float, float]
Colour = tuple[float, float, float, float]
Build = Callable[[Sequence[Center], float], mujoco.MjSpec]

# Where cubes start is blue, where goals lie is red.
_COLOURS: tuple[Colour, Colour] = ((0.30, 0.52, 0.75, 1.0), (0.80, 0.38, 0.33, 1.0))


def build_spec() -> mujoco.MjSpec:
    """Return the arm at its table, without a cube; keyframe ``start`` holds its start configuration."""
    return mujoco.MjSpec.from_file(str(PANDA_XML))


def build_cube_spec() -> mujoco.MjSpec:
    """Return the arm with a cube of 6 cm (joint ``cube``), which keyframe ``start`` drops onto the table."""
    spec = build_spec()
    body = spec.worldbody.add_body(name="cube")
    body.add_freejoint(name="cube")
    body.add_geom(
        name="cube",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF_M] * 3,
        density=1000.0,
        friction=[0.6, 0.005, 0.0001],
        contype=2,
        conaffinity=1,
        rgba=[0.16, 0.55, 0.33, 1.0],
    )
    key = spec.key(START)
    key.qpos = [*key.qpos, 0.0, 0.6, CUBE_START_Z_M, 1.0, 0.0, 0.0, 0.0]
    return spec


def build_marked_spec(centers: Sequence[Center], noise: float) -> mujoco.MjSpec:
    """Return the arm with a cube and two flat squares on the table, which nothing touches.

    Args:
        centers: (x, y) of the middle of where cubes start and of where goals lie, in metres.
        noise: half the width of both squares, in metres.
    """
    spec = build_cube_spec()
    for center, colour in zip(centers, _COLOURS, strict=True):
        _add_square(spec, center, noise, colour)
    return spec


def build_bins_spec(centers: Sequence[Center], noise: float) -> mujoco.MjSpec:
    """Return the arm with a cube and two bins, whose walls stop the cube, the hand and the fingers.

    A cube drawn at the very edge has 1.5 cm to the wall. Arguments as in `build_marked_spec`.
    """
    spec = build_cube_spec()
    inside = noise + CUBE_HALF_M + 0.015
    thickness, height = WALL_HALF_THICKNESS_M, WALL_HALF_HEIGHT_M
    middle, outside = inside + thickness, inside + 2 * thickness
    for center, colour in zip(centers, _COLOURS, strict=True):
        _add_square(spec, center, inside, colour)
        for side in (-middle, middle):
            _add_box(spec, center, (side, 0.0, height), (thickness, inside, height), colour, contype=1)
            _add_box(spec, center, (0.0, side, height), (outside, thickness, height), colour, contype=1)
    return spec


def _add_square(spec: mujoco.MjSpec, center: Center, half: float, colour: Colour) -> None:
    _add_box(spec, center, (0.0, 0.0, 0.0), (half, half, 0.001), colour, contype=0)


def _add_box(
    spec: mujoco.MjSpec, center: Center, offset: Position, size: Position, colour: Colour, contype: int
) -> None:
    """Add a fixed box to the world; `size` is half its width on each axis."""
    spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[center[0] + offset[0], center[1] + offset[1], offset[2]],
        size=size,
        rgba=colour,
        contype=contype,
        conaffinity=0,
    )


def _box(center: Sequence[float], half: Sequence[float]) -> BoxPositions:
    return BoxPositions(
        tuple(middle - width for middle, width in zip(center, half, strict=True)),
        tuple(middle + width for middle, width in zip(center, half, strict=True)),
    )


def _episodes(
    goals: PositionDistribution | GoalsFromStarts, cube: Center | None = None, noise: float = 0.0
) -> dict[str, EpisodeDistribution]:
    """Return the distributions of a task: the start configuration, the cube drawn within ±noise of `cube`."""
    starts = Reset(keyframe=START)
    if cube is not None:
        starts = Reset(joints=("cube[0]", "cube[1]"), position=_box(cube, (noise, noise)), keyframe=START)
    episodes = EpisodeDistribution(starts, goals)
    return {"training": episodes, "evaluation": episodes}


def _reach() -> GoalTask:
    episodes = _episodes(_box((0.0, 0.5, 0.3), (0.2, 0.2, 0.2)))
    randomized = replace(
        episodes["evaluation"], varies=tuple(Factor(name, 0.7, 1.3) for name in ("mass", "friction", "gain"))
    )
    return GoalTask(
        name="arm_reach",
        description="Panda arm: bring the wrist to a point",
        build_spec=build_spec,
        observation=(*_JOINT_ANGLES, *_WRIST),
        achieved_goal=_WRIST[:1],
        success=(SuccessRegion(0.1),),
        other_radii={"easy": 0.3, "hard": 0.03},
        distributions=with_nominal({**episodes, "randomized": randomized}),
        control_dt_s=CONTROL_DT_S,
        control=(*_ARM_COMMANDS, _HOLD_OPEN),
        scene=_SCENE,
    )


def _grasp() -> GoalTask:
    reach_x, gap = 0.0375, 0.075
    goals = AffineGoals(
        matrix=((1, 0, 0, 1, 0, 0, 0), (0, 1, 0, 0, 1, 0, 0)),
        offset=(reach_x, 0, CUBE_RESTING_Z_M, -reach_x, 0, CUBE_RESTING_Z_M, gap),
    )
    return GoalTask(
        name="arm_grasp",
        description="Panda arm: bring the fingertips to both sides of a cube",
        build_spec=build_cube_spec,
        observation=(_CUBE, *_JOINT_ANGLES, *_HAND, *_FINGERTIPS, _GAP),
        achieved_goal=(*_FINGERTIPS, _GAP),
        success=(SuccessRegion(0.05, 0, 6, points=2), SuccessRegion(0.02, 6, 7)),
        other_radii={"easy": 0.15, "hard": 0.02},
        distributions=_episodes(goals, (0.0, 0.6), 0.3),
        control_dt_s=CONTROL_DT_S,
        control=(*_ARM_COMMANDS, _CLOSE_ABOVE_ZERO),
        scene=_SCENE,
    )


def _move_cube(
    name: str, description: str, build: Build, cube: Center, goal: Center, noise: float
) -> GoalTask:
    """Return a task to bring the cube to a goal on the table; both are drawn within ±noise of a centre."""
    return GoalTask(
        name=name,
        description=description,
        build_spec=partial(build, (cube, goal), noise),
        observation=(_CUBE, *_JOINT_ANGLES, *_HAND, _GAP),
        achieved_goal=(_CUBE,),
        success=(SuccessRegion(0.1),),
        other_radii={"easy": 0.3, "hard": 0.03},
        distributions=_episodes(_box((*goal, CUBE_RESTING_Z_M), (noise, noise, 0.0)), cube, noise),
        control_dt_s=CONTROL_DT_S,
        control=(*_ARM_COMMANDS, _CLOSE_ABOVE_ZERO),
        scene=_SCENE,
    )


def tasks() -> list[GoalTask]:
    """Return the tasks of the arm."""
    near, wide = "Panda arm: push a cube to a near goal", "Panda arm: push a cube to a goal anywhere"
    into_bin = "Panda arm: pick a cube from one bin and place it in another"
    return [
        _reach(),
        _grasp(),
        _move_cube("arm_push_easy", near, build_marked_spec, (-0.1, 0.6), (0.1, 0.6), 0.1),
        _move_cube("arm_push_hard", wide, build_marked_spec, (-0.25, 0.65), (0.25, 0.65), 0.25),
        _move_cube("arm_binpick_easy", into_bin, build_bins_spec, (-0.15, 0.6), (0.17, 0.6), 0.09),
        _move_cube("arm_binpick_hard", into_bin, build_bins_spec, (-0.3, 0.6), (0.3, 0.6), 0.15),
    ]
