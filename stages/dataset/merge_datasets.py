"""Merge datasets of one task and teacher: their shards, one after the other, as one dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifact_task import keep_task, load_task, task_record
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import StageSettings
from thousandfold.replay.dataset_layout import NAMESPACE, ROWS_NAME, file_sha256, read_metadata
from thousandfold.replay.dataset_writer import adopt_shard
from thousandfold.stages.dataset.files import MINARI_FOLDER, shard_folders, verify_dataset
from thousandfold.stages.dataset.results import complete_dataset


class MergeDatasetsSettings(StageSettings):
    """Settings of `pipeline dataset merge`, which has none of its own: what is merged are its parents."""


def run(context: StageContext, datasets: Sequence[Artifact]) -> Artifact:
    """Return the artifact of a dataset with the shards of all; their files are linked where that is possible.

    Args:
        context: workspace, console and tracking.
        datasets: completed ones of one task and teacher, at least two. A shard that several of them hold, as
            those of one seed do, is taken once.

    Raises:
        UserError: they are of different tasks or teachers; one is named twice, holds all that the others do,
            or is damaged.
    """
    _require_one_kind(datasets)
    shards = _distinct_shards(datasets, context)
    first = datasets[0]
    task = load_task(first)
    parents = {_role(number): dataset for number, dataset in enumerate(datasets)}
    settings = MergeDatasetsSettings()
    with context.stage(
        "dataset", "dataset merge", task=task.name, settings=settings, parents=parents
    ) as work:
        teacher = {"teacher": first.manifest.parents["teacher"]}
        work.artifact.update(parents=teacher | work.artifact.manifest.parents)
        keep_task(task, work.artifact, context.console)
        root = work.artifact.file(MINARI_FOLDER)
        for number, shard in enumerate(shards):
            adopt_shard(root, task.name, number, shard)
        context.console.say(f"Merging {len(datasets)} datasets of {task.name}: {len(shards)} shards.")
        return complete_dataset(work, context, task, _metadata(datasets, shards, task, work.artifact))


def _distinct_shards(datasets: Sequence[Artifact], context: StageContext) -> list[Path]:
    """Return the data folders of the shards whose rows no other before them holds.

    Raises:
        UserError: the shards of one dataset hold all that there is, or one is damaged.
    """
    by_dataset = [verify_dataset(dataset) for dataset in datasets]
    distinct: dict[str, Path] = {}
    for shard in (shard for shards in by_dataset for shard in shards):
        distinct.setdefault(_rows_hash(shard), shard)
    for dataset, shards in zip(datasets, by_dataset, strict=True):
        if {_rows_hash(shard) for shard in shards} == distinct.keys():
            raise UserError(
                f"The others have no episode that {dataset.name} lacks, as those of one seed may: merge "
                "datasets of different seeds."
            )
    repeated = sum(len(shards) for shards in by_dataset) - len(distinct)
    if repeated:
        context.console.warn(f"{repeated} shards hold the same episodes as others: each is taken once.")
    return list(distinct.values())


def _rows_hash(shard: Path) -> str:
    """Return the hash of a shard's rows; the oldest ones did not record it."""
    return str(_facts(shard).get("sha256") or file_sha256(shard / ROWS_NAME))


def _role(number: int) -> str:
    return "dataset" if number == 0 else f"dataset_{number + 1}"


def _require_one_kind(datasets: Sequence[Artifact]) -> None:
    """Raise UserError where the datasets cannot be one."""
    if len(datasets) < 2:
        raise UserError("A merge takes two datasets or more: name the others as well.")
    first, names = datasets[0], [dataset.name for dataset in datasets]
    for number, dataset in enumerate(datasets):
        if dataset.manifest.hash in [other.manifest.hash for other in datasets[:number]]:
            raise UserError(f"Dataset {dataset.name} is among {', '.join(names)} twice: name it once.")
        if dataset.manifest.task != first.manifest.task or _task_facts(dataset) != _task_facts(first):
            raise UserError(
                f"{dataset.name} is of task {dataset.manifest.task}, {first.name} of {first.manifest.task}, "
                "or of another version of it: merge datasets of one task."
            )
        if _teacher_hash(dataset) != _teacher_hash(first):
            raise UserError(
                f"{dataset.name} was labelled by another teacher than {first.name}: merge datasets of one "
                "teacher, or label one anew with `pipeline dataset import`."
            )
        if _sampling(dataset) != _sampling(first):
            theirs, ours = (
                ", ".join(f"{name} {value:g}" for name, value in _sampling(each).items())
                for each in (dataset, first)
            )
            raise UserError(
                f"{dataset.name} has labels of {theirs}, {first.name} of {ours}: merge datasets that are "
                "labelled alike."
            )


def _task_facts(dataset: Artifact) -> dict[str, Any]:
    return {"changes": dataset.manifest.task_changes, "sha256": task_record(dataset).get("task_sha256")}


def _teacher_hash(dataset: Artifact) -> str:
    teacher = dataset.manifest.parents.get("teacher")
    if teacher is None:
        raise UserError(f"Dataset {dataset.name} does not say which teacher labelled it: make another.")
    return teacher.hash


def _sampling(dataset: Artifact) -> dict[str, float]:
    """Return how many actions the critic chose the labels from, and where there are several, their scale."""
    facts = _facts(shard_folders(dataset)[0])
    samples = int(facts.get("teacher_samples", 1))
    scale = {"sample_scale": float(facts.get("sample_scale", 1.0))} if samples > 1 else {}
    return {"teacher_samples": samples, **scale}


def _facts(shard: Path) -> dict[str, Any]:
    return read_metadata(shard).get(NAMESPACE, {})


def _evaluation_fraction(shards: Sequence[Path]) -> float:
    """Return the share of the shards' episodes that were drawn as in evaluation."""
    facts = [_facts(shard) for shard in shards]
    evaluation = sum(each["episodes"] for each in facts if each.get("distribution") == "evaluation")
    return evaluation / sum(each["episodes"] for each in facts)


def _hindsight(shards: Sequence[Path]) -> dict[str, float]:
    """Return how the alternative goals were drawn: each setting's mean over the episodes that have any."""
    found = [facts for facts in map(_facts, shards) if facts.get("alternative_goals")]
    episodes = sum(facts["episodes"] for facts in found)
    return {
        name: sum(facts["episodes"] * facts[name] for facts in found) / episodes
        for name in ("hindsight_fraction", "hindsight_discount")
        if found and all(name in facts for facts in found)
    }


def _metadata(
    datasets: Sequence[Artifact], shards: Sequence[Path], task: CompiledTask, merged: Artifact
) -> dict[str, Any]:
    teacher = datasets[0].manifest.parents["teacher"]
    return {
        "task": task.name,
        **task_record(merged),
        "control_dt_s": task.spec.control_dt_s,
        "teacher": {"name": teacher.name, "hash": teacher.hash},
        "evaluation_fraction": _evaluation_fraction(shards),
        **_sampling(datasets[0]),
        **_hindsight(shards),
        "merged": [{"name": dataset.name, "hash": dataset.manifest.hash} for dataset in datasets],
        "versions": merged.manifest.versions,
    }
