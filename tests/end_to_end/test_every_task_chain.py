"""Every built-in task and every example goes through the whole chain and all that comes behind it, tiny.

A test of a part of the chain says nothing about the others: a switch, a joint that is held, an early end, a
goal of several points or a user's page may fail in any of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.refusals import invoke
from tests.envs.opengl_here import REASON
from tests.examples.deploy_runners import RUNNER, golden_figures, succeeded
from thousandfold.envs.registry import task_names

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAGES = {page.stem: str(page) for page in sorted(EXAMPLES.rglob("*.yaml"))}
TASKS = {name: name for name in task_names()} | PAGES
SMOKE = ("--preset", "smoke", "--device", "cpu")
TINY = tuple(
    f"--set={key}"
    for key in (
        "train_teacher.episode_steps=20",
        "train_teacher.env_steps=640",
        "train_teacher.unroll_steps=20",
        "train_teacher.replay_rows_per_world=80",
        "train_teacher.min_rows_per_world=20",
        "train_teacher.evaluation_episodes=2",
        "train_teacher.final_episodes=2",
        "generate_dataset.episodes=8",
        "distill.updates=4",
        "distill.evaluate_every=4",
        "distill.evaluation_episodes=2",
        "distill.final_episodes=2",
        "distill.max_final_episodes=2",
        "export_onnx.closed_loop_episodes=32",
        "export_onnx.gate_states=256",
        "benchmark.warmup_s=0.01",
        "benchmark.back_to_back_s=0.02",
        "benchmark.paced_s=0.05",
        "benchmark.cold_starts=0",
        "benchmark.busy_processes=0",
        "benchmark.compare=false",
    )
)


def told(workspace: Path, *arguments: str) -> Any:
    """Run a command that must succeed; return its result."""
    result = invoke(workspace, *arguments, "--json")
    assert result.exit_code == 0, f"{arguments}\n{result.output}\n{result.exception!r}"
    return json.loads(result.stdout.splitlines()[-1])


def run_chain(workspace: Path, task: str) -> Path:
    """Run the chain, then evaluate, render, run-policy, verify and the Python runner; return the policy."""
    made = told(workspace, "run", *SMOKE, *TINY, "--task", task)
    policy = Path(made["export_onnx"]["files"]["policy.onnx"])
    assert policy.is_file() and Path(made["report"]["files"]["report.html"]).is_file()
    assert told(workspace, "evaluate", *SMOKE, "--episodes", "2")["results"]["episodes"] == 2
    if not REASON:
        small = ("--set=max_steps=3", "--set=width=64", "--set=height=64")
        assert told(workspace, "render", *SMOKE, *small, "--episodes", "1")["files"]
    # A file by its path finds the copy of a user's page beside it.
    ran = told(
        workspace, "run-policy", "--policy", str(policy), "--fast", "--episodes", "1", "--viewer", "off"
    )
    assert ran["episodes"] == 1
    checks = told(workspace, "policy", "verify", str(policy), "--episodes", "2")["checks"]
    assert [check["name"] for check in checks if check["passed"] is False] == []
    check_golden(sys.executable, RUNNER, policy)
    return policy


def check_golden(*runner: str | Path) -> None:
    """Check that a runner computes the golden rows of a policy."""
    rows, error, tolerance = golden_figures(succeeded(*runner))
    assert rows == 16 and error <= tolerance


@pytest.fixture(autouse=True)
def without_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "THOUSANDFOLD_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: every command takes the newest artifacts, and a new tracking store takes a second."""
    return tmp_path_factory.mktemp("every_task")


def test_there_are_pages_among_the_tasks() -> None:
    assert len(PAGES) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_goes_all_the_way(name: str, workspace: Path, request: pytest.FixtureRequest) -> None:
    policy = run_chain(workspace, TASKS[name])
    grid = ("--depths", "1", "--widths", "4", "--jobs", "1")
    options = [
        option for option in TINY if option.startswith(("--set=distill", "--set=export", "--set=bench"))
    ]
    assert told(workspace, "frontier", *SMOKE, *grid, *options)["results"]
    # Last: where one of them cannot be built, the test is skipped from here on.
    check_golden("node", request.getfixturevalue("node_folder") / "run_policy.js", policy)
    check_golden(request.getfixturevalue("cpp_runner"), policy)
