"""Orientations, and what is told in a body's frame, against MuJoCo's own mathematics, on every simulator."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from tests.envs.any_simulator import MakeSimulator, numpy
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import constant
from thousandfold.envs.orientations import ORIENTATION_COLUMNS, UP_COLUMNS
from thousandfold.envs.task import EpisodeDistribution, GoalTask, Reset, SuccessRegion, TaskError, Term

MODEL = """<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body name="base" pos="0 0 1"><freejoint name="root"/><geom name="hull" size=".1 .2 .3" type="box"/>
      <body name="link" pos=".3 0 0"><joint name="turn" axis="0 1 0"/>
        <geom name="tool" type="box" size=".1 .02 .02" pos=".1 0 0" euler="0 0 30"/>
        <site name="tip" pos=".2 0 0" euler="20 0 0"/></body></body>
  </worldbody>
  <actuator><motor joint="turn" ctrlrange="-1 1"/></actuator>
  <sensor>
    <framelinvel name="speed" objtype="site" objname="tip"/>
    <framepos name="place" objtype="site" objname="tip"/>
  </sensor>
</mujoco>"""
GOAL = (
    Term("site_xpos", "tip", frame="base"),
    Term("site_xmat", "tip", ORIENTATION_COLUMNS, frame="base"),
)
OBSERVATION = (
    Term("xmat", "base", ORIENTATION_COLUMNS),
    Term("geom_xmat", "tool", ORIENTATION_COLUMNS),
    Term("geom_xpos", "tool"),
    Term("xmat", "base", UP_COLUMNS),
    Term("qvel", "root", frame="base"),
    Term("cvel", "link", (3, 4, 5), frame="base"),
    Term("site_xpos", "tip", (2, 0), "difference", Term("xpos", "link"), frame="link"),
    Term("sensordata", "speed", frame="base"),
    Term("sensordata", "place", (1,), frame="base"),
    *GOAL,
)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def make_task(observation: tuple[Term, ...] = OBSERVATION, goal: tuple[Term, ...] = GOAL) -> CompiledTask:
    episodes = EpisodeDistribution(Reset(qpos_noise=0.5, qvel_noise=0.5), constant(0.5, 0.0, 0.0, *IDENTITY))
    return CompiledTask(
        GoalTask(
            name="framed",
            description="",
            build_spec=lambda: mujoco.MjSpec.from_string(MODEL),
            observation=observation,
            achieved_goal=goal,
            success=(SuccessRegion(0.2, 0, 3), SuccessRegion(0.5, 3, 9, kind="orientation")),
            distributions={"training": episodes, "evaluation": episodes},
        )
    )


@pytest.fixture(scope="module")
def task() -> CompiledTask:
    return make_task()


def expected(model: mujoco.MjModel, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    """Return the observation of one world, computed with MuJoCo's own products of matrices."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    mujoco.mj_forward(model, data)
    base, link, tip = data.body("base"), data.body("link"), data.site("tip")
    turned = base.xmat.reshape(3, 3)

    def six(matrix: np.ndarray) -> np.ndarray:
        return matrix.reshape(3, 3)[:, :2].T.ravel()

    velocity = np.zeros(6)
    mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, base.id, velocity, 1)
    return np.concatenate([
        six(base.xmat), six(data.geom("tool").xmat), data.geom("tool").xpos, turned.T @ [0, 0, 1],
        velocity[3:], velocity[:3], turned.T @ data.cvel[link.id][3:],
        (link.xmat.reshape(3, 3).T @ (tip.xpos - link.xpos))[[2, 0]],
        turned.T @ data.sensor("speed").data, (turned.T @ (tip.xpos - base.xpos))[[1]],
        turned.T @ (tip.xpos - base.xpos), six(turned.T @ tip.xmat.reshape(3, 3)),
    ])  # fmt: skip


def test_every_number_is_what_mujoco_says(make: MakeSimulator, task: CompiledTask) -> None:
    simulator, rng = make(task, 3, seed=0), np.random.default_rng(0)
    qpos, qvel, _ = task.sample_start("training", rng, 3)
    simulator.set_state(qpos, qvel)
    found = numpy(simulator.observation)
    for world in range(3):
        assert found[world] == pytest.approx(expected(task.model, qpos[world], qvel[world]), abs=2e-6)
    simulator.step(np.full((3, 1), 0.3, np.float32))
    state = simulator.state_dict()["state"]
    first = mujoco.mj_stateSize(task.model, mujoco.mjtState.mjSTATE_TIME)
    stepped = numpy(simulator.observation)
    for world in range(3):
        row = state[world, first : first + task.model.nq + task.model.nv]
        after = expected(task.model, row[: task.model.nq], row[task.model.nq :])
        assert stepped[world] == pytest.approx(after, abs=2e-5)
    assert np.abs(stepped - found).max() > 1e-3


def test_success_asks_for_position_and_orientation(make: MakeSimulator, task: CompiledTask) -> None:
    simulator = make(task, 3, seed=0)
    straight, bent = [0, 0, 1, 1, 0, 0, 0, 0.0], [0, 0, 1, 1, 0, 0, 0, 0.5]
    elsewhere = [5, 5, 5, 0, 1, 0, 0, 0.0]  # all of the robot upside down: in its own frame nothing changes
    simulator.set_state(np.array([straight, bent, elsewhere]), np.zeros((3, 7)))
    simulator.set_goal(np.array([0.5, 0.0, 0.0, *IDENTITY], np.float32))
    result = simulator.step(np.zeros((3, 1), np.float32))
    assert numpy(result.success).tolist() == [True, False, True]
    region = task.spec.success[1]
    angles = numpy(region.distance(simulator.achieved_goal, simulator.desired_goal))
    tilt = np.radians(20)  # of the site, about its own x; bent by 0.5 about y before
    both = np.arccos((np.cos(0.5) + np.cos(tilt) + np.cos(0.5) * np.cos(tilt) - 1) / 2)
    assert angles == pytest.approx([tilt, both, tilt], abs=1e-3)


def test_names_and_units(task: CompiledTask) -> None:
    goal = task.describe("achieved_goal")
    assert [each["name"] for each in goal[:4]] == [
        "(site_xpos:tip in base)[0]", "(site_xpos:tip in base)[1]", "(site_xpos:tip in base)[2]",
        "(site_xmat:tip in base)[0]",
    ]  # fmt: skip
    assert [each["unit"] for each in goal] == ["m"] * 3 + ["1"] * 6
    assert [task.distance_unit(region) for region in task.spec.success] == ["m", "rad"]
    assert len(set(task.groups_of_a_unit("achieved_goal")[3:])) == 1
    assert task.achieved_in_observation() == list(range(task.observation_dim - 9, task.observation_dim))
    names = [each["name"] for each in task.describe("observation")]
    assert "(site_xpos:tip - xpos:link in link)[2]" in names


@pytest.mark.parametrize(
    ("term", "reason"),
    [
        (Term("site_xpos", "tip", frame="bas"), "the model has no body named 'bas'; did you mean 'base'"),
        (Term("xquat", "link", frame="base"), "xquat of 'link' cannot be expressed in a body's frame"),
        (Term("qvel", "root", frame="link"), "qvel of 'root' cannot be expressed"),
        (Term("qpos", "turn", frame="base"), "qpos of 'turn' cannot be expressed"),
        (Term("site_xpos", "tip", transform="cos", frame="base"), "has no 'cos'"),
        (
            Term("site_xpos", "tip", None, "difference", Term("cvel", "link"), frame="base"),
            "a difference of 3 and 6 numbers|two positions or of two vectors",
        ),
    ],
)
def test_what_cannot_be_told_in_a_frame(term: Term, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        make_task(observation=(term,))


def test_a_region_of_an_orientation_is_one() -> None:
    with pytest.raises(TaskError, match="numbers 3 to 8 of the goal are no orientation"):
        make_task(goal=(Term("site_xpos", "tip"), Term("qvel", "root")))
