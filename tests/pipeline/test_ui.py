"""MLflow's page on a workspace: which runs it must not show as running."""

from __future__ import annotations

from pathlib import Path

from thousandfold.ground.files import folder_lock
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.ui import dead_runs


def test_runs_and_chains_that_nobody_makes_are_dead(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    made = {}
    for name, chain in (("killed", "a"), ("living", "b"), ("killed beside", "b"), ("done", "c")):
        made[name] = workspace.create("teacher", task="ant", settings={})
        made[name].update(tracking={"run_id": name, "chain_run_id": chain})
    workspace.create("policy", task="ant", settings={})  # killed before it was tracked
    made["done"].complete({})
    with folder_lock(made["living"].path):
        assert sorted(dead_runs(workspace)) == ["a", "killed", "killed beside"]
    assert sorted(dead_runs(workspace)) == ["a", "b", "killed", "killed beside", "living"]
