"""A student with sensors of its own goes through the whole chain, beside a teacher that sees everything.

What only the simulator knows, the factors that are drawn for an episode, is part of that. One target swings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.envs.user_tasks.user_pages import PAGE, changed, write
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cli import cli
from thousandfold.replay.goal_dataset import load_goal_dataset
from thousandfold.stages.closed_loop.paced_world import ClosedLoop
from thousandfold.stages.networks import load_actor
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, TEACHER_FILE, OnnxPolicy, PolicyOutputs

pytest.importorskip("torch", reason="torch comes with the extra `train`")

pytestmark = pytest.mark.slow

SMOKE = ("--preset", "smoke", "--device", "cpu")
SENSED = """student_observation:
  - {field: qpos, noise: 0.01, delay: 1, history: 3}
  - {field: ctrl, object: lift, history: 2}
  - {clock: 0.35, history: 2}
action:
  - {actuator: lift, kind: delta, max_rate: 3}
  - {actuator: bend, kind: offset, scale: 0.3, max_rate: 3, swing: {amplitude: 0.2, period_s: 0.35}}
action_delay: {low: 0, high: 2}
randomize: {mass: {low: 0.7, high: 1.3}, joint_zero: {low: -0.02, high: 0.02, joints: elbow}}
"""
FACTORS = ["factors:mass[0]", "factors:joint_zero:elbow[0]"]
SEEN = [f"qpos:{joint}[0]{age}" for age in ("", "@-1", "@-2") for joint in ("shoulder", "elbow")]
SEEN += ["ctrl:lift[0]", "ctrl:lift[0]@-1"]
SEEN += [f"clock:0.35[{number}]{age}" for age in ("", "@-1") for number in range(2)] + ["ctrl:bend[0]"]


def invoke(workspace: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["--workspace", str(workspace), *arguments, "--json"])
    assert result.exit_code == code, f"{arguments}\n{result.output}\n{result.exception!r}"
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace, home = tmp_path_factory.mktemp("workspace"), tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        page = changed(PAGE, "episode_steps: 30", "episode_steps: 12")
        page = changed(page, "    object: fingertip\n", '    object: fingertip\n  - {factors: "*"}\n')
        page = write(home, page + SENSED)
        invoke(workspace, "train-teacher", *SMOKE, "--task", str(page))
        invoke(workspace, "generate-dataset", *SMOKE)
        rounds = ("dagger_episodes=8", "dagger_updates=2", "objective=critic")
        invoke(workspace, "distill", *SMOKE, *(word for each in rounds for word in ("--set", each)))
        invoke(workspace, "export-onnx", *SMOKE)
    return workspace


def newest(workspace: Path, kind: str) -> Artifact:
    return Workspace(workspace).newest(kind)


def test_rows_carry_what_both_see(workspace: Path) -> None:
    data = load_goal_dataset(newest(workspace, "dataset").path)
    assert data.observation.shape[1] == 11 and data.seen_by_student.shape[1] == len(SEEN)
    first = np.flatnonzero(np.diff(data.episode, prepend=-1))
    seen, true = data.seen_by_student, data.observation
    np.testing.assert_array_equal(seen[first, 2:4], seen[first, 0:2])  # all before is the first reading
    inner = np.setdiff1d(np.arange(len(true)), np.concatenate([first, first + 1]))
    np.testing.assert_array_equal(seen[inner, 2:4], seen[inner - 1, 0:2])
    mass, zero = data.observation[:, 5:7].T
    assert ((mass >= 0.7) & (mass <= 1.3) & (np.abs(zero) <= 0.02)).all()
    assert len(np.unique(mass)) == len(np.unique(zero)) == len(first)  # drawn once an episode
    off = seen[inner, 0:2] - true[inner - 1, :2]  # a step late, and noisy
    assert off.std() == pytest.approx(0.01, rel=0.2)


def test_a_student_is_of_its_own_senses(workspace: Path) -> None:
    student, teacher = (load_actor(newest(workspace, kind)) for kind in ("student", "teacher"))
    assert (teacher.task.observation_dim, student.task.observation_dim) == (11, len(SEEN))
    assert [each["name"] for each in student.task.describe("observation")] == SEEN
    results = newest(workspace, "student").manifest.results
    assert [entry["round"] for entry in results["rounds"]] == [1, 2, 3, 4], "nobody said how many"
    assert results["rounds"][0]["labels"] > 0 and results["episodes"] > 0


def test_the_file_names_past_readings_and_older_runners_refuse_it(workspace: Path) -> None:
    policy = newest(workspace, "policy")
    student, teacher = (OnnxPolicy(policy.file(name)).metadata for name in (POLICY_FILE, TEACHER_FILE))
    assert [element.name for element in student.inputs.observation] == SEEN
    assert (student.format_version, teacher.format_version) == (4, 4), (
        "the teacher sees the clock of the swing"
    )
    assert student.inputs.observation[0].unit == "rad"
    assert [each.name for each in teacher.inputs.observation if each.name.startswith("factors:")] == FACTORS


def test_it_is_verified_evaluated_and_run_by_what_remembers(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = newest(workspace, "policy")
    found = invoke(workspace, "policy", "verify", "--episodes", "16", code=0)
    assert found["passed"]
    invoke(workspace, "evaluate", *SMOKE)
    evaluation = newest(workspace, "evaluation").manifest
    assert evaluation.parents["policy"].name == policy.name
    shown, given = list[np.ndarray](), list[np.ndarray]()
    act, step = ClosedLoop.__call__, OnnxPolicy.step

    def note_shown(loop: ClosedLoop, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        shown.append(observation[0].copy())
        return act(loop, observation, goal)

    def note_given(policy: OnnxPolicy, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        given.append(observation.copy())
        return step(policy, observation, goal)

    monkeypatch.setattr(ClosedLoop, "__call__", note_shown)
    monkeypatch.setattr(OnnxPolicy, "step", note_given)
    ran = invoke(
        workspace, "run-policy", "--policy", str(policy.file(POLICY_FILE)), "--fast", "--episodes", "2"
    )
    assert (ran["episodes"], ran["steps"]) == (2, 24)
    np.testing.assert_allclose(given, shown, atol=1e-5)  # what the runner kept is what was simulated


def test_episodes_from_elsewhere_have_no_such_senses(workspace: Path, tmp_path: Path) -> None:
    path = tmp_path / "others.npz"
    np.savez(path, observations=np.zeros((4, 9)), actions=np.zeros((4, 2)), terminals=np.zeros(4))
    result = CliRunner().invoke(
        cli,
        ["--workspace", str(workspace), "dataset", "import", str(path), *SMOKE, "--goal-columns", "2,3,4"],
    )
    assert result.exit_code == 2 and "has sensors of its own (student_observation)" in result.stderr
