"""Verification: what each check finds, and what it does not mind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import (
    edited,
    golden,
    graph,
    inputs_and_outputs,
    metadata,
    policy_artifact,
    tamper,
    write_policy,
)
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.stages.episodes import Z_95, run_episodes
from thousandfold.stages.policy_file.metadata import Evaluation
from thousandfold.stages.policy_file.onnx_bytes import read_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy
from thousandfold.stages.policy_file.source import find_policy
from thousandfold.stages.policy_file.verification import Verification, success_change, verify_policy


def verify(path: Path, episodes: int = 16, **options: Any) -> Verification:
    return verify_policy(find_policy(Workspace(path.parent), str(path)), episodes=episodes, **options)


def recorded(success: float, episodes: int = 256) -> dict[str, Any]:
    return {
        "success": success,
        "success_interval": [0.0, 1.0],
        "episodes": episodes,
        "runtime": "onnxruntime",
    }


def write(path: Path, rows: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a policy with other metadata; its evaluation says what it does."""
    return write_policy(path, json.dumps(metadata(**{"evaluation": recorded(0.0)} | changes)), rows=rows)


def outcomes(found: Verification) -> dict[str, bool | None]:
    return {check.name: check.passed for check in found.checks}


def detail(found: Verification, name: str) -> str:
    return next(check.detail for check in found.checks if check.name == name)


def test_an_honest_file_passes_every_check(tmp_path: Path) -> None:
    found = verify(write(tmp_path / "policy.onnx"))
    assert outcomes(found) == {
        "signature": None,
        "description": True,
        "graph hash": True,
        "policy hash": True,
        "inputs, outputs": True,
        "golden rows": True,
        "task": True,
        "closed loop": True,
    }
    assert found.failed == [] and found.results()["passed"]
    expected = run_episodes(
        compile_task("point_u_maze"),
        OnnxPolicy(tmp_path / "policy.onnx"),
        episodes=16,
        seed=np.random.SeedSequence(0, spawn_key=(57,)),
    )
    assert found.success["success"] == expected.success.mean()
    json.dumps(found.results())


def test_a_changed_weight_fails_the_hash_and_the_golden_rows_and_the_rest_goes_on(tmp_path: Path) -> None:
    found = verify(tamper(write(tmp_path / "policy.onnx")))
    assert outcomes(found) | {"closed loop": None} == {
        "signature": None,
        "description": True,
        "graph hash": False,
        "policy hash": False,
        "inputs, outputs": True,
        "golden rows": False,
        "task": True,
        "closed loop": None,
    }
    assert "changed since it was exported" in detail(found, "graph hash")


@pytest.mark.parametrize(
    ("key", "edit"),
    [
        ("thousandfold", lambda text: text["inputs"]["goal"][0].update(limit_high=30.0)),
        ("thousandfold", lambda text: text["evaluation"].update(success=0.0, episodes=9)),
        ("thousandfold_golden", lambda text: text.update(tolerance=9e-5)),
    ],
    ids=["limit", "success", "tolerance"],
)
def test_an_edited_text_fails_the_policy_hash_alone(key: str, edit: Any, tmp_path: Path) -> None:
    found = verify(edited(write(tmp_path / "policy.onnx"), key, edit))
    assert [check.name for check in found.failed] == ["policy hash"]
    assert "changed since it was exported" in detail(found, "policy hash")


def test_golden_rows_that_are_off_by_more_than_the_tolerance_fail(tmp_path: Path) -> None:
    rows = golden()
    rows["action"][5][1] += 2e-5
    found = verify(write(tmp_path / "policy.onnx", rows))
    assert [check.name for check in found.failed] == ["golden rows"]
    assert "off by at most 2.0e-05, 1.0e-05 allowed" in detail(found, "golden rows")
    rows["tolerance"] = 3e-5
    assert not verify(write(tmp_path / "policy.onnx", rows)).failed


def test_a_tolerance_that_rounding_does_not_explain_fails(tmp_path: Path) -> None:
    found = verify(write(tmp_path / "policy.onnx", golden(tolerance=0.02)))
    assert [check.name for check in found.failed] == ["golden rows"]
    said = detail(found, "golden rows")
    assert "a tolerance of 0.02, at most 0.001 for float32 of depth 1" in said and "\n" not in said


def test_a_file_without_golden_rows_fails(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.onnx")
    text = json.dumps(metadata(evaluation=recorded(0.0)))
    path.write_bytes(graph().with_metadata({"thousandfold": text}).joined())
    found = verify(path)
    assert [check.name for check in found.failed] == ["policy hash", "golden rows"]


def test_other_inputs_and_outputs_than_described_cannot_be_compared(tmp_path: Path) -> None:
    fewer = metadata()["outputs"] | {"control": metadata()["outputs"]["control"][:1]}
    found = verify(write(tmp_path / "policy.onnx", outputs=fewer))
    assert [check.name for check in found.failed] == ["inputs, outputs", "task"]
    assert outcomes(found)["golden rows"] is outcomes(found)["closed loop"] is None


def test_another_model_fails_and_is_not_run(tmp_path: Path) -> None:
    found = verify(write(tmp_path / "policy.onnx", model_sha256="0" * 64))
    assert [check.name for check in found.failed] == ["task"]
    assert outcomes(found)["closed loop"] is None and found.success == {}
    assert "another model of task 'point_u_maze'" in detail(found, "task")


def test_less_success_than_recorded_fails_and_more_does_not(tmp_path: Path) -> None:
    found = verify(write(tmp_path / "policy.onnx", evaluation=recorded(0.9)), episodes=64)
    assert [check.name for check in found.failed] == ["closed loop"]
    assert found.success["difference"] == found.success["success"] - 0.9
    assert found.success["difference_interval"][1] < 0
    assert "recorded 0.900 over 256" in detail(found, "closed loop")
    assert not verify(write(tmp_path / "policy.onnx", evaluation=recorded(0.9, episodes=1)), 2).failed


def test_success_that_nobody_measured_is_nothing_to_compare_with(tmp_path: Path) -> None:
    found = verify(write(tmp_path / "policy.onnx", evaluation=None))
    assert outcomes(found)["closed loop"] is None and not found.failed
    assert found.success["episodes"] == 16


def test_a_description_that_does_not_fit_fails(tmp_path: Path) -> None:
    found = verify(write(tmp_path / "policy.onnx", control_dt_s=0.0))
    assert outcomes(found) == {"signature": None, "description": False} and "control_dt_s" in detail(
        found, "description"
    )


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("observation", {"unit": "cm"}, "observation[0] is 'qpos:x[0]' in cm, the task's 'qpos:x[0]' in m"),
        ("observation", {"name": "qvel:x[0]"}, "observation[0] is 'qvel:x[0]' in m, the task's 'qpos:x[0]'"),
        ("goal", {"unit": ""}, "goal[0] is 'qpos:x[0]' in no unit, the task's 'qpos:x[0]' in m"),
        ("action", {"name": "y"}, "action[0] is 'y' in 1, the task's 'x' in 1"),
        ("control", {"unit": "N"}, "control[0] is 'x' in N, the task's 'x' in actuator"),
    ],
)
def test_another_name_or_unit_than_the_tasks_fails(
    part: str, changes: dict[str, str], words: str, tmp_path: Path
) -> None:
    described = inputs_and_outputs("point_u_maze")
    side = described["inputs"] if part in described["inputs"] else described["outputs"]
    side[part][0] |= changes
    found = verify(write(tmp_path / "policy.onnx", **described))
    assert [check.name for check in found.failed] == ["task"] and words in detail(found, "task")
    assert outcomes(found)["closed loop"] is None


def test_a_changed_file_of_an_artifact_fails(tmp_path: Path) -> None:
    artifact = policy_artifact(tmp_path)
    write(artifact.file("policy.onnx"))
    found = verify_policy(find_policy(Workspace(tmp_path), artifact.name), episodes=4)
    assert [check.name for check in found.failed] == ["artifact"]
    assert "policy.onnx differs from its recorded hash" in detail(found, "artifact")


def test_what_cannot_be_looked_at_at_all_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.onnx")
    whole = path.read_bytes()
    for content in (whole[:-40], b"nothing", graph().graph):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError):
            verify(path)
    with pytest.raises(DamagedFileError, match="of format 1"):
        verify(write_policy(path, json.dumps(metadata(format_version=1))))
    without = metadata()
    del without["format_version"]
    with pytest.raises(DamagedFileError, match="without a format_version"):
        verify(write_policy(path, json.dumps(without)))
    with pytest.raises(UserError, match=r"changes of its task.*\(friction\): update"):
        verify(write(path, task_changes={"friction": 2}))
    with pytest.raises(UserError, match=r"'sledge'.*--task"):
        verify(write(path, task="sledge"))


def test_the_interval_is_newcombes() -> None:
    # 48 of 80 against 56 of 70, an example of the paper: 0.0524 to 0.3339.
    before = Evaluation(success=48 / 80, success_interval=(0, 1), episodes=80, runtime="torch")
    low, high = success_change(before, 56, 70, z=Z_95)
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    wider = success_change(before, 56, 70)
    assert wider[0] < low and wider[1] > high


@pytest.mark.parametrize("recorded", ["", "abc", "\n\x1b[31m" * 20, "0" * 63])
def test_a_recorded_hash_that_is_none_is_told_in_one_line(recorded: str, tmp_path: Path) -> None:
    model = read_model(write(tmp_path / "policy.onnx"))
    texts = model.metadata | {"thousandfold_sha256": recorded}
    (tmp_path / "policy.onnx").write_bytes(model.with_metadata(texts).joined())
    found = verify(tmp_path / "policy.onnx")
    assert [check.name for check in found.failed] == ["policy hash"]
    said = detail(found, "policy hash")
    assert "what is recorded is no hash" in said and said.isprintable()
