"""Goals that need the model or the start, on every simulator."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from tests.envs.any_simulator import WORLDS, MakeSimulator, mask, numpy, still
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import BoxPositions, PositionDistribution, RelativePositions
from thousandfold.envs.reachable_goals import ReachableGoals
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.envs.task import EpisodeDistribution, GoalTask, Reset, SuccessRegion, Term

MODEL = """<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body><joint name="turn" axis="0 1 0" range="-90 90" damping="1"/>
      <geom type="capsule" size=".02" fromto="0 0 0 .2 0 0"/><site name="tip" pos=".2 0 0"/></body>
  </worldbody>
  <actuator><motor joint="turn" ctrlrange="-1 1"/></actuator>
</mujoco>"""


def make_task(goals: PositionDistribution, **settings: object) -> CompiledTask:
    episodes = EpisodeDistribution(Reset(qpos_noise=0.5), goals)
    task = GoalTask(
        name="drawn",
        description="",
        build_spec=lambda: mujoco.MjSpec.from_string(MODEL),
        observation=(Term("qpos"), Term("qvel")),
        achieved_goal=(Term("site_xpos", "tip", (0, 2)),),
        success=(SuccessRegion(0.05),),
        distributions={"training": episodes, "evaluation": episodes},
        **settings,  # pyright: ignore[reportArgumentType]
    )
    return CompiledTask(task)


@pytest.fixture(scope="module")
def relative() -> CompiledTask:
    return make_task(RelativePositions(BoxPositions((0.1, 0.0), (0.2, 0.0))), episode_steps=2)


def test_relative_goals_follow_from_the_start_of_every_episode(
    make: MakeSimulator, relative: CompiledTask
) -> None:
    simulator = make(relative, seed=2)

    def require_relative(worlds: list[int]) -> None:
        away = (numpy(simulator.desired_goal) - numpy(simulator.achieved_goal))[worlds]
        assert (away[:, 0] > 0.0999).all() and (away[:, 0] < 0.2001).all()
        assert np.abs(away[:, 1]).max() < 1e-6

    require_relative([*range(WORLDS)])
    expected = relative.sample_start("training", np.random.default_rng(2), WORLDS)[2]
    assert numpy(simulator.desired_goal) == pytest.approx(expected, abs=1e-6)
    simulator.step(np.ones((WORLDS, 1), np.float32))
    before = numpy(simulator.desired_goal)
    simulator.reset(mask(simulator, 1))
    require_relative([1])
    kept = [0, 2, 3]
    assert np.array_equal(numpy(simulator.desired_goal)[kept], before[kept])
    with simulator.unroll(2):
        simulator.step(still(simulator))
        simulator.reset(mask(simulator, 0, 3))
        require_relative([0, 3])


def test_reachable_goals_are_reached(make: MakeSimulator) -> None:
    task = make_task(ReachableGoals(margin=0.0))
    simulator = make(task, seed=2)
    goal = numpy(simulator.desired_goal)
    assert np.hypot(*goal.T) == pytest.approx(np.full(WORLDS, 0.2)) and np.ptp(goal[:, 1]) > 0.01
    simulator.set_state(np.arctan2(-goal[:, 1], goal[:, 0])[:, None], np.zeros((WORLDS, 1)))
    assert numpy(simulator.step(still(simulator)).success).all()


EVERY = 3


@pytest.fixture(scope="module")
def changing() -> CompiledTask:
    goals = BoxPositions((-0.2, -0.2), (0.2, 0.2))
    return make_task(goals, episode_steps=11, resample_every=EVERY)


def commanded(simulator: Simulator, steps: int) -> np.ndarray:
    """Return what is commanded now and after each of so many steps, (steps + 1, num_worlds, 2)."""
    found = [numpy(simulator.desired_goal)]
    for _ in range(steps):
        result = simulator.step(still(simulator))
        reached = np.linalg.norm(numpy(simulator.achieved_goal) - numpy(simulator.desired_goal), axis=1)
        assert numpy(result.success).tolist() == (reached < 0.05).tolist()
        found.append(numpy(simulator.desired_goal))
    return np.stack(found)


def test_another_goal_is_commanded_every_so_many_steps(make: MakeSimulator, changing: CompiledTask) -> None:
    """None is commanded for less: the last one from step 6 to the end, step 11."""
    simulator = make(changing, seed=2)
    goals = commanded(simulator, 11)
    changes = [step for step in range(1, 12) if (goals[step] != goals[step - 1]).any()]
    assert changes == [3, 6]
    assert len(np.unique(goals[[0, 3, 6], :, 0])) == 3 * WORLDS
    assert np.array_equal(commanded(make(changing, seed=2), 11), goals)
    simulator.reset(mask(simulator, 0))
    after = commanded(simulator, 6)
    assert (after[3, 0] != after[2, 0]).any() and (after[:, 1:] == goals[6, 1:]).all()


def test_a_goal_that_is_set_stays_until_the_reset(make: MakeSimulator, changing: CompiledTask) -> None:
    simulator = make(changing, seed=2)
    simulator.set_goal(np.array([0.1, 0.1], np.float32), mask(simulator, 1))
    goals = commanded(simulator, 7)
    assert goals[:, 1] == pytest.approx(0.1) and (goals[3, 0] != goals[2, 0]).any()
    simulator.reset()
    goals = commanded(simulator, 4)
    assert (goals[3] != goals[2]).any(axis=1).all()


def test_goals_to_come_are_saved(make: MakeSimulator, changing: CompiledTask) -> None:
    simulator, other = make(changing, seed=2), make(changing, seed=9)
    commanded(simulator, 2)
    other.load_state_dict(simulator.state_dict())
    assert np.array_equal(commanded(simulator, 7), commanded(other, 7))


def test_goals_change_within_an_unroll(make: MakeSimulator, changing: CompiledTask) -> None:
    simulator = make(changing, seed=2)
    with simulator.unroll(8):
        simulator.step(still(simulator))
        simulator.reset(mask(simulator, 2))
        goals = commanded(simulator, 6)
    assert (goals[2, 0] != goals[1, 0]).any() and (goals[3, 2] != goals[2, 2]).any()
    assert (goals[2, 2] == goals[1, 2]).all()


def test_goals_to_come_may_be_relative_to_what_is_achieved_then(make: MakeSimulator) -> None:
    goals = RelativePositions(BoxPositions((0.1, 0.0), (0.1, 0.0)))
    simulator = make(make_task(goals, episode_steps=8, resample_every=2), seed=2)
    for _ in range(2):
        simulator.step(np.ones((WORLDS, 1), np.float32))
    away = numpy(simulator.desired_goal) - numpy(simulator.achieved_goal)
    assert away == pytest.approx(np.tile([0.1, 0.0], (WORLDS, 1)), abs=1e-6)
