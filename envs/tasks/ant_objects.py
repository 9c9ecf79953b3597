"""An ant that moves things: a ball to a point, and a block out of its way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mujoco
import numpy as np

from thousandfold.envs.distributions import BoxPositions, MixedPositions, RingPositions
from thousandfold.envs.mazes import add_walls, maze_scene
from thousandfold.envs.task import EpisodeDistribution, GoalTask, MazePicture, ScenePicture, Term
from thousandfold.envs.tasks import ant_model
from thousandfold.envs.tasks.ant import ant

BALL_RADIUS_M = 0.5
BALL_DENSITY = 1.0  # kg/m³, which makes 0.52 kg: the ant, of 0.91 kg, can push it
BALL_DAMPING = 0.5  # N s/m: a ball that was hit comes to rest within seconds
BALL_GOAL_DISTANCE_M = 5.0
BALL_NEAREST_M, BALL_FARTHEST_M = 2.0, 3.0  # midway, and never inside the ant, whose legs reach 1.2 m
BALL_GOAL_TURN_RAD = 0.2

# The room and the block between start and goals follow Ant Push of https://arxiv.org/abs/1805.08296, in the
# measures of the public suite: cells of 8 m, the ant at the origin, the block in the cell at (8, 8).
PUSH_LAYOUT = "##### #R.## #..G# ##G## #####"
PUSH_CELL_SIZE_M = 8.0
PUSH_ORIGIN = (-8.0, -8.0)
PUSH_WALL_HEIGHT_M = 2.0
BLOCK_CENTER = (8.0, 8.0)
BLOCK_HALF_WIDTH_M = 3.6
BLOCK_HALF_HEIGHT_M = 0.9
BLOCK_MASS_KG = 1.0
BLOCK_DAMPING = 2.0  # N s/m: the ant's weight on its feet is enough to push it at a walk


@dataclass(frozen=True)
class GoalsBeyond:
    """Goals at `distance` metres from the origin, past what the reset placed.

    Attributes:
        distance: in metres.
        turn: how far the goal's direction may lie from the object's, uniform in ±turn rad.
    """

    distance: float
    turn: float

    def sample_for(self, rng: np.random.Generator, starts: np.ndarray) -> np.ndarray:
        """Return goals (count, 2) in metres for objects placed at `starts`, (count, 2) in metres."""
        angle = np.arctan2(starts[:, 1], starts[:, 0]) + rng.uniform(-self.turn, self.turn, len(starts))
        return self.distance * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _add_sliding(
    spec: mujoco.MjSpec, name: str, position: tuple[float, float, float], damping: float
) -> mujoco.MjsBody:
    """Return a new body that slides in the plane; joints ``<name>_x`` and ``<name>_y`` are its position."""
    body = spec.worldbody.add_body(name=name, pos=position)
    for axis, letter in enumerate("xy"):
        body.add_joint(
            name=f"{name}_{letter}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=np.eye(3)[axis],
            ref=position[axis],
            limited=False,
            armature=0.0,
            damping=[damping, 0, 0],
        )
    return body


def build_ball() -> mujoco.MjSpec:
    """Return the ant with a light ball, which it meets with legs and torso; the floor is no matter to it."""
    place = ((BALL_NEAREST_M + BALL_FARTHEST_M) / 2, 0.0)
    spec = ant_model.build_ant(place)
    ball = _add_sliding(spec, "ball", (*place, BALL_RADIUS_M), BALL_DAMPING)
    ball.add_geom(
        name="ball",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[BALL_RADIUS_M, 0, 0],
        density=BALL_DENSITY,
        contype=0,
        conaffinity=ant_model.OBSTACLE,
        rgba=[0.84, 0.37, 0.0, 1.0],
    )
    return spec


def build_push() -> mujoco.MjSpec:
    """Return the ant in its rooms, with the block, which meets the ant and the walls."""
    spec = ant_model.build_ant(BLOCK_CENTER)
    add_walls(
        spec,
        PUSH_LAYOUT,
        PUSH_CELL_SIZE_M,
        PUSH_WALL_HEIGHT_M,
        origin=PUSH_ORIGIN,
        contype=0,
        conaffinity=ant_model.OBSTACLE,
    )
    # A little above the floor, which does not carry it: the joints hold its height.
    block = _add_sliding(spec, "block", (*BLOCK_CENTER, BLOCK_HALF_HEIGHT_M + 0.1), BLOCK_DAMPING)
    block.add_geom(
        name="block",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[BLOCK_HALF_WIDTH_M, BLOCK_HALF_WIDTH_M, BLOCK_HALF_HEIGHT_M],
        mass=BLOCK_MASS_KG,
        contype=ant_model.OBSTACLE,
        conaffinity=ant_model.OBSTACLE,
        rgba=[0.84, 0.37, 0.0, 1.0],
    )
    return spec


def _ant_ball() -> GoalTask:
    starts = replace(
        ant_model.AT_ORIGIN,
        joints=("ball_x", "ball_y"),
        position=RingPositions(BALL_NEAREST_M, BALL_FARTHEST_M),
    )
    episodes = EpisodeDistribution(starts, GoalsBeyond(BALL_GOAL_DISTANCE_M, BALL_GOAL_TURN_RAD))
    return replace(
        ant(),
        name="ant_ball",
        description="ant pushes a ball to a point 5 m away",
        build_spec=build_ball,
        observation=(*ant_model.STATE, *_xy_of("ball")),
        achieved_goal=_xy_of("ball"),
        distributions={"training": episodes, "evaluation": episodes},
        scene=ScenePicture(follow="torso", distance=10.0),
    )


def _ant_push() -> GoalTask:
    goals = MixedPositions((BoxPositions((16.0, 8.0), (18.0, 10.0)), BoxPositions((8.0, 16.0), (10.0, 18.0))))
    episodes = EpisodeDistribution(ant_model.AT_ORIGIN, goals)
    return replace(
        ant(),
        name="ant_push",
        description="ant pushes a block out of its way to a room behind it",
        build_spec=build_push,
        observation=(*ant_model.STATE, *_xy_of("block")),
        distributions={"training": episodes, "evaluation": episodes},
        maze=MazePicture(PUSH_LAYOUT, PUSH_CELL_SIZE_M, PUSH_ORIGIN),
        scene=maze_scene(PUSH_LAYOUT, PUSH_CELL_SIZE_M, origin=PUSH_ORIGIN),
    )


def _xy_of(body: str) -> tuple[Term, Term]:
    return Term("qpos", f"{body}_x", unit="m"), Term("qpos", f"{body}_y", unit="m")


def tasks() -> list[GoalTask]:
    """Return the ant's tasks with objects."""
    return [_ant_ball(), _ant_push()]
