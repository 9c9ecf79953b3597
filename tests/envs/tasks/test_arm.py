from __future__ import annotations

import mujoco
import numpy as np
import pytest

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.tasks.arm import build_spec

NAMES = (
    "arm_reach",
    "arm_grasp",
    "arm_push_easy",
    "arm_push_hard",
    "arm_binpick_easy",
    "arm_binpick_hard",
)
TARGETS = ("joint1", "joint2", "joint4", "joint6")
LOW = np.array([0.3491, 0.0, -3.0718, 2.3562])
HIGH = np.array([2.7925, 1.48353, -0.0698, 3.7525])
START = [1.571, 0.742, 0.0, -1.571, 0.0, 3.054, 1.449, 0.04, 0.04]
FLANGE_TO_FINGERTIPS_M = 0.107 + 0.1034


@pytest.fixture(scope="module")
def panda() -> mujoco.MjModel:
    return build_spec().compile()


def posed(model: mujoco.MjModel, *angles: float) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[:7] = angles
    mujoco.mj_forward(model, data)
    return data


# -- the robot ----------------------------------------------------------------------------------------


def test_forward_kinematics_are_the_published_ones(panda: mujoco.MjModel) -> None:
    straight = posed(panda, 0, 0, 0, 0, 0, 0, 0)
    assert straight.site("wrist").xpos == pytest.approx([0.088, 0, 0.333 + 0.316 + 0.384])
    assert straight.site("hand").xpos == pytest.approx([0.088, 0, 1.033 - FLANGE_TO_FINGERTIPS_M])
    # The robot's ready pose: hand down, a quarter turn of the elbow.
    quarter = np.pi / 4
    ready = posed(panda, 0, -quarter, 0, -3 * quarter, 0, 2 * quarter, quarter)
    x = 0.384 + 0.088 - (0.316 - 0.0825) * np.sqrt(0.5)
    z = 0.333 + 0.0825 + (0.316 + 0.0825) * np.sqrt(0.5)
    assert ready.site("wrist").xpos == pytest.approx([x, 0, z])
    assert ready.site("hand").xpos == pytest.approx([0.30689, 0, 0.48689], abs=1e-5)
    turned = posed(panda, np.pi / 2, -quarter, 0, -3 * quarter, 0, 2 * quarter, quarter)
    assert turned.site("hand").xpos == pytest.approx([0, 0.30689, 0.48689], abs=1e-5)


def test_fingers_open_across_the_arm_and_the_gap_is_their_distance(panda: mujoco.MjModel) -> None:
    data = mujoco.MjData(panda)
    quarter = np.pi / 4
    data.qpos[:] = [0, -quarter, 0, -3 * quarter, 0, 2 * quarter, quarter, 0.03, 0.02]
    mujoco.mj_forward(panda, data)
    left, right, hand = (data.site(name).xpos for name in ("fingertip_left", "fingertip_right", "hand"))
    assert left - hand == pytest.approx([0, -0.03, 0], abs=1e-9)
    assert right - hand == pytest.approx([0, 0.02, 0], abs=1e-9)
    assert data.sensor("finger_gap").data == pytest.approx([0.05])


def test_masses_add_up(panda: mujoco.MjModel) -> None:
    links = 4.970684 + 0.646926 + 3.228604 + 3.587895 + 1.225946 + 1.666555 + 0.735522
    assert panda.body_mass[[panda.body(f"link{i}").id for i in range(1, 8)]].sum() == pytest.approx(links)
    assert panda.body_subtreemass[panda.body("hand").id] == pytest.approx(0.73 + 2 * 0.015)
    assert panda.body_mass.sum() == pytest.approx(18, abs=1)  # the data sheet's arm with hand


def test_limits_are_the_published_ones(panda: mujoco.MjModel) -> None:
    low = [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973, 0, 0]
    high = [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973, 0.04, 0.04]
    assert panda.jnt_range == pytest.approx(np.column_stack([low, high]))
    assert panda.actuator_forcerange[:7, 1] == pytest.approx([87] * 4 + [12] * 3)
    assert (panda.actuator_forcerange[:, 0] == -panda.actuator_forcerange[:, 1]).all()


def test_a_drive_at_its_torque_limit_settles_at_its_velocity_limit(panda: mujoco.MjModel) -> None:
    panda.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    data = mujoco.MjData(panda)
    data.qpos[:], data.ctrl[:7] = START, START[:7]
    data.qpos[0], data.ctrl[0] = -2.8, 2.8
    mujoco.mj_step(panda, data, nstep=100)
    assert data.qvel[0] == pytest.approx(2.175, rel=0.02)


# -- the tasks ----------------------------------------------------------------------------------------


def expected_state(data: mujoco.MjData, name: str) -> np.ndarray:
    """Read the state out of MuJoCo's data, as the task's table says."""
    cube, angles = data.qpos[9:12], data.qpos[:7]
    if name == "arm_reach":
        return np.concatenate([angles, data.site("wrist").xpos, velocity_of(data, "wrist")])
    gap = [data.qpos[7] + data.qpos[8]]
    tips = [data.site("fingertip_left").xpos, data.site("fingertip_right").xpos]
    hand = [data.site("hand").xpos, velocity_of(data, "hand")]
    return np.concatenate([cube, angles, *hand, *(tips if name == "arm_grasp" else []), gap])


def velocity_of(data: mujoco.MjData, site: str) -> np.ndarray:
    """Return a site's velocity in the world's axes, from its Jacobian."""
    jacobian = np.zeros((3, data.model.nv))
    mujoco.mj_jacSite(data.model, data, jacobian, None, data.site(site).id)
    return jacobian @ data.qvel


@pytest.mark.parametrize("name", NAMES)
def test_state_and_achieved_goal_are_what_mujoco_has(name: str) -> None:
    """And the goal is nowhere in the model, which holds the robot and the cube alone."""
    task = compile_task(name)
    assert task.model.nq == 9 + (0 if name == "arm_reach" else 7)
    simulator = CpuSimulator(task, 2, seed=3, num_threads=1)
    rng = np.random.default_rng(3)
    for _ in range(6):
        simulator.step(rng.uniform(-1, 1, (2, task.action_dim)))
    for world in range(2):
        data = simulator.world_data(world)
        state = expected_state(data, name)
        assert simulator.observation[world] == pytest.approx(state, abs=1e-5)
        goal = {"arm_reach": slice(7, 10), "arm_grasp": slice(16, 23)}.get(name, slice(0, 3))
        assert simulator.achieved_goal[world] == pytest.approx(state[goal], abs=1e-5)


def test_actions_are_targets_within_the_published_ranges() -> None:
    control = compile_task("arm_push_easy").control
    least, most = control(np.array([[-1.0] * 5, [1.0] * 5]))
    assert least == pytest.approx([LOW[0], LOW[1], 0, LOW[2], 0, LOW[3], 1.4487, 0.08])
    assert most == pytest.approx([HIGH[0], HIGH[1], 0, HIGH[2], 0, HIGH[3], 1.4487, 0.0], abs=1e-6)
    assert control.actions == [*TARGETS, "gripper"]
    assert control(np.array([[0, 0, 0, 0, 0.01]]))[0, 7] == 0.0
    reach = compile_task("arm_reach").control
    assert reach.actions == list(TARGETS)
    assert reach(np.zeros((1, 4)))[0, 7] == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("name", "cube", "goal", "noise"),
    [
        ("arm_push_easy", (-0.10, 0.60), (0.10, 0.60), 0.10),
        ("arm_push_hard", (-0.25, 0.65), (0.25, 0.65), 0.25),
        ("arm_binpick_easy", (-0.15, 0.60), (0.17, 0.60), 0.09),
        ("arm_binpick_hard", (-0.30, 0.60), (0.30, 0.60), 0.15),
    ],
)
def test_cubes_and_goals_are_drawn_around_their_centres(
    name: str, cube: tuple[float, float], goal: tuple[float, float], noise: float
) -> None:
    task = compile_task(name)
    qpos, qvel, goals = task.sample_start("training", np.random.default_rng(0), 4000)
    for drawn, center in ((qpos[:, 9:11], cube), (goals[:, :2], goal)):
        assert drawn.min(0) == pytest.approx(np.array(center) - noise, abs=0.01)
        assert drawn.max(0) == pytest.approx(np.array(center) + noise, abs=0.01)
    assert np.corrcoef(qpos[:, 9], goals[:, 0])[0, 1] == pytest.approx(0, abs=0.06)
    assert (qpos[:, :9] == START).all()
    assert (qpos[:, 11:] == [0.07, 1, 0, 0, 0]).all()
    assert (goals[:, 2] == 0.03).all()
    assert not qvel.any()
    assert task.spec.success[0].radius == 0.1
    assert task.spec.other_radii == {"easy": 0.3, "hard": 0.03}


def test_grasp_commands_fingertips_on_both_sides_of_the_cube() -> None:
    task = compile_task("arm_grasp")
    qpos, _, goals = task.sample_start("training", np.random.default_rng(0), 500)
    x, y = qpos[:, 9], qpos[:, 10]
    z, gap = np.full(500, 0.03), np.full(500, 0.075)
    assert goals == pytest.approx(np.column_stack([x + 0.0375, y, z, x - 0.0375, y, z, gap]))
    assert np.abs(qpos[:, 9:11] - [0, 0.6]).max() == pytest.approx(0.3, abs=0.01)
    goal = goals[0]
    turned = np.array([*goal[3:6], *goal[:3], 0.094])  # the midpoint counts, not which finger is where
    assert task.is_success(turned, goal)
    assert not task.is_success(turned + np.array([0, 0, 0, 0, 0, 0, 0.002]), goal)
    assert not task.is_success(turned + np.array([0, 0.06, 0, 0, 0.06, 0, 0]), goal)


def test_reach_goals_fill_their_box_and_the_arm_reaches_them() -> None:
    task = compile_task("arm_reach")
    _, _, goals = task.sample_start("training", np.random.default_rng(0), 1000)
    assert goals.min(0) == pytest.approx([-0.2, 0.3, 0.1], abs=0.01)
    assert goals.max(0) == pytest.approx([0.2, 0.7, 0.5], abs=0.01)
    nearest = distance_to_reach(task, "wrist", goals[:400])
    assert (nearest < 0.05).mean() > 0.95
    assert (nearest < task.spec.success[0].radius).mean() > 0.99


@pytest.mark.parametrize("name", ["arm_push_easy", "arm_binpick_easy", "arm_binpick_hard"])
def test_the_fingers_reach_every_cube_and_every_goal(name: str) -> None:
    task = compile_task(name)
    qpos, _, goals = task.sample_start("training", np.random.default_rng(0), 200)
    cubes = np.column_stack([qpos[:, 9:11], np.full(200, 0.03)])
    assert distance_to_reach(task, "hand", np.vstack([cubes, goals])).max() < 0.05


@pytest.mark.parametrize("name", ["arm_push_hard", "arm_grasp"])
def test_the_fingers_reach_nearly_every_cube_of_the_wide_draws(name: str) -> None:
    task = compile_task(name)
    qpos, _, _ = task.sample_start("training", np.random.default_rng(0), 400)
    cubes = np.column_stack([qpos[:, 9:11], np.full(400, 0.03)])
    assert (distance_to_reach(task, "hand", cubes) < 0.05).mean() > 0.9


def distance_to_reach(task: CompiledTask, site: str, points: np.ndarray) -> np.ndarray:
    """Return how far each point is from the nearest of many places to which actions send a site."""
    rng, data = np.random.default_rng(1), mujoco.MjData(task.model)
    commands = task.control(rng.uniform(-1, 1, (12_000, task.action_dim)))
    reached = np.empty((len(commands), 3))
    for place, command in zip(reached, commands, strict=True):
        data.qpos[:7] = command[:7]
        mujoco.mj_kinematics(task.model, data)
        place[:] = data.site(site).xpos
    return np.array([np.linalg.norm(reached - point, axis=1).min() for point in points])
