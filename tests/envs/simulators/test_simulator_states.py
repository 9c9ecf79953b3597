"""All that MuJoCo calls state, set, reset and saved, beside `mujoco.mj_resetDataKeyframe`."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
import pytest

from tests.envs.any_simulator import (
    WORLDS,
    MakeSimulator,
    assert_same,
    make_cpu,
    mask,
    numpy,
    still,
)
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import BoxPositions
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.envs.start_states import STATE
from thousandfold.envs.task import EpisodeDistribution, GoalTask, Reset, SuccessRegion, Term

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
    <body name="pole" pos="-1 0 1">
      <joint name="servoed" axis="0 1 0" damping="1"/><joint name="flexed" axis="1 0 0" damping="1"/>
      <geom type="capsule" size="0.05 0.2"/>
    </body>
    <body name="marker" mocap="true" pos="0 2 1">
      <geom type="sphere" size="0.05" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator>
    <general name="drive" joint="hinge" dyntype="filter" dynprm="0.1" gainprm="3" ctrllimited="true"
             ctrlrange="-1 1"/>
    <intvelocity name="servo" joint="servoed" kp="40" kv="2" ctrlrange="-1 1" actrange="-3 3"/>
    <muscle name="muscle" joint="flexed" ctrlrange="0 1" lengthrange="0.1 1"/>
    <motor name="late" joint="flexed" ctrlrange="-1 1" delay="0.03" nsample="5"/>
  </actuator>
  <equality>
    <weld name="off" body1="box" body2="marker" active="false"/>
    <connect name="on" body1="arm" anchor="0 0 0" active="true"/>
  </equality>
  <sensor>
    <framelinvel name="tip_velocity" objtype="site" objname="tip"/>
    <framelinacc name="tip_acceleration" objtype="site" objname="tip"/>
    <touch name="none_touches" site="tip"/>
  </sensor>
  <keyframe>
    <key name="home" time="2" qpos="0.5 0 0.4 0.9 0.1 0 0 0.3 1.2 -0.4" qvel="0 0 0 0 0 0 0.1 0 0"
         act="0.7 1.2 0.2" ctrl="0.5 0 0.1 0.3" mpos="0.2 -1 1.5" mquat="0.8 0 0.6 0"/>
  </keyframe>
</mujoco>
"""


ACTIONS = 4


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
                Term("cvel"), Term("ctrl"), Term("act"), Term("qfrc_actuator"), Term("sensordata"),
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


def at_the_keyframe(simulator: Simulator, world: int) -> mujoco.MjData:
    """Return MuJoCo's own reset to the keyframe, with a world's positions and velocities."""
    model = simulator.task.model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qpos[:] = observed(simulator, "qpos")[world]
    data.qvel[:] = observed(simulator, "qvel")[world]
    return data


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
        assert numpy(one.observation) == pytest.approx(numpy(other.observation), rel=1e-4, abs=1e-4)
        assert np.array_equal(numpy(one.desired_goal), numpy(other.desired_goal))
        for simulator in (one, other):
            simulator.step(np.ones((WORLDS, ACTIONS), np.float32))
            simulator.reset(mask(simulator, 1, 3))


def test_starts_are_near_the_keyframe_with_unit_quaternions(simulator: Simulator) -> None:
    simulator.reset()
    qpos = observed(simulator, "qpos")
    assert np.abs(qpos[:, [0, 1, 2, 7, 8, 9]] - [0.5, 0, 0.4, 0.3, 1.2, -0.4]).max() <= 0.05 + 1e-6
    assert np.linalg.norm(qpos[:, 3:7], axis=1) == pytest.approx(1.0, abs=1e-6)
    assert len(np.unique(qpos[:, 0])) == WORLDS


def test_reset_puts_the_whole_state_where_mujocos_own_does(simulator: Simulator) -> None:
    """And nothing of the last episode is left; in the other worlds all of it stays."""
    simulator.reset()
    for _ in range(3):
        simulator.step(np.ones((WORLDS, ACTIONS), np.float32))
    before = simulator.state_dict()["state"]
    simulator.reset(mask(simulator, 0, 2))
    assert_same(simulator, simulator.state_dict()["state"][[1, 3]], before[[1, 3]])
    for world in (0, 2):
        expected = np.empty(mujoco.mj_stateSize(simulator.task.model, STATE))
        mujoco.mj_getState(simulator.task.model, at_the_keyframe(simulator, world), expected, STATE)
        assert simulator.state_dict()["state"][world] == pytest.approx(expected, abs=1e-6)
    assert observed(simulator, "act")[[0, 2]] == pytest.approx(np.tile([0.7, 1.2, 0.2], (2, 1)))
    assert observed(simulator, "act")[1] != pytest.approx([0.7, 1.2, 0.2], abs=1e-3)


def test_masked_reset_derives_the_fields_of_its_worlds_alone(simulator: Simulator) -> None:
    """`mujoco.mj_forward` is the reference; forces and accelerations of the others are the last substep's."""
    simulator.reset()
    for _ in range(4):
        simulator.step(np.ones((WORLDS, ACTIONS), np.float32))
    before = numpy(simulator.observation)
    simulator.reset(mask(simulator, 1, 2))
    assert np.array_equal(numpy(simulator.observation)[[0, 3]], before[[0, 3]])
    for world in (1, 2):
        data = at_the_keyframe(simulator, world)
        mujoco.mj_forward(simulator.task.model, data)
        for field in (
            "xpos", "xquat", "site_xpos", "cinert", "cvel", "ctrl", "act", "qfrc_actuator", "sensordata",
        ):  # fmt: skip
            expected = getattr(data, field).ravel()
            assert observed(simulator, field)[world] == pytest.approx(expected, rel=1e-4, abs=5e-4), field


def test_state_that_is_set_owes_nothing_to_the_steps_before(simulator: Simulator) -> None:
    """What follows it is the same, whatever came before, and the rest of the state is a start's."""
    simulator.reset()
    qpos, qvel = observed(simulator, "qpos").copy(), observed(simulator, "qvel").copy()
    ends = []
    for steps in (0, 3):
        for _ in range(steps):
            simulator.step(np.ones((WORLDS, ACTIONS), np.float32))
        simulator.set_state(qpos, qvel)
        assert observed(simulator, "act") == pytest.approx(np.tile([0.7, 1.2, 0.2], (WORLDS, 1)))
        assert full_state(simulator, mujoco.mjtState.mjSTATE_TIME).tolist() == [[2.0]] * WORLDS
        simulator.step(still(simulator))
        ends.append(numpy(simulator.observation))
    assert_same(simulator, *ends)


def test_saved_state_goes_on_bit_for_bit(
    make: MakeSimulator, task: CompiledTask, simulator: Simulator
) -> None:
    """Activations, bodies moved from outside, warm start and delays: another simulator takes them over.

    The box lands; see `assert_same`.
    """
    actions = np.random.default_rng(2).uniform(-1, 1, (6, WORLDS, ACTIONS)).astype(np.float32)
    simulator.reset()
    for action in actions[:3]:
        simulator.step(action)
    other = make(task, seed=99)
    other.load_state_dict(simulator.state_dict())
    for each in (simulator, other):
        each.reset(mask(each, 2))
    assert np.array_equal(numpy(simulator.observation), numpy(other.observation))
    for action in actions[3:]:
        for each in (simulator, other):
            each.step(action)
        assert_same(simulator, numpy(simulator.observation), numpy(other.observation))
    saved = simulator.state_dict()
    for name, array in other.state_dict().items():
        assert_same(simulator, saved[name], array)


def test_many_steps_agree_with_mujoco(make: MakeSimulator, task: CompiledTask) -> None:
    """From the keyframe's whole state, until the box lands; `mujoco.mj_step` is the reference."""
    seen = (Term("qpos"), Term("qvel"), Term("act"))
    simulator = make(CompiledTask(dataclasses.replace(task.spec, observation=seen)))
    references = [at_the_keyframe(simulator, world) for world in range(WORLDS)]
    actions = np.random.default_rng(0).uniform(-1, 1, (4, WORLDS, ACTIONS)).astype(np.float32)
    for action in actions:
        simulator.step(action)
    for world, data in enumerate(references):
        for action in actions[:, world]:
            data.ctrl[:] = task.control(action)
            mujoco.mj_step(task.model, data, nstep=task.frame_skip)
        assert data.ncon == 0
        expected = np.hstack([data.qpos, data.qvel, data.act])
        assert (np.abs(numpy(simulator.observation)[world] - expected) <= 2e-4 * (1 + np.abs(expected))).all()
