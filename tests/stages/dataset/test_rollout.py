"""Episodes that end early or whose physics diverges, in a rollout whose states are labelled."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.stages.untrained_teacher import SETTINGS, SHAPE, STEPS, make_actor
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import StepResult
from thousandfold.envs.task import EarlyEnd, Sensor, Term
from thousandfold.ground.errors import UserError
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.replay.goal_dataset import concatenate_datasets, load_goal_dataset, write_goal_dataset
from thousandfold.stages.dataset import rollout
from thousandfold.stages.dataset.generate_dataset import run
from thousandfold.stages.dataset.rollout import LabelledRollout
from thousandfold.stages.distill.imitation import ImitationRows
from thousandfold.stages.networks import TrainedActor


def trained(task: CompiledTask) -> TrainedActor:
    actor = NormalizedActor.around(make_actor(task), task.observation_dim, task.goal_dim)
    return TrainedActor(actor.eval(), task, SHAPE, {})


def test_an_early_end_closes_the_episode_at_its_final_observation():
    fast = EarlyEnd(Term("qvel"), -0.3, 0.3)
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), early_end=(fast,), episode_steps=12))
    settings = SETTINGS.model_copy(
        update={"episodes": 24, "num_worlds": 5, "noise_levels": (0.0, 0.5), "alternative_goals": 2}
    )
    episodes = list(LabelledRollout(trained(task), settings.plan()))
    assert len(episodes) == 24
    assert len({len(episode.action) for episode in episodes}) > 2
    for episode in episodes:
        rows = len(episode.action) + 1
        assert {len(getattr(episode, name)) for name in ("observation", "achieved_goal", "success")} == {rows}
        assert {len(episode.teacher_mean), len(episode.teacher_log_std)} == {rows}
        assert {len(episode.alternative_goal), len(episode.alternative_mean)} == {rows}
        ahead = episode.alternative_goal[:, 0]
        for step in range(rows):  # the final state has itself ahead
            later = episode.achieved_goal[min(step + 1, rows - 1) :]
            assert (later == ahead[step]).all(1).any()
        too_fast = np.abs(episode.observation[:, 2:]).max(1) > 0.3
        assert not too_fast[:-1].any() and too_fast[-1] == episode.terminated
        assert episode.truncated == (rows == 13)


def test_whoever_acts_sees_what_a_student_senses_and_labels_are_of_what_is_there(tmp_path: Path):
    sensed = (Term("qpos", sensor=Sensor(delay=(2, 2), history=2, noise=0.1)),)
    task = CompiledTask(
        dataclasses.replace(get_task("point_u_maze"), student_observation=sensed, episode_steps=12)
    )
    settings, teacher, acted = SETTINGS.model_copy(update={"episodes": 6}), trained(task), []

    def act(observation: np.ndarray, *_: object) -> np.ndarray:
        acted.append(observation.copy())
        return np.zeros((len(observation), 2), np.float32)

    episodes = list(LabelledRollout(teacher, settings.plan(), act=act))
    assert {each.shape[1] for each in acted} == {4}
    for episode in episodes:
        assert episode.student_observation is not None and episode.student_observation.shape == (13, 4)
        found = teacher.actor(
            *map(torch.from_numpy, (episode.observation, np.tile(episode.desired_goal, (13, 1))))
        )
        np.testing.assert_allclose(episode.teacher_mean, found.mean.detach(), atol=1e-5)
        late = episode.student_observation[2:, :2] - episode.observation[:-2, :2]
        assert 0.01 < np.abs(late).max() < 0.6
        np.testing.assert_array_equal(
            episode.student_observation[1:, 2:], episode.student_observation[:-1, :2]
        )
    write_goal_dataset(tmp_path, task, episodes, {})
    data = load_goal_dataset(tmp_path)
    expected = np.concatenate([episode.student_observation[:-1] for episode in episodes])
    np.testing.assert_array_equal(data.seen_by_student, expected)
    both = concatenate_datasets([data, data])
    np.testing.assert_array_equal(both.seen_by_student, np.concatenate([expected, expected]))
    rows = ImitationRows.of(data, data.episode > 0, "cpu")
    joined = rows.joined(rows)
    batch = joined.draw(64, 0.5, torch.Generator().manual_seed(0))
    assert batch.observation.shape == batch.state.shape == (64, 4)
    pairs = torch.cat([joined.observation, joined.state], 1)
    for row in torch.cat([batch.observation, batch.state], 1):
        assert (pairs == row).all(1).any()


class UnstableSimulator(CpuSimulator):
    """The second world diverges at the third step of every episode."""

    def step(self, action: np.ndarray) -> StepResult:
        result = super().step(action)
        unstable = result.unstable.copy()
        unstable[1:2] |= self.episode_step[1:2] == 3
        return result._replace(unstable=unstable)


def test_unstable_episodes_are_dropped_and_counted(
    context: StageContext, teacher: Artifact, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rollout, "CpuSimulator", UnstableSimulator)
    clean = SETTINGS.model_copy(update={"episodes": 6, "evaluation_fraction": 1.0, "noise_levels": (0.0,)})
    artifact = run(clean, context, teacher)
    data = load_goal_dataset(artifact.path)
    # A round of four episodes and one of two: the second of each is lost.
    assert artifact.manifest.results["unstable_episodes"] == 2
    assert len(data.success) == artifact.manifest.results["episodes"] == 4
    assert np.bincount(data.episode).tolist() == [STEPS] * 4


class DivergingSimulator(CpuSimulator):
    def step(self, action: np.ndarray) -> StepResult:
        result = super().step(action)
        return result._replace(unstable=np.ones(self.num_worlds, bool))


def test_a_dataset_without_a_stable_episode_is_refused(
    context: StageContext, teacher: Artifact, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rollout, "CpuSimulator", DivergingSimulator)
    with pytest.raises(UserError, match="no episode to write"):
        run(SETTINGS, context, teacher)
    assert context.workspace.artifacts("dataset")[0].manifest.status == "failed"


def test_goals_that_change_are_kept_row_by_row(tmp_path: Path):
    task = CompiledTask(
        dataclasses.replace(get_task("point_u_maze"), episode_steps=12, resample_every=4, hold_steps=2)
    )
    settings = SETTINGS.model_copy(
        update={"episodes": 12, "num_worlds": 12, "noise_levels": (0.0,), "alternative_goals": 2}
    )
    episodes = list(LabelledRollout(trained(task), settings.plan()))
    for episode in episodes:
        goals = episode.desired_goal
        assert goals.shape == (13, 2)
        assert set(np.flatnonzero((goals[1:] != goals[:-1]).any(1)) + 1) <= {4, 8}
        assert np.array_equal(episode.success, task.is_success(episode.achieved_goal, goals))
        everywhere = np.concatenate([each.desired_goal for each in episodes])
        assert (everywhere[None] == episode.alternative_goal[:, 1, None]).all(-1).any(-1).all()
    held = [dataclasses.replace(episodes[0], success=np.arange(13) % 4 != 0), *episodes[1:]]
    assert held[0].succeeded and not dataclasses.replace(held[0], success=np.arange(13) < 6).succeeded
    write_goal_dataset(tmp_path, task, held, {})
    data = load_goal_dataset(tmp_path)
    assert np.array_equal(data.desired_goal[:12], held[0].desired_goal[:12])
    assert data.success.tolist() == [each.succeeded for each in held]
