"""A student's training: which weights are kept, when it ends, and what it is compared by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from tests.stages.train_teacher.made_up_training import TASK, make_training
from thousandfold.ground.errors import SettingsError
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.flat_parameters import FlatAdam
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.distill.settings import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining, smaller_retention
from thousandfold.stages.episodes import run_episodes


def head(network: NormalizedActor) -> torch.Tensor:
    return network.actor.mean_head.weight.detach().clone()


def evaluated_as(training: StudentTraining, outcomes: Iterable[dict[str, float]]) -> list[torch.Tensor]:
    """Give evaluations these outcomes in turn; return the list that the evaluated heads go into."""
    heads, coming = [], iter(outcomes)

    def validate(network: NormalizedActor) -> dict[str, float]:
        heads.append(head(network))
        return {"validation_loss": 1.0, "time_at_goal": 0.0, **next(coming)}

    training.validate = validate  # type: ignore[method-assign]
    return heads


def successes(*shares: float) -> list[dict[str, float]]:
    return [{"success": share, "smaller_retention": share} for share in shares]


# -- what is kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "kept"),
    [
        (successes(0.2, 0.9, 0.5), 1),
        ([{"success": 0.9, "time_at_goal": 100.0}, {"success": 0.8, "time_at_goal": 300.0}], 1),
        ([{"success": 0.5, "validation_loss": loss} for loss in (3.0, 1.0, 2.0)], 1),
        ([{"success": 0.5, "validation_loss": 1.0}] * 3, 0),
    ],
    ids=["success", "time at goal counts alike", "then the loss", "then the first"],
)
def test_the_best_is_kept(outcomes: list[dict[str, float]], kept: int):
    training = make_training(evaluate_every=2)
    heads = evaluated_as(training, outcomes)
    training.descend(2 * len(outcomes))
    training.finish()
    assert training.kept is not None and torch.equal(head(training.student), heads[kept])
    assert training.kept.entry is training.history[kept]
    assert training.history[kept]["updates"] == 2 * (kept + 1)


def test_a_later_descent_does_not_forget_the_best():
    training = make_training(evaluate_every=2)
    heads = evaluated_as(training, successes(0.9, 0.5, 0.6))
    training.descend(2)
    training.descend(4)
    assert training.updates == 6 and torch.equal(head(training.acting), heads[2])  # rounds act as it is now
    training.finish()
    assert torch.equal(head(training.student), heads[0])


def recorded_rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that takes the learning rate of every update."""
    rates: list[float] = []
    step = FlatAdam.step
    monkeypatch.setattr(FlatAdam, "step", lambda adam: (rates.append(float(adam.rate)), step(adam)))
    return rates


def test_the_learning_rate_falls_once_rounds_included(monkeypatch: pytest.MonkeyPatch):
    rates = recorded_rates(monkeypatch)
    training = make_training(learning_rate=0.1)
    evaluated_as(training, successes(0.1, 0.2, 0.3, 0.4))
    for updates in (4, 2, 2, 2):  # a dataset's updates and three rounds
        training.descend(updates)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * done / 10)) for done in range(10)])


def test_a_descent_that_ends_early_leaves_the_next_ones_rates_as_they_are(monkeypatch: pytest.MonkeyPatch):
    rates = recorded_rates(monkeypatch)
    training = make_training(learning_rate=0.1, patience=1, evaluate_every=1)
    evaluated_as(training, successes(0.5, 0.4, 0.6, 0.7))
    training.descend(4)
    assert training.updates == 2
    training.descend(2)
    expected = [0.05 * (1 + math.cos(math.pi * done / 10)) for done in (0, 1, 4, 5)]
    assert rates == pytest.approx(expected)


# -- averaging --------------------------------------------------------------------------------------


def test_the_average_follows_the_student():
    training, seen = make_training(average_decay=0.75), []
    expected = head(training.student)
    training.on_update = lambda *_: seen.append(head(training.student))
    heads = evaluated_as(training, successes(0.0, 0.0))
    training.descend(3)
    for weight in seen:
        expected = 0.75 * expected + 0.25 * weight
    assert len(seen) == 3 and torch.equal(heads[0], seen[-1])
    torch.testing.assert_close(heads[1], expected)


@pytest.mark.parametrize(("shares", "averaged"), [((0.2, 0.7), 1.0), ((0.7, 0.2), 0.0)])
def test_the_better_of_student_and_average_is_kept(shares: tuple[float, float], averaged: float):
    training = make_training(average_decay=0.9)
    heads = evaluated_as(training, successes(*shares))
    training.descend(3)
    assert not torch.equal(*heads) and torch.equal(head(training.acting), heads[1])
    training.finish()
    assert torch.equal(head(training.student), heads[int(averaged)])
    assert training.history[0]["averaged"] == averaged and training.history[0]["success"] == 0.7


# -- when it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "shares", "evaluations"),
    [
        ({"target_retention": 0.9}, (0.5, 0.95, 0.99), 2),
        ({"patience": 2}, (0.5, 0.4, 0.6, 0.6, 0.5, 0.9), 5),
        ({"patience": 9}, (0.5, 0.4, 0.3, 0.2, 0.1, 0.0), 6),
        ({}, (1.0,) * 6, 6),
    ],
)
def test_training_stops_early(limits: dict[str, Any], shares: tuple[float, ...], evaluations: int):
    training = make_training(evaluate_every=2, **limits)
    heads = evaluated_as(training, successes(*shares))
    training.descend(12)
    assert len(heads) == evaluations and training.updates == 2 * evaluations
    assert training.target_met == ("target_retention" in limits)


def test_every_evaluation_runs_the_same_episodes_as_the_teacher(monkeypatch: pytest.MonkeyPatch):
    runs = []

    def run(*arguments: Any, **options: Any) -> Any:
        runs.append(run_episodes(*arguments, **options))
        return runs[-1]

    monkeypatch.setattr("thousandfold.stages.distill.student_training.run_episodes", run)
    training = make_training(evaluate_every=1, evaluation_episodes=3, target_retention=1.0)
    training.descend(2)
    assert len(runs) == 3  # two of the student, one of the teacher
    assert all(np.array_equal(found.goal, runs[0].goal) for found in runs)


def test_retention_is_the_smaller_of_both():
    def towards(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.clip(5 * (goal - observation[:, :2]), -1, 1)

    def slowly(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return 0.3 * towards(observation, goal)

    theirs, ours = (
        run_episodes(TASK, policy, episodes=64, seed=0, distribution="training")
        for policy in (towards, slowly)
    )
    shares = (
        ours.success.mean() / theirs.success.mean(),
        ours.time_at_goal.mean() / theirs.time_at_goal.mean(),
    )
    assert shares[0] != shares[1] and smaller_retention(theirs, ours) == pytest.approx(min(shares))
    assert smaller_retention(theirs, theirs) == 1.0
    never = dataclasses.replace(ours, success=np.zeros(64, bool), time_at_goal=np.zeros(64))
    assert smaller_retention(never, ours) == 0.0


# -- settings ---------------------------------------------------------------------------------------


def test_fewer_episodes_at_most_than_at_least_are_refused():
    with pytest.raises(ValueError, match="max_final_episodes 4096 is below final_episodes 10000"):
        DistillSettings(final_episodes=10_000)
    budget = DistillSettings(final_episodes=10_000, max_final_episodes=10_000).budget
    assert (budget.least, budget.most) == (10_000, 10_000)


@pytest.mark.parametrize(
    ("target", "said"),
    [(2, "must be less than or equal to 1 (got 2)"), (0, "must be greater than 0 (got 0)")],
)
def test_a_retention_that_is_no_share_is_no_target(target: float, said: str):
    with pytest.raises(SettingsError) as raised:
        resolve_settings(DistillSettings, "distill", flags={"target_retention": target})
    assert str(raised.value) == f"distill: target_retention {said}"
    assert resolve_settings(DistillSettings, "distill", flags={"target_retention": 1}).target_retention == 1
