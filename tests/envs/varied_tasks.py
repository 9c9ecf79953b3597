"""A small machine in which every factor has something to change, and the factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import mujoco

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import BoxPositions
from thousandfold.envs.randomization import Factor, Push, Variation
from thousandfold.envs.task import EpisodeDistribution, GoalTask, Reset, SuccessRegion, Term, with_nominal

MODEL = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1"/>
    <body name="box" pos="0 0 0.1">
      <freejoint name="root"/>
      <geom name="box" type="box" size="0.1 0.1 0.1" friction="0.6"/>
    </body>
    <body name="arm" pos="1 0 1">
      <joint name="shoulder" axis="0 1 0" damping="0.2" armature="0.01" range="-100 100"/>
      <geom name="upper" type="capsule" size="0.03 0.15" pos="0 0 -0.2"/>
      <body name="lower" pos="0 0 -0.4">
        <joint name="elbow" axis="0 1 0" damping="0.2" armature="0.01"/>
        <geom name="lower" type="capsule" size="0.03 0.15" pos="0 0 -0.2"/>
        <site name="tip" pos="0 0 -0.4"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="servo" joint="shoulder" kp="40" kv="4" ctrlrange="-1 1" forcerange="-6 6"/>
    <motor name="motor" joint="elbow" gear="2" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""
EVERY: tuple[Variation, ...] = (
    Factor("mass", 0.7, 1.3),
    Factor("inertia", 0.7, 1.3),
    Factor("center_of_mass", -0.03, 0.03),
    Factor("friction", 0.5, 1.0, relative=False),
    Factor("damping", 0.5, 2.0, distribution="log_uniform"),
    Factor("armature", 0.5, 2.0, each=True),
    Factor("gain", 0.7, 1.3),
    Factor("strength", 0.5, 1.0),
    Factor("gravity_tilt", 0.05, 0.2),
    Factor("size", 0.8, 0.9, objects=("box",)),
    Factor("joint_zero", -0.1, 0.1),
    Push((0.1, 0.2), (0.5, 1.0)),
)


def _build_spec(model: str) -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string(model)


def varied_task(
    varies: Sequence[Variation] = EVERY, episode_steps: int = 40, model: str = MODEL
) -> CompiledTask:
    """Return the machine's task, whose training varies so."""
    tip = Term("site_xpos", "tip", unit="m")
    starts = Reset(joints=("shoulder", "elbow"), position=BoxPositions((-0.5, -0.5), (0.5, 0.5)))
    evaluation = EpisodeDistribution(starts, BoxPositions((0.5, -0.1, 0.2), (1.5, 0.1, 1.0)))
    training = EpisodeDistribution(starts, evaluation.goals, tuple(varies))
    return CompiledTask(
        GoalTask(
            name="machine",
            description="an arm above a box",
            build_spec=partial(_build_spec, model),
            observation=(Term("qpos"), Term("qvel"), tip),
            achieved_goal=(tip,),
            success=(SuccessRegion(0.05),),
            distributions=with_nominal({"training": training, "evaluation": evaluation}),
            control_dt_s=0.02,
            episode_steps=episode_steps,
        )
    )
