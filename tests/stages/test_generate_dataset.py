from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import minari
import numpy as np
import pydantic
import pytest
import torch

from envs.compiled_task import CompiledTask
from envs.cpu_simulator import CpuSimulator
from envs.registry import compile_task, get_task
from envs.simulator import StepResult
from envs.task import EarlyEnd, Term
from models.deployable_policy import NormalizedActor
from models.goal_actor import GoalActor
from models.residual_mlp import NetworkShape
from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.console import Console
from pipeline.core.errors import DamagedFileError, NonFiniteError, UserError
from pipeline.core.runtime import StageContext
from pipeline.core.tracking import NullTracker
from replay.goal_dataset import GoalDataset, load_goal_dataset
from stages import generate_dataset
from stages.evaluate import wilson_interval
from stages.generate_dataset import (
    COVERAGE_PICTURE,
    MINARI_FOLDER,
    GenerateDatasetSettings,
    TeacherRollout,
    plan_groups,
    run,
)
from stages.network_file import NETWORK_FILE, TrainedActor, load_actor, save_network

SHAPE = NetworkShape(depth=4, width=16)
STEPS = 100
SETTINGS = GenerateDatasetSettings(episodes=10, num_worlds=4, seed=3, device="cpu")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    return StageContext(Workspace(tmp_path_factory.mktemp("workspace")), Console(), NullTracker())


@pytest.fixture(scope="module")
def teacher(context: StageContext) -> Artifact:
    return make_teacher(context)


@pytest.fixture(scope="module")
def dataset(context: StageContext, teacher: Artifact) -> Artifact:
    return run(SETTINGS, context, teacher)


@pytest.fixture(scope="module")
def data(dataset: Artifact) -> GoalDataset:
    return load_goal_dataset(dataset.path)


def make_actor(task: CompiledTask) -> GoalActor:
    torch.manual_seed(0)
    return GoalActor(task.observation_dim, task.goal_dim, task.action_dim, SHAPE)


def make_teacher(context: StageContext, change: Callable[[torch.Tensor], object] | None = None) -> Artifact:
    """Return the artifact of an untrained teacher; `change` is applied to its mean head's bias."""
    task = compile_task("point_u_maze")
    actor = make_actor(task)
    if change is not None:
        change(actor.mean_head.bias.data)
    tensors = {f"actor.{name}": value for name, value in actor.state_dict().items()}
    artifact = context.workspace.create("teacher", task=task.name, settings={})
    save_network(artifact.file(NETWORK_FILE), tensors, kind="teacher", task=task, shape=SHAPE)
    artifact.complete({"success": 0.0})
    return artifact


def noise_of_rows(dataset: Artifact) -> np.ndarray:
    """Return for each row whether its episode was acted with noise."""
    storage = minari.MinariDataset(next(dataset.path.rglob("data"))).storage
    metadata = storage.get_episode_metadata(range(storage.total_episodes))
    return np.repeat([float(each["options"]["action_noise"]) > 0 for each in metadata], STEPS)


# -- labels and actions ---------------------------------------------------------------------------


def test_labels_are_the_teachers_output_at_the_stored_states(teacher: Artifact, data: GoalDataset):
    with torch.no_grad():
        mean, log_std = load_actor(teacher).actor(
            torch.from_numpy(data.observation), torch.from_numpy(data.desired_goal)
        )
    np.testing.assert_allclose(data.teacher_mean, mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(data.teacher_log_std, log_std.numpy(), atol=1e-5)


def test_clean_episodes_take_the_mean_action_and_noisy_ones_stray_from_it(
    dataset: Artifact, data: GoalDataset
):
    noisy = noise_of_rows(dataset)
    stray = data.action - np.tanh(data.teacher_mean)
    assert noisy.mean() == pytest.approx(0.4)  # 2 of 5 evaluation and 2 of 5 training episodes
    assert np.abs(stray[~noisy]).max() < 1e-6
    assert np.abs(data.action).max() <= 1.0
    inside = np.abs(data.action[noisy]) < 1.0
    assert stray[noisy][inside].std() == pytest.approx(SETTINGS.action_noise, rel=0.15)
    assert abs(stray[noisy][inside].mean()) < 0.05


def test_the_stored_actions_lead_from_each_state_to_the_next(data: GoalDataset):
    simulator = CpuSimulator(compile_task("point_u_maze"), 10)
    observation = data.observation.reshape(10, STEPS, 4)
    action = data.action.reshape(10, STEPS, 2)
    for step in range(STEPS - 1):
        simulator.set_state(observation[:, step, :2], observation[:, step, 2:])
        simulator.step(action[:, step])
        np.testing.assert_allclose(simulator.observation, observation[:, step + 1], atol=5e-3)


def test_goals_stay_for_an_episode_and_change_between(data: GoalDataset):
    goals = data.desired_goal.reshape(10, STEPS, 2)
    assert (goals == goals[:, :1]).all()
    assert len(np.unique(goals[5:, 0], axis=0)) == 5  # the training goals are drawn from a continuum


def test_groups_are_drawn_as_the_settings_say(dataset: Artifact):
    storage = minari.MinariDataset(next(dataset.path.rglob("data"))).storage
    options = [each["options"] for each in storage.get_episode_metadata(range(10))]
    found = [(str(each["distribution"]), float(each["action_noise"])) for each in options]
    assert found == [
        *[("evaluation", 0.0)] * 3,
        *[("evaluation", 0.2)] * 2,
        *[("training", 0.0)] * 3,
        *[("training", 0.2)] * 2,
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"evaluation_fraction": 1.0, "noisy_fraction": 0.0}, [("evaluation", 0.0, 10)]),
        ({"evaluation_fraction": 0.0, "noisy_fraction": 1.0}, [("training", 0.2, 10)]),
        ({"action_noise": 0.0}, [("evaluation", 0.0, 5), ("training", 0.0, 5)]),
    ],
)
def test_empty_groups_are_left_out(changes: dict, expected: list):
    settings = GenerateDatasetSettings(episodes=10, **changes)
    assert [(g.distribution, g.action_noise, g.episodes) for g in plan_groups(settings)] == expected


# -- what the stage says --------------------------------------------------------------------------


def test_success_is_stated_with_its_interval(dataset: Artifact, data: GoalDataset):
    results = dataset.manifest.results
    assert (results["episodes"], results["rows"]) == (10, 10 * STEPS) == (len(data.success), len(data.action))
    assert results["success"] == data.success.mean()
    assert results["success_interval"] == list(wilson_interval(int(data.success.sum()), 10))
    clean = data.success[~noise_of_rows(dataset)[::STEPS]]
    assert (results["clean_episodes"], results["clean_success"]) == (6, clean.mean())
    assert results["clean_success_interval"] == list(wilson_interval(int(clean.sum()), 6))
    assert results["unstable_episodes"] == 0 and results["rows_per_s"] > 0


def test_success_is_that_of_the_task(data: GoalDataset):
    reached = compile_task("point_u_maze").is_success(data.achieved_goal, data.desired_goal)
    later = reached.reshape(10, STEPS)[:, 1:].any(1)
    assert (data.success >= later).all()  # only the final observation, which is no row here, may add to it
    # An untrained teacher reaches some of the goals that lie close to a training start.
    assert data.success.any() and not data.success.all()


def test_coverage_is_the_share_of_free_cells_visited(dataset: Artifact, data: GoalDataset):
    visited = {tuple(cell) for cell in np.rint(data.achieved_goal).astype(int).tolist()}
    assert dataset.manifest.results["coverage"] == pytest.approx(len(visited) / 7, abs=1 / 7)
    assert 0 < dataset.manifest.results["coverage"] <= 1
    assert dataset.file(COVERAGE_PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_artifact_knows_its_teacher_and_is_whole(
    dataset: Artifact, teacher: Artifact, data: GoalDataset, monkeypatch: pytest.MonkeyPatch
):
    dataset.verify()
    assert dataset.kind == "dataset" and dataset.manifest.task == "point_u_maze"
    assert dataset.manifest.parents["teacher"].hash == teacher.manifest.hash
    own = data.metadata["thousandfold"]
    assert own["teacher"] == {"name": teacher.name, "hash": teacher.manifest.hash}
    assert (own["task"], own["control_dt_s"], own["action_noise"]) == ("point_u_maze", 0.1, 0.2)
    assert own["versions"]["python"]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(dataset.file(MINARI_FOLDER)))
    assert minari.load_dataset(dataset.manifest.results["dataset_id"]).total_steps == 10 * STEPS


# -- reproducibility ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_files_and_another_does_not(context: StageContext, teacher: Artifact):
    noisy = SETTINGS.model_copy(update={"episodes": 2, "evaluation_fraction": 0.0, "noisy_fraction": 1.0})
    one, again = (run(noisy, context, teacher) for _ in range(2))
    assert one.manifest.files == again.manifest.files and len(one.manifest.files) == 3
    assert one.manifest.hash == again.manifest.hash
    other = run(noisy.model_copy(update={"seed": 4}), context, teacher)
    mine, theirs = load_goal_dataset(one.path), load_goal_dataset(other.path)
    assert not np.array_equal(mine.observation[::STEPS], theirs.observation[::STEPS])


# -- ends of episodes -----------------------------------------------------------------------------


def trained(task: CompiledTask) -> TrainedActor:
    actor = NormalizedActor(make_actor(task), task.observation_dim, task.goal_dim)
    return TrainedActor(actor.eval(), task, SHAPE, {})


def test_an_early_end_closes_the_episode_at_its_final_observation():
    fast = EarlyEnd(Term("qvel"), -0.3, 0.3)
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), early_end=(fast,), episode_steps=12))
    settings = SETTINGS.model_copy(update={"episodes": 24, "num_worlds": 5, "action_noise": 0.5})
    rollout = TeacherRollout(trained(task), settings, "cpu")
    episodes = list(rollout.episodes())
    assert len(episodes) == 24
    assert len({len(episode.action) for episode in episodes}) > 2
    for episode in episodes:
        rows = len(episode.action) + 1
        assert {len(getattr(episode, name)) for name in ("observation", "achieved_goal", "success")} == {rows}
        assert {len(episode.teacher_mean), len(episode.teacher_log_std)} == {rows}
        too_fast = np.abs(episode.observation[:, 2:]).max(1) > 0.3
        assert not too_fast[:-1].any() and too_fast[-1] == episode.terminated
        assert episode.truncated == (rows == 13)


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
    monkeypatch.setattr(generate_dataset, "CpuSimulator", UnstableSimulator)
    clean = SETTINGS.model_copy(update={"episodes": 6, "evaluation_fraction": 1.0, "noisy_fraction": 0.0})
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
    monkeypatch.setattr(generate_dataset, "CpuSimulator", DivergingSimulator)
    with pytest.raises(UserError, match="no episode to write"):
        run(SETTINGS, context, teacher)
    assert context.workspace.artifacts("dataset")[0].manifest.status == "failed"


# -- bad input ------------------------------------------------------------------------------------


def test_a_teacher_that_is_not_finite_is_refused(context: StageContext):
    broken = make_teacher(context, lambda bias: bias.fill_(float("nan")))
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        run(SETTINGS, context, broken)
    failed = context.workspace.artifacts("dataset")[0]
    assert failed.manifest.status == "failed" and not list(failed.path.rglob("*.hdf5"))


def test_a_damaged_teacher_is_refused_before_anything_is_made(context: StageContext):
    damaged = make_teacher(context)
    path: Path = damaged.file(NETWORK_FILE)
    path.write_bytes(path.read_bytes()[:-8])
    before = len(context.workspace.artifacts("dataset"))
    with pytest.raises(DamagedFileError, match=NETWORK_FILE):
        run(SETTINGS, context, damaged)
    assert len(context.workspace.artifacts("dataset")) == before


@pytest.mark.parametrize(
    "wrong", [{"episodes": 0}, {"noisy_fraction": 1.5}, {"action_noise": -0.1}, {"nois": 0.1}]
)
def test_settings_out_of_bounds_are_refused(wrong: dict):
    with pytest.raises(pydantic.ValidationError):
        GenerateDatasetSettings(**wrong)
