"""What version 0.1 left, before everything was imported as `thousandfold.…`, is read and gone on with.

tests/fixtures/workspace_0_1 was made by that version's command line: the chain of the smoke preset on small
settings (episodes of 20 steps, networks of 4 units; without the report and the checkpoints of what was
completed), a student stopped by Ctrl-C in its first DAgger round, and a teacher stopped after two unrolls.
tests/fixtures/resumed_by_0_1 holds what that version made of those two when it went on with them itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.refusals import invoke
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.pipeline.runtime import describe_host

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
KINDS = ("teacher", "dataset", "student", "policy", "benchmark")
GO_ON = {
    "teacher": ("train-teacher", "--set", "env_steps=640", "--set", "final_episodes=4"),
    "student": ("distill",),
}


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace; nothing is tracked."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    return shutil.copytree(FIXTURES / "workspace_0_1", tmp_path / "workspace")


def result_of(workspace: Path, *arguments: str) -> dict[str, Any]:
    result = invoke(workspace, *arguments, "--json")
    assert result.exit_code == 0, result.output + repr(result.exception)
    return json.loads(result.stdout.splitlines()[-1])


def test_artifacts_are_listed_and_whole(earlier: Path) -> None:
    assert invoke(earlier, "runs").exit_code == 0
    for kind in KINDS:
        artifact = Workspace(earlier).newest(kind)
        artifact.verify()
        assert result_of(earlier, "info", artifact.name)["artifact"] == artifact.name
    assert len(result_of(earlier, "dataset", "info")["shards"]) == 1


@pytest.mark.parametrize("kind", ["teacher", "student", "policy"])
def test_each_kind_is_evaluated(earlier: Path, kind: str) -> None:
    """In the teacher's episodes of 20 steps: what was changed of the task is read too."""
    name = Workspace(earlier).newest(kind).name
    found = result_of(earlier, "evaluate", f"--{kind}", name, "--episodes", "8")
    assert found["results"]["episodes"] == 8 and found["task_changes"]["episode_steps"] == 20


def test_a_policy_is_verified_and_run(earlier: Path) -> None:
    policy = Workspace(earlier).newest("policy")
    assert invoke(earlier, "policy", "verify", policy.name).exit_code == 0
    assert result_of(earlier, "run-policy", "--policy", policy.name, "--fast", "--episodes", "1")


def test_each_stage_takes_what_there_is(earlier: Path) -> None:
    short = ("rates_hz=[]", "paced_s=0.05", "back_to_back_s=0.05", "cold_starts=0", "compare=false")
    settings = {
        "generate-dataset": ("episodes=2", "noise_levels=0"),
        "export-onnx": ("closed_loop_episodes=4", "gate_states=16"),
        "benchmark": (*short, "busy_processes=0"),
        "distill": ("updates=2", "evaluation_episodes=2", "final_episodes=4", "max_final_episodes=4"),
        "report": (),
    }
    before = {kind: Workspace(earlier).newest(kind).name for kind in KINDS}
    named = {"distill": ("--dataset", before["dataset"])}
    for command, values in settings.items():
        sets = [word for value in values for word in ("--set", value)]
        made = result_of(earlier, command, "--preset", "smoke", *named.get(command, ()), *sets)
        parents = Artifact.load(Path(made["path"])).manifest.parents
        if command != "report":
            assert all(parent.name == before[kind] for kind, parent in parents.items()), parents
            shutil.rmtree(made["path"])  # the next one is to take what version 0.1 has made


def test_a_datasets_environment_is_recovered(earlier: Path, tmp_path: Path) -> None:
    """By Minari, in a process in which nobody else has a module `envs`."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "thousandfold").symlink_to(ROOT / "thousandfold")
    (folder,) = (Workspace(earlier).newest("dataset").path / "minari" / "thousandfold").glob("*-v0")
    script = (
        "import sys, thousandfold\n"
        "from minari.dataset.minari_dataset import MinariDataset\n"
        "env = MinariDataset(sys.argv[1]).recover_environment().unwrapped\n"
        "print(env.task.name, env.task.spec.episode_steps)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "data")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "path")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "point_u_maze 20", done.stderr


@pytest.mark.parametrize("kind", GO_ON)
def test_what_was_stopped_ends_as_that_version_ends_it(earlier: Path, kind: str) -> None:
    """A student but for the last bit on the same processor; another one sums in another order.

    Both come close, and so does a teacher: InfoNCE's gradient has been summed otherwise since. A student's
    parameters lie in one tensor since, whose ends the optimiser's kernel rounds otherwise.
    """
    command, *settings = GO_ON[kind]
    artifact = Artifact.load(Path(result_of(earlier, command, "--resume", *settings)["path"]))
    expected = FIXTURES / "resumed_by_0_1" / kind
    ours, header = load_tensors(artifact.file("network.safetensors"))
    theirs, its_header = load_tensors(expected / "network.safetensors")
    assert (ours.keys(), header["shape"]) == (theirs.keys(), its_header["shape"] | {"activation": "swish"})
    same = (
        kind == "student"
        and describe_host()["cpu"] == (expected.parent / "processor.txt").read_text().strip()
    )
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if same else {"rtol": 1e-3, "atol": 1e-4}
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor.numpy(), theirs[name].numpy(), **tolerance, err_msg=name)
    if same:
        histories = [
            json.loads((at / "history.json").read_text())["history"] for at in (artifact.path, expected)
        ]
        for now, then in zip(*histories, strict=True):
            told = then.keys() - {"elapsed_s"}  # entries tell more by now
            found = {name: now[name] for name in told}
            assert found == pytest.approx({name: then[name] for name in told}, rel=1e-6)
