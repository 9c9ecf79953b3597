"""Machines that move in a plane, from the models that Gymnasium ships: reacher, pusher and half-cheetah."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mujoco
import numpy as np

from thousandfold.envs.distributions import (
    BoxPositions,
    ConcatenatedPositions,
    PositionDistribution,
    RingPositions,
    constant,
)
from thousandfold.envs.randomization import Factor
from thousandfold.envs.task import (
    EpisodeDistribution,
    GoalTask,
    Reset,
    ScenePicture,
    SuccessRegion,
    Term,
    with_nominal,
)
from thousandfold.envs.tasks.gymnasium_models import load_gymnasium_model

# Stable with the joints' damping, and as cheap as Euler's.
_INTEGRATOR = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
# Gymnasium draws the first velocities of reacher and pusher uniformly in ±0.005; a normal of the same spread.
_FIRST_SPEEDS = 0.005 / 3**0.5

REACHER_PLANE_Z_M = 0.01
PUSHER_JOINTS = (
    "r_shoulder_pan_joint",
    "r_shoulder_lift_joint",
    "r_upper_arm_roll_joint",
    "r_elbow_flex_joint",
    "r_forearm_roll_joint",
    "r_wrist_flex_joint",
    "r_wrist_roll_joint",
)
PUSHER_OBJECT_M = (0.45, -0.05, -0.275)
PUSHER_OBJECT_KG = 0.04
HALF_CHEETAH_KG = 14.0
PUSHER_LEAST_DISTANCE_M = 0.17


@dataclass(frozen=True)
class DistantGoals:
    """Goals drawn for themselves, again and again until they are far enough from where the object starts.

    Attributes:
        goals: what goals are drawn from, (count, goal_dim).
        origin: where the object is while its joints are at 0, in the coordinates that the starts move.
        least: least distance over these coordinates, in metres.
    """

    goals: PositionDistribution
    origin: tuple[float, ...]
    least: float

    def sample_for(self, rng: np.random.Generator, starts: np.ndarray) -> np.ndarray:
        """Return a goal for each start, (count, goal_dim); starts are offsets from `origin`, (count, dim)."""
        objects = starts + np.asarray(self.origin)
        goals = self.goals.sample(rng, len(starts))
        while True:
            distance = np.linalg.norm(goals[:, : objects.shape[1]] - objects, axis=1)
            near = np.flatnonzero(distance <= self.least)
            if not len(near):
                return goals
            goals[near] = self.goals.sample(rng, len(near))


def build_reacher_spec() -> mujoco.MjSpec:
    """Return Gymnasium's reacher without its target, and with a sensor of the fingertip's velocity."""
    spec = load_gymnasium_model("reacher")
    spec.option.integrator = _INTEGRATOR
    spec.delete(spec.body("target"))
    spec.add_sensor(
        name="fingertip_velocity",
        type=mujoco.mjtSensor.mjSENS_FRAMELINVEL,
        objtype=mujoco.mjtObj.mjOBJ_XBODY,
        objname="fingertip",
    )
    return spec


def build_pusher_spec() -> mujoco.MjSpec:
    """Return Gymnasium's pusher (version 5) without its goal, and with an object that contacts can push.

    Gymnasium gives the object 0.04 kg as armature and next to no mass. MuJoCo scales the contacts of a body
    that only slides by its mass, so that the arm would pass through it. Here it is a mass.
    """
    spec = load_gymnasium_model("pusher_v5")
    spec.option.integrator = _INTEGRATOR
    spec.delete(spec.body("goal"))
    disc = spec.body("object")
    for geom in disc.geoms:
        geom.mass = PUSHER_OBJECT_KG
        geom.rgba = (0.16, 0.55, 0.33, 1.0)  # its white does not show on a light floor
    for joint in disc.joints:
        joint.armature = 0.0
    # The object slides in the plane of the table and needs no contact with it.
    spec.add_exclude(bodyname1="world", bodyname2="object")
    return spec


def build_half_cheetah_spec() -> mujoco.MjSpec:
    """Return Gymnasium's half-cheetah, of 14 kg."""
    spec = load_gymnasium_model("half_cheetah")
    spec.option.integrator = _INTEGRATOR
    # By the densities: MuJoCo gives up the compiler's setting of the whole mass, and warns of it.
    spec.compiler.settotalmass = -1
    scale = HALF_CHEETAH_KG / spec.copy().compile().body_mass.sum()
    for geom in spec.geoms:
        geom.density *= scale
    return spec


def _same(starts: Reset, goals: PositionDistribution | DistantGoals) -> dict[str, EpisodeDistribution]:
    episodes = EpisodeDistribution(starts, goals)
    return {"training": episodes, "evaluation": episodes}


def _reacher() -> GoalTask:
    tip = Term("xpos", "fingertip", unit="m")
    episodes = _same(
        Reset(qpos_noise=0.1, qvel_noise=_FIRST_SPEEDS),
        ConcatenatedPositions((RingPositions(0.0, 0.2), constant(REACHER_PLANE_Z_M))),
    )
    # Its links touch nothing: what brakes them is the joints' damping.
    randomized = replace(
        episodes["evaluation"], varies=tuple(Factor(name, 0.7, 1.3) for name in ("mass", "damping", "gain"))
    )
    return GoalTask(
        name="reacher",
        description="arm of two links in the plane: bring the fingertip to a point",
        build_spec=build_reacher_spec,
        observation=(
            Term("qpos", transform="cos", unit="1"),
            Term("qpos", transform="sin", unit="1"),
            tip,
            Term("sensordata", "fingertip_velocity", unit="m/s"),
        ),
        achieved_goal=(tip,),
        success=(SuccessRegion(0.05),),
        distributions=with_nominal({**episodes, "randomized": randomized}),
        control_dt_s=0.02,
        scene=ScenePicture(
            lookat=(0.0, 0.0, 0.0), distance=0.9, azimuth=90.0, elevation=-70.0, goal_position=(0, 1, 2)
        ),
    )


def _pusher() -> GoalTask:
    """Gymnasium's starts; goals to the arm's side of them, where the public suite's easy kind has them."""
    x, y, z = PUSHER_OBJECT_M
    goals = BoxPositions((x - 0.2, y - 0.55, z), (x + 0.2, y - 0.25, z))
    tip, disc = Term("xpos", "tips_arm", unit="m"), Term("xpos", "object", unit="m")
    return GoalTask(
        name="pusher",
        description="arm of seven joints: push a disc to a point",
        build_spec=build_pusher_spec,
        observation=(
            *(Term("qpos", joint, unit="rad") for joint in PUSHER_JOINTS),
            tip,
            disc,
            *(Term("qvel", joint, unit="rad/s") for joint in PUSHER_JOINTS),
        ),
        achieved_goal=(disc,),
        success=(SuccessRegion(0.1),),
        other_radii={"hard": 0.05},
        distributions=_same(
            Reset(
                joints=("obj_slidex", "obj_slidey"),
                position=BoxPositions((-0.2, -0.3), (0.2, 0.0)),
                qvel_noise=_FIRST_SPEEDS,
                noise_joints=PUSHER_JOINTS,
            ),
            DistantGoals(goals, (x, y), PUSHER_LEAST_DISTANCE_M),
        ),
        control_dt_s=0.05,
        scene=ScenePicture(
            lookat=(0.4, -0.4, -0.2), distance=2.0, azimuth=-100.0, elevation=-40.0, goal_position=(0, 1, 2)
        ),
    )


def _half_cheetah() -> GoalTask:
    return GoalTask(
        name="half_cheetah",
        description="half a cheetah in the plane: run to 5 m ahead",
        build_spec=build_half_cheetah_spec,
        observation=(
            Term("qpos", columns=(0, 1), unit="m"),
            Term("qpos", columns=tuple(range(2, 9)), unit="rad"),
            Term("qvel", columns=(0, 1), unit="m/s"),
            Term("qvel", columns=tuple(range(2, 9)), unit="rad/s"),
        ),
        achieved_goal=(Term("qpos", "rootx", unit="m"),),
        success=(SuccessRegion(0.5),),
        other_radii={"easy": 2.0},
        distributions=_same(Reset(qpos_noise=0.1, qvel_noise=0.1), constant(5.0)),
        control_dt_s=0.05,
        scene=ScenePicture(follow="torso", distance=4.0, azimuth=90.0, elevation=-15.0, goal_position=(0,)),
    )


def tasks() -> list[GoalTask]:
    """Return the planar tasks."""
    return [_reacher(), _pusher(), _half_cheetah()]
