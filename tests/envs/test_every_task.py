"""What every built-in task must do, on both simulators; the fast tests take some of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import thousandfold  # noqa: F401, registers the environments
from tests.envs.any_simulator import MakeSimulator, numpy
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.task_names import environment_id

STEPS = 1000
FEW_STEPS = 20
ON_EVERY_SIMULATOR = ("point_u_maze", "ant_u_maze", "arm_push_easy")
SIZES = {  # observation, goal, action; the longest name that a task's begins with counts
    "point": (4, 2, 2), "ant": (29, 2, 8), "ant_ball": (31, 2, 8), "ant_push": (31, 2, 8),
    "humanoid": (272, 3, 17), "arm": (17, 3, 5), "arm_reach": (13, 3, 4), "arm_grasp": (23, 7, 5),
    "reacher": (10, 3, 2), "pusher": (20, 3, 7), "half_cheetah": (18, 1, 6),
}  # fmt: skip
CONTROL_DT_S = {"point": 0.1, "humanoid": 0.015, "reacher": 0.02}
EVERY_TASK = task_names()


def slow_but(*names: str) -> list:
    return [
        pytest.param(name, marks=() if name.startswith(names) else pytest.mark.slow) for name in EVERY_TASK
    ]


SOME_FAST = slow_but("point_u", "ant_u_maze", "ant_push", "humanoid", "arm", "reacher", "pusher", "half")


@pytest.fixture(autouse=True)
def every_warning_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # State and goals have no bounds to declare.
        warnings.filterwarnings("ignore", message=".*A Box observation space (min|max)imum value is.*")
        yield


def test_every_task_of_the_suites_is_there() -> None:
    mazes = {f"ant_{name}_maze" for name in ("u", "u2", "u3", "u4", "u5", "big", "hardest")}
    stitched = {f"ant_{name}_maze_stitch" for name in ("u", "u2", "u3", "u4", "u5")}
    others = {name for name in EVERY_TASK if not name.startswith("ant_")}
    assert set(EVERY_TASK) - others == {"ant_ball", "ant_push", *mazes, *stitched}
    assert others == {
        "point_u_maze", "point_big_maze", "point_hardest_maze", "ant",
        "humanoid", "humanoid_u_maze", "humanoid_big_maze", "reacher", "pusher", "half_cheetah",
        "arm_reach", "arm_grasp", "arm_push_easy", "arm_push_hard", "arm_binpick_easy", "arm_binpick_hard",
    }  # fmt: skip


@pytest.mark.parametrize("name", EVERY_TASK)
def test_sizes_of_the_spaces_and_of_a_control_step(name: str) -> None:
    task = compile_task(name)
    kind = max((prefix for prefix in SIZES if name.startswith(prefix)), key=len)
    assert (task.observation_dim, task.goal_dim, task.action_dim) == SIZES[kind]
    assert task.spec.control_dt_s == CONTROL_DT_S.get(kind, 0.05)
    assert task.frame_skip * task.model.opt.timestep == pytest.approx(task.spec.control_dt_s)
    if name.startswith(("ant", "humanoid")):
        assert task.spec.episode_steps == 1000


@pytest.mark.parametrize("name", SOME_FAST)
def test_check_env_passes(name: str) -> None:
    check_env(gymnasium.make(environment_id(name)).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", SOME_FAST)
def test_goal_never_enters_the_state(name: str) -> None:
    """The same actions under two goals lead through the same states, bit for bit."""
    one, other = (CpuSimulator(compile_task(name), 3, seed=5, num_threads=1) for _ in range(2))
    other.set_goal(one.desired_goal + 3.0)
    assert not np.array_equal(one.desired_goal, other.desired_goal)
    for action in np.random.default_rng(5).uniform(-1, 1, (5, 3, one.task.action_dim)):
        one.step(action)
        other.step(action)
        assert np.array_equal(one.observation, other.observation)


@pytest.mark.parametrize("name", slow_but(*ON_EVERY_SIMULATOR))
def test_make_vec_runs_for_a_thousand_steps(name: str) -> None:
    env = gymnasium.make_vec(environment_id(name), num_envs=4)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    ends = 0
    for _ in range(STEPS):
        observation, rewards, terminations, truncations, info = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert not info["unstable"].any()
        assert set(np.unique(rewards)) <= {-1.0, 0.0}
        ends += int((terminations | truncations).sum())
        if "final_info" in info:
            assert not info["final_info"]["unstable"].any()
    episode_steps = compile_task(name).spec.episode_steps
    assert ends >= 4 * (STEPS // episode_steps)
    env.close()


@pytest.mark.parametrize(
    ("name", "worlds", "steps"),
    [
        # Warp compiles the arm's kernels for a minute.
        *(
            pytest.param(name, 4, FEW_STEPS, marks=[pytest.mark.slow] if name.startswith("arm") else [])
            for name in ON_EVERY_SIMULATOR
        ),
        *(pytest.param(name, 8, STEPS, marks=pytest.mark.slow) for name in EVERY_TASK),
    ],
)
def test_a_simulator_runs(make: MakeSimulator, name: str, worlds: int, steps: int) -> None:
    """Acts at random, resets what ended, and checks what a learner would read."""
    task = compile_task(name)
    simulator, rng = make(task, num_worlds=worlds, seed=0), np.random.default_rng(0)
    start, ends, terminated = numpy(simulator.observation), 0, 0
    for step in range(steps):
        result = simulator.step(rng.uniform(-1, 1, (worlds, task.action_dim)).astype(np.float32))
        assert not numpy(result.unstable).any()
        for array in (simulator.observation, simulator.achieved_goal, simulator.desired_goal):
            assert np.isfinite(numpy(array)).all()
        assert step or not np.array_equal(numpy(simulator.observation), start)
        ended = numpy(result.terminated) | numpy(result.truncated)
        ends, terminated = ends + int(ended.sum()), terminated + int(numpy(result.terminated).sum())
        if ended.any():
            simulator.reset(ended)
            assert not numpy(simulator.episode_step)[ended].any()
    assert ends >= worlds * (steps // task.spec.episode_steps)
    assert simulator.unstable_count == 0
    if steps == STEPS and name.startswith(("ant", "humanoid")):
        assert terminated > 10  # random play falls, or jumps too high
