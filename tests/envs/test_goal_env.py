from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

import thousandfold  # noqa: F401, registers the environments
from tests.envs.user_tasks.user_pages import STATEFUL_ARM, write
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import GoalEnv, GoalVectorEnv
from thousandfold.envs.registry import get_task
from thousandfold.envs.task import EarlyEnd, TaskError, Term

ID = "thousandfold/PointUMaze-v0"
ROOT = Path(__file__).resolve().parents[2]
WORLDS = 5


def short_task(**changes: Any) -> CompiledTask:
    return CompiledTask(dataclasses.replace(get_task("point_u_maze"), **{"episode_steps": 3, **changes}))


def vector(**changes: Any) -> GoalVectorEnv:
    return GoalVectorEnv(WORLDS, task=short_task(**changes))


def diverge(env: GoalEnv | GoalVectorEnv, world: int) -> None:
    simulator = env._simulator
    velocity = np.zeros((simulator.num_worlds, 2))
    velocity[world] = np.nan
    simulator.set_state(simulator.achieved_goal.astype(float), velocity)


def still(env: GoalVectorEnv) -> np.ndarray:
    return np.zeros((env.num_envs, env.task.action_dim), np.float32)


# -- the single environment ---------------------------------------------------------------------------


def test_make_wraps_no_second_clock_around_it() -> None:
    env = gymnasium.make(ID)
    assert env.spec is not None and env.spec.max_episode_steps == 100
    assert "TimeLimit" not in str(env)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[3] for _ in range(100)]
    assert ends == [False] * 99 + [True]


def test_spaces_are_float32() -> None:
    env = GoalEnv(task="point_u_maze")
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    assert {name: box.shape for name, box in env.observation_space.items()} == {
        "observation": (4,),
        "achieved_goal": (2,),
        "desired_goal": (2,),
    }
    assert {box.dtype for box in env.observation_space.values()} == {np.dtype(np.float32)}
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_seed_reproduces_and_no_seed_goes_on() -> None:
    env, other = GoalEnv(task="point_u_maze"), GoalEnv(task="point_u_maze")

    def draws(env: GoalEnv, seed: int) -> list[list[float]]:
        first, _ = env.reset(seed=seed)
        second, _ = env.reset()
        return [[*obs["observation"].tolist(), *obs["desired_goal"].tolist()] for obs in (first, second)]

    assert draws(env, 7) == draws(other, 7) == draws(env, 7)
    assert draws(env, 7) != draws(env, 8)
    one, two = draws(env, 7)
    assert one != two


def test_environments_without_a_seed_differ() -> None:
    first, second = (GoalEnv(task="point_u_maze").reset()[0] for _ in range(2))
    assert not np.array_equal(first["desired_goal"], second["desired_goal"])


def test_commanded_goal_lasts_one_episode() -> None:
    env = GoalEnv(task="point_u_maze")
    observation, _ = env.reset(seed=0, options={"goal": [3.0, 2.0]})
    assert observation["desired_goal"].tolist() == [3.0, 2.0]
    assert env.step(np.zeros(2))[0]["desired_goal"].tolist() == [3.0, 2.0]
    assert env.reset()[0]["desired_goal"].tolist() != [3.0, 2.0]


@pytest.mark.parametrize("goal", [[1.0], [1.0, 2.0, 3.0], [np.nan, 1.0]])
def test_goal_of_the_wrong_shape_is_refused(goal: list[float]) -> None:
    with pytest.raises(ValueError, match="must be 2 finite numbers"):
        GoalEnv(task="point_u_maze").reset(options={"goal": goal})


def test_unknown_option_is_warned_of() -> None:
    env = GoalEnv(task="point_u_maze")
    expected, _ = env.reset(seed=3)
    with pytest.warns(UserWarning, match="ignores the options"):
        observation, _ = env.reset(seed=3, options={"gaol": [1.0, 1.0]})
    np.testing.assert_array_equal(observation["desired_goal"], expected["desired_goal"])
    assert observation["desired_goal"].tolist() != [1.0, 1.0]


def test_evaluation_distribution() -> None:
    env = GoalEnv(task="point_u_maze", distribution="evaluation")
    goals = {tuple(env.reset(seed=seed)[0]["desired_goal"].tolist()) for seed in range(20)}
    assert goals == {(3.0, 1.0), (3.0, 2.0), (3.0, 3.0)}


def test_reward_is_minus_one_until_success_and_zero_at_it() -> None:
    env = GoalEnv(task="point_u_maze")
    observation, _ = env.reset(seed=1)
    env.reset(seed=1, options={"goal": observation["achieved_goal"]})
    _, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, False, False, True)
    env.reset(seed=1, options={"goal": observation["achieved_goal"] + 1.0})
    _, reward, _, _, info = env.step(np.zeros(2))
    assert (reward, info["is_success"]) == (-1.0, False)


def test_unstable_world_is_truncated_and_says_so() -> None:
    env = GoalEnv(task="point_u_maze")
    env.reset(seed=0)
    diverge(env, 0)
    observation, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated, info["unstable"]) == (-1.0, False, True, True)
    assert observation in env.observation_space
    env.reset()
    assert not env.step(np.zeros(2))[4]["unstable"]


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (lambda: GoalEnv(task="point_u_maze"), 3, r"an action of shape \(3,\), not \(2,\)"),
        (lambda: vector(), 2, r"an action of shape \(2,\), not \(5, 2\)"),
    ],
)
def test_step_before_reset_and_wrong_actions_are_refused(make: Any, size: int, expected: str) -> None:
    env = make()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(env.action_space.shape))
    env.reset()
    with pytest.raises(ValueError, match=expected):
        env.step(np.zeros(size))


def test_unknown_task_and_distribution_are_refused() -> None:
    with pytest.raises(TaskError, match="did you mean 'point_u_maze'"):
        GoalEnv(task="point_u_mase")
    with pytest.raises(TaskError, match="it has evaluation, training"):
        GoalVectorEnv(2, task="point_u_maze", distribution="test")


# -- how long episodes are ----------------------------------------------------------------------------


def length(env: gymnasium.Env) -> int:
    """Return the steps of an episode, whose info must say as `step` does that its time is over."""
    env.reset(seed=0)
    for step in range(1, 2000):
        *_, truncated, info = env.step(env.action_space.sample())
        assert truncated == info["out_of_time"]
        if truncated:
            return step
    raise AssertionError("the episode never ends")


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, 100),
        ({"episode_steps": 7}, 7),
        ({"episode_steps": 130}, 130),
        ({"episode_steps": np.int64(12)}, 12),
        ({"max_episode_steps": 7}, 7),
        ({"max_episode_steps": 130}, 130),
        ({"max_episode_steps": -1}, 100),
        ({"episode_steps": 9, "max_episode_steps": 7}, 7),
    ],
)
def test_one_clock_truncates_and_the_spec_says_when(arguments: dict[str, int], steps: int) -> None:
    env = gymnasium.make(ID, **arguments)  # type: ignore[arg-type]
    assert length(env) == steps
    assert env.spec is not None and env.spec.max_episode_steps == steps
    again = gymnasium.make(env.spec)
    assert length(again) == steps and again.spec is not None and again.spec.max_episode_steps == steps


@pytest.mark.parametrize("limit", [7, 13, 130])
def test_the_shortest_limit_around_an_environment_counts_the_steps(limit: int) -> None:
    env = TimeLimit(gymnasium.make(ID, max_episode_steps=13), limit)
    assert length(env) == min(limit, 13)
    assert length(TimeLimit(GoalEnv(task="point_u_maze", episode_steps=5), limit)) == limit


def test_an_environment_keeps_nothing_of_who_resets_it() -> None:
    env = gymnasium.make(ID, max_episode_steps=13)
    batch = set(range(3))
    kept = weakref.ref(batch)
    env.reset(seed=0)
    del batch
    assert kept() is None


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync", "async"])
@pytest.mark.parametrize("name", ["episode_steps", "max_episode_steps"])
def test_vectors_of_every_mode_take_the_length(mode: str, name: str) -> None:
    length: dict[str, Any] = {name: 3}
    env = gymnasium.make_vec(ID, num_envs=2, vectorization_mode=mode, **length)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[3].tolist() for _ in range(3)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2]
    env.close()
    env.close()


def test_vectors_spec_makes_the_same_again() -> None:
    env = gymnasium.make_vec(ID, num_envs=2, episode_steps=3)
    assert env.spec is not None and env.spec.max_episode_steps == 3
    again: Any = gymnasium.make_vec(env.spec).unwrapped
    assert again.task.spec.episode_steps == 3


@pytest.mark.parametrize("steps", [0, -1, 10**12, 2.5, True, "20"])
@pytest.mark.parametrize("make", [GoalEnv, GoalVectorEnv])
def test_length_that_is_none_is_refused(make: Any, steps: Any) -> None:
    with pytest.raises(
        TaskError, match="episode_steps must be a whole number, at least 1 and at most 1,000,000, not"
    ):
        make(task="point_u_maze", episode_steps=steps)


@pytest.mark.parametrize("make", [GoalEnv, GoalVectorEnv])
def test_another_distribution_takes_the_place_of_evaluation(make: Any) -> None:
    env = make(
        task="ant_u_maze", distribution="evaluation", evaluation_distribution="training", episode_steps=5
    )
    assert env.task.spec.changes == {"episode_steps": 5, "evaluation": "training"}
    with pytest.raises(TaskError, match="did you mean 'training'"):
        make(task="ant_u_maze", evaluation_distribution="trainin")


def test_task_of_a_page_is_given_by_its_path(tmp_path: Path) -> None:
    page = write(tmp_path)
    for each in (page, str(page)):
        assert GoalEnv(task=each, episode_steps=4).task.spec.file == str(page)
        env = gymnasium.make("thousandfold/UserTask-v0", task=each, episode_steps=4)
        assert length(env) == 4 and env.spec is not None and env.spec.max_episode_steps == 4


# -- copies -------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return observations and infos as lists and dictionaries, which compare exactly."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def handed_over(env: Any) -> Any:
    """Return what another process would be given of an environment, through a pipe of multiprocessing."""
    ours, theirs = multiprocessing.Pipe()
    sender = threading.Thread(target=ours.send, args=(env,))  # a pipe holds less than an environment
    sender.start()
    other = theirs.recv()
    sender.join()
    return other


def goes_on_as(env: Any, other: Any) -> None:
    """Assert that two environments go on alike, through the end of an episode and into the next."""
    for _ in range(12):
        action = env.action_space.sample()
        assert plain(other.step(action)) == plain(env.step(action))
        single: Any = env.unwrapped
        if isinstance(env, gymnasium.Env) and single._simulator.episode_step[0] >= 9:
            assert plain(other.reset()) == plain(env.reset())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, handed_over])
@pytest.mark.parametrize(
    "make",
    [
        lambda: gymnasium.make(ID, episode_steps=9),
        lambda: GoalEnv(task=short_task(), episode_steps=9, render_mode="rgb_array"),
        lambda: gymnasium.make_vec(ID, num_envs=3, episode_steps=9, num_threads=2),
        lambda: GoalEnv(task="humanoid", episode_steps=9),
        lambda: gymnasium.make("thousandfold/UserTask-v0", task="robot.yaml", episode_steps=9),
    ],
)
def test_copy_goes_on_identically_and_apart(
    make: Any, duplicate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, model=STATEFUL_ARM).parent)
    env = make()
    monkeypatch.chdir("/")
    env.reset(seed=5)
    env.action_space.seed(0)
    for _ in range(4):
        env.step(env.action_space.sample())
    other = duplicate(env)
    assert other.spec == env.spec
    goes_on_as(env, other)
    env.reset(seed=1)
    assert str(other.step(other.action_space.sample())[0]) != str(env.step(env.action_space.sample())[0])
    env.close()
    env.close()


def test_copy_of_one_that_never_started_draws_as_it_does() -> None:
    env = GoalEnv(task="point_u_maze")
    other = handed_over(env)
    with pytest.raises(gymnasium.error.ResetNeeded):
        other.step(np.zeros(2))
    assert plain(other.reset(seed=3)) == plain(env.reset(seed=3))
    assert plain(other.reset()) == plain(env.reset())


def test_copy_of_a_vector_resets_some_worlds_and_leaves_the_others() -> None:
    env = GoalVectorEnv(3, task="humanoid")
    env.reset(seed=0)
    before, *_ = env.step(env.action_space.sample())
    other = copy.deepcopy(env)
    after, _ = other.reset(options={"reset_mask": np.array([True, False, False])})
    assert np.array_equal(before["observation"][1:], after["observation"][1:])
    assert not np.array_equal(before["observation"][0], after["observation"][0])


# -- relabelling --------------------------------------------------------------------------------------


def test_computed_reward_and_ends_agree_with_step() -> None:
    early = (EarlyEnd(Term("qpos", "x"), -np.inf, 2.0),)
    env = GoalEnv(task=short_task(early_end=early, episode_steps=20))
    rng, seen = np.random.default_rng(0), set()
    for episode in range(30):
        env.reset(seed=episode)
        for _ in range(20):
            observation, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 2))
            goals = observation["achieved_goal"], observation["desired_goal"]
            assert env.compute_reward(*goals, info) == reward
            assert env.compute_terminated(*goals, info) == terminated
            assert env.compute_truncated(*goals, info) == truncated
            seen.add((reward, terminated))
            if terminated or truncated:
                break
    assert seen == {(-1.0, False), (-1.0, True), (0.0, False), (0.0, True)}


def test_computations_are_vectorised() -> None:
    env = GoalEnv(task="point_u_maze")
    achieved = np.zeros((2, 3, 2))
    desired = np.zeros((2, 3, 2))
    desired[0, :, 0] = [0.29, 0.31, 5.0]
    reward = env.compute_reward(achieved, desired, {})
    assert reward.tolist() == [[0.0, -1.0, -1.0], [0.0, 0.0, 0.0]]
    infos = [{"ended_early": False, "out_of_time": True}, {"ended_early": True, "unstable": True}, {}]
    goals = np.zeros((3, 2)), np.zeros((3, 2))
    assert env.compute_terminated(*goals, infos).tolist() == [False, True, False]
    assert env.compute_truncated(*goals, infos).tolist() == [True, True, False]
    assert env.compute_truncated(*goals, {}).tolist() == [False] * 3


def test_vector_rewards_agree_with_computed_ones() -> None:
    env = GoalVectorEnv(64, task="point_u_maze")
    observation, _ = env.reset(seed=0)
    seen = set()
    for _ in range(30):
        observation, rewards, *_, info = env.step(env.action_space.sample())
        computed = env.compute_reward(observation["achieved_goal"], observation["desired_goal"], info)
        assert np.array_equal(computed, rewards)
        assert np.array_equal(info["is_success"], rewards == 0)
        seen |= set(rewards.tolist())
    assert seen == {-1.0, 0.0}


# -- the vector environment ---------------------------------------------------------------------------


def test_make_vec_makes_it_with_one_declared_autoreset_mode() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(ID, num_envs=3, distribution="evaluation")
    assert isinstance(env.unwrapped, GoalVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_ends_have_the_form_of_gymnasiums_own_vector_environment() -> None:
    ours = vector()
    theirs = SyncVectorEnv([lambda: GoalEnv(task=ours.task)] * WORLDS, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space

    def form(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: form(each) for name, each in value.items()}
        if isinstance(value, tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
            return [form(each) for each in value]
        return (value.shape, value.dtype)

    assert form(ours.reset(seed=0)) == form(theirs.reset(seed=0))
    for _ in range(4):
        assert form(ours.step(still(ours))) == form(theirs.step(still(ours)))


def test_worlds_that_ended_start_afresh_in_the_same_step() -> None:
    env = vector()
    first, _ = env.reset(seed=0)
    for _ in range(2):
        last, *_, info = env.step(still(env))
        assert "final_obs" not in info
    fresh, _, terminations, truncations, info = env.step(still(env))
    assert truncations.all() and not terminations.any()
    assert info["_final_obs"].all() and info["_final_info"].all()
    assert info["final_info"]["out_of_time"].all() and not info["out_of_time"].any()
    for world in range(WORLDS):
        final = info["final_obs"][world]
        assert np.array_equal(final["desired_goal"], first["desired_goal"][world])
        assert np.allclose(final["achieved_goal"], last["achieved_goal"][world], atol=0.05)
        assert not np.array_equal(fresh["desired_goal"][world], final["desired_goal"])
        assert not fresh["observation"][world, 2:].any()
    assert not env.step(still(env))[3].any()


def test_one_unstable_world_is_reported_and_reset_alone() -> None:
    env = vector(episode_steps=50)
    env.reset(seed=0)
    before, *_ = env.step(still(env))
    diverge(env, 2)
    after, rewards, _, truncations, info = env.step(still(env))
    only = [False, False, True, False, False]
    assert truncations.tolist() == info["_final_obs"].tolist() == only
    assert info["final_info"]["unstable"].tolist() == only
    assert not info["unstable"].any()
    assert rewards[2] == -1.0
    assert [world for world in range(WORLDS) if info["final_obs"][world] is not None] == [2]
    assert np.array_equal(np.delete(before["desired_goal"], 2, 0), np.delete(after["desired_goal"], 2, 0))
    assert not np.array_equal(before["desired_goal"][2], after["desired_goal"][2])
    assert not env.step(still(env))[3].any()


def test_vector_seeds_reproduce_through_autoresets() -> None:
    def rollout(env: GoalVectorEnv) -> list[np.ndarray]:
        seen = [env.reset(seed=11)[0]]
        seen += [env.step(still(env))[0] for _ in range(7)]
        return [np.hstack([observation["observation"], observation["desired_goal"]]) for observation in seen]

    env = vector()
    once, again, other = rollout(env), rollout(env), rollout(vector())
    assert np.array_equal(once, again)
    assert np.array_equal(once, other)
    assert len(np.unique(once[0][:, 4])) == WORLDS


def test_vector_goals_can_be_commanded() -> None:
    env = vector()
    goals = np.arange(2 * WORLDS).reshape(WORLDS, 2)
    assert np.array_equal(env.reset(options={"goal": goals})[0]["desired_goal"], goals)
    assert (env.reset(options={"goal": [1.0, 3.0]})[0]["desired_goal"] == [1.0, 3.0]).all()


def test_reset_mask_resets_these_worlds_alone() -> None:
    env = vector(episode_steps=50)
    env.reset(seed=0)
    before, *_ = env.step(env.action_space.sample())
    chosen = np.array([True, False, False, True, False])
    after, _ = env.reset(options={"reset_mask": chosen, "goal": [2.0, 3.0]})
    assert (after["desired_goal"][chosen] == [2.0, 3.0]).all()
    assert np.array_equal(before["observation"][~chosen], after["observation"][~chosen])
    assert np.array_equal(before["desired_goal"][~chosen], after["desired_goal"][~chosen])
    with pytest.raises(ValueError, match="must be 5 bools"):
        env.reset(options={"reset_mask": np.ones(3, bool)})


@pytest.mark.parametrize("make", [vector, lambda: GoalEnv(task=short_task())])
def test_what_is_returned_does_not_change_under_the_caller(make: Any) -> None:
    env = make()
    kept = [env.reset(seed=0), *(env.step(env.action_space.sample()) for _ in range(2))]
    copies = copy.deepcopy(kept)
    for _ in range(4):
        env.step(env.action_space.sample())
    env.reset()
    for result, as_it_was in zip(kept, copies, strict=True):
        for name, array in result[0].items():
            assert np.array_equal(array, as_it_was[0][name]), name
        assert all(np.array_equal(a, b) for a, b in zip(result[1:-1], as_it_was[1:-1], strict=True))
        for name, flags in result[-1].items():
            assert np.array_equal(flags, as_it_was[-1][name]), name


# -- rendering ----------------------------------------------------------------------------------------

_RENDER = """
import gymnasium, thousandfold
env = gymnasium.make("thousandfold/PointUMaze-v0", render_mode="rgb_array")
env.reset(seed=0)
try:
    frame = env.render()
except RuntimeError as error:
    print("refused:", error)
else:
    print(frame.shape, frame.dtype, frame.std() > 1)
env.close()
"""


@pytest.mark.parametrize("backend", ["egl", "glfw"])
def test_render_draws_or_says_what_is_missing(backend: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    outcome = subprocess.run(
        [sys.executable, "-c", _RENDER],
        cwd=ROOT,
        env={**environment, "MUJOCO_GL": backend},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode == 0, outcome.stderr
    drawn = outcome.stdout.startswith("(480, 480, 3) uint8 True")
    refused = "refused: drawing needs OpenGL" in outcome.stdout and "MUJOCO_GL=egl" in outcome.stdout
    assert refused if backend == "glfw" else drawn or refused


def test_without_a_render_mode_nothing_is_drawn() -> None:
    env = GoalEnv(task="point_u_maze")
    env.reset()
    assert env.render() is None
    with pytest.raises(ValueError, match="render_mode 'human'"):
        GoalEnv(task="point_u_maze", render_mode="human")
