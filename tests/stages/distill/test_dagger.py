"""DAgger rounds: who acts, what is learned from, when they end, and what is kept of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.stages.train_teacher.made_up_training import (
    SETTINGS,
    TASK,
    made_up_data,
    make_teacher,
    make_training,
)
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.replay.goal_dataset import GoalDataset, load_goal_dataset
from thousandfold.stages.dataset.rollout import Act
from thousandfold.stages.distill.dagger import KeptRollout, mixed_policy, run_rounds
from thousandfold.stages.distill.student_training import StudentTraining
from thousandfold.stages.networks import torch_policy

# -- who acts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_teacher_acts_in_a_share_of_the_steps(beta: float):
    act = mixed_policy(lambda observation, goal: -np.ones((len(observation), 2), np.float32), beta)
    rng, teachers = np.random.default_rng(0), np.ones((500, 2), np.float32)
    actions = np.stack([act(np.zeros((500, 4)), np.zeros((500, 2)), teachers, rng) for _ in range(20)])
    assert actions.dtype == np.float32 and set(np.unique(actions)) <= {-1.0, 1.0}
    assert np.array_equal(actions[..., 0], actions[..., 1])  # whole actions, not numbers of them
    helped = actions[..., 0] == 1.0
    assert helped.mean() == pytest.approx(beta, abs=0.02)
    if beta == 0.3:  # a coin a step: no world is helped all of the time
        assert helped.mean(0).max() < 0.8


# -- rounds -----------------------------------------------------------------------------------------


def test_the_student_acts_the_rows_grow_and_training_goes_on():
    training, acted, logged = make_training(), [], []
    training.descend(SETTINGS.updates)
    offline = len(training.rows)
    assert training.updates == 4

    def rollout(number: int, act: Act) -> GoalDataset:
        student = torch_policy(training.student)
        observation, goal = np.ones((64, 4), np.float32), np.ones((64, 2), np.float32)
        teachers = np.full((64, 2), 7.0, np.float32)
        actions = act(observation, goal, teachers, np.random.default_rng(0))
        helped = (actions == 7.0).all(1)
        np.testing.assert_array_equal(actions[~helped], student(observation, goal)[~helped])
        acted.append((number, helped.mean(), training.updates))
        return made_up_data(float(number))

    rounds = run_rounds(training, rollout, lambda entry, number: logged.append((number, entry)))
    assert [(number, updates) for number, _, updates in acted] == [(1, 4), (2, 6), (3, 8)]
    for (_, share, _), beta in zip(acted, (0.5, 0.25, 0.125), strict=True):
        assert share == pytest.approx(beta, abs=0.15)
    assert len(training.rows) == offline + 3 * 20
    assert training.rows.observation[offline:, 0].tolist() == [1.0] * 20 + [2.0] * 20 + [3.0] * 20
    assert [entry["beta"] for entry in rounds] == [0.5, 0.25, 0.125]
    # Three training episodes and one held out of five steps, each under two goals, and 20 steps a round.
    assert [entry["labels"] for entry in rounds] == [2 * (20 + 20 * number) for number in (1, 2, 3)]
    assert rounds[0]["acting_success"] == 0.5
    assert [number for number, _ in logged] == [1, 2, 3]
    assert logged[2][1]["round/success"] == rounds[2]["success"] and "round/round" not in logged[2][1]


def test_rounds_end_where_retention_meets_its_target(monkeypatch: pytest.MonkeyPatch):
    outcomes = iter([0.1, 0.2, 0.95, 0.99])

    def validate(*_: object) -> dict[str, float]:
        share = next(outcomes)
        return {"validation_loss": 1.0, "success": share, "time_at_goal": 0.0, "smaller_retention": share}

    monkeypatch.setattr(StudentTraining, "validate", validate)
    training = make_training(target_retention=0.9)
    training.descend(SETTINGS.updates)
    rounds = run_rounds(training, lambda number, act: made_up_data(0.0))
    assert [entry["smaller_retention"] for entry in rounds] == [0.2, 0.95]


# -- what is kept -----------------------------------------------------------------------------------


def make_rollout(root: Path, **changes: object) -> KeptRollout:
    artifact = Workspace(root).create("student", task=TASK.name, settings={})
    made_with = {"evaluation_fraction": 0.25, "teacher": {"name": "teacher", "hash": "0"}}
    rollout = KeptRollout(make_teacher(), None, made_with, 2, SETTINGS, artifact, "cpu")
    return dataclasses.replace(rollout, **changes)


def test_a_round_lies_in_the_students_artifact_with_the_teachers_labels(tmp_path: Path):
    rollout = make_rollout(tmp_path)

    def pushes(observation: np.ndarray, *_: object) -> np.ndarray:
        return np.full((len(observation), 2), 0.5, np.float32)

    data = rollout(2, pushes)
    assert (data.action == 0.5).all() and data.alternative_goal.shape == (len(data.action), 2, 2)
    with torch.no_grad():
        found = rollout.trained.actor(torch.from_numpy(data.observation), torch.from_numpy(data.desired_goal))
        other = rollout.trained.actor(
            torch.from_numpy(data.observation), torch.from_numpy(data.alternative_goal[:, 1])
        )
    np.testing.assert_allclose(data.teacher_mean, found.mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(data.alternative_mean[:, 1], other.mean.numpy(), atol=1e-5)
    kept = load_goal_dataset(rollout.artifact.file("rounds") / "round_02")
    assert np.array_equal(kept.observation, data.observation)
    facts = kept.metadata["thousandfold"]
    assert facts["round"] == 2 and facts["beta"] == 0.25 and facts["teacher"]["name"] == "teacher"


def test_rounds_are_reproducible_and_differ(tmp_path: Path):
    def still(observation: np.ndarray, *_: object) -> np.ndarray:
        return np.zeros((len(observation), 2), np.float32)

    first, again = (make_rollout(tmp_path / name)(1, still) for name in ("a", "b"))
    assert np.array_equal(first.desired_goal, again.desired_goal)
    assert not np.array_equal(first.desired_goal, make_rollout(tmp_path / "c")(2, still).desired_goal)


def test_a_round_is_drawn_like_the_dataset(tmp_path: Path):
    groups = make_rollout(tmp_path).plan.groups
    assert [(group.distribution, group.episodes, group.action_noise) for group in groups] == [
        ("evaluation", 1, 0.0),
        ("training", 3, 0.0),
    ]


@pytest.mark.parametrize(
    ("facts", "drawn"),
    [({"hindsight_fraction": 0.25, "hindsight_discount": 0.9}, (0.25, 0.9)), ({}, (0.5, 0.99))],
)
def test_alternative_goals_are_drawn_as_in_the_dataset(
    tmp_path: Path, facts: dict[str, float], drawn: tuple[float, float]
):
    plan = make_rollout(tmp_path, dataset={"evaluation_fraction": 0.25, **facts}).plan
    assert (plan.hindsight_fraction, plan.discount) == drawn


def test_rounds_achieve_as_many_of_their_alternative_goals_as_the_dataset_says(tmp_path: Path):
    def pushes(observation: np.ndarray, *_: object) -> np.ndarray:
        return np.full((len(observation), 2), 0.5, np.float32)

    made = [make_rollout(tmp_path / str(f), dataset={"hindsight_fraction": f})(1, pushes) for f in (0.0, 1.0)]
    for data, achieved in zip(made, (False, True), strict=True):
        commanded = np.unique(data.desired_goal, axis=0)
        goals = data.alternative_goal.reshape(-1, 1, 2)
        assert (goals == commanded).all(2).any(1).all() != achieved
