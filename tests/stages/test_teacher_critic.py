"""A critic read back holds states and goals apart as it did in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.tiny_runs import TINY_TEACHER
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.ground.errors import DamagedFileError, SettingsError
from thousandfold.models.contrastive_critic import pairwise_energy
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.settings import dump_settings
from thousandfold.stages.networks import (
    NETWORK_FILE,
    goals_are_relative,
    load_actor,
    load_critic,
    save_network,
    settled_critic_goals,
)
from thousandfold.stages.train_teacher.learner import ContrastiveLearner

TASK = compile_task("point_u_maze")


def make_teacher(
    root: Path, energy: str = "norm", with_critic: bool = True, **changes: Any
) -> tuple[ContrastiveLearner, Artifact]:
    settings = TINY_TEACHER.model_copy(update={"energy": energy} | changes)
    learner = ContrastiveLearner(TASK, settings, "cpu")
    artifact = Workspace(root).create("teacher", task=TASK.name, settings=dump_settings(settings))
    learner.see(3 + 2 * torch.randn(50, 4), 1 + torch.randn(50, 2), torch.randn(5, 2))
    weights = learner.weights(learner.candidates[0])
    kept = {name: value for name, value in weights.items() if with_critic or not name.startswith("critic.")}
    shapes = {"shape": settings.actor_shape, "critic_shape": settings.critic_shape}
    save_network(artifact.file(NETWORK_FILE), kept, kind="teacher", task=TASK, **shapes)
    artifact.complete({})
    return learner, artifact


@pytest.mark.parametrize("critic_goals", ["absolute", "relative", "auto"])
@pytest.mark.parametrize("energy", ["norm", "squared", "dot", "cosine"])
def test_energies_are_those_of_the_learner(tmp_path: Path, energy: str, critic_goals: str) -> None:
    learner, teacher = make_teacher(tmp_path, energy, critic_goals=critic_goals, early_ends="lost")
    observation, action, goal = torch.randn(5, 4), torch.rand(5, 2) * 2 - 1, torch.randn(5, 2)
    found = load_critic(teacher)(observation, action, goal)
    critic = learner.critic
    state, target = learner.observation_normalizer(observation), learner.goal_normalizer(goal)
    if critic_goals == "relative":  # the maze's state begins with the place
        target = (goal - observation[:, :2]) / learner.goal_normalizer.std
    embeddings = critic.encode_state_action(state, action), critic.encode_goal(target)
    torch.testing.assert_close(found, pairwise_energy(*embeddings, learner.settings.energy).diagonal())


def test_a_critic_may_be_deeper_than_its_actor(tmp_path: Path) -> None:
    learner, teacher = make_teacher(tmp_path, actor_depth=4, critic_depth=8)
    assert (load_actor(teacher).shape.depth, load_actor(teacher).critic_shape.depth) == (4, 8)
    found = load_critic(teacher).critic.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in learner.critic.state_dict().items())


def test_the_action_has_a_gradient_and_the_critic_none(tmp_path: Path) -> None:
    critic = load_critic(make_teacher(tmp_path)[1])
    action = torch.zeros(3, 2, requires_grad=True)
    critic(torch.randn(3, 4), action, torch.randn(3, 2)).sum().backward()
    assert action.grad is not None and action.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in critic.critic.parameters())


@pytest.mark.parametrize("changes", [{"with_critic": False}, {"energy": "loud"}])
def test_a_teacher_without_a_known_critic_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    _, teacher = make_teacher(tmp_path, **changes)
    with pytest.raises(DamagedFileError, match="holds no critic"):
        load_critic(teacher)


def test_a_critic_of_temporal_differences_chooses_no_action(tmp_path: Path) -> None:
    _, teacher = make_teacher(tmp_path, critic="temporal_difference")
    assert load_actor(teacher).shape.depth == 4
    with pytest.raises(SettingsError, match=r"critic of temporal differences.* set teacher_samples=1"):
        load_critic(teacher)


def test_a_critic_of_relative_goals_needs_what_is_achieved_in_the_observation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, teacher = make_teacher(tmp_path, critic_goals="relative")
    monkeypatch.setattr(type(TASK), "achieved_in_observation", lambda _: None)
    with pytest.raises(
        SettingsError, match="observation of point_u_maze does not contain: set teacher_samples=1"
    ):
        load_critic(teacher)


def test_goals_are_relative_but_in_mazes_where_a_robot_is_pushed_to_its_place() -> None:
    tasks = {name: compile_task(name) for name in task_names()}
    settled = {name: settled_critic_goals("auto", task) for name, task in tasks.items()}
    absolute = {name for name, goals in settled.items() if goals == "absolute"}
    assert absolute == {"point_u_maze", "point_big_maze", "point_hardest_maze"}
    assert set(settled.values()) == {"absolute", "relative"}
    assert settled_critic_goals("relative", TASK) == "relative"
    assert settled_critic_goals("absolute", tasks["ant"]) == "absolute"


def test_a_record_of_auto_means_what_it_meant_in_mazes() -> None:
    relative = {name for name in task_names() if goals_are_relative("auto", compile_task(name))}
    walled = set(task_names()) - relative
    assert walled == {name for name in task_names() if "maze" in name} | {"ant_push"}
    assert goals_are_relative("relative", TASK) and not goals_are_relative("absolute", compile_task("ant"))
