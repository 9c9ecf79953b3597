from __future__ import annotations

import numpy as np
import pytest

from tests.envs.tasks.test_arm import FLANGE_TO_FINGERTIPS_M, HIGH, LOW, NAMES
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

OPEN, CLOSED = -1.0, 1.0


def arm_action(point: np.ndarray) -> np.ndarray:
    """Return the actions of joints 1, 2, 4 and 6 that put the hand at a point, pointing down if it can be."""
    for tilt in np.arange(0.0, 0.6, 0.05):
        action = 2 * (joint_angles(point, tilt) - LOW) / (HIGH - LOW) - 1
        if (np.abs(action) <= 1).all():
            return action
    raise AssertionError(f"{point} is out of the actions' reach")


def joint_angles(point: np.ndarray, tilt: float) -> np.ndarray:
    """Solve the arm's triangle in its plane, for a hand that points down but for a tilt outwards."""
    upper, fore = np.array([0.0825, 0.316]), np.array([0.0825, 0.384])
    lengths = np.linalg.norm([upper, fore], axis=1)
    outwards, down = np.array([np.cos(tilt), np.sin(tilt)]), np.array([np.sin(tilt), -np.cos(tilt)])
    hand = np.array([np.hypot(*point[:2]), point[2] - 0.333])
    wrist = hand - 0.088 * outwards - FLANGE_TO_FINGERTIPS_M * down
    bend = np.arccos((wrist @ wrist - (lengths**2).sum()) / (2 * lengths.prod()))
    # Angles from the vertical: of the line to the wrist, of both lines between joint axes.
    first = np.arctan2(*wrist) - np.arctan2(lengths[1] * np.sin(bend), lengths[0] + lengths[1] * np.cos(bend))
    joint2 = first - np.arctan2(*upper)
    forearm = first + bend + np.arctan2(*fore)
    return np.array([np.arctan2(point[1], point[0]), joint2, joint2 - forearm, forearm + tilt])


class Script:
    """Moves the hand of one world along straight lines.

    Args:
        task: the task to run.
        cube: where the cube starts, x and y in metres.
    """

    def __init__(self, task: CompiledTask, cube: tuple[float, float]) -> None:
        self.simulator = CpuSimulator(task, 1, seed=0, num_threads=1)
        qpos, qvel, _ = task.sample_start("training", np.random.default_rng(0), 1)
        qpos[0, 9:11] = cube
        self.simulator.set_state(qpos, qvel)
        self.hand = np.array([*cube, 0.2])
        self.wait(25, OPEN)

    def wait(self, steps: int, gripper: float) -> None:
        action = np.array([[*arm_action(self.hand), gripper]])
        for _ in range(steps):
            assert not self.simulator.step(action).unstable.any()

    def move(self, target: tuple[float, float, float], gripper: float, *, steps: int = 20) -> None:
        for place in np.linspace(self.hand, target, steps):
            self.hand = place
            self.wait(1, gripper)
        self.wait(6, gripper)

    @property
    def cube(self) -> np.ndarray:
        return self.simulator.observation[0, :3].astype(float)

    def grasp(self) -> None:
        x, y, _ = self.cube
        self.move((x, y, 0.03), OPEN)
        self.wait(8, CLOSED)


def test_servos_reach_their_targets_and_stay() -> None:
    task = compile_task("arm_reach")
    points = [(x, y, z) for x in (-0.3, 0.0, 0.3) for y in (0.45, 0.6) for z in (0.08, 0.16)]
    actions = np.array([arm_action(np.array(point)) for point in points])
    simulator = CpuSimulator(task, len(points), num_threads=1)
    for _ in range(40):
        simulator.step(actions)
    settled = simulator.observation.copy()
    targets = task.control(actions)[:, :7]
    assert np.abs(settled[:, :7] - targets).max() < 1e-3
    assert np.abs(settled[:, 10:13]).max() < 1e-3
    for _ in range(40):
        simulator.step(actions)
    assert np.abs(simulator.observation[:, :7] - settled[:, :7]).max() < 1e-4
    for world, point in enumerate(points):
        assert simulator.world_data(world).site("hand").xpos == pytest.approx(point, abs=2e-3)


def test_a_cube_falls_onto_the_table_and_rests() -> None:
    simulator = CpuSimulator(compile_task("arm_push_hard"), 8, seed=1, num_threads=1)
    drawn = simulator.observation[:, :2].copy()
    away = np.tile([0.0, -1.0, 0.0, 0.0, OPEN], (8, 1))
    for _ in range(20):
        simulator.step(away)
    assert simulator.observation[:, 2] == pytest.approx(0.03, abs=1e-3)
    assert np.abs(simulator.observation[:, :2] - drawn).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "cube"),
    [
        ("arm_push_easy", (-0.1, 0.6)),
        ("arm_push_easy", (0.0, 0.5)),
        ("arm_binpick_easy", (-0.2, 0.55)),
        ("arm_binpick_hard", (-0.35, 0.65)),
    ],
)
def test_the_gripper_lifts_a_cube_and_keeps_it(name: str, cube: tuple[float, float]) -> None:
    script = Script(compile_task(name), cube)
    script.grasp()
    gap = script.simulator.observation[0, 16]
    assert 0.055 < gap < 0.0795  # stopped by the cube, nearer or farther along its diagonal
    script.move((*cube, 0.2), CLOSED)
    lifted = script.cube[2]
    assert lifted > 0.15
    script.wait(60, CLOSED)
    assert script.cube[2] > lifted - 0.01
    script.wait(12, OPEN)
    assert script.cube[2] < 0.06


def test_a_script_moves_the_cube_into_the_other_bin() -> None:
    script = Script(compile_task("arm_binpick_easy"), (-0.18, 0.6))
    goal = np.array([0.17, 0.6, 0.03])
    script.simulator.set_goal(goal)
    script.grasp()
    script.move((-0.18, 0.6, 0.16), CLOSED)
    script.move((0.17, 0.6, 0.16), CLOSED, steps=40)
    script.move((0.17, 0.6, 0.06), CLOSED)
    script.wait(15, OPEN)
    script.move((0.17, 0.6, 0.2), OPEN)
    assert np.linalg.norm(script.cube - goal) < 0.03
    assert script.simulator.step(np.array([[*arm_action(script.hand), OPEN]])).success.all()


def test_a_bins_wall_stops_the_cube_and_the_fingers() -> None:
    inner_side_m = -0.3 + 0.15 + 0.03 + 0.015
    script = Script(compile_task("arm_binpick_hard"), (-0.35, 0.6))
    script.grasp()
    script.move((-0.05, 0.6, 0.04), CLOSED, steps=40)
    assert script.cube[0] + 0.03 < inner_side_m + 0.01
    empty = Script(compile_task("arm_binpick_hard"), (-0.35, 0.7))
    empty.move((-0.35, 0.55, 0.1), CLOSED)
    empty.move((-0.35, 0.55, 0.03), CLOSED)
    empty.move((-0.05, 0.55, 0.03), CLOSED, steps=40)
    for each in (script, empty):
        assert each.simulator.world_data(0).site("hand").xpos[0] < inner_side_m + 0.01


def test_the_table_stops_the_fingers() -> None:
    script = Script(compile_task("arm_push_easy"), (-0.1, 0.6))
    script.move((0.1, 0.6, -0.05), CLOSED, steps=40)
    # The site is 9 mm above the fingers' ends.
    assert script.simulator.world_data(0).site("hand").xpos[2] == pytest.approx(0.009, abs=0.004)


def test_a_closed_hand_pushes_the_cube_to_its_goal() -> None:
    script = Script(compile_task("arm_push_easy"), (-0.12, 0.6))
    script.simulator.set_goal(np.array([0.1, 0.6, 0.03]))
    script.move((-0.24, 0.6, 0.12), CLOSED)
    script.move((-0.24, 0.6, 0.03), CLOSED)
    script.move((0.06, 0.6, 0.03), CLOSED, steps=40)
    assert script.cube == pytest.approx([0.1, 0.6, 0.03], abs=0.05)
    assert script.simulator.step(np.array([[*arm_action(script.hand), CLOSED]])).success.all()


def test_fingers_around_the_cube_are_a_grasp() -> None:
    script = Script(compile_task("arm_grasp"), (-0.1, 0.6))
    goal = np.array([-0.0625, 0.6, 0.03, -0.1375, 0.6, 0.03, 0.075])
    script.simulator.set_goal(goal)
    high = np.array([[*arm_action(script.hand), OPEN]])
    assert not script.simulator.step(high).success.any()
    script.move((-0.1, 0.6, 0.03), OPEN)
    assert script.simulator.step(np.array([[*arm_action(script.hand), OPEN]])).success.all()
    script.wait(8, CLOSED)
    assert script.simulator.step(np.array([[*arm_action(script.hand), CLOSED]])).success.all()
    script.move((-0.1, 0.6, 0.2), CLOSED)
    assert not script.simulator.step(high).success.any()


# -- random actions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worlds", "steps", "hold"),
    [(8, 40, 4), *(pytest.param(64, 1000, hold, marks=pytest.mark.slow) for hold in (1, 10))],
)
@pytest.mark.parametrize("name", NAMES)
def test_random_actions_stay_stable(name: str, worlds: int, steps: int, hold: int) -> None:
    """Each held for some steps; no cube sinks into the table."""
    task = compile_task(name)
    simulator = CpuSimulator(task, worlds, seed=7)
    rng, action = np.random.default_rng(7), np.zeros((worlds, task.action_dim))
    for step in range(steps):
        if step % hold == 0:
            action = rng.uniform(-1, 1, action.shape)
        result = simulator.step(action)
        assert not result.unstable.any()
        assert name == "arm_reach" or simulator.observation[:, 2].min() > 0.01
        simulator.reset(result.truncated)


def test_only_what_may_touch_is_in_contact() -> None:
    task = compile_task("arm_binpick_easy")
    simulator = CpuSimulator(task, 8, seed=2, num_threads=1)
    rng, touching = np.random.default_rng(2), set()
    for step in range(60):
        if step % 10 == 0:
            action = rng.uniform(-1, 1, (8, 5))
        simulator.step(action)
        if step % 10 == 9:
            for world in range(8):
                for contact in simulator.world_data(world).contact:
                    bodies = task.model.geom_bodyid[contact.geom]
                    touching.add(frozenset(task.model.body(body).name for body in bodies))
    gripper = {"hand", "left_finger", "right_finger"}
    assert frozenset({"world", "cube"}) in touching
    assert any(pair & gripper for pair in touching)
    assert all(pair & gripper or pair == {"world", "cube"} for pair in touching)
    assert all(pair <= gripper | {"world", "cube"} and not pair <= gripper for pair in touching)
