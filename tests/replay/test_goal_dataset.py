"""Datasets: what is written is read back, here and by Minari."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest

import thousandfold
from tests.replay.made_up_episodes import (
    ID,
    LENGTHS,
    SHARDS,
    TASK,
    make_episode,
    make_episodes,
    rows_file,
    write,
)
from thousandfold.replay.goal_dataset import (
    GoalDataset,
    concatenate_datasets,
    dataset_id,
    load_goal_dataset,
    write_goal_dataset,
)

REPOSITORY = Path(thousandfold.__file__).parents[1]


# -- round trip -------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(written: Path):
    data, episodes = load_goal_dataset(written), make_episodes()
    alternatives = ("alternative_goal", "alternative_mean", "alternative_log_std")
    for name in ("observation", "achieved_goal", "teacher_mean", "teacher_log_std", *alternatives):
        rows = np.concatenate([getattr(episode, name)[:-1] for episode in episodes])
        np.testing.assert_array_equal(getattr(data, name), rows)
    np.testing.assert_array_equal(data.action, np.concatenate([episode.action for episode in episodes]))
    goals = np.repeat([episode.desired_goal for episode in episodes], LENGTHS, axis=0)
    np.testing.assert_array_equal(data.desired_goal, goals)
    assert data.episode.tolist() == np.repeat(range(3), LENGTHS).tolist()
    assert data.success.tolist() == [True, False, False]
    own = data.metadata["thousandfold"]
    assert own["teacher"] == {"name": "teacher-1", "hash": "ab"}
    assert (own["episodes"], own["rows"], own["successes"], own["clean_episodes"]) == (3, 14, 1, 2)


@pytest.mark.parametrize(
    ("hold_steps", "succeeded"), [(1, [True, True]), (2, [True, False]), (4, [False, False])]
)
def test_a_goal_that_must_be_held_is_read_as_such(tmp_path: Path, hold_steps: int, succeeded: list[bool]):
    """Three states in a row at the goal, and two apart from each other; the start does not count."""
    there = np.array([[1, 0, 1, 1, 1, 0], [1, 1, 0, 1, 0, 0]], bool)
    episodes = [dataclasses.replace(make_episode(5), success=each, hold_steps=hold_steps) for each in there]
    assert [episode.succeeded for episode in episodes] == succeeded
    write(tmp_path, TASK, episodes, {})
    data = load_goal_dataset(tmp_path)
    assert data.success.tolist() == succeeded and data.metadata["thousandfold"]["successes"] == sum(succeeded)


def test_columns_are_float32_and_one_row_an_action(written: Path):
    data = load_goal_dataset(written)
    for field in dataclasses.fields(GoalDataset):
        column = getattr(data, field.name)
        if field.name not in ("episode", "success", "metadata", "student_observation"):
            assert column.dtype == np.float32 and len(column) == sum(LENGTHS), field.name


@pytest.mark.parametrize("below", ["", "thousandfold", ID, f"{ID}/data"])
def test_any_folder_that_holds_one_dataset_will_do(written: Path, below: str):
    assert len(load_goal_dataset(written / below).action) == sum(LENGTHS)


def test_the_same_episodes_give_the_same_bytes(written: Path, tmp_path: Path):
    write(tmp_path, TASK, make_episodes(), {"teacher": {"name": "teacher-1", "hash": "ab"}})
    files = [path.relative_to(written) for path in written.rglob("*") if path.is_file()]
    assert len(files) == 6
    for name in files:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


def test_a_shard_is_a_dataset_by_itself(written: Path):
    data = load_goal_dataset(written / SHARDS[1])
    np.testing.assert_array_equal(data.action, make_episodes()[2].action)
    assert data.episode.tolist() == [0] * 8


def test_a_dataset_of_the_first_format_is_read_without_alternatives(copied: Path):
    for shard in range(2):
        with h5py.File(rows_file(copied, shard), "a") as file:
            for episode in file.values():
                for name in ("goal", "mean", "log_std"):
                    del episode[f"infos/alternative_{name}"]
        path = rows_file(copied, shard).with_name("metadata.json")
        metadata = json.loads(path.read_text())
        del metadata["thousandfold"]["sha256"]
        metadata["thousandfold"]["format_version"] = 1
        path.write_text(json.dumps(metadata))
    data = load_goal_dataset(copied)
    assert data.alternative_goal.shape == data.alternative_mean.shape == (sum(LENGTHS), 0, 2)


def test_datasets_are_joined_with_episodes_of_their_own(written: Path, tmp_path: Path):
    few = [make_episode(4, 7, alternatives=1), make_episode(3, 8, alternatives=1)]
    write_goal_dataset(tmp_path, TASK, few, {})
    one, other = load_goal_dataset(written), load_goal_dataset(tmp_path)
    joined = concatenate_datasets([one, other, one])
    lengths = [*LENGTHS, 4, 3, *LENGTHS]
    assert joined.episode.tolist() == np.repeat(range(8), lengths).tolist()
    assert joined.success.tolist() == [*one.success, *other.success, *one.success]
    np.testing.assert_array_equal(joined.action, np.concatenate([one.action, other.action, one.action]))
    middle = slice(14, 21)
    np.testing.assert_array_equal(joined.alternative_goal[middle, :1], other.alternative_goal)
    for column in (1, 2):  # a goal with its label, where the other has more of them
        np.testing.assert_array_equal(joined.alternative_goal[middle, column], other.desired_goal)
        np.testing.assert_array_equal(joined.alternative_mean[middle, column], other.teacher_mean)
        np.testing.assert_array_equal(joined.alternative_log_std[middle, column], other.teacher_log_std)


def test_an_id_is_one_that_minari_takes():
    assert dataset_id("point_u_maze") == ID
    from minari.dataset.minari_dataset import parse_dataset_id

    assert parse_dataset_id(dataset_id("my arm.2/ü")) == ("thousandfold", "my_arm_2__", 0)


# -- Minari -----------------------------------------------------------------------------------------


READ_WITH_MINARI = """
import json, sys, minari
data = minari.load_dataset(sys.argv[1])
episode = data[0]
environment = data.recover_environment(eval_env=True)
observation, _ = environment.reset(seed=0)
print(json.dumps({
    "episodes": data.total_episodes, "steps": data.total_steps, "spec": data.env_spec.id,
    "spaces": data.observation_space == environment.observation_space,
    "inside": observation in data.observation_space,
    "observation": episode.observations["observation"].tolist(), "action": episode.actions.tolist(),
    "goal_rows": len(episode.observations["desired_goal"]), "rewards": episode.rewards.tolist(),
    "truncations": episode.truncations.tolist(), "terminations": episode.terminations.tolist(),
    "teacher_mean": episode.infos["teacher_mean"].tolist(), "success": episode.infos["is_success"].tolist(),
    "options": {k: str(v) for k, v in next(data.storage.get_episode_metadata([2]))["options"].items()},
    "lengths": [len(each) for each in data.iterate_episodes()],
    "sampled": sorted(len(each.actions) for each in data.sample_episodes(3)),
    "alternative_goal": data[2].infos["alternative_goal"].tolist(),
}))
"""


def test_minari_reads_it_in_another_process(written: Path):
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_MINARI, ID],
        env={**os.environ, "MINARI_DATASETS_PATH": str(written)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    read, episode = json.loads(done.stdout.splitlines()[-1]), make_episodes()[0]
    assert (read["episodes"], read["steps"], read["goal_rows"]) == (3, 14, 6)
    assert read["spec"] == "thousandfold/PointUMaze-v0" and read["spaces"] and read["inside"]
    np.testing.assert_array_equal(np.float32(read["observation"]), episode.observation)
    np.testing.assert_array_equal(np.float32(read["action"]), episode.action)
    np.testing.assert_array_equal(np.float32(read["teacher_mean"]), episode.teacher_mean)
    assert read["rewards"] == [-1, -1, 0, -1, -1]  # the third action led to the goal
    assert read["success"] == [False, False, False, True, False, False]
    assert read["truncations"] == [False] * 4 + [True] and read["terminations"] == [False] * 5
    assert read["lengths"] == list(LENGTHS) and read["sampled"] == sorted(LENGTHS)
    np.testing.assert_array_equal(np.float32(read["alternative_goal"]), make_episodes()[2].alternative_goal)
    assert read["options"] == {"distribution": "evaluation", "action_noise": "0.2"}


def test_minari_lists_it_without_complaint(written: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(written))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(minari.list_local_datasets()) == [ID, *SHARDS]
    assert minari.load_dataset(SHARDS[0]).total_episodes == 2


def test_a_dataset_that_is_moved_stays_whole(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copied.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    assert len(minari.load_dataset(ID)[2]) == LENGTHS[2]
    assert len(load_goal_dataset(tmp_path / "elsewhere").action) == sum(LENGTHS)


def test_the_environment_is_the_registered_one(written: Path):
    spec = minari.MinariDataset(written / ID / "data").env_spec
    registered = gymnasium.spec("thousandfold/PointUMaze-v0")
    assert spec is not None and spec.entry_point == registered.entry_point
    assert spec.vector_entry_point == registered.vector_entry_point
    assert spec.kwargs == {**registered.kwargs, "distribution": "training"}
    assert spec.max_episode_steps == 100


def test_the_environment_has_the_episodes_of_a_changed_task(tmp_path: Path):
    task = TASK.changed(episode_steps=7, evaluation="training_from_start")
    write_goal_dataset(tmp_path, task, [make_episode(7)], {})
    data = minari.MinariDataset(tmp_path / ID / "data")
    assert load_goal_dataset(tmp_path).metadata["thousandfold"]["task_changes"] == task.spec.changes
    for evaluation in (False, True):
        env = data.recover_environment(eval_env=evaluation)
        world: Any = env.unwrapped
        assert world.task.spec.changes == task.spec.changes
        assert env.spec is not None and env.spec.max_episode_steps == 7
        env.reset(seed=0)
        assert [env.step(env.action_space.sample())[3] for _ in range(7)] == [False] * 6 + [True]
        assert world._simulator.distribution == ("evaluation" if evaluation else "training")
