"""Which file and which task a policy runs with, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.stages.policy_file.handmade_policy import (
    golden,
    inputs_and_outputs,
    metadata,
    policy_artifact,
    write_policy,
)
from thousandfold.envs.model_hash import model_sha256
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import DamagedFileError, MissingArtifactError, UserError
from thousandfold.pipeline.artifact_task import keep_task
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.stages.policy_file.source import open_source

PAGE = """\
name: sledge
model: sledge.xml
control_dt_s: {control_dt_s}
observation: [{{field: qpos}}, {{field: qvel}}]
achieved_goal: [{{field: qpos}}]
goal: {{box: {{low: [-1, -1], high: [1, 1]}}}}
success: {{radius: 0.2}}
episode_steps: 50
"""
MODEL = """\
<mujoco><option timestep="0.01"/><worldbody><body><geom size="0.1" mass="{mass}"/>
<joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/></body></worldbody>
<actuator><motor joint="x" ctrlrange="-1 1"/><motor joint="y" ctrlrange="-1 1"/></actuator></mujoco>
"""


def write_sledge(folder: Path, *, mass: float = 1.0, control_dt_s: float = 0.1) -> str:
    """Write a task of the sizes of the handmade policy; return its page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sledge.xml").write_text(MODEL.format(mass=mass))
    (folder / "sledge.yaml").write_text(PAGE.format(control_dt_s=control_dt_s))
    return str(folder / "sledge.yaml")


def sledge_policy(path: Path, page: str, **changes: Any) -> str:
    """Write a policy for the sledge; return its path."""
    found = model_sha256(compile_task(page).model)
    fixed = {
        "task": "sledge",
        "model_sha256": found,
        "task_file": "/home/me/sledge.yaml",
        "episode_steps": 30,
        **inputs_and_outputs(page),
    }
    write_policy(path, json.dumps(metadata(**fixed | changes)))
    return str(path)


def test_a_file_alone_is_enough_for_a_built_in_task(tmp_path: Path) -> None:
    text = json.dumps(metadata(episode_steps=17))
    path = write_policy(tmp_path / "elsewhere.onnx", text)
    source = open_source(Workspace(tmp_path / "none"), str(path))
    assert (source.task.name, source.task.spec.episode_steps) == ("point_u_maze", 17)
    assert source.policy.path == path and source.name == str(path)
    assert not (tmp_path / "none").exists()


def test_the_newest_policy_or_one_by_name_or_by_its_file(tmp_path: Path) -> None:
    first, second = policy_artifact(tmp_path), policy_artifact(tmp_path)
    workspace = Workspace(tmp_path)
    assert open_source(workspace).name == second.name
    assert open_source(workspace, first.name).policy.path == first.file("policy.onnx")
    assert open_source(workspace, str(first.file("teacher.onnx"))).policy.metadata.role == "teacher"
    first.file("policy.onnx").write_bytes(second.file("policy.onnx").read_bytes() + b"\0")
    with pytest.raises(DamagedFileError, match=r"policy\.onnx differs"):
        open_source(workspace, first.name)
    with pytest.raises(MissingArtifactError):
        open_source(Workspace(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"gone\.onnx is no file"):
        open_source(workspace, "gone.onnx")


def test_a_file_that_is_off_its_golden_rows_is_refused(tmp_path: Path) -> None:
    rows = golden()
    rows["action"] = [[-value for value in row] for row in rows["action"]]
    path = write_policy(tmp_path / "p.onnx", rows=rows)
    with pytest.raises(DamagedFileError, match=r"off its golden rows by .* more than 1e-05"):
        open_source(Workspace(tmp_path), str(path))


def test_a_task_of_the_users_comes_from_the_option_or_the_artifacts_copy(tmp_path: Path) -> None:
    page = write_sledge(tmp_path / "robot")
    alone = sledge_policy(tmp_path / "alone.onnx", page)
    workspace = Workspace(tmp_path / "ws")
    with pytest.raises(UserError, match=r"'sledge'.*--task \(it was /home/me/sledge\.yaml\)"):
        open_source(workspace, alone)
    source = open_source(workspace, alone, page)
    assert (source.task.name, source.task.spec.episode_steps) == ("sledge", 30)

    artifact = workspace.create("policy", task="sledge", settings={}, task_changes={"episode_steps": 30})
    keep_task(compile_task(page), artifact, Console(silent=True))
    sledge_policy(artifact.file("policy.onnx"), page)
    artifact.complete({})
    shutil.rmtree(tmp_path / "robot")
    for reference in (None, artifact.name, str(artifact.file("policy.onnx"))):
        assert open_source(workspace, reference).task.spec.episode_steps == 30


def test_another_model_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    policy = sledge_policy(tmp_path / "p.onnx", write_sledge(tmp_path / "robot"), exporter={"mujoco": "3.9"})
    heavier = write_sledge(tmp_path / "heavier", mass=2.0)
    with pytest.raises(UserError, match=r"another model of task 'sledge'.*MuJoCo 3\.9 compiled.*--any-model"):
        open_source(Workspace(tmp_path), policy, heavier)
    assert open_source(Workspace(tmp_path), policy, heavier, any_model=True).task.spec.file == heavier


def test_another_task_pace_or_size_is_refused(tmp_path: Path) -> None:
    page = write_sledge(tmp_path / "robot")
    policy = sledge_policy(tmp_path / "p.onnx", page)
    workspace = Workspace(tmp_path)
    with pytest.raises(UserError, match="for task 'sledge', not for 'point_u_maze'"):
        open_source(workspace, policy, "point_u_maze")
    with pytest.raises(UserError, match="Unknown task 'nothing'"):
        open_source(workspace, policy, "nothing")
    slower = write_sledge(tmp_path / "slower", control_dt_s=0.2)
    with pytest.raises(UserError, match=r"acts every 0\.1 s.*every 0\.2 s"):
        open_source(workspace, policy, slower, any_model=True)
    text = json.dumps(metadata(task="reacher"))
    with pytest.raises(UserError, match=r"does not fit task 'reacher'.*observation 4, not"):
        open_source(workspace, str(write_policy(tmp_path / "reacher.onnx", text)), any_model=True)


@pytest.mark.parametrize(
    "changes", [{"task": "none\nof them", "task_file": "a\n\x1b[31m"}, {"task_changes": {"a\nb" * 99: 1}}]
)
def test_what_a_file_says_is_told_in_one_line(changes: dict[str, Any], tmp_path: Path) -> None:
    path = write_policy(tmp_path / "p.onnx", json.dumps(metadata(**changes)))
    with pytest.raises(UserError) as told:
        open_source(Workspace(tmp_path), str(path))
    assert str(told.value).isprintable() and len(str(told.value)) < 500


def test_a_file_that_calls_its_inputs_as_earlier_versions_did_is_taken(tmp_path: Path) -> None:
    text = metadata()
    for elements in text["inputs"].values():
        for index, name in enumerate(["qpos[0] x", "qpos[1] y", "qvel[0] x", "qvel[1] y"][: len(elements)]):
            elements[index]["name"] = name
    path = write_policy(tmp_path / "p.onnx", json.dumps(text))
    assert open_source(Workspace(tmp_path), str(path)).policy.metadata.inputs.goal[1].name == "qpos[1] y"
    text["inputs"]["goal"][1]["name"] = "qpos[0] x"
    write_policy(path, json.dumps(text))
    with pytest.raises(UserError, match=r"goal\[1\] is 'qpos\[0\] x' in m, the task's 'qpos:y\[0\]'"):
        open_source(Workspace(tmp_path), str(path))


def test_a_task_whose_terms_are_in_another_order_is_refused(tmp_path: Path) -> None:
    page = Path(write_sledge(tmp_path / "robot"))
    policy = sledge_policy(tmp_path / "p.onnx", str(page))
    page.write_text(page.read_text().replace("{field: qpos}, {field: qvel}", "{field: qvel}, {field: qpos}"))
    with pytest.raises(UserError, match=r"observation\[0\] is 'qpos:x\[0\]' in m, the task's 'qvel:x\[0\]'"):
        open_source(Workspace(tmp_path), policy, str(page), any_model=True)
