from __future__ import annotations

import mujoco
import numpy as np
import pytest

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mazes import LAYOUTS, path_lengths
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.tasks.ant_model import STAND


@pytest.fixture(scope="module")
def task() -> CompiledTask:
    return compile_task("ant")


def standing(task: CompiledTask, worlds: int) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(np.array(STAND, float), (worlds, 1)), np.zeros((worlds, task.model.nv))


def test_state_is_positions_then_velocities(task: CompiledTask) -> None:
    simulator = CpuSimulator(task, 3, seed=2)
    for action in np.random.default_rng(2).uniform(-1, 1, (10, 3, 8)):
        simulator.step(action)
    for world in range(3):
        data = simulator.world_data(world)
        expected = np.concatenate([data.qpos, data.qvel]).astype(np.float32)
        np.testing.assert_array_equal(simulator.observation[world], expected)
        np.testing.assert_array_equal(simulator.achieved_goal[world], expected[:2])


def test_description_names_and_numbers_the_positions(task: CompiledTask) -> None:
    described = task.describe("observation")
    joints = [f"{side}_{leg}[0]" for leg in (1, 2, 3, 4) for side in ("hip", "ankle")]
    places = [*(f"root[{i}]" for i in range(7)), *joints]
    assert [each["name"] for each in described[:15]] == [f"qpos:{own}" for own in places]
    rates = [*(f"root[{i}]" for i in range(6)), *joints]
    assert [each["name"] for each in described[15:]] == [f"qvel:{own}" for own in rates]
    assert [each["unit"] for each in described[:8]] == ["m"] * 3 + ["1"] * 4 + ["rad"]


def test_model_is_the_shipped_ant(task: CompiledTask) -> None:
    """Total mass, gear and joint order as Gymnasium's ant.xml has them."""
    model = task.model
    assert model.body_mass.sum() == pytest.approx(0.9109, abs=1e-4)
    assert (model.actuator_gear[:, 0] == 150.0).all()
    assert task.control.actuators[:3] == ["hip_4", "ankle_4", "hip_1"]
    assert [model.joint(i).name for i in range(3)] == ["root", "hip_1", "ankle_1"]
    assert model.opt.timestep == 0.01


def test_starts_stand_with_noise(task: CompiledTask) -> None:
    qpos, qvel, goals = task.sample_start("training", np.random.default_rng(0), 2000)
    offsets = np.delete(qpos - np.array(STAND), [3, 4, 5, 6], axis=1)
    assert 0.099 < np.abs(offsets).max() <= 0.1
    np.testing.assert_allclose(np.linalg.norm(qpos[:, 3:7], axis=1), 1.0)
    assert (qpos[:, 3] > 0.97).all()
    assert qvel.std() == pytest.approx(0.1, rel=0.05) and abs(qvel.mean()) < 0.005
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 10.0)


def test_near_goals_lie_on_a_circle_of_3_m(task: CompiledTask) -> None:
    _, _, goals = task.sample_start("near", np.random.default_rng(0), 500)
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 3.0)
    assert np.linalg.norm(goals.mean(0)) < 0.3


def test_success_radii(task: CompiledTask) -> None:
    goal = np.array([10.0, 0.0])
    assert task.is_success(np.array([10.3, 0.39]), goal) and not task.is_success(np.array([10.3, 0.41]), goal)
    assert task.spec.other_radii == {"easy": 2.0}


@pytest.mark.parametrize(("height", "ends"), [(0.19, True), (0.21, False), (0.99, False), (1.02, True)])
def test_episode_ends_where_the_torso_leaves_its_heights(
    task: CompiledTask, height: float, ends: bool
) -> None:
    simulator = CpuSimulator(task, 1)
    qpos, qvel = standing(task, 1)
    # An upward speed that gravity turns around within the step.
    qpos[:, 2], qvel[:, 2] = height, 9.81 * 0.05 / 2
    if height < 0.5:
        qpos[:, 3:7] = 0.0, 1.0, 0.0, 0.0  # on its back, where the legs carry nothing
    simulator.set_state(qpos, qvel)
    assert simulator.step(np.zeros((1, 8))).terminated[0] == ends


def test_ant_on_its_back_falls_out_of_its_episode(task: CompiledTask) -> None:
    simulator = CpuSimulator(task, 2)
    qpos, qvel = standing(task, 2)
    qpos[1, 3:7] = 0.0, 1.0, 0.0, 0.0
    simulator.set_state(qpos, qvel)
    ended = np.zeros(2, bool)
    for _ in range(40):
        ended |= simulator.step(np.zeros((2, 8))).terminated
    assert ended.tolist() == [False, True]


def test_contacts_are_those_that_matter() -> None:
    """The floor meets shins alone; walls meet shins, thighs and torso; no part of the ant meets another."""
    model = compile_task("ant_u_maze").model

    def meets(one: int, other: int) -> bool:
        kinds, partners = model.geom_contype, model.geom_conaffinity
        return bool(kinds[one] & partners[other] or kinds[other] & partners[one])

    names = [model.geom(i).name for i in range(model.ngeom)]
    wall = next(i for i, name in enumerate(names) if name.startswith("wall"))
    met = {
        place: {n for i, n in enumerate(names) if meets(i, place)} for place in (names.index("floor"), wall)
    }
    shins = {name for name in names if name.endswith("ankle_geom")}
    thighs = {name for name in names if name.endswith("leg_geom")}
    assert len(shins) == len(thighs) == 4
    assert met[names.index("floor")] == shins
    assert met[wall] == shins | thighs | {"torso_geom"}
    limbs = [i for i, name in enumerate(names) if name.endswith("_geom")]
    assert not any(meets(one, other) for one in limbs for other in limbs)


def test_walls_hold_an_ant() -> None:
    """Driven at 3 m/s in every direction until it has climbed to 1 m, no leg's middle gets into a wall."""
    task = compile_task("ant_u_maze")
    simulator = CpuSimulator(task, 16)
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    qpos, qvel = standing(task, 16)
    qpos[:, :2] = 4.0
    simulator.set_state(qpos, qvel)
    rng = np.random.default_rng(6)
    alive, touched = np.ones(16, bool), np.zeros(16, int)
    for _ in range(40):
        simulator._qvel[:, :2] = 3.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        alive &= ~simulator.step(rng.uniform(-0.2, 0.2, (16, 8))).terminated
        for world in map(int, np.flatnonzero(alive)):
            data = simulator.world_data(world)
            met = [task.model.geom(int(geom)).name for geom in data.contact.geom.ravel()]
            touched[world] += sum(name.startswith("wall") for name in met)
            assert depth_in_walls(task.model, data).max() < 0.0
    assert (touched > 0).sum() >= 12


def depth_in_walls(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """How deep the ends of the ant's capsules, and its torso's middle, lie in the wall cells of the U."""
    points = []
    for geom in range(model.ngeom):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
            half = model.geom_size[geom, 1] * data.geom_xmat[geom].reshape(3, 3)[:, 2]
            points += [data.geom_xpos[geom] - half, data.geom_xpos[geom] + half]
    points.append(data.body("torso").xpos)
    rows = LAYOUTS["u"].split()
    walls = np.array([(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == "#"])
    return (2.0 - np.abs(np.array(points)[:, None, :2] - 4.0 * walls).max(-1)).max(1)


@pytest.mark.parametrize("name", ["u", "u4"])
def test_stitching_trains_near_and_evaluates_far(name: str) -> None:
    task = get_task(f"ant_{name}_maze_stitch")
    distances = {
        kind: {
            path_lengths(LAYOUTS[name], (round(start[0] / 4), round(start[1] / 4)))[
                round(goal[0] / 4), round(goal[1] / 4)
            ]
            for start, goal in zip(
                *task.distribution(kind).sample(np.random.default_rng(0), 600), strict=True
            )
        }
        for kind in ("training", "evaluation")
    }
    longest = {"u": 6, "u4": 10}[name]
    assert distances == {"training": {1, 2, 3}, "evaluation": set(range(4, longest + 1))}


def test_stitching_starts_in_any_cell() -> None:
    task = get_task("ant_u_maze_stitch")
    starts, _ = task.distribution("training").sample(np.random.default_rng(0), 300)
    assert {tuple(start) for start in starts} == {
        (4, 4), (4, 8), (4, 12), (8, 12), (12, 12), (12, 8), (12, 4)
    }  # fmt: skip
