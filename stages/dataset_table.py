"""What a dataset artifact holds, shard by shard, whole or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.artifacts import Artifact
from replay.dataset_layout import NAMESPACE, is_whole, read_metadata, shards_below
from replay.goal_dataset import DatasetError
from stages.dataset_files import MINARI_FOLDER, shard_folders


def describe_shards(dataset: Artifact) -> list[dict[str, Any]]:
    """Return a row for each shard: name, episodes, rows, distribution, noise, success, and its state.

    The files of a completed dataset are compared with the hashes of its manifest, those of an unfinished one
    with what each shard says of itself.
    """
    if dataset.manifest.status == "completed":
        damage = {path.parent: problem for path, problem in dataset.damage()}
        return [_row(shard, damage.get(shard, "whole")) for shard in shard_folders(dataset)]
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
