"""A point mass that pushes itself through mazes: a sphere on two slide joints, driven by two motors."""

from __future__ import annotations

from functools import partial

import mujoco

from thousandfold.envs.distributions import CellPositions
from thousandfold.envs.mazes import LAYOUTS, add_walls, cells, maze_scene
from thousandfold.envs.task import EpisodeDistribution, GoalTask, MazePicture, Reset, SuccessRegion, Term

CELL_SIZE_M = 1.0
SUCCESS_RADIUS_M = 0.3 * CELL_SIZE_M
START_JITTER_M = 0.25


def build_spec(layout: str) -> mujoco.MjSpec:
    """Return the point mass (0.15 m, 1 kg, damping 1, motors of gear 3) inside the layout's walls."""
    spec = mujoco.MjSpec()
    spec.modelname = "point_maze"
    spec.option.timestep = 0.02
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.worldbody.add_light(pos=[3, 3, 10], dir=[0, 0, -1])
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[0, 0, 1],
        rgba=[0.93, 0.93, 0.90, 1.0],
        # The sphere slides in the plane and never meets the floor: leaving it out of contact saves a pair.
        contype=0,
        conaffinity=0,
    )
    body = spec.worldbody.add_body(name="point", pos=[0, 0, 0.15])
    body.add_geom(
        name="point",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[0.15, 0, 0],
        mass=1.0,
        rgba=[0.13, 0.40, 0.67, 1.0],
    )
    for name, axis in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
        body.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis, damping=[1.0, 0, 0])
        motor = spec.add_actuator(
            name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, ctrllimited=True, ctrlrange=[-1, 1]
        )
        motor.set_to_motor()
        motor.gear[0] = 3.0
    add_walls(spec, layout, CELL_SIZE_M, height=0.5)
    return spec


def _episodes(layout: str, starts: str, goals: str, *, goal_jitter: float) -> EpisodeDistribution:
    position = CellPositions(cells(layout, starts, CELL_SIZE_M), START_JITTER_M)
    return EpisodeDistribution(
        starts=Reset(joints=("x", "y"), position=position),
        goals=CellPositions(cells(layout, goals, CELL_SIZE_M), goal_jitter),
    )


def _point_maze(
    name: str, layout: str, evaluation_layout: str, episode_steps: int, description: str
) -> GoalTask:
    training, evaluation = LAYOUTS[layout], LAYOUTS[evaluation_layout]
    return GoalTask(
        name=name,
        description=description,
        build_spec=partial(build_spec, training),
        observation=(Term("qpos", unit="m"), Term("qvel", unit="m/s")),
        achieved_goal=(Term("qpos", unit="m"),),
        success=(SuccessRegion(SUCCESS_RADIUS_M),),
        distributions={
            "training": _episodes(training, "RG.", "RG.", goal_jitter=START_JITTER_M),
            "training_from_start": _episodes(training, "R", "G", goal_jitter=0.0),
            "evaluation": _episodes(evaluation, "R", "G", goal_jitter=0.0),
        },
        control_dt_s=0.1,
        episode_steps=episode_steps,
        maze=MazePicture(training, CELL_SIZE_M),
        scene=maze_scene(training, CELL_SIZE_M),
    )


def tasks() -> list[GoalTask]:
    """Return the point-mass tasks."""
    return [
        _point_maze("point_u_maze", "u", "u_eval", 100, "point mass around the bend of a U"),
        _point_maze("point_big_maze", "big", "big_eval", 200, "point mass in a 6 x 6 maze"),
        _point_maze("point_hardest_maze", "hardest", "hardest", 300, "point mass in a 7 x 10 maze"),
    ]
