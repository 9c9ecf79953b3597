"""What keys and the mouse do to a goal, and how a world goes on that somebody plays with: no window."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.envs.user_tasks.user_pages import PAGE, write
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.task import EarlyEnd, Term
from thousandfold.stages.closed_loop.playground import HELP, Playground

TASK = compile_task("point_u_maze")


def towards_goal(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.clip(5 * (goal - observation[:, :2]), -1, 1)


def ground(task: CompiledTask = TASK, goal: tuple[float, ...] | None = None, seed: int = 0) -> Playground:
    still = np.zeros((1, task.action_dim), np.float32)
    policy = towards_goal if task.name == "point_u_maze" else lambda observation, goal: still
    first = None if goal is None else np.array(goal)
    return Playground(task, policy, distribution="training", seed=seed, goal=first)


def test_arrows_move_the_goal_along_its_own_axes_and_no_further_than_goals_are_drawn() -> None:
    play = ground(goal=(2.0, 2.0))
    assert play.low == pytest.approx([0.75, 0.75], abs=0.02) and play.high == pytest.approx(
        [3.25] * 2, abs=0.02
    )
    step = (play.high - play.low) / 20
    for key, away in (("RIGHT", (1, 0)), ("UP", (0, 1)), ("LEFT", (-1, 0)), ("DOWN", (0, -1))):
        before = play.goal
        play.press(key)
        assert play.goal - before == pytest.approx(step * away, abs=1e-6)
    play.press("PAGE_UP")  # there is no third number
    assert play.goal == pytest.approx([2.0, 2.0])
    for _ in range(30):
        play.press("RIGHT")
    assert play.goal == pytest.approx([play.high[0], 2.0])


def test_space_and_enter_draw_another_goal() -> None:
    play = ground()
    goals = [play.goal]
    for key in (" ", "ENTER", " "):
        play.press(key)
        goals.append(play.goal)
    assert len({tuple(goal) for goal in goals}) == 4 and play.goals == 4
    assert all((play.low <= goal).all() and (goal <= play.high).all() for goal in goals)


def test_a_goal_that_is_relative_to_what_is_achieved_is_drawn_from_where_it_is_now() -> None:
    cheetah = compile_task("half_cheetah")
    play = ground(cheetah)
    for _ in range(5):
        play.press(" ")
        assert np.isfinite(play.goal).all() and play.goal.shape == (1,)


def test_the_policy_goes_where_the_goal_is_and_reaching_is_counted() -> None:
    play, outcomes = ground(seed=3), []
    for _ in range(10):
        play.press(" ")
        for _ in range(40):
            play.step()
        outcomes.append(play.state_line())
    assert play.goals == 11 and play.steps == 40
    assert 0 < play.reached == sum("reached after" in line for line in outcomes) < 10  # walls are in the way
    assert all("m to the goal: " in line for line in outcomes)


def test_it_goes_on_beyond_the_steps_of_an_episode() -> None:
    play = ground(CompiledTask(dataclasses.replace(get_task("point_u_maze"), episode_steps=3)))
    for _ in range(20):
        play.step()
    assert play.steps == 20


def test_a_goal_that_is_moved_counts_as_another_only_once_it_was_reached() -> None:
    play = ground(goal=(2.0, 2.0))
    for _ in range(5):
        play.press("RIGHT")
    assert play.goals == 1
    play.drag(np.array([*play.qpos(), 0.0]))
    play.step()
    assert play.reached == 1 and "reached after 0.1 s" in play.state_line()
    play.press("RIGHT")
    assert play.goals == 2 and "not reached yet" in play.state_line()


def test_time_stands_still_in_a_pause_and_r_goes_back_to_a_start() -> None:
    play = ground(goal=(3.0, 1.0))
    for _ in range(5):
        play.step()
    play.press("P")
    before = play.qpos()
    play.step()
    assert np.array_equal(play.qpos(), before) and play.steps == 5 and "paused" in play.state_line()
    play.press("R")
    assert play.steps == 0 and not np.array_equal(play.qpos(), before)
    assert play.goal == pytest.approx([3.0, 1.0])
    play.press("P")
    play.step()
    assert play.steps == 1 and "paused" not in play.state_line()


def test_between_two_steps_it_is_shown_on_the_way() -> None:
    play = ground(goal=(3.0, 1.0))
    play.step()
    one = play.qpos()
    play.step()
    assert play.qpos(0.5) == pytest.approx((one + play.qpos()) / 2)
    assert play.qpos(1.0) == pytest.approx(play.qpos())
    ant = ground(compile_task("ant"))
    ant.step()
    assert np.linalg.norm(ant.qpos(0.3)[3:7]) == pytest.approx(1.0)


def test_what_ends_early_starts_again_with_the_same_goal() -> None:
    left = EarlyEnd(Term("qpos", "x"), low=-10.0, high=1.3)
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), early_end=(left,)))
    play = ground(task, goal=(3.0, 3.0))
    notes = []
    for _ in range(60):
        play.step()
        notes.append(play.note)
    assert "the episode ended early" in notes and play.goal == pytest.approx([3.0, 3.0])
    play.press(" ")
    assert play.note == ""


def test_a_drag_moves_what_says_a_position_and_stays_in_reach() -> None:
    play = ground(goal=(2.0, 2.0))
    play.drag(np.array([1.0, 3.0, 7.0]))
    assert play.goal == pytest.approx([1.0, 3.0])
    play.drag(np.array([-9.0, 3.0, 0.0]))
    assert play.goal == pytest.approx([play.low[0], 3.0])

    grasp = ground(compile_task("arm_grasp"))
    before, middle = grasp.goal, grasp.task.goal_positions(grasp.goal)
    grasp.drag(middle + np.array([0.02, 0.0, 0.0]))
    moved = grasp.goal - before
    assert moved[[0, 3]] == pytest.approx([0.02, 0.02], abs=1e-4), "both fingertips"
    assert moved[[1, 2, 4, 5, 6]] == pytest.approx(np.zeros(5), abs=1e-4)


def test_more_numbers_than_keys_are_moved_three_at_a_time() -> None:
    play = ground(compile_task("arm_grasp"))
    assert play.moved_numbers == [0, 1, 2]
    play.press("N")
    assert play.moved_numbers == [3, 4, 5]
    play.press("N")
    assert play.moved_numbers == [6]
    play.press("UP")  # has no number now
    play.press("N")
    assert play.moved_numbers == [0, 1, 2]


def test_an_orientation_is_drawn_and_never_moved(tmp_path: Path) -> None:
    page = PAGE.replace(
        "achieved_goal: {field: site_xpos, object: fingertip, unit: m}",
        "achieved_goal: [{orientation: {object: fingertip, kind: site}},"
        " {field: site_xpos, object: fingertip, unit: m}]",
    ).replace(
        "goal: {box: {low: [0.2, 0, -0.3], high: [0.3, 0, -0.1]}}",
        "goal: [{orientation: {quat: [1, 0, 0, 0]}}, {box: {low: [0.2, 0, -0.3], high: [0.3, 0, -0.1]}}]",
    )
    page = page.replace(
        "success: {radius: 0.05}", "success: [{radius: 0.05, slice: [6, 9]}, {angle: 0.3, slice: [0, 6]}]"
    )
    play = ground(compile_task(str(write(tmp_path, page))))
    assert play.moved_numbers == [6, 7, 8]
    turn = play.goal[:6].copy()
    for key in ("RIGHT", "UP", "PAGE_DOWN", "N"):
        play.press(key)
    play.drag(np.array([0.25, 0.0, -0.2]))
    assert np.array_equal(play.goal[:6], turn)


def test_every_key_of_the_help_is_known() -> None:
    words = " ".join(keyboard for keyboard, _ in HELP)
    assert all(word in words for word in ("Space", "Enter", "Arrows", "Page up", "Ctrl", "N", "R", "P"))
    play = ground(goal=(2.0, 2.0))
    for key in ("", "X", "Ć"):
        play.press(key)
    assert play.goal == pytest.approx([2.0, 2.0]) and play.goals == 1
