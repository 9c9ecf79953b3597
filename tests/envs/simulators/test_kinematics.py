"""The pass that leaves forces out computes what MuJoCo's whole forward pass computes."""

import mujoco
import numpy as np
import pytest

from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator, kinematic_model
from thousandfold.envs.term_columns import FIELDS

PENDULUM = """
<mujoco>
  <worldbody>
    <body name="arm">
      <joint name="hinge" axis="0 1 0" limited="true" range="-5 5" stiffness="2" damping="1"/>
      <geom name="arm" type="capsule" fromto="0 0 0 0 0 -1" size="0.05"/>
      <site name="tip" pos="0 0 -1"/>
    </body>
    <geom name="floor" type="plane" size="2 2 0.1" pos="0 0 -0.9"/>
  </worldbody>
  <sensor>{}</sensor>
</mujoco>
"""
VELOCITY = '<framelinvel objtype="site" objname="tip"/>'


def pendulum(sensors: str = VELOCITY) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(PENDULUM.format(sensors))


@pytest.mark.parametrize("name", ["arm_push_easy", "reacher", "pusher", "humanoid"])
def test_fields_after_a_step_and_a_reset_are_those_of_mujoco(name: str) -> None:
    task = compile_task(name)
    simulator = CpuSimulator(task, 8, num_threads=2, seed=1)
    rng = np.random.default_rng(0)

    def expected(field: str) -> np.ndarray:
        rows = [np.ravel(getattr(simulator.world_data(world), field)) for world in range(8)]
        return np.stack(rows)

    derived = [name for name in task.fields if not FIELDS[name].in_state and name != "qfrc_actuator"]
    for _ in range(12):
        simulator.step(rng.uniform(-1, 1, (8, task.action_dim)).astype(np.float32))
        for field in derived:
            assert np.array_equal(simulator._fields[field], expected(field)), field
    chosen = np.arange(8) % 3 == 0
    before = {field: simulator._fields[field].copy() for field in derived}
    simulator.reset(chosen)
    for field in derived:
        assert np.array_equal(simulator._fields[field][chosen], expected(field)[chosen]), field
        assert np.array_equal(simulator._fields[field][~chosen], before[field][~chosen]), field


def test_contact_and_limits_do_not_matter_where_bodies_are_read() -> None:
    model = pendulum()
    reduced = kinematic_model(model, ["qpos", "site_xpos", "cvel", "sensordata"])
    assert reduced is not None
    data, other = mujoco.MjData(model), mujoco.MjData(reduced)
    for each in (data, other):
        each.qpos[:], each.qvel[:] = 0.1, -2.0  # in the floor, beyond the limit of 5 degrees
    mujoco.mj_forward(model, data)
    mujoco.mj_forward(reduced, other)
    assert data.ncon > 0 and data.nefc > data.ncon
    assert other.ncon == 0 and other.nefc == 0
    for field in ("site_xpos", "cvel", "sensordata"):
        assert np.array_equal(getattr(data, field), getattr(other, field)), field
    assert data.sensordata.tolist() == pytest.approx([2.0 * np.cos(0.1), 0.0, -2.0 * np.sin(0.1)])


@pytest.mark.parametrize(
    "sensors",
    [
        '<jointlimitpos joint="hinge"/>',
        '<touch site="tip"/>',
        f'{VELOCITY}<accelerometer site="tip"/>',
    ],
)
def test_sensors_that_know_of_forces_need_the_model_as_it_is(sensors: str) -> None:
    assert kinematic_model(pendulum(sensors), ["qpos", "sensordata"]) is None
    assert kinematic_model(pendulum(sensors), ["qpos", "site_xpos"]) is not None


@pytest.mark.parametrize("fields", [["qpos", "qvel", "ctrl"], ["qpos", "site_xpos", "qfrc_actuator"]])
def test_fields_of_the_state_or_of_forces_need_no_other_model(fields: list[str]) -> None:
    assert kinematic_model(pendulum(), fields) is None


def test_the_model_itself_is_left_as_it_was() -> None:
    model = pendulum()
    flags = model.opt.disableflags
    reduced = kinematic_model(model, ["site_xpos"])
    assert reduced is not None and reduced.opt.disableflags != flags
    assert model.opt.disableflags == flags
