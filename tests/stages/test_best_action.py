from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import SettingsError
from thousandfold.models.contrastive_critic import ContrastiveCritic
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import Gaussian, GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.stages import networks
from thousandfold.stages.closed_loop.evaluate import EvaluateSettings, run
from thousandfold.stages.dataset.labels import TeacherLabels
from thousandfold.stages.networks import TeacherCritic, TrainedActor, best_action_policy, best_mean
from thousandfold.stages.train_teacher.train_teacher import run as train

TASK = compile_task("point_u_maze")
SHAPE = NetworkShape(depth=4, width=8)


class WantsGoalAsAction(nn.Module):
    """Holds the action to be best that equals the goal."""

    def encode_state_action(self, observation: Tensor, action: Tensor) -> Tensor:
        return action

    def encode_goal(self, goal: Tensor) -> Tensor:
        return goal


CRITIC = TeacherCritic(cast("ContrastiveCritic", WantsGoalAsAction()), "norm")


def make_trained() -> TrainedActor:
    torch.manual_seed(0)
    actor = GoalActor(TASK.observation_dim, TASK.goal_dim, TASK.action_dim, SHAPE)
    return TrainedActor(NormalizedActor.around(actor, 4, 2).eval(), TASK, SHAPE, {})


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    observation = rng.standard_normal((count, 4)).astype(np.float32)
    return observation, rng.uniform(-0.9, 0.9, (count, 2)).astype(np.float32)


def test_the_best_is_the_candidate_of_highest_energy_and_the_mean_is_one_of_them():
    gaussian = Gaussian(torch.zeros(64, 2), torch.zeros(64, 2))
    goal = torch.from_numpy(rows(64)[1])
    state = torch.zeros(64, 4)
    errors = []
    for samples in (1, 4, 64):
        found = best_mean(gaussian, state, goal, CRITIC, samples, torch.Generator().manual_seed(0))
        errors.append((found.tanh() - goal).norm(dim=1))
    assert torch.equal(best_mean(gaussian, state, goal, CRITIC, 1, torch.Generator()), gaussian.mean)
    assert (errors[1] <= errors[0]).all() and errors[2].mean() < 0.4 * errors[1].mean()
    # Where the mean is the best of all, it is kept as it is.
    assert torch.equal(
        best_mean(gaussian, state, torch.zeros(64, 2), CRITIC, 16, torch.Generator()), gaussian.mean
    )


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_draws_have_the_teachers_spread_times_the_scale(scale: float):
    gaussian = Gaussian(torch.full((4000, 2), 0.3), torch.full((4000, 2), math.log(0.2)))
    away = torch.full((4000, 2), 100.0)  # the larger of two is chosen
    generator = torch.Generator().manual_seed(0)
    found = best_mean(gaussian, torch.zeros(4000, 4), away, CRITIC, 2, generator, scale)
    drawn = found[(found != 0.3).any(1)]
    assert 0.4 < len(drawn) / 4000 < 0.6
    assert (drawn - 0.3).square().mean().sqrt() == pytest.approx(0.2 * scale, rel=0.05)


def test_the_policy_acts_on_the_best_and_is_the_same_for_the_same_seed():
    trained, (observation, goal) = make_trained(), rows(32)
    one, same, other = (best_action_policy(trained, CRITIC, 16, seed, "cpu") for seed in (3, 3, 4))
    actions = one(observation, goal)
    assert np.array_equal(actions, same(observation, goal))
    assert not np.array_equal(actions, other(observation, goal))
    mean = np.tanh(TeacherLabels(trained, "cpu")(observation, goal)[1])
    assert np.linalg.norm(actions - goal, axis=1).mean() < np.linalg.norm(mean - goal, axis=1).mean()


def test_labels_of_the_best_action_lead_to_it():
    trained, (observation, goal) = make_trained(), rows(32)
    labels = TeacherLabels(trained, "cpu", CRITIC, samples=16)
    labels.reseed(5)
    action, mean, log_std = labels(observation, goal)
    np.testing.assert_array_equal(action, np.tanh(mean))
    plain = TeacherLabels(trained, "cpu")(observation, goal)
    np.testing.assert_array_equal(log_std, plain[2])
    assert np.linalg.norm(action - goal, axis=1).mean() < np.linalg.norm(plain[0] - goal, axis=1).mean()
    labels.reseed(5)
    np.testing.assert_array_equal(labels(observation, goal)[1], mean)
    with pytest.raises(ValueError, match="critic"):
        TeacherLabels(trained, "cpu", None, samples=2)


def test_a_teacher_is_evaluated_with_its_critics_choice(tmp_path, monkeypatch: pytest.MonkeyPatch):
    context = make_context(tmp_path)
    teacher = train(TINY_TEACHER, context)
    asked: list[tuple[int, float]] = []
    original = networks.best_mean

    def counted(gaussian, observation, goal, critic, samples, generator, scale):
        asked.append((samples, scale))
        return original(gaussian, observation, goal, critic, samples, generator, scale)

    monkeypatch.setattr(networks, "best_mean", counted)
    settings = EvaluateSettings(episodes=2, teacher_samples=3, sample_scale=0.2, device="cpu", num_paths=0)
    evaluation = run(settings, context, teacher)
    assert set(asked) == {(3, 0.2)} and len(asked) == 100
    assert evaluation.manifest.settings["teacher_samples"] == 3
    run(settings.model_copy(update={"teacher_samples": 1}), context, teacher)
    assert len(asked) == 100
    student = context.workspace.create("student", task="point_u_maze", settings={})
    with pytest.raises(SettingsError, match="a student has no critic"):
        run(settings, context, student)
