"""An ant that walks to a point: in the open, through mazes, and through mazes by stitching short paths."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import mujoco

from thousandfold.envs.distributions import CellPositions, RingPositions
from thousandfold.envs.mazes import LAYOUTS, GoalsByPathLength, add_walls, maze_episodes, maze_scene
from thousandfold.envs.task import EpisodeDistribution, GoalTask, MazePicture, ScenePicture, SuccessRegion
from thousandfold.envs.tasks import ant_model

CELL_SIZE_M = 4.0
WALL_HEIGHT_M = 2.0
GOAL_DISTANCE_M = 10.0
NEAR_GOAL_DISTANCE_M = 3.0
LONGEST_TRAINED_PATH = 3  # cells between start and goal in the training of the stitching tasks

_MAZES = {
    "u": "around the bend of a U",
    "u2": "around the bend of a U, 2 cells longer",
    "u3": "around the bend of a U, 4 cells longer",
    "u4": "around a U with bent ends",
    "u5": "around a long U with bent ends",
    "big": "in a 6 x 6 maze",
    "hardest": "in a 7 x 10 maze",
}
_STITCHED = ("u", "u2", "u3", "u4", "u5")


def build_maze(layout: str) -> mujoco.MjSpec:
    """Return the ant inside the layout's walls, which all of its legs and its torso meet."""
    spec = ant_model.build_ant()
    add_walls(spec, layout, CELL_SIZE_M, WALL_HEIGHT_M, contype=0, conaffinity=ant_model.OBSTACLE)
    return spec


def ant() -> GoalTask:
    """Return the ant in the open, which the other ant tasks are made from."""

    def goals_at(distance: float) -> EpisodeDistribution:
        return EpisodeDistribution(ant_model.AT_ORIGIN, RingPositions(distance, distance))

    return GoalTask(
        name="ant",
        description="ant to a point 10 m away",
        build_spec=ant_model.build_ant,
        observation=ant_model.STATE,
        achieved_goal=(ant_model.TORSO_XY,),
        success=(SuccessRegion(ant_model.SUCCESS_RADIUS_M),),
        distributions={
            "training": goals_at(GOAL_DISTANCE_M),
            "evaluation": goals_at(GOAL_DISTANCE_M),
            "near": goals_at(NEAR_GOAL_DISTANCE_M),
        },
        control_dt_s=ant_model.CONTROL_DT_S,
        episode_steps=ant_model.EPISODE_STEPS,
        early_end=(ant_model.FALLEN,),
        other_radii={"easy": ant_model.EASY_RADIUS_M},
        scene=ScenePicture(follow="torso", distance=8.0),
    )


def _ant_maze(name: str) -> GoalTask:
    layout = LAYOUTS[name]
    return replace(
        ant(),
        name=f"ant_{name}_maze",
        description=f"ant {_MAZES[name]}",
        build_spec=partial(build_maze, layout),
        distributions=maze_episodes(name, CELL_SIZE_M, ant_model.anywhere()),
        maze=MazePicture(layout, CELL_SIZE_M),
        scene=maze_scene(layout, CELL_SIZE_M),
    )


def _ant_maze_stitch(name: str) -> GoalTask:
    layout = LAYOUTS[name]

    def episodes(goals: GoalsByPathLength) -> EpisodeDistribution:
        start = CellPositions(goals.start_cells)
        return EpisodeDistribution(replace(ant_model.anywhere(), position=start), goals)

    whole = _ant_maze(name)
    short = GoalsByPathLength(layout, CELL_SIZE_M, longest=LONGEST_TRAINED_PATH)
    long = GoalsByPathLength(layout, CELL_SIZE_M, shortest=LONGEST_TRAINED_PATH + 1)
    return replace(
        whole,
        name=f"ant_{name}_maze_stitch",
        description=f"ant {_MAZES[name]}, trained up to {LONGEST_TRAINED_PATH} cells away, evaluated farther",
        distributions={
            "training": episodes(short),
            "near": whole.distribution("near"),
            "evaluation": episodes(long),
        },
    )


def tasks() -> list[GoalTask]:
    """Return the ant's tasks without objects."""
    return [ant(), *map(_ant_maze, _MAZES), *map(_ant_maze_stitch, _STITCHED)]
