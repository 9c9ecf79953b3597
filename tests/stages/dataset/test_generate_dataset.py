"""Datasets of a teacher: labels, actions and alternative goals, what the stage says, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import minari
import numpy as np
import pydantic
import pytest
import torch

from tests.stages.test_best_action import CRITIC
from tests.stages.untrained_teacher import SETTINGS, STEPS, make_teacher
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import DamagedFileError, NonFiniteError, SettingsError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.replay.goal_dataset import GoalDataset, load_goal_dataset
from thousandfold.stages.dataset import generate_dataset, labels
from thousandfold.stages.dataset.files import COVERAGE_PICTURE, MINARI_FOLDER
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings, plan_groups, run
from thousandfold.stages.dataset.labels import TRIAL_EPISODES
from thousandfold.stages.episodes import wilson_interval
from thousandfold.stages.networks import NETWORK_FILE, load_actor


@pytest.fixture(scope="module")
def data(dataset: Artifact) -> GoalDataset:
    return load_goal_dataset(dataset.path)


def noise_of_rows(dataset: Artifact) -> np.ndarray:
    """Return for each row whether its episode was acted with noise."""
    storage = minari.MinariDataset(dataset.file(MINARI_FOLDER) / "thousandfold/point_u_maze-v0/data").storage
    metadata = storage.get_episode_metadata(range(storage.total_episodes))
    return np.repeat([float(each["options"]["action_noise"]) > 0 for each in metadata], STEPS)


# -- labels and actions -----------------------------------------------------------------------------


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
    step = np.tile(np.arange(STEPS), 10)
    under_way = noisy & (step < 80)
    inside = np.abs(data.action[under_way]) < 1.0
    assert stray[under_way][inside].std() == pytest.approx(0.2, rel=0.15)
    assert abs(stray[under_way][inside].mean()) < 0.05
    assert np.abs(stray[noisy & (step >= 80)]).max() < 1e-6  # the way back


def test_alternative_goals_carry_the_teachers_output_for_them(teacher: Artifact, data: GoalDataset):
    assert data.alternative_goal.shape == (10 * STEPS, 4, 2)
    actor = load_actor(teacher).actor
    for column in range(4):
        with torch.no_grad():
            goal = torch.from_numpy(data.alternative_goal[:, column])
            mean, log_std = actor(torch.from_numpy(data.observation), goal)
        np.testing.assert_allclose(data.alternative_mean[:, column], mean.numpy(), atol=1e-5)
        np.testing.assert_allclose(data.alternative_log_std[:, column], log_std.numpy(), atol=1e-5)


def test_half_of_the_alternative_goals_lie_ahead_and_the_others_are_commanded_elsewhere(data: GoalDataset):
    achieved = data.achieved_goal.reshape(10, STEPS, 2)
    goals = data.alternative_goal.reshape(10, STEPS, 4, 2)
    commanded = data.desired_goal.reshape(10, STEPS, 2)[:, 0]
    # Rounds are of one group: 3 and 2 episodes of evaluation, 3 and 2 of training.
    for first, stop in ((0, 3), (3, 5), (5, 8), (8, 10)):
        for episode in range(first, stop):
            others = [commanded[other] for other in range(first, stop) if other != episode]
            for step in range(0, STEPS - 1, 7):
                for column in (0, 1):
                    ahead = (achieved[episode, step + 1 :] == goals[episode, step, column]).all(1)
                    final = step + 1 + len(ahead)  # the final observation is no row
                    assert ahead.any() or final == STEPS
                for column in (2, 3):
                    assert any((goals[episode, step, column] == other).all() for other in others)


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
    storage = minari.MinariDataset(dataset.file(MINARI_FOLDER) / "thousandfold/point_u_maze-v0/data").storage
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
        ({"evaluation_fraction": 1.0, "noise_levels": 0.0}, [("evaluation", 0.0, 10)]),
        ({"evaluation_fraction": 0.0, "noise_levels": "0.2"}, [("training", 0.2, 10)]),
        ({"noise_levels": [0.0]}, [("evaluation", 0.0, 5), ("training", 0.0, 5)]),
        (
            {"evaluation_fraction": 0.1, "noise_levels": "0, 0.1,0.4"},
            [("evaluation", 0.0, 1), *(("training", noise, 3) for noise in (0.0, 0.1, 0.4))],
        ),
    ],
)
def test_levels_share_the_episodes_and_empty_groups_are_left_out(changes: dict, expected: list):
    settings = GenerateDatasetSettings(episodes=10, **changes)
    assert [(g.distribution, g.action_noise, g.episodes) for g in plan_groups(settings)] == expected


def test_labels_may_be_the_critics_choice(
    context: StageContext, teacher: Artifact, data: GoalDataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generate_dataset, "load_critic", lambda _: CRITIC)  # wants the goal as the action
    asked = {"teacher_samples": 8, "sample_scale": 1.0, "accept_weaker_labels": True}
    chosen = run(SETTINGS.model_copy(update=asked), context, teacher)
    best = load_goal_dataset(chosen.path)
    made_with = best.metadata["thousandfold"]
    assert (made_with["teacher_samples"], made_with["sample_scale"]) == (8, 1.0)
    assert (made_with["hindsight_fraction"], made_with["hindsight_discount"]) == (0.5, 0.99)
    assert chosen.manifest.results["label_trial"]["episodes"] == TRIAL_EPISODES

    def error(found: GoalDataset) -> float:
        return float(np.abs(np.tanh(found.alternative_mean) - found.alternative_goal).mean())

    assert error(best) < 0.9 * error(data)
    clean = ~noise_of_rows(chosen)
    assert np.abs(best.action - np.tanh(best.teacher_mean))[clean].max() < 1e-6


def test_labels_weaker_than_the_mean_are_refused_before_anything_is_made(
    context: StageContext, teacher: Artifact, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generate_dataset, "load_critic", lambda _: CRITIC)
    monkeypatch.setattr(labels, "is_weaker", lambda _: True)
    before = len(context.workspace.artifacts("dataset"))
    with pytest.raises(SettingsError, match="would be worse"):
        run(SETTINGS.model_copy(update={"teacher_samples": 2}), context, teacher)
    assert len(context.workspace.artifacts("dataset")) == before


# -- what the stage says ----------------------------------------------------------------------------


def test_success_is_stated_with_its_interval(dataset: Artifact, data: GoalDataset):
    results = dataset.manifest.results
    assert (results["episodes"], results["rows"]) == (10, 10 * STEPS) == (len(data.success), len(data.action))
    assert results["success"] == data.success.mean()
    assert results["success_interval"] == list(wilson_interval(int(data.success.sum()), 10))
    clean = data.success[~noise_of_rows(dataset)[::STEPS]]
    assert (results["clean_episodes"], results["clean_success"]) == (6, clean.mean())
    assert results["clean_success_interval"] == list(wilson_interval(int(clean.sum()), 6))
    noisy = data.success[noise_of_rows(dataset)[::STEPS]]
    assert results["success_by_noise"] == {"0": clean.mean(), "0.2": noisy.mean()}
    assert results["unstable_episodes"] == 0 and results["env_steps_per_s"] > 0


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
    assert dataset.manifest.device == {"device": "cpu"}
    assert dataset.manifest.parents["teacher"].hash == teacher.manifest.hash
    own = data.metadata["thousandfold"]
    assert own["teacher"] == {"name": teacher.name, "hash": teacher.manifest.hash}
    assert (own["task"], own["control_dt_s"], own["noise_levels"]) == ("point_u_maze", 0.1, [0.0, 0.2])
    assert own["by_noise"]["0.2"][0] == 4
    assert own["versions"]["python"]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(dataset.file(MINARI_FOLDER)))
    assert minari.load_dataset(dataset.manifest.results["dataset_id"]).total_steps == 10 * STEPS


# -- reproducibility --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_files_and_another_does_not(context: StageContext, teacher: Artifact):
    noisy = SETTINGS.model_copy(update={"episodes": 2, "evaluation_fraction": 0.0, "noise_levels": (0.3,)})
    one, again = (run(noisy, context, teacher) for _ in range(2))
    assert one.manifest.files == again.manifest.files and len(one.manifest.files) == 5
    assert one.manifest.hash == again.manifest.hash
    other = run(noisy.model_copy(update={"seed": 99}), context, teacher)
    mine, theirs = load_goal_dataset(one.path), load_goal_dataset(other.path)
    assert not np.array_equal(mine.observation[::STEPS], theirs.observation[::STEPS])


# -- bad input --------------------------------------------------------------------------------------


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
    "wrong",
    [
        {"episodes": 0},
        {"noise_until": 1.5},
        {"noise_levels": (-0.1,)},
        {"noise_levels": (0.1, 0.1)},
        {"noise_levels": ()},
        {"noise_levels": "0,much"},
        {"sample_scale": 0},
        {"nois": 0.1},
    ],
)
def test_settings_out_of_bounds_are_refused(wrong: dict):
    with pytest.raises(pydantic.ValidationError):
        GenerateDatasetSettings(**wrong)


def test_a_level_that_is_no_number_is_said_once():
    with pytest.raises(SettingsError) as raised:
        resolve_settings(GenerateDatasetSettings, "generate_dataset", flags={"noise_levels": "a"})
    assert str(raised.value).count("noise_levels") == 1 and "valid number" in str(raised.value)
