"""Other runtimes are timed where they and the network are, and are left out with a reason elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import policy_artifact, write_policy
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import Artifact, Parent, Workspace
from thousandfold.stages.benchmark import runtimes
from thousandfold.stages.benchmark.runtimes import (
    INDUCTOR,
    NUMPY,
    OF_TORCH,
    TORCH,
    C,
    OtherRuntimes,
    other_runtimes,
)
from thousandfold.stages.policy_file import c_policy
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy

STATES = [(np.full(4, value, np.float32), np.full(2, -value, np.float32)) for value in (0.1, 0.5, -0.9)]


def others(root: Path, artifact: Artifact, inductor: bool = False) -> OtherRuntimes:
    policy = OnnxPolicy(artifact.file(POLICY_FILE))
    with other_runtimes(policy, artifact, Workspace(root), STATES, inductor=inductor) as found:
        return found


NO_C = "There is no C compiler here (cc, gcc, clang)"


@pytest.fixture
def without_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_policy, "c_compiler", lambda: None)


def test_c_needs_the_file_and_a_compiler_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if c_policy.c_compiler() is None:
        pytest.skip("no C compiler is installed")
    monkeypatch.setattr(runtimes, "_absent", lambda package: True)
    policy = OnnxPolicy(write_policy(tmp_path / "policy.onnx"))
    with other_runtimes(policy, None, Workspace(tmp_path), STATES, inductor=False) as found:
        assert list(found.steps) == [C] and found.action_difference[C] < 1e-6
    np.testing.assert_allclose(found.steps[C](*STATES[0])[0], policy.step(*STATES[0]).action, atol=1e-6)


@pytest.mark.usefixtures("without_c")
def test_a_policy_whose_student_is_unknown_says_so(tmp_path: Path):
    artifact = policy_artifact(tmp_path)
    found = others(tmp_path, artifact)
    assert found.steps == {} and found.left_out.pop(C) == NO_C and set(found.left_out) == set(OF_TORCH)
    assert all("names no student that it was exported from" in why for why in found.left_out.values())


@pytest.mark.usefixtures("without_c")
def test_a_policy_whose_student_is_gone_says_so_without_a_stop_of_its_own(tmp_path: Path):
    parents = {"student": Parent("student", "student-1", "0" * 64)}
    artifact = Workspace(tmp_path).create("policy", task="point_u_maze", settings={}, parents=parents)
    write_policy(artifact.file(POLICY_FILE))
    artifact.complete({})
    found = others(tmp_path, artifact)
    reasons = [found.left_out[name] for name in OF_TORCH]
    assert all("No student 'student-1'" in why and why[-1] != "." for why in reasons)


@pytest.mark.usefixtures("without_c")
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtimes, "_absent", lambda package: package == "torch")
    found = others(tmp_path, policy_artifact(tmp_path))
    assert found.steps == {}
    assert found.left_out[TORCH] == 'torch not installed (pip install "thousandfold[train]" brings it)'


def network_of(monkeypatch: pytest.MonkeyPatch, weight_change: float = 0.0) -> None:
    """Put a network in the student's place that computes what the hand-made file does, or nearly."""
    import torch

    from tests.stages.policy_file.handmade_policy import BIAS, HIGH, LOW, WEIGHT
    from thousandfold.stages.benchmark import torch_runtimes

    def step(observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        action = np.tanh(np.concatenate([observation, goal]) @ (WEIGHT + weight_change) + BIAS)
        return action, LOW + 0.5 * (action + 1) * (HIGH - LOW)

    class InNumpy:
        def __init__(self) -> None:
            self.step = step

    monkeypatch.setattr(runtimes, "_source_network", lambda *sources: torch.nn.Identity())
    monkeypatch.setattr(torch_runtimes, "torch_step", lambda module: step)
    monkeypatch.setattr(torch_runtimes, "numpy_policy", lambda module: InNumpy())


@pytest.mark.usefixtures("without_c")
def test_what_computes_the_same_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network_of(monkeypatch)
    found = others(tmp_path, policy_artifact(tmp_path))
    assert list(found.steps) == [TORCH, NUMPY] and list(found.left_out) == [C, INDUCTOR]
    assert "--set aot_inductor=true" in found.left_out[INDUCTOR]
    assert max(found.action_difference.values()) < 1e-6


@pytest.mark.usefixtures("without_c")
def test_what_computes_something_else_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network_of(monkeypatch, weight_change=0.1)
    found = others(tmp_path, policy_artifact(tmp_path))
    assert found.steps == {}
    assert found.left_out[NUMPY].startswith("its actions are off the file's by up to 0.")


@pytest.mark.usefixtures("without_c")
def test_a_compiler_that_is_not_there_or_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from thousandfold.stages.benchmark import torch_runtimes

    network_of(monkeypatch)
    artifact = policy_artifact(tmp_path)
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: None)
    assert others(tmp_path, artifact, inductor=True).left_out == {
        C: NO_C,
        INDUCTOR: "AOTInductor needs a C++ compiler, and there is none",
    }

    def fails(module: object, folder: Path) -> None:
        raise ValueError("cannot\ncompile")

    monkeypatch.setattr(runtimes.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch_runtimes, "compiled_step", fails)
    assert others(tmp_path, artifact, inductor=True).left_out == {
        C: NO_C,
        INDUCTOR: "AOTInductor did not build it (ValueError: cannot compile)",
    }


def test_a_student_that_was_changed_since_is_not_timed(tmp_path: Path):
    workspace = Workspace(tmp_path)
    student = workspace.create("student", task="point_u_maze", settings={})
    student.complete({})
    artifact = workspace.create(
        "policy", task="point_u_maze", settings={}, parents={"student": student.parent_entry()}
    )
    policy = OnnxPolicy(policy_artifact(tmp_path / "other").file(POLICY_FILE))
    student.file("more").write_text("x")
    student.complete({})
    with pytest.raises(UserError, match="was changed since"):
        runtimes._source_network(policy, artifact, workspace)
