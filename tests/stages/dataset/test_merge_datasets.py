from __future__ import annotations

import os
import shutil
from pathlib import Path

import minari
import numpy as np
import pytest

from tests.stages.untrained_teacher import make_teacher
from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.replay import dataset_writer
from thousandfold.replay.goal_dataset import concatenate_datasets, load_goal_dataset
from thousandfold.stages.dataset import generate_dataset, merge_datasets
from thousandfold.stages.dataset.files import describe_shards, find_damage, other_damage
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings

SETTINGS = GenerateDatasetSettings(
    episodes=4, num_worlds=4, noise_levels=(0.0, 0.3), alternative_goals=1, device="cpu", threads=1
)


def make(context: StageContext, teacher: Artifact, **changes) -> Artifact:
    return generate_dataset.run(SETTINGS.model_copy(update=changes), context, teacher)


@pytest.fixture(scope="module")
def pair(context: StageContext, teacher: Artifact) -> list[Artifact]:
    return [make(context, teacher), make(context, teacher, seed=1, evaluation_fraction=0.0, episodes=3)]


def rows_of(dataset: Artifact) -> list[Path]:
    return sorted(dataset.path.rglob("shard_*/data/main_data.hdf5"))


def test_a_merge_holds_the_episodes_of_both_in_order(
    context: StageContext, teacher: Artifact, pair: list[Artifact], monkeypatch: pytest.MonkeyPatch
):
    merged = merge_datasets.run(context, pair)
    merged.verify()
    assert merged.kind == "dataset" and merged.manifest.results["episodes"] == 7
    assert merged.manifest.parents["teacher"].hash == teacher.manifest.hash
    assert [merged.manifest.parents[role].name for role in ("dataset", "dataset_2")] == [d.name for d in pair]
    data = load_goal_dataset(merged.path)
    expected = concatenate_datasets([load_goal_dataset(dataset.path) for dataset in pair])
    for name in ("observation", "action", "alternative_mean", "episode", "success"):
        np.testing.assert_array_equal(getattr(data, name), getattr(expected, name))
    assert data.metadata["thousandfold"]["evaluation_fraction"] == pytest.approx(2 / 7)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(merged.file("minari")))
    assert len(minari.load_dataset("thousandfold/point_u_maze-v0")[6]) == 100
    assert len(minari.list_local_datasets()) == 1 + len(rows_of(merged))


def test_files_are_linked_and_copied_where_they_cannot_be(
    context: StageContext, pair: list[Artifact], monkeypatch: pytest.MonkeyPatch
):
    merged = merge_datasets.run(context, pair)
    assert rows_of(merged)[0].samefile(rows_of(pair[0])[0])

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(dataset_writer.os, "link", refuse)
    copied = merge_datasets.run(context, pair)
    assert not rows_of(copied)[0].samefile(rows_of(pair[0])[0])
    assert copied.manifest.hash == merged.manifest.hash
    assert os.link is refuse


def test_a_merge_can_be_merged_again(context: StageContext, teacher: Artifact, pair: list[Artifact]):
    merged = merge_datasets.run(context, pair)
    again = merge_datasets.run(context, [merged, make(context, teacher, seed=2, episodes=2)])
    assert again.manifest.results["episodes"] == 9


# -- what cannot be one ---------------------------------------------------------------------------


def refusal(context: StageContext, datasets: list[Artifact]) -> str:
    before = len(context.workspace.artifacts("dataset"))
    with pytest.raises(UserError) as raised:
        merge_datasets.run(context, datasets)
    assert len(context.workspace.artifacts("dataset")) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_datasets_of_two_teachers_are_refused(context: StageContext, pair: list[Artifact]):
    other = make(context, make_teacher(context, lambda bias: bias.add_(0.1)))
    assert "was labelled by another teacher" in refusal(context, [pair[0], other])


def test_datasets_of_two_tasks_are_refused(context: StageContext, pair: list[Artifact], tmp_path: Path):
    shutil.copytree(pair[1].path, tmp_path / pair[1].name)
    other = Artifact.load(tmp_path / pair[1].name)
    other.update(task="point_big_maze")
    assert "merge datasets of one task" in refusal(context, [pair[0], other])


def test_one_dataset_is_no_merge_and_none_counts_twice(context: StageContext, pair: list[Artifact]):
    assert "two datasets or more" in refusal(context, pair[:1])
    assert "twice" in refusal(context, [pair[0], pair[1], pair[0]])


def test_labels_of_another_kind_are_refused(
    context: StageContext, pair: list[Artifact], monkeypatch: pytest.MonkeyPatch
):
    facts = merge_datasets._facts
    others = {pair[0].name: {"teacher_samples": 8, "sample_scale": 0.1}}

    def with_other_labels(shard: Path) -> dict:
        return facts(shard) | next((other for name, other in others.items() if name in shard.parts), {})

    monkeypatch.setattr(merge_datasets, "_facts", with_other_labels)
    message = refusal(context, pair)
    assert "labels of teacher_samples 1, " in message and "of teacher_samples 8, sample_scale 0.1:" in message
    others[pair[1].name] = {"teacher_samples": 8, "sample_scale": 0.3}
    assert "sample_scale 0.3, " in refusal(context, pair)


# -- what they share ------------------------------------------------------------------------------


def test_the_same_episodes_are_taken_once(
    context: StageContext, teacher: Artifact, capsys: pytest.CaptureFixture[str]
):
    settings = {"num_worlds": 2, "evaluation_fraction": 1.0, "noise_levels": (0.0,)}
    few, more = make(context, teacher, **settings), make(context, teacher, **settings, episodes=6)
    assert len(rows_of(few)) == 2 and len(rows_of(more)) == 3
    for order in ([few, more], [more, few]):
        assert f"no episode that {more.name} lacks" in refusal(context, order)
    capsys.readouterr()
    merged = merge_datasets.run(context, [few, more, make(context, teacher, **settings, seed=1)])
    assert "2 shards hold the same episodes" in capsys.readouterr().err
    assert merged.manifest.results["episodes"] == 6 + 4
    observation = load_goal_dataset(merged.path).observation
    assert len(np.unique(observation[::100], axis=0)) == 10


def test_a_merge_says_how_its_alternative_goals_were_drawn(
    context: StageContext, teacher: Artifact, pair: list[Artifact]
):
    def hindsight(datasets: list[Artifact]) -> tuple[float, float]:
        own = load_goal_dataset(merge_datasets.run(context, datasets).path).metadata["thousandfold"]
        return own["hindsight_fraction"], own["hindsight_discount"]

    assert hindsight(pair) == pytest.approx((0.5, 0.99))
    other = make(context, teacher, seed=7, hindsight_fraction=1.0, hindsight_discount=0.9)
    assert hindsight([pair[0], other]) == pytest.approx((0.75, 0.945))  # four episodes each
    none = make(context, teacher, seed=8, hindsight_fraction=0.0, alternative_goals=0)
    assert hindsight([pair[0], none]) == pytest.approx((0.5, 0.99))


def test_a_damaged_shard_is_named(context: StageContext, pair: list[Artifact], tmp_path: Path):
    shutil.copytree(pair[1].path, tmp_path / pair[1].name)
    damaged = Artifact.load(tmp_path / pair[1].name)
    rows = rows_of(damaged)[1]
    rows.write_bytes(rows.read_bytes()[:-10])
    with pytest.raises(DamagedFileError, match=r"shard_00001-v0"):
        merge_datasets.run(context, [pair[0], damaged])
    states = [row["files"] for row in describe_shards(damaged, find_damage(damaged))]
    assert states == ["whole", "differs from its recorded hash"]


# -- the table ------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_shard(pair: list[Artifact]):
    rows = describe_shards(pair[0], {})
    assert [row["shard"] for row in rows] == [f"shard_{number:05d}-v0" for number in range(4)]
    assert [(row["distribution"], row["noise"], row["episodes"]) for row in rows] == [
        ("evaluation", "0", 1), ("evaluation", "0.3", 1), ("training", "0", 1), ("training", "0.3", 1)
    ]  # fmt: skip
    assert {row["rows"] for row in rows} == {100} and {row["files"] for row in rows} == {"whole"}


def test_the_table_of_an_unfinished_dataset_tells_what_is_whole(pair: list[Artifact], tmp_path: Path):
    shutil.copytree(pair[0].path, tmp_path / pair[0].name)
    unfinished = Artifact.load(tmp_path / pair[0].name)
    unfinished.update(status="running")
    rows_of(unfinished)[0].write_bytes(b"")
    rows_of(unfinished)[3].with_name("metadata.json").write_text("{")
    rows = describe_shards(unfinished, find_damage(unfinished))
    assert [row["files"] for row in rows] == ["is damaged", "whole", "whole", "is damaged"]
    assert rows[3]["episodes"] is None and rows[0]["episodes"] == 1


def test_what_is_damaged_beside_the_shards_is_found(pair: list[Artifact], tmp_path: Path):
    shutil.copytree(pair[0].path, tmp_path / pair[0].name)
    dataset = Artifact.load(tmp_path / pair[0].name)
    assert find_damage(dataset) == {}
    view = "minari/thousandfold/point_u_maze-v0/data/metadata.json"
    dataset.file(view).write_text("{")
    rows_of(dataset)[2].unlink()
    damage = find_damage(dataset)
    assert other_damage(dataset, damage) == {view: "differs from its recorded hash"}
    states = [row["files"] for row in describe_shards(dataset, damage)]
    assert states == ["whole", "whole", "is missing", "whole"]
