from __future__ import annotations

from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from tests.stages.test_best_action import CRITIC
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.replay.goal_dataset import load_goal_dataset
from thousandfold.stages.dataset import import_dataset
from thousandfold.stages.dataset import labels as label_strength
from thousandfold.stages.dataset.import_dataset import ImportDatasetSettings, run
from thousandfold.stages.networks import load_actor

SETTINGS = ImportDatasetSettings(alternative_goals=2, device="cpu", threads=1)
COLUMNS = SETTINGS.model_copy(update={"goal_columns": (0, 1)})


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(-1, 1, shape).astype(np.float32)


def box(size: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)


def write_minari(
    folder: Path,
    goals: list[np.ndarray],
    identity: str = "maze/two-v0",
    observation: int = 4,
    form: str = "hdf5",
):
    """Write episodes whose goals, one a row, are given."""
    rng = np.random.default_rng(0)
    space = gymnasium.spaces.Dict(observation=box(observation), achieved_goal=box(2), desired_goal=box(2))
    folder.mkdir(parents=True)
    storage = MinariStorage.new(folder, space, box(2), data_format=form)
    for desired in goals:
        rows = len(desired)
        storage.update_episodes(
            [
                EpisodeBuffer(
                    observations={
                        "observation": draw(rng, rows, observation),
                        "achieved_goal": draw(rng, rows, 2),
                        "desired_goal": desired,
                    },
                    actions=draw(rng, rows - 1, 2),
                    rewards=[0.0] * (rows - 1),
                    terminations=[False] * (rows - 2) + [True],
                    truncations=[False] * (rows - 1),
                )
            ]
        )
    storage.update_metadata({"dataset_id": identity, "minari_version": minari.__version__})


def labels_of(teacher: Artifact, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return load_actor(teacher).actor(torch.from_numpy(observation), torch.from_numpy(goal)).mean.numpy()


# -- Minari ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["folder", "data", "id"])
def test_a_minari_dataset_is_labelled_by_the_teacher(
    context: StageContext, teacher: Artifact, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
):
    goals = [np.full((6, 2), 0.5, np.float32), np.full((4, 2), -0.5, np.float32)]
    write_minari(tmp_path / "maze/two-v0/data", goals)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = tmp_path / "maze/two-v0"
    source = {"folder": str(folder), "data": str(folder / "data"), "id": "maze/two-v0"}[by]
    dataset = run(SETTINGS, context, teacher, source)
    dataset.verify()
    data, original = load_goal_dataset(dataset.path), minari.MinariDataset(folder / "data")
    episodes = list(original.iterate_episodes())
    kept = np.concatenate([episode.observations["observation"][:-1] for episode in episodes])
    np.testing.assert_array_equal(data.observation, kept)
    np.testing.assert_array_equal(data.action, np.concatenate([episode.actions for episode in episodes]))
    assert data.desired_goal[:, 0].tolist() == [0.5] * 5 + [-0.5] * 3
    labels = labels_of(teacher, data.observation, data.desired_goal)
    np.testing.assert_allclose(data.teacher_mean, labels, atol=1e-5)
    assert data.alternative_goal.shape == (8, 2, 2)
    labels = labels_of(teacher, data.observation, data.alternative_goal[:, 1])
    np.testing.assert_allclose(data.alternative_mean[:, 1], labels, atol=1e-5)
    assert dataset.manifest.parents["teacher"].hash == teacher.manifest.hash
    assert dataset.manifest.results["clean_episodes"] == 0  # another policy acted
    assert list(dataset.manifest.results["success_by_noise"]) == ["another policy"]


def test_goals_that_change_stay_in_one_episode(context: StageContext, teacher: Artifact, tmp_path: Path):
    goals = np.repeat(np.float32([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]), [4, 1, 3], axis=0)
    write_minari(tmp_path / "maze/data", [goals, np.full((3, 2), 0.5, np.float32)])
    dataset = run(SETTINGS, context, teacher, str(tmp_path / "maze"))
    data = load_goal_dataset(dataset.path)
    assert data.episode.tolist() == [0] * 7 + [1] * 2
    np.testing.assert_array_equal(data.desired_goal[:7], goals[:-1])
    originals = list(minari.MinariDataset(tmp_path / "maze/data").iterate_episodes())
    np.testing.assert_array_equal(data.action[:7], originals[0].actions)
    labels = labels_of(teacher, data.observation, data.desired_goal)
    np.testing.assert_allclose(data.teacher_mean, labels, atol=1e-5)


def test_bad_episodes_are_named_and_left_out_where_that_is_asked_for(
    context: StageContext, teacher: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_minari(tmp_path / "maze/data", [np.full((rows, 2), 0.5, np.float32) for rows in (6, 4, 5, 3)])
    with h5py.File(tmp_path / "maze/data/main_data.hdf5", "a") as file:
        for key in ("observation", "achieved_goal", "desired_goal"):  # one observation short
            place = f"episode_1/observations/{key}"
            short = file[place][:-1]
            del file[place]
            file[place] = short
        file["episode_2/observations/desired_goal"][1, 0] = np.nan
    message = refusal(context, teacher, tmp_path / "maze", SETTINGS)
    assert "2 of its 4 episodes" in message and "--skip-bad-episodes" in message
    assert "episode_1: it has 3 observations for 3 actions, not 4" in message
    assert "episode_2: its desired goals hold NaN" in message
    skipping = SETTINGS.model_copy(update={"skip_bad_episodes": True})
    dataset = run(skipping, context, teacher, str(tmp_path / "maze"))
    assert np.bincount(load_goal_dataset(dataset.path).episode).tolist() == [5, 2]
    assert dataset.manifest.results["skipped_episodes"] == 2
    said = capsys.readouterr().err
    assert "2 of its episodes were left out: episode_1: " in said and "episode_2: " in said
    write_minari(tmp_path / "other/data", [np.full((6, 2), 0.5, np.float32)], observation=6)
    message = refusal(context, teacher, tmp_path / "other", skipping)
    assert "none of its 1 episodes can be taken" in message and "observations have 6 numbers" in message


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_the_other_formats_of_minari_are_read(
    context: StageContext, teacher: Artifact, tmp_path: Path, form: str
):
    pytest.importorskip("pyarrow")
    goals = [np.full((rows, 2), 0.5, np.float32) for rows in (6, 4)]
    goals[1][2] = np.nan
    write_minari(tmp_path / "maze/data", goals, form=form)
    assert "episode 1: its desired goals hold NaN" in refusal(context, teacher, tmp_path / "maze", SETTINGS)
    skipping = SETTINGS.model_copy(update={"skip_bad_episodes": True})
    data = load_goal_dataset(run(skipping, context, teacher, str(tmp_path / "maze")).path)
    original = next(minari.MinariDataset(tmp_path / "maze/data").iterate_episodes())
    np.testing.assert_array_equal(data.action, original.actions)
    for part in (tmp_path / "maze/data/0").glob(f"*.{form}"):
        part.write_bytes(part.read_bytes()[:50])
    assert "none of its 2 episodes can be taken" in refusal(context, teacher, tmp_path / "maze", SETTINGS)


def test_a_goal_may_change_in_every_row(context: StageContext, teacher: Artifact, tmp_path: Path):
    write_minari(tmp_path / "maze/data", [np.float32([[0, 0], [1, 1], [2, 2]])])
    data = load_goal_dataset(run(SETTINGS, context, teacher, str(tmp_path / "maze")).path)
    assert data.desired_goal[:, 0].tolist() == [0, 1] and data.episode.tolist() == [0, 0]


def test_goals_that_are_not_known_are_drawn_in_hindsight(
    context: StageContext, teacher: Artifact, tmp_path: Path
):
    write_minari(tmp_path / "maze/data", [np.zeros((rows, 2), np.float32) for rows in (6, 4)])
    with h5py.File(tmp_path / "maze/data/main_data.hdf5", "a") as file:
        for each in file.values():
            del each["observations/desired_goal"]
        achieved = [each["observations/achieved_goal"][:] for each in file.values()]
    data = load_goal_dataset(run(SETTINGS, context, teacher, str(tmp_path / "maze")).path)
    for number, own in enumerate(achieved):
        goals = data.desired_goal[data.episode == number]
        assert (goals == goals[0]).all() and (own[1:] == goals[0]).all(1).any()


def test_a_dataset_of_ours_is_labelled_anew(context: StageContext, teacher: Artifact, tmp_path: Path):
    """Its view is links into its shards, which are read instead of followed."""
    write_minari(tmp_path / "maze/data", [np.full((6, 2), 0.5, np.float32), np.ones((4, 2), np.float32)])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(import_dataset, "_SHARD_EPISODES", 1)
        first = run(SETTINGS, context, teacher, str(tmp_path / "maze"))
    again = run(SETTINGS, context, teacher, str(first.path / "minari/thousandfold/point_u_maze-v0"))
    one, other = (load_goal_dataset(dataset.path) for dataset in (first, again))
    assert other.episode.tolist() == [0] * 5 + [1] * 3
    for name in ("observation", "action", "desired_goal", "teacher_mean"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# -- OGBench --------------------------------------------------------------------------------------


def write_npz(path: Path, lengths: list[int], following: bool, observation: int = 4, action: int = 2) -> dict:
    rng, terminals = np.random.default_rng(1), np.zeros(sum(lengths), np.float32)
    terminals[np.cumsum(lengths, dtype=int) - 1] = 1
    columns = {
        "observations": draw(rng, sum(lengths), observation),
        "actions": draw(rng, sum(lengths), action),
        "terminals": terminals,
    }
    if following:
        columns["next_observations"] = np.roll(columns["observations"], -1, axis=0)
        columns["next_observations"][terminals == 1] = draw(rng, len(lengths), observation)
    np.savez(path, **columns)
    return columns


@pytest.mark.parametrize("following", [False, True])
def test_a_file_of_ogbench_is_split_at_its_terminals(
    context: StageContext, teacher: Artifact, tmp_path: Path, following: bool
):
    columns = write_npz(tmp_path / "maze.npz", [5, 1, 4], following)
    dataset = run(COLUMNS, context, teacher, str(tmp_path / "maze.npz"))
    data = load_goal_dataset(dataset.path)
    lengths = [5, 1, 4] if following else [4, 3]
    assert np.bincount(data.episode).tolist() == lengths
    taken = np.arange(10) if following else np.array([0, 1, 2, 3, 6, 7, 8])
    np.testing.assert_array_equal(data.observation, columns["observations"][taken])
    np.testing.assert_array_equal(data.action, columns["actions"][taken])
    np.testing.assert_array_equal(data.achieved_goal, data.observation[:, :2])
    ahead = np.concatenate([columns["observations"], columns.get("next_observations", np.zeros((0, 4)))])
    for episode in range(len(lengths)):
        goals = data.desired_goal[data.episode == episode]
        assert (goals == goals[0]).all() and (ahead[:, :2] == goals[0]).all(1).any()  # in hindsight
    assert data.metadata["thousandfold"]["imported"]["name"] == "maze.npz"


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_goals_in_hindsight_lie_in_their_own_episode(
    context: StageContext, teacher: Artifact, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
):
    columns = write_npz(tmp_path / "maze.npz", [30, 40, 50], True)
    columns |= {"timeouts": columns["terminals"], "terminals": np.zeros(120, bool), "rewards": np.zeros(120)}
    path = tmp_path / f"d4rl{suffix}"
    if suffix == ".npz":
        np.savez(path, **columns)
    else:
        with h5py.File(path, "w") as file:
            file.update(columns)
    data = load_goal_dataset(run(COLUMNS, context, teacher, str(path)).path)
    assert np.bincount(data.episode).tolist() == [30, 40, 50]
    for number in range(3):
        own = data.episode == number
        reached = np.concatenate([columns["observations"][own], columns["next_observations"][own]])[:, :2]
        ahead = {tuple(goal) for goal in reached}
        assert {tuple(goal) for goal in data.desired_goal[own]} <= ahead
    assert "not read: rewards" in capsys.readouterr().out


def test_goals_in_hindsight_are_those_of_the_seed(context: StageContext, teacher: Artifact, tmp_path: Path):
    write_npz(tmp_path / "maze.npz", [20, 20], False)
    source = str(tmp_path / "maze.npz")
    one, same = (run(COLUMNS, context, teacher, source) for _ in range(2))
    other = run(COLUMNS.model_copy(update={"seed": 5}), context, teacher, source)
    assert one.manifest.hash == same.manifest.hash
    goals = [load_goal_dataset(dataset.path).desired_goal for dataset in (one, other)]
    assert not np.array_equal(*goals)


def test_many_episodes_make_many_shards(
    context: StageContext, teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(import_dataset, "_SHARD_EPISODES", 3)
    write_npz(tmp_path / "maze.npz", [3] * 7, False)
    dataset = run(COLUMNS, context, teacher, str(tmp_path / "maze.npz"))
    assert len(list(dataset.path.rglob("shard_*-v0"))) == 3
    assert dataset.manifest.results["episodes"] == 7 and dataset.manifest.results["rows"] == 14


def test_clipped_actions_are_counted_and_said(
    context: StageContext, teacher: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    columns = write_npz(tmp_path / "maze.npz", [5], True)
    dataset = run(COLUMNS, context, teacher, str(tmp_path / "maze.npz"))
    assert dataset.manifest.results["clipped_actions"] == 0 and "clipped" not in capsys.readouterr().err
    columns["actions"][2] = (3.0, -1.5)
    np.savez(tmp_path / "maze.npz", **columns)
    dataset = run(COLUMNS, context, teacher, str(tmp_path / "maze.npz"))
    assert dataset.manifest.results["clipped_actions"] == 0.2
    assert load_goal_dataset(dataset.path).action[2].tolist() == [1.0, -1.0]
    said = capsys.readouterr()
    assert "20.00% of the numbers" in said.err
    last = said.out.splitlines()[-1]
    assert f"`pipeline distill` now takes {dataset.name}" in last and "--dataset" in last


def test_an_imports_labels_are_tried_as_well(
    context: StageContext, teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(import_dataset, "load_critic", lambda _: CRITIC)
    monkeypatch.setattr(label_strength, "is_weaker", lambda _: True)
    write_npz(tmp_path / "maze.npz", [5], False)
    sampled = COLUMNS.model_copy(update={"teacher_samples": 2})
    assert "would be worse" in refusal(context, teacher, tmp_path / "maze.npz", sampled)
    dataset = run(
        sampled.model_copy(update={"accept_weaker_labels": True}),
        context,
        teacher,
        str(tmp_path / "maze.npz"),
    )
    assert "best_success" in dataset.manifest.results["label_trial"]


# -- bad input ------------------------------------------------------------------------------------


def refusal(context: StageContext, teacher: Artifact, source: Path | str, settings=COLUMNS) -> str:
    before = len(context.workspace.artifacts("dataset"))
    with pytest.raises(UserError) as raised:
        run(settings, context, teacher, str(source))
    assert len(context.workspace.artifacts("dataset")) == before, "nothing may be made"
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_does_not_fit_is_refused_in_one_line(context: StageContext, teacher: Artifact, tmp_path: Path):
    write_npz(tmp_path / "wide.npz", [5], False, observation=7)
    assert "observations have 7 numbers" in refusal(context, teacher, tmp_path / "wide.npz")
    write_npz(tmp_path / "acts.npz", [5], False, action=3)
    assert "actions have 3 numbers" in refusal(context, teacher, tmp_path / "acts.npz")
    write_npz(tmp_path / "fits.npz", [5], False)
    assert "give --goal-columns" in refusal(context, teacher, tmp_path / "fits.npz", SETTINGS)
    one, far = (COLUMNS.model_copy(update={"goal_columns": columns}) for columns in ((0,), (0, 4)))
    assert "achieved goals have 1 numbers" in refusal(context, teacher, tmp_path / "fits.npz", one)
    assert "--goal-columns 0,4" in refusal(context, teacher, tmp_path / "fits.npz", far)
    write_minari(tmp_path / "minari/data", [np.zeros((3, 2), np.float32)], observation=6)
    assert "observations have 6 numbers" in refusal(context, teacher, tmp_path / "minari")


def test_what_is_empty_is_refused(context: StageContext, teacher: Artifact, tmp_path: Path):
    write_npz(tmp_path / "short.npz", [1, 1], False)
    assert "nothing to import" in refusal(context, teacher, tmp_path / "short.npz")
    write_npz(tmp_path / "none.npz", [], False)
    assert "nothing to import" in refusal(context, teacher, tmp_path / "none.npz")
    write_minari(tmp_path / "empty/data", [])
    assert "empty Minari dataset" in refusal(context, teacher, tmp_path / "empty")


def test_what_cannot_be_read_is_named(
    context: StageContext, teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert "does not exist" in refusal(context, teacher, tmp_path / "nowhere.npz")
    assert "neither an .npz file" in refusal(context, teacher, "maze/nowhere-v0")
    (tmp_path / "strange/data").mkdir(parents=True)
    (tmp_path / "strange/data/metadata.json").write_text("{}")
    assert "main_data.hdf5 is missing" in refusal(context, teacher, tmp_path / "strange")
    (tmp_path / "strange/data/metadata.json").write_text("[1")
    assert "metadata.json is damaged" in refusal(context, teacher, tmp_path / "strange")
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04 something else")
    message = refusal(context, teacher, tmp_path / "noise.npz")
    assert "noise.npz cannot be read as an .npz file of arrays" in message
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    assert "cannot be read as an .npz file" in refusal(context, teacher, tmp_path / "single.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    message = refusal(context, teacher, tmp_path / "other.npz")
    assert "has no observations and no actions, but images" in message
    np.savez(tmp_path / "pickled.npz", observations=np.array([{}], object))
    message = refusal(context, teacher, tmp_path / "pickled.npz")
    assert "holds Python objects" in message and "pickle" not in message.partition("pickled.npz")[2]
    columns = write_npz(tmp_path / "uneven.npz", [5], False)
    np.savez(tmp_path / "uneven.npz", **columns | {"actions": columns["actions"][:3]})
    assert "all as long" in refusal(context, teacher, tmp_path / "uneven.npz")
    columns["observations"][3, 1] = np.nan
    np.savez(tmp_path / "nan.npz", **columns)
    assert "observations hold NaN or infinity" in refusal(context, teacher, tmp_path / "nan.npz")
    write_minari(tmp_path / "torn/data", [np.zeros((3, 2), np.float32)])
    rows = tmp_path / "torn/data/main_data.hdf5"
    rows.write_bytes(rows.read_bytes()[:200])
    assert "is damaged" in refusal(context, teacher, tmp_path / "torn")
