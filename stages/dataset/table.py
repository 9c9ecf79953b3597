"""What a dataset artifact holds, shard by shard, whole or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thousandfold.pipeline.artifacts import Artifact
from thousandfold.replay.dataset_layout import NAMESPACE, is_whole, read_metadata, shards_below
from thousandfold.replay.goal_dataset import DatasetError
from thousandfold.stages.dataset.files import MINARI_FOLDER, shard_folders


def find_damage(dataset: Artifact) -> dict[Path, str]:
    """Return which files of a completed dataset differ from its manifest, and how; none of an unfinished."""
    return dict(dataset.damage()) if dataset.manifest.status == "completed" else {}


def other_damage(dataset: Artifact, damage: Mapping[Path, str]) -> dict[str, str]:
    """Return what is damaged beside the shards, the view of them for one, by its path in the artifact."""
    if not damage:
        return {}
    shards = shard_folders(dataset)
    others = {path: problem for path, problem in damage.items() if path.parent not in shards}
    return {path.relative_to(dataset.path).as_posix(): problem for path, problem in others.items()}


def describe_shards(dataset: Artifact, damage: Mapping[Path, str]) -> list[dict[str, Any]]:
    """Return a row for each shard: name, episodes, rows, distribution, noise, success, and its state.

    Args:
        dataset: of whatever status; the files of an unfinished one are compared with what each shard says of
            itself.
        damage: of `find_damage`.
    """
    if dataset.manifest.status == "completed":
        damaged = {path.parent: problem for path, problem in damage.items()}
        return [_row(shard, damaged.get(shard, "whole")) for shard in shard_folders(dataset)]
    shards = shards_below(dataset.file(MINARI_FOLDER), dataset.manifest.task).values()
    return [_row(shard, "whole" if is_whole(shard) else "is damaged") for shard in shards]


def _row(shard: Path, state: str) -> dict[str, Any]:
    try:
        facts = read_metadata(shard)[NAMESPACE]
        by_noise = facts.get("by_noise", {})
        described: dict[str, Any] = {
            "episodes": int(facts["episodes"]),
            "rows": int(facts["rows"]),
            "distribution": facts.get("distribution"),
            "noise": ", ".join(by_noise) or None,
            "success": facts["successes"] / facts["episodes"],
        }
    except (DatasetError, KeyError, TypeError, ValueError):
        described = {name: None for name in ("episodes", "rows", "distribution", "noise", "success")}
    return {"shard": shard.parent.name, **described, "files": state}
