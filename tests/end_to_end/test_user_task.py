"""A user's task goes through the whole chain: by a relative path, from other folders, and once it is gone."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.end_to_end.command_line import error_of
from thousandfold.pipeline.artifact_task import load_task
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cli import cli
from thousandfold.stages.networks import load_actor
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy

pytestmark = pytest.mark.slow

CORNERS = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], np.float32)
MODEL = """
<mujoco model="cart">
  <compiler meshdir="meshes"/>
  <option timestep="0.02"/>
  <include file="parts/actuators.xml"/>
  <asset><mesh name="wedge" file="wedge.stl"/></asset>
  <worldbody>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" damping="1"/>
      <geom type="mesh" mesh="wedge" mass="1"/>
    </body>
  </worldbody>
</mujoco>
"""
ACTUATORS = (
    '<mujoco><actuator><general name="push" joint="slide" gear="3" dyntype="filter" dynprm="0.1" '
    'ctrlrange="-1 1"/></actuator><keyframe><key name="pushed" qpos="0.2" act="0.5"/></keyframe></mujoco>'
)
PAGE = """
name: cart_slide   # kept as it is
model: ../models/cart.xml
control_dt_s: 0.1
episode_steps: 20
observation: [{field: qpos, unit: m}, {field: qvel, unit: m/s}, {field: act}]
achieved_goal: [{field: qpos, unit: m}]
goal: {box: {low: [-1], high: [1]}}
success: {radius: 0.2}
reset: {keyframe: pushed}
randomize:
  mass: {low: 0.7, high: 1.3}
  push: {every_s: [0.2, 0.4], speed: 0.3}
evaluation: {randomize: {damping: {low: 0.5, high: 2}}}
"""


def write_mesh(path: Path) -> None:
    """Write a tetrahedron as binary STL."""
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    triangles = b"".join(
        struct.pack("<3f", 0, 0, 0) + CORNERS[list(face)].tobytes() + b"\0\0" for face in faces
    )
    path.write_bytes(b" " * 80 + struct.pack("<I", len(faces)) + triangles)


def write_task(home: Path) -> Path:
    """Write a task whose model, include and mesh lie in folders of their own; return the page."""
    for name, text in (
        ("tasks/cart.yaml", PAGE),
        ("models/cart.xml", MODEL),
        ("models/parts/actuators.xml", ACTUATORS),
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "models/meshes").mkdir()
    write_mesh(home / "models/meshes/wedge.stl")
    return home / "tasks/cart.yaml"


def invoke(workspace: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--workspace", str(workspace), *arguments])
    assert result.exit_code == code, f"{arguments}\n{result.output}\n{result.exception!r}"
    return result


SMOKE = ("--preset", "smoke", "--device", "cpu")


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> Path:
    """A chain whose task was given by a relative path and was gone after the teacher."""
    for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI"):
        monkeypatch_module.delenv(name, raising=False)
    home, elsewhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("elsewhere")
    workspace = tmp_path_factory.mktemp("workspace")
    write_task(home)
    monkeypatch_module.chdir(home / "tasks")
    changed = ("--set", "episode_steps=10")
    invoke(workspace, "train-teacher", *SMOKE, *changed, "--task", "cart.yaml")
    shutil.rmtree(home / "tasks", ignore_errors=True)
    shutil.rmtree(home / "models")
    monkeypatch_module.chdir(elsewhere)
    invoke(workspace, "generate-dataset", *SMOKE)
    # What is made from here on needs the first artifacts no more where they were.
    moved = tmp_path_factory.mktemp("moved") / "workspace"
    shutil.move(workspace, moved)
    for command in ("distill", "export-onnx", "benchmark", "evaluate"):
        invoke(moved, command, *SMOKE)
    return moved


def newest(workspace: Path, kind: str) -> Artifact:
    return Workspace(workspace).newest(kind)


@pytest.mark.parametrize("kind", ["teacher", "dataset", "student", "policy", "benchmark", "evaluation"])
def test_every_artifact_has_the_tasks_name(workspace: Path, kind: str) -> None:
    assert newest(workspace, kind).manifest.task == "cart_slide"


@pytest.mark.parametrize("kind", ["teacher", "dataset", "student", "policy"])
def test_the_task_travels_in_the_artifact(workspace: Path, kind: str) -> None:
    artifact = newest(workspace, kind)
    files = {name for name in artifact.manifest.files if name.startswith("task/")}
    assert files == {
        "task/task.yaml",
        "task/source.json",
        "task/model/cart.xml",
        "task/model/parts/actuators.xml",
        "task/model/meshes/wedge.stl",
    }
    expected = PAGE.replace("../models/cart.xml", '"model/cart.xml"')
    assert artifact.file("task/task.yaml").read_text() == expected
    artifact.verify()


def test_machines_find_file_and_hash(workspace: Path) -> None:
    teacher, policy = newest(workspace, "teacher"), newest(workspace, "policy")
    source = json.loads(teacher.file("task/source.json").read_text())
    assert source["file"].endswith("tasks/cart.yaml") and len(source["files"]) == 4
    metadata = OnnxPolicy(policy.file(POLICY_FILE)).metadata
    assert (metadata.task, metadata.task_file, metadata.task_sha256) == (
        "cart_slide",
        source["file"],
        source["sha256"],
    )
    header = load_actor(teacher).metadata
    assert (header["task_file"], header["task_sha256"]) == (source["file"], source["sha256"])
    assert header["model_sha256"] == metadata.model_sha256


def test_minari_makes_the_environment_from_the_copy(workspace: Path) -> None:
    minari = pytest.importorskip("minari")
    dataset = newest(workspace, "dataset")
    data = minari.MinariDataset(dataset.file("minari/thousandfold/cart_slide-v0/data"))
    assert data.id == "thousandfold/cart_slide-v0"
    spec = data.env_spec
    assert spec.id == "thousandfold/CartSlide-v0"
    # The workspace was moved since: the environment is made from where the copy lies now.
    env = data.recover_environment(task=str(dataset.file("task/task.yaml")))
    assert env.reset(seed=0)[0]["observation"].tolist() == pytest.approx([0.2, 0.0, 0.5])
    assert [env.step(env.action_space.sample())[3] for _ in range(10)] == [False] * 9 + [True]
    episode = data[0]
    assert len(episode.actions) == 10
    assert episode.observations["observation"][0] == pytest.approx([0.2, 0.0, 0.5])


def test_a_policy_that_sees_activations_runs_from_its_file(workspace: Path) -> None:
    arguments = ("--policy", str(newest(workspace, "policy").file(POLICY_FILE)), "--fast", "--episodes", "2")
    result = invoke(workspace, "run-policy", *arguments, "--json")
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["episodes"], found["steps"]) == (2, 20)


def test_a_policy_is_evaluated_where_nothing_varies_and_where_training_varies(workspace: Path) -> None:
    for distribution, factors in (
        ("nominal", []),
        ("evaluation", ["damping:slide"]),
        ("randomized", ["mass:cart"]),
    ):
        invoke(workspace, "evaluate", *SMOKE, "--distribution", distribution)
        artifact = newest(workspace, "evaluation")
        assert artifact.manifest.settings["distribution"] == distribution
        varied = load_task(newest(workspace, "policy")).varied_model(distribution)
        assert (varied.factor_names if varied else []) == factors


def test_models_are_registered_by_the_tasks_name(workspace: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{workspace}/mlflow/mlflow.db")
    names = {model.name for model in client.search_registered_models()}
    assert {"teacher-cart_slide", "student-cart_slide", "policy-cart_slide"} <= names


def test_a_damaged_copy_is_told(workspace: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(workspace / "runs", copied / "runs")
    policy = newest(copied, "policy")
    page = policy.file("task/task.yaml")
    page.write_text(page.read_text().replace("0.2", "2.0"))
    message = error_of(invoke(copied, "evaluate", *SMOKE, code=2).stderr)
    assert f"{page} differs from its recorded hash" in message
