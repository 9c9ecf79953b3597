"""The ant that all ant tasks share: Gymnasium's model with its contacts pruned, its state and its resets."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco

from thousandfold.envs.task import EarlyEnd, Reset, Term
from thousandfold.envs.tasks.gymnasium_models import load_gymnasium_model

FLOOR, OBSTACLE = 1, 2
"""Contact bits: what meets the floor, and what meets walls, balls and blocks."""

CONTROL_DT_S = 0.05
EPISODE_STEPS = 1000
SUCCESS_RADIUS_M = 0.5
EASY_RADIUS_M = 2.0

KEYFRAME = "stand"
STAND = (0, 0, 0.75, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1)
"""Position of the torso in metres, its quaternion, then hips at 0 and ankles at ±1 rad.

The published 0.55 m suits their softer physics: here the noise puts feet deep into the floor, which throws
the ant up and ends a quarter of all episodes. From 0.75, the model's own, no more than a few are in so deep.
"""

JOINTS = ("root", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3", "hip_4", "ankle_4")

STATE = (
    Term("qpos", columns=(0, 1, 2), unit="m"),
    Term("qpos", columns=(3, 4, 5, 6), unit="1"),
    Term("qpos", columns=tuple(range(7, 15)), unit="rad"),
    Term("qvel", columns=(0, 1, 2), unit="m/s"),
    Term("qvel", columns=tuple(range(3, 14)), unit="rad/s"),
)
"""The ant's 15 positions and 14 velocities, without those of anything else in the model."""

TORSO_XY = Term("qpos", "root", columns=(0, 1), unit="m")

FALLEN = EarlyEnd(Term("qpos", "root", columns=(2,), unit="m"), low=0.2, high=1.0)
"""On its back the torso sinks below 0.2 m, as nothing but the shins meets the floor."""

AT_ORIGIN = Reset(keyframe=KEYFRAME, qpos_noise=0.1, qvel_noise=0.1, noise_joints=JOINTS)


def anywhere() -> Reset:
    """Return the ant's reset for tasks that draw where it starts; they give the position."""
    return Reset(
        joints=("root[0]", "root[1]"),
        keyframe=KEYFRAME,
        qpos_noise=AT_ORIGIN.qpos_noise,
        qvel_noise=AT_ORIGIN.qvel_noise,
        noise_joints=JOINTS,
    )


def build_ant(rest_of_keyframe: Sequence[float] = ()) -> mujoco.MjSpec:
    """Return the ant on its floor, in the keyframe `stand`.

    Args:
        rest_of_keyframe: positions of the joints that the caller adds, in their order.
    """
    spec = load_gymnasium_model("ant")
    # The shipped RK4 evaluates the dynamics four times a step; this once, with joint damping kept stable.
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    # Newton needs one or two iterations and never took more than 8: the cap bounds a batch's slowest world.
    spec.option.iterations = 10
    for geom in spec.geoms:
        geom.contype, geom.conaffinity = _contact_bits(geom.name)
    for actuator in spec.actuators:
        actuator.name = actuator.target
    spec.add_key(name=KEYFRAME, qpos=[*STAND, *rest_of_keyframe])
    return spec


def _contact_bits(geom: str) -> tuple[int, int]:
    """Return contype and conaffinity of one of the shipped geoms; no two parts of the ant meet.

    A capsule meets a plane at its ends, and a thigh's outer end is its shin's: of the legs, the floor needs
    the shins alone. It does not hold the torso either, as in the published tasks, so that a fallen ant's
    episode ends; on the shipped model's floor it lies on its back until time is up.
    """
    if geom == "floor":
        return 0, FLOOR
    if geom.endswith("ankle_geom"):
        return FLOOR | OBSTACLE, 0
    # The capsules between torso and thighs are covered by those two.
    return (0, 0) if geom.startswith("aux") else (OBSTACLE, 0)
