from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest

import thousandfold
from envs.registry import compile_task
from replay import dataset_writer
from replay.dataset_layout import file_sha256
from replay.goal_dataset import (
    DatasetError,
    GoalDataset,
    GoalEpisode,
    concatenate_datasets,
    dataset_id,
    load_goal_dataset,
    write_goal_dataset,
)

REPOSITORY = Path(thousandfold.__file__).parent
TASK = compile_task("point_u_maze")
ID = "thousandfold/point_u_maze-v0"
SHARDS = [f"thousandfold/point_u_maze/shard_{index:05d}-v0" for index in range(2)]
LENGTHS = (5, 1, 8)


def make_episode(
    length: int, seed: int = 0, *, noise: float = 0.0, goal_at: int | None = None, alternatives: int = 3
) -> GoalEpisode:
    rng = np.random.default_rng(seed)
    rows = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return GoalEpisode(
        observation=rows(length + 1, 4),
        achieved_goal=rows(length + 1, 2),
        desired_goal=rows(1, 2)[0],
        action=np.clip(rows(length, 2), -1, 1),
        teacher_mean=rows(length + 1, 2),
        teacher_log_std=rows(length + 1, 2),
        alternative_goal=rows(length + 1, alternatives, 2),
        alternative_mean=rows(length + 1, alternatives, 2),
        alternative_log_std=rows(length + 1, alternatives, 2),
        success=np.arange(length + 1) == (-1 if goal_at is None else goal_at),
        terminated=False,
        truncated=True,
        distribution="evaluation",
        action_noise=noise,
    )


def make_episodes() -> list[GoalEpisode]:
    goals = (3, None, 0)  # the last one starts at its goal and leaves it: no success
    return [
        make_episode(length, i, noise=0.2 * (i == 2), goal_at=goal)
        for i, (length, goal) in enumerate(zip(LENGTHS, goals, strict=True))
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes in a first shard, one in a second."""
    root = tmp_path_factory.mktemp("dataset") / "minari"
    write(root, TASK, make_episodes(), {"teacher": {"name": "teacher-1", "hash": "ab"}})
    return root


def write(root: Path, *arguments) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(dataset_writer, "_SHARD_EPISODES", 2)
        write_goal_dataset(root, *arguments)


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


def rows_file(root: Path, shard: int = 0) -> Path:
    return root / SHARDS[shard] / "data" / "main_data.hdf5"


def record_hash(rows: Path) -> None:
    """Let a shard's metadata say that its rows are as they are, so that only their content can tell."""
    path = rows.with_name("metadata.json")
    metadata = json.loads(path.read_text())
    metadata["thousandfold"]["sha256"] = file_sha256(rows)
    path.write_text(json.dumps(metadata))


# -- round trip -----------------------------------------------------------------------------------


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


def test_columns_are_float32_and_one_row_an_action(written: Path):
    data = load_goal_dataset(written)
    for field in dataclasses.fields(GoalDataset):
        column = getattr(data, field.name)
        if field.name not in ("episode", "success", "metadata"):
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


# -- Minari ---------------------------------------------------------------------------------------

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


# -- interrupted and damaged ----------------------------------------------------------------------

DIES_WHILE_WRITING = """
import os, signal, sys
sys.path.insert(0, "tests/replay")
from test_goal_dataset import TASK, make_episode
from pathlib import Path
from replay.goal_dataset import write_goal_dataset

def episodes():
    for seed in range(300):
        yield make_episode(100, seed)
    os.kill(os.getpid(), signal.SIGKILL)

write_goal_dataset(Path(sys.argv[1]), TASK, episodes(), {})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_write_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = [sys.executable, "-c", DIES_WHILE_WRITING, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / ID).exists()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert list(minari.list_local_datasets()) == SHARDS[:1]  # 256 episodes; the next shard had not begun
    assert len(load_goal_dataset(tmp_path / SHARDS[0]).action) == 256 * 100


DIES_IN_A_SHARD = """
import os, signal, sys
sys.path.insert(0, "tests/replay")
from test_goal_dataset import TASK, make_episode
from pathlib import Path
from replay import dataset_writer

dataset_writer._write_metadata = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
dataset_writer.write_shard(Path(sys.argv[1]), TASK, 0, [make_episode(5)], {})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_shard_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = [sys.executable, "-c", DIES_IN_A_SHARD, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(tmp_path.rglob("main_data.hdf5"))  # it had begun
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert minari.list_local_datasets() == {}
    with pytest.raises(DatasetError, match="holds no Minari dataset"):
        load_goal_dataset(tmp_path)
    write_goal_dataset(tmp_path, TASK, make_episodes(), {})  # what is left is not in the way
    assert len(load_goal_dataset(tmp_path).action) == sum(LENGTHS)
    dataset_writer.remove_leftovers(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]


def test_a_failed_write_leaves_nothing_at_all(tmp_path: Path):
    def episodes() -> Iterator[GoalEpisode]:
        yield make_episode(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_goal_dataset(tmp_path, TASK, episodes(), {})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_dataset_is_never_written_over(copied: Path):
    before = rows_file(copied).read_bytes()
    with pytest.raises(DatasetError, match="already there"):
        write_goal_dataset(copied, TASK, make_episodes(), {})
    assert rows_file(copied).read_bytes() == before


def test_a_dataset_has_an_episode(tmp_path: Path):
    with pytest.raises(DatasetError, match="no episode"):
        write_goal_dataset(tmp_path, TASK, [], {})
    assert not (tmp_path / ID).exists()


@pytest.mark.parametrize("kept", [0, 100, 4000])
def test_a_truncated_file_is_named(copied: Path, kept: int):
    path = rows_file(copied)
    path.write_bytes(path.read_bytes()[:kept])
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"main_data\.hdf5 is damaged"):
            load_goal_dataset(copied)
        record_hash(path)


def test_a_missing_file_is_named(copied: Path):
    rows_file(copied).unlink()
    with pytest.raises(DatasetError, match=r"main_data\.hdf5"):
        load_goal_dataset(copied)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"total_episodes": "many", "total_steps": 3}'])
def test_damaged_metadata_is_named(copied: Path, text: str):
    (copied / ID / "data" / "metadata.json").write_text(text)
    with pytest.raises(DatasetError, match=r"metadata\.json"):
        load_goal_dataset(copied)


def test_a_damaged_shard_is_named(copied: Path):
    rows_file(copied, 0).write_bytes(rows_file(copied, 1).read_bytes())  # readable, and another's
    with pytest.raises(DatasetError, match=r"shard_00000-v0.*differs from its recorded hash") as caught:
        load_goal_dataset(copied)
    assert "\n" not in str(caught.value)


def damage_rows(file: h5py.File) -> None:
    del file["episode_1"]


def damage_labels(file: h5py.File) -> None:
    for episode in file.values():
        del episode["infos/teacher_mean"]


def damage_length(file: h5py.File) -> None:
    del file["episode_1/observations/observation"]
    file["episode_1/observations/observation"] = np.zeros((100, 4), np.float32)


def damage_width(file: h5py.File) -> None:
    del file["episode_1/actions"]
    file["episode_1/actions"] = np.zeros((1, 3), np.float32)


def damage_value(file: h5py.File) -> None:
    labels = file["episode_0/infos/teacher_mean"]
    assert isinstance(labels, h5py.Dataset)
    labels[2, 1] = np.nan


@pytest.mark.parametrize(
    "damage",
    [damage_rows, damage_labels, damage_length, damage_width, damage_value],
    ids=lambda f: f.__name__,
)
def test_a_foreign_or_inconsistent_file_is_named(copied: Path, damage):
    with h5py.File(rows_file(copied), "a") as file:
        damage(file)
    record_hash(rows_file(copied))
    with pytest.raises(DatasetError, match=r"main_data\.hdf5 is damaged or no dataset") as caught:
        load_goal_dataset(copied)
    assert "\n" not in str(caught.value)


def test_two_datasets_in_one_folder_are_ambiguous(copied: Path):
    shutil.copytree(copied / ID, copied / "thousandfold" / "other-v0")
    with pytest.raises(DatasetError, match="2 Minari datasets"):
        load_goal_dataset(copied)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match="nowhere holds no Minari dataset"):
        load_goal_dataset(tmp_path / "nowhere")
