"""States of every kind, set and reset: keyframes, free joints, activations, bodies moved from outside."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
import pytest

from envs.compiled_task import CompiledTask
from envs.distributions import BoxPositions
from envs.simulator import Simulator
from envs.task import EpisodeDistribution, GoalTask, Reset, SuccessRegion, Term
from tests.envs.any_simulator import WORLDS, MakeSimulator, make_cpu, mask, numpy, still

MODEL = """
<mujoco>
  <option timestep="0.01" integrator="implicitfast"/>
  <worldbody>
    <geom type="plane" size="5 5 1"/>
    <body name="box" pos="0 0 0.3"><freejoint name="root"/><geom type="box" size="0.1 0.1 0.1"/></body>
    <body name="arm" pos="1 0 1">
      <joint name="hinge" axis="0 1 0" damping="0.1"/><geom type="capsule" size="0.05 0.2"/>
      <site name="tip" pos="0 0 0.2"/>
    </body>
    <body name="marker" mocap="true" pos="0 2 1">
      <geom type="sphere" size="0.05" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator>
    <general name="drive" joint="hinge" dyntype="filter" dynprm="0.1" gainprm="3" ctrllimited="true"
             ctrlrange="-1 1"/>
  </actuator>
  <sensor>
    <framelinvel name="tip_velocity" objtype="site" objname="tip"/>
    <framelinacc name="tip_acceleration" objtype="site" objname="tip"/>
    <touch name="none_touches" site="tip"/>
  </sensor>
  <keyframe>
    <key name="home" qpos="0.5 0 0.4 0.9 0.1 0 0 0.3" qvel="0 0 0 0 0 0 0.1" act="0.7" ctrl="0.5"/>
  </keyframe>
</mujoco>
"""


def build_spec() -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string(MODEL)


@pytest.fixture(scope="module")
def task() -> CompiledTask:
    episodes = EpisodeDistribution(
        Reset(keyframe="home", qpos_noise=0.05, qvel_noise=0.1), BoxPositions((0, 0, 0), (1, 1, 1))
    )
    return CompiledTask(
        GoalTask(
            name="box_and_arm",
            description="every kind of state",
            build_spec=build_spec,
            observation=(
                Term("qpos"), Term("qvel"), Term("xpos"), Term("xquat"), Term("site_xpos"), Term("cinert"),
                Term("cvel"), Term("ctrl"), Term("qfrc_actuator"), Term("sensordata"),
            ),
            achieved_goal=(Term("xpos", "box"),),
            success=(SuccessRegion(0.1),),
            distributions={"training": episodes, "evaluation": episodes},
            control_dt_s=0.05,
        )
    )  # fmt: skip


def observed(simulator: Simulator, field: str) -> np.ndarray:
    """Return the columns of the observation that show a whole field."""
    labels = [number["name"] for number in simulator.task.describe("observation")]
    columns = [i for i, label in enumerate(labels) if label.startswith((f"{field}:", f"{field}["))]
    assert columns
    return numpy(simulator.observation)[:, columns]


def full_state(simulator: Simulator, kind: mujoco.mjtState) -> np.ndarray:
    """Return one part of every world's state, (num_worlds, size)."""
    model, rows = simulator.task.model, simulator.state_dict()["state"]
    part = np.zeros((len(rows), mujoco.mj_stateSize(model, int(kind))))
    for row, out in zip(rows.astype(float), part, strict=True):
        mujoco.mj_extractState(model, row, int(mujoco.mjtState.mjSTATE_INTEGRATION), out, int(kind))
    return part


def test_same_seed_gives_every_simulator_the_same_starts(make: MakeSimulator, task: CompiledTask) -> None:
    one, other = make(task, seed=7), make_cpu(task, seed=7)
    for _ in range(2):
        assert numpy(one.observation) == pytest.approx(numpy(other.observation), abs=2e-5)
        assert np.array_equal(numpy(one.desired_goal), numpy(other.desired_goal))
        for simulator in (one, other):
            simulator.step(np.ones((WORLDS, 1), np.float32))
            simulator.reset(mask(simulator, 1, 3))


def test_starts_are_near_the_keyframe_with_unit_quaternions(simulator: Simulator) -> None:
    simulator.reset()
    qpos = observed(simulator, "qpos")
    assert np.abs(qpos[:, [0, 1, 2, 7]] - [0.5, 0, 0.4, 0.3]).max() <= 0.05 + 1e-6
    assert np.linalg.norm(qpos[:, 3:7], axis=1) == pytest.approx(1.0, abs=1e-6)
    assert len(np.unique(qpos[:, 0])) == WORLDS


def test_reset_leaves_nothing_of_the_last_episode(simulator: Simulator) -> None:
    """Activations, controls, the clock and what the solver remembers; in the other worlds all of it stays."""
    kinds = mujoco.mjtState
    simulator.reset()
    for _ in range(3):
        simulator.step(np.ones((WORLDS, 1), np.float32))
    before = simulator.state_dict()["state"]
    assert full_state(simulator, kinds.mjSTATE_ACT) == pytest.approx(1 - 0.9**15, abs=1e-5)  # τ is 10 steps
    simulator.reset(mask(simulator, 0, 2))
    for kind in (kinds.mjSTATE_ACT, kinds.mjSTATE_CTRL, kinds.mjSTATE_TIME, kinds.mjSTATE_WARMSTART):
        part = full_state(simulator, kind)
        assert not part[[0, 2]].any() and part[[1, 3]].any(axis=1).all(), kind
    assert full_state(simulator, kinds.mjSTATE_MOCAP_POS).tolist() == [[0, 2, 1]] * WORLDS
    assert np.array_equal(simulator.state_dict()["state"][[1, 3]], before[[1, 3]])


def test_masked_reset_derives_the_fields_of_its_worlds_alone(simulator: Simulator) -> None:
    """`mujoco.mj_forward` is the reference; forces and accelerations of the others are the last substep's."""
    simulator.reset()
    for _ in range(4):
        simulator.step(np.ones((WORLDS, 1), np.float32))
    before = numpy(simulator.observation)
    simulator.reset(mask(simulator, 1, 2))
    assert np.array_equal(numpy(simulator.observation)[[0, 3]], before[[0, 3]])

    model, qpos, qvel = simulator.task.model, observed(simulator, "qpos"), observed(simulator, "qvel")
    for world in (1, 2):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos[world], qvel[world]
        mujoco.mj_forward(model, data)
        for field in ("xpos", "xquat", "site_xpos", "cinert", "cvel", "ctrl", "qfrc_actuator", "sensordata"):
            expected = getattr(data, field).ravel()
            assert observed(simulator, field)[world] == pytest.approx(expected, abs=2e-4), field


def test_state_that_is_set_owes_nothing_to_the_steps_before(simulator: Simulator) -> None:
    """What follows it is the same, whatever came before."""
    simulator.reset()
    qpos, qvel = observed(simulator, "qpos").copy(), observed(simulator, "qvel").copy()
    ends = []
    for steps in (0, 3):
        for _ in range(steps):
            simulator.step(np.ones((WORLDS, 1), np.float32))
        simulator.set_state(qpos, qvel)
        simulator.step(still(simulator))
        ends.append(numpy(simulator.observation))
    assert np.array_equal(*ends)


def test_many_steps_agree_with_mujoco(make: MakeSimulator, task: CompiledTask) -> None:
    """Activations and the free fall of the box, until it lands; `mujoco.mj_step` is the reference."""
    simulator = make(CompiledTask(dataclasses.replace(task.task, observation=(Term("qpos"), Term("qvel")))))
    start = numpy(simulator.observation).astype(float)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, WORLDS, 1)).astype(np.float32)
    for action in actions:
        simulator.step(action)
    for world in range(WORLDS):
        data = mujoco.MjData(task.model)
        data.qpos[:], data.qvel[:] = start[world, :8], start[world, 8:]
        for action in actions[:, world]:
            data.ctrl[:] = action
            mujoco.mj_step(task.model, data, nstep=task.frame_skip)
        assert data.ncon == 0
        expected = np.hstack([data.qpos, data.qvel])
        assert (np.abs(numpy(simulator.observation)[world] - expected) <= 1e-4 * (1 + np.abs(expected))).all()
