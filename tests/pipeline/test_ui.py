"""MLflow's page on a workspace: which runs it must not show as running."""

from __future__ import annotations

from pathlib import Path

from thousandfold.ground.files import folder_lock
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.ui import dead_runs, runs_page


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


def test_the_address_is_that_of_the_trainings_runs() -> None:
    page = "#/experiments/7/runs?workflowType=machine_learning"
    assert runs_page("127.0.0.1", 5000, "7") == f"http://127.0.0.1:5000/{page}"
    assert runs_page("0.0.0.0", 81, "7") == f"http://127.0.0.1:81/{page}", "which no browser goes to"
    assert runs_page("::", 81, "7") == f"http://[::1]:81/{page}"
