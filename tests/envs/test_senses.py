"""What is sensed: noise, delays, dropouts and history, and controls that act late, in every simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.envs.any_simulator import EVERY_SIMULATOR, MakeSimulator, make_cpu, mask, numpy
from tests.envs.user_tasks.user_pages import PAGE, changed, write
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import GoalEnv, GoalVectorEnv
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

NOISY = "noise: 0.1, bias: 0.2, delay: {low: 0, high: 3}, dropout: 0.3, history: 2"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compiled(observation: str, more: str = "", student: str = "") -> CompiledTask:
    """Return the arm with these terms; its starts differ from world to world."""
    page = changed(
        PAGE, PAGE[PAGE.index("observation") : PAGE.index("achieved_goal")], f"observation: {observation}\n"
    )
    page = changed(page, "{keyframe: home}", "{keyframe: home, qpos_noise: 0.2}")
    page += f"student_observation: {student}\n" if student else ""
    return compile_task(str(write(Path.cwd(), page + more)))


def names(task: CompiledTask) -> list[str]:
    return [element["name"] for element in task.describe("observation")]


def rollout(simulator: Any, steps: int, part: str = "observation") -> np.ndarray:
    """Return what is shown at the start and after every step of random actions, (steps + 1, worlds, size)."""
    rng, shown = np.random.default_rng(0), [numpy(getattr(simulator, part))]
    for _ in range(steps):
        simulator.step(rng.uniform(-1, 1, (simulator.num_worlds, 2)).astype(np.float32))
        shown.append(numpy(getattr(simulator, part)))
    return np.array(shown)


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_what_is_late_stacked_and_rounded_is_what_was_there(make: MakeSimulator) -> None:
    sensed = "[{field: qpos, delay: 2, history: 3}, {field: qvel, quantum: 0.25}]"
    task = compiled("[{field: qpos}, {field: qvel}]", student=sensed)
    assert names(task.student_view)[:6] == [
        f"qpos:{joint}[0]{age}" for age in ("", "@-1", "@-2") for joint in ("shoulder", "elbow")
    ]
    assert (task.observation_dim, task.student_view.observation_dim) == (4, 8)
    simulator = make(task, with_student=True, seed=1)
    true, seen = [numpy(simulator.observation)], [numpy(simulator.student_observation)]
    rng = np.random.default_rng(0)
    for step in range(8):
        simulator.step(rng.uniform(-1, 1, (4, 2)).astype(np.float32))
        if step == 4:
            simulator.reset(mask(simulator, 2))
        true.append(numpy(simulator.observation))
        seen.append(numpy(simulator.student_observation))
    begun = np.array([0, 0, 5, 0])
    for step, row in enumerate(seen):
        for age in range(3):
            when = [max(step - 2 - age, begun[world] if step >= begun[world] else 0) for world in range(4)]
            there = [true[when[world]][world, :2] for world in range(4)]
            np.testing.assert_array_equal(row[:, 2 * age : 2 * age + 2], there)
        np.testing.assert_allclose(row[:, 6:], np.round(true[step][:, 2:] / 0.25) * 0.25)


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_noise_and_bias_are_as_large_as_the_page_says(make: MakeSimulator) -> None:
    sensed = (
        "[{field: qpos, noise: 0.1}, {field: qvel, bias: 0.5},"
        " {field: site_xpos, object: fingertip, noise: 0.3, noise_kind: uniform}]"
    )
    task = compiled("[{field: qpos}, {field: qvel}, {field: site_xpos, object: fingertip}]", student=sensed)
    simulator = make(task, 64, with_student=True)
    off = []
    for _ in range(12):
        simulator.step(np.zeros((64, 2), np.float32))
        off.append(numpy(simulator.student_observation) - numpy(simulator.observation))
    noise, bias, uniform = np.split(np.array(off), [2, 4], axis=2)
    assert noise.std() == pytest.approx(0.1, rel=0.1) and abs(noise.mean()) < 0.01
    assert np.ptp(bias, axis=0).max() < 1e-4 and bias[0].std() == pytest.approx(0.5, rel=0.3)
    assert 0.29 < np.abs(uniform).max() <= 0.3 + 1e-5 and uniform.std() == pytest.approx(
        0.3 / 3**0.5, rel=0.1
    )
    simulator.reset(mask(simulator, 0))
    again = (numpy(simulator.student_observation) - numpy(simulator.observation))[:, 2:4]
    assert np.abs(again - bias[-1])[0].max() > 1e-3 and np.abs(again - bias[-1])[1:].max() < 1e-4


def test_a_reading_that_drops_out_repeats_the_last_one_as_a_whole() -> None:
    simulator = CpuSimulator(compiled("[{field: qpos, dropout: 0.4}, {field: qvel}]"), 64)
    shown = rollout(simulator, 20)
    repeated = shown[1:, :, :2] == shown[:-1, :, :2]
    assert (repeated.all(-1) == repeated.any(-1)).all()
    assert repeated.mean() == pytest.approx(0.4, abs=0.05)
    always = rollout(CpuSimulator(compiled("[{field: qpos, dropout: 1}, {field: qvel}]"), 4), 5)
    assert (always[..., :2] == always[0, :, :2]).all()


def test_a_drawn_delay_stays_for_an_episode() -> None:
    task = compiled("[{field: qpos}]", student="[{field: qpos, delay: {low: 1, high: 3}}]")
    simulator = CpuSimulator(task, 64, with_student=True)
    true, seen, rng = [simulator.observation.copy()], [], np.random.default_rng(0)
    for _ in range(10):
        simulator.step(rng.uniform(-1, 1, (64, 2)))
        true.append(simulator.observation.copy())
        seen.append(simulator.student_observation.copy())
    late = [(np.array(seen)[3:] == np.array(true)[4 - delay : 11 - delay]).all((0, 2)) for delay in range(5)]
    assert np.sum(late, 0).tolist() == [1] * 64
    assert [bool(worlds.any()) for worlds in late] == [False, True, True, True, False]


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_what_is_sent_acts_late_and_is_told_at_once(make: MakeSimulator) -> None:
    entries = 'action: {actuators: "*", kind: delta, max_rate: 2}\n'
    history = "{field: ctrl, object: lift, history: 2}"
    prompt = make(compiled(f"[{{field: qpos}}, {history}]", entries), seed=2)
    late = make(compiled(f"[{{field: qpos}}, {history}]", entries + "action_delay: 2\n"), seed=2)
    assert names(late.task) == [
        "qpos:shoulder[0]",
        "qpos:elbow[0]",
        "ctrl:lift[0]",
        "ctrl:lift[0]@-1",
        "ctrl:bend[0]",
    ]
    assert [names(late.task)[place] for place in late.task.last_controls()] == [
        "ctrl:lift[0]",
        "ctrl:bend[0]",
    ]
    actions = np.random.default_rng(0).choice([-1.0, 1.0], (5, 4, 2)).astype(np.float32)
    shown = {}
    for simulator, own in ((prompt, [*np.zeros((2, 4, 2), np.float32), *actions]), (late, actions)):
        rows = [numpy(simulator.observation)]
        for action in own:
            simulator.step(action)
            rows.append(numpy(simulator.observation))
        shown[simulator] = np.array(rows)
    # The joints go as those that were sent the same without a delay, and nothing for two steps before.
    np.testing.assert_allclose(shown[late][:, :, :2], shown[prompt][:6, :, :2], atol=1e-6)
    # What was sent is told as without a delay, two steps before it acts.
    np.testing.assert_allclose(shown[late][:, :, [2, 4]], shown[prompt][2:, :, [2, 4]], atol=1e-6)
    np.testing.assert_array_equal(shown[late][1:, :, 3], shown[late][:-1, :, 2])


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_a_saved_simulator_goes_on_bit_for_bit(make: MakeSimulator) -> None:
    more = "action_delay: {low: 0, high: 2}\n"
    task = compiled(f"[{{field: qpos, {NOISY}}}]", more, student=f"[{{field: qvel, {NOISY}}}]")
    one, other = (make(task, seed=seed, with_student=True) for seed in (1, 2))
    rollout(one, 3)
    other.load_state_dict(one.state_dict())
    for _ in range(2):
        for part in ("observation", "student_observation"):
            states = one.state_dict()
            np.testing.assert_array_equal(rollout(one, 3, part), rollout(other, 3, part))
            assert not all(np.array_equal(value, one.state_dict()[name]) for name, value in states.items())
        for each in (one, other):
            each.reset()


def test_senses_leave_starts_and_goals_and_exact_tasks_alone() -> None:
    plain, noisy = "[{field: qpos}]", f"[{{field: qpos, {NOISY}}}]"
    exact, with_student, sensed = (
        CpuSimulator(task, 4, seed=5, with_student=True)
        for task in (compiled(plain), compiled(plain, student=noisy), compiled(noisy))
    )
    assert set(exact.state_dict()) == {
        "state", "observation", "achieved_goal", "desired_goal", "episode_step", "quarantined",
        "unstable_count", "overflow_count", "generator",
    }  # fmt: skip
    assert exact.student_observation is exact.observation and exact.task.student_view is exact.task
    np.testing.assert_array_equal(rollout(exact, 5), rollout(with_student, 5))
    rollout(sensed, 5)
    for part in ("achieved_goal", "desired_goal"):
        np.testing.assert_array_equal(getattr(exact, part), getattr(sensed, part))
    alone = CpuSimulator(with_student.task.student_view, 4, seed=5)
    with_student = CpuSimulator(with_student.task, 4, seed=5, with_student=True)
    np.testing.assert_array_equal(rollout(alone, 5), rollout(with_student, 5, "student_observation"))


def test_every_round_senses_the_same_whatever_ran_before_it() -> None:
    task = compiled(f"[{{field: qpos, {NOISY}}}]")
    one, other = (CpuSimulator(task, 4, seed=5) for _ in range(2))
    rollout(one, 7)
    for each in (one, other):
        each.reset()
    first = rollout(one, 3)
    np.testing.assert_array_equal(first, rollout(other, 3))
    one.reset()
    assert not np.array_equal(first, rollout(one, 3))


def test_without_the_student_nothing_is_shown_of_what_it_sees() -> None:
    simulator = make_cpu(compiled("[{field: qpos}]", student="[{field: qvel}]"))
    with pytest.raises(RuntimeError, match="with_student=True"):
        _ = simulator.student_observation


def test_environments_show_what_either_sees() -> None:
    task = compiled("[{field: qpos}]", student=f"[{{field: qvel, {NOISY}}}]")
    assert GoalEnv(task=task).observation_space["observation"].shape == (2,)
    env, same, other, vector = (
        make(task="robot.yaml", observer="student") for make in (GoalEnv, GoalEnv, GoalEnv, GoalVectorEnv)
    )
    assert vector.reset(seed=1)[0]["observation"].shape == (1, 4)

    def seen(env: GoalEnv, seed: int | None) -> list[float]:
        first = env.reset(seed=seed)[0]["observation"]
        return [*first, *env.step(np.ones(2, np.float32))[0]["observation"]]

    assert seen(env, 1) == seen(same, 1) != seen(env, None)
    assert seen(env, 1) == seen(same, 1)
    assert seen(other, 2) != seen(same, 1)
    starts = [GoalEnv(task="robot.yaml", observer=who).reset(seed=4)[0] for who in ("teacher", "student")]
    for part in ("achieved_goal", "desired_goal"):
        np.testing.assert_array_equal(starts[0][part], starts[1][part])
    with pytest.raises(ValueError, match="observer 'pupil'; valid: teacher, student"):
        GoalEnv(task=task, observer="pupil")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("observation", "more", "said"),
    [
        (
            "[{field: qpos, delay: 30}]",
            "",
            "observation[0].delay: delay of 30 control steps is longer than an episode",
        ),
        ("[{field: qpos, delay: {low: 3, high: 2}}]", "", "observation[0].delay: low is above high"),
        (
            "[{field: qpos, delay: -1}]",
            "",
            "observation[0].delay: must be greater than or equal to 0 (got -1)",
        ),
        (
            "[{field: qpos, noise: -1}]",
            "",
            "observation[0].noise: must be greater than or equal to 0 (got -1)",
        ),
        (
            "[{field: qpos, history: 0}]",
            "",
            "observation[0].history: must be greater than or equal to 1 (got 0)",
        ),
        (
            "[{field: qpos, dropout: 1.5}]",
            "",
            "observation[0].dropout: must be less than or equal to 1 (got 1.5)",
        ),
        (
            "[{field: qpos, noise_kind: white}]",
            "",
            "observation[0].noise_kind: must be 'normal' or 'uniform'",
        ),
        ("[{field: ctrl, noise: 1}]", "", "observation[0]: ctrl is the last command"),
        (
            "[{field: qpos}, {clock: 0.3, delay: 1}]",
            "",
            "observation[1]: a clock is a time that the controller",
        ),
        ("[{field: qpos}]", "action_delay: 99\n", "action_delay: action_delay of 99 control steps is longer"),
        (
            "[{field: qpos}]",
            "student_observation: [{field: qpos, noise: 1}, {field: qpos, object: elbow}]\n",
            "student_observation[1]: qpos:elbow[0] is observed twice with different sensor keys",
        ),
        (
            "[{field: qpos}]",
            "student_observation: [{field: qpos}, {field: qvel, object: elbwo}]\n",
            "student_observation[1].object: the model has no joint named 'elbwo'; did you mean 'elbow'",
        ),
        (
            "[{field: qpos}]",
            "early_end: {term: {field: qpos, noise: 1}, low: 0, high: 1}\n",
            "unknown key; terms of observation and student_observation alone are sensed",
        ),
    ],
)
def test_mistakes(observation: str, more: str, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        compiled(observation, more)
    assert said in (message := str(raised.value))
    assert message.startswith("robot.yaml, line ") and "\n" not in message
