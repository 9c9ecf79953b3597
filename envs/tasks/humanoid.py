"""A humanoid that walks to a point without falling: in the open and through mazes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import mujoco

from thousandfold.envs.distributions import ConcatenatedPositions, RingPositions, constant
from thousandfold.envs.mazes import LAYOUTS, add_walls, maze_episodes, maze_scene
from thousandfold.envs.task import (
    EarlyEnd,
    EpisodeDistribution,
    GoalTask,
    MazePicture,
    Reset,
    ScenePicture,
    SuccessRegion,
    Term,
)
from thousandfold.envs.tasks.gymnasium_models import load_gymnasium_model

FLOOR, OBSTACLE = 1, 2
"""Contact bits: what meets the floor, and what meets walls."""

CELL_SIZE_M = 2.0
WALL_HEIGHT_M = 1.0
GOAL_HEIGHT_M = 1.25
GOAL_DISTANCES_M = (1.0, 5.0)
SUCCESS_RADIUS_M = 0.5
EASY_RADIUS_M = 2.0

_BODIES = 13  # the world body left out: it does not move
_ROOT_VELOCITIES = 6  # no actuator acts on them

STATE = (
    Term("qpos", columns=(0, 1, 2), unit="m"),
    Term("qpos", columns=(3, 4, 5, 6), unit="1"),
    Term("qpos", columns=tuple(range(7, 24)), unit="rad"),
    Term("qvel", columns=(0, 1, 2), unit="m/s"),
    Term("qvel", columns=tuple(range(3, 23)), unit="rad/s"),
    Term("cinert", columns=tuple(range(10, 10 + 10 * _BODIES)), unit="kg m² (6), kg m (3), kg (1)"),
    Term("cvel", columns=tuple(range(6, 6 + 6 * _BODIES)), unit="rad/s (3), m/s (3)"),
    Term("qfrc_actuator", columns=tuple(range(_ROOT_VELOCITIES, 23)), unit="N m"),
)
"""24 positions, 23 velocities, inertia (130) and velocity (78) of the bodies, 17 actuator forces: 272."""

_MAZES = {"u": "around the bend of a U", "big": "in a 6 x 6 maze"}


def build_humanoid() -> mujoco.MjSpec:
    """Return Gymnasium's humanoid, upright on its floor, with its contacts pruned."""
    spec = load_gymnasium_model("humanoid")
    # The shipped RK4 evaluates the dynamics four times a step; this once, with joint damping kept stable.
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    # MuJoCo Warp has no PGS, which is shipped; Newton needs one or two iterations and never took more than 7,
    # so that the cap bounds a batch's slowest world alone.
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.iterations = 10
    for geom in spec.geoms:
        geom.contype, geom.conaffinity = _contact_bits(geom.name)
    return spec


def _contact_bits(geom: str) -> tuple[int, int]:
    """Return contype and conaffinity of one of the shipped geoms.

    No two limbs meet, as in the published tasks. While the torso is above 1 m, where the episode ends,
    nothing but the feet reaches the floor.
    """
    if geom == "floor":
        return 0, FLOOR
    return (FLOOR | OBSTACLE, 0) if geom.endswith(("foot", "shin1")) else (OBSTACLE, 0)


def build_maze(layout: str) -> mujoco.MjSpec:
    """Return the humanoid inside the layout's walls, which reach up to its waist."""
    spec = build_humanoid()
    add_walls(spec, layout, CELL_SIZE_M, WALL_HEIGHT_M, contype=0, conaffinity=OBSTACLE)
    return spec


def _humanoid() -> GoalTask:
    goals = ConcatenatedPositions((RingPositions(*GOAL_DISTANCES_M), constant(GOAL_HEIGHT_M)))
    episodes = EpisodeDistribution(Reset(), goals)
    return GoalTask(
        name="humanoid",
        description="humanoid to a point 1 to 5 m away",
        build_spec=build_humanoid,
        observation=STATE,
        achieved_goal=(Term("qpos", "root", columns=(0, 1, 2), unit="m"),),
        success=(SuccessRegion(SUCCESS_RADIUS_M),),
        distributions={"training": episodes, "evaluation": episodes},
        control_dt_s=0.015,
        episode_steps=1000,
        early_end=(EarlyEnd(Term("qpos", "root", columns=(2,), unit="m"), low=1.0, high=2.0),),
        other_radii={"easy": EASY_RADIUS_M},
        scene=ScenePicture(follow="torso", distance=6.0, elevation=-20.0, goal_position=(0, 1, 2)),
    )


def _humanoid_maze(name: str) -> GoalTask:
    layout = LAYOUTS[name]
    return replace(
        _humanoid(),
        name=f"humanoid_{name}_maze",
        description=f"humanoid {_MAZES[name]}",
        build_spec=partial(build_maze, layout),
        distributions=maze_episodes(
            name, CELL_SIZE_M, Reset(joints=("root[0]", "root[1]")), goal_height=GOAL_HEIGHT_M
        ),
        maze=MazePicture(layout, CELL_SIZE_M),
        scene=replace(maze_scene(layout, CELL_SIZE_M), goal_position=(0, 1, 2)),
    )


def tasks() -> list[GoalTask]:
    """Return the humanoid's tasks."""
    return [_humanoid(), *map(_humanoid_maze, _MAZES)]
