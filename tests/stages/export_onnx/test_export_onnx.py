"""Export: complete files that do what their networks do, gates that hold back those that do not."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.stages.policy_file.handmade_policy import tamper
from tests.stages.untrained_networks import LIMITS, TASK, make_dataset, make_network
from thousandfold.envs.model_hash import model_sha256
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import DamagedFileError, SettingsError, UserError
from thousandfold.models.deployable_policy import DeployablePolicy
from thousandfold.pipeline.artifacts import Artifact, Parent, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages import networks
from thousandfold.stages.episodes import Episodes
from thousandfold.stages.export_onnx import export, export_onnx, gate
from thousandfold.stages.export_onnx.export_onnx import ExportOnnxSettings
from thousandfold.stages.networks import NETWORK_FILE, load_actor
from thousandfold.stages.policy_file.golden import golden_error
from thousandfold.stages.policy_file.onnx_bytes import read_model
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, TEACHER_FILE, OnnxPolicy


def settings(**changes: Any) -> ExportOnnxSettings:
    return ExportOnnxSettings(**{"gate_states": 64, "closed_loop_episodes": 4, **changes})


def context(workspace: Workspace) -> StageContext:
    return StageContext(workspace, Console(), NullTracker())


@dataclasses.dataclass
class Chain:
    """A teacher, its dataset, the student of both, and the policy that was exported from it."""

    workspace: Workspace
    teacher: Artifact
    dataset: Artifact
    student: Artifact
    policy: Artifact

    @property
    def file(self) -> Path:
        return self.policy.file(POLICY_FILE)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    teacher = make_network(workspace, "teacher", depth=8)
    dataset = make_dataset(workspace, teacher)
    parents = {"teacher": teacher.parent_entry(), "dataset": dataset.parent_entry()}
    student = make_network(workspace, "student", parents=parents)
    policy = export_onnx.run(settings(), context(workspace), student)
    return Chain(workspace, teacher, dataset, student, policy)


def test_the_policy_is_complete_and_records_what_was_checked(chain: Chain):
    manifest, results = chain.policy.manifest, chain.policy.manifest.results
    assert manifest.status == "completed" and manifest.selectable
    assert manifest.device == {"device": "cpu"}
    chain.policy.verify()
    assert set(manifest.files) == {POLICY_FILE, TEACHER_FILE}
    assert {role: parent.name for role, parent in manifest.parents.items()} == {
        "student": chain.student.name,
        "teacher": chain.teacher.name,
        "dataset": chain.dataset.name,
    }
    assert 0 < results["max_action_error"] <= results["allowed_action_error"] == 1e-5
    assert results["gate_states"] == {"closed_loop": 64, "dataset": 20}
    assert results["success"] == results["torch_success"] and results["episodes"] == 4
    assert results["same_outcome"] == 1.0 and results["opset"] == 20
    assert results["bytes"] == chain.file.stat().st_size
    assert results["teacher"]["name"] == chain.teacher.name
    assert chain.workspace.newest("policy").name == chain.policy.name


def test_the_metadata_is_complete(chain: Chain):
    task = compile_task(TASK)
    found = OnnxPolicy(chain.file, task=TASK).metadata
    assert (found.role, found.task, found.control_dt_s, found.episode_steps) == ("student", TASK, 0.1, 100)
    assert found.model_sha256 == model_sha256(task.model)
    assert [(e.name, e.unit) for e in found.inputs.observation] == [
        ("qpos:x[0]", "m"),
        ("qpos:y[0]", "m"),
        ("qvel:x[0]", "m/s"),
        ("qvel:y[0]", "m/s"),
    ]
    assert all(element.low <= element.high for element in (*found.inputs.observation, *found.inputs.goal))
    assert found.inputs.goal[0].high == 50.0  # the dataset's
    assert [e.name for e in found.outputs.action] == [e.name for e in found.outputs.control] == ["x", "y"]
    assert [(e.low, e.high) for e in found.outputs.control] == [(-1.0, 1.0), (-1.0, 1.0)]
    assert (found.network.depth, found.network.width, found.network.kind) == (4, 8, "residual")
    assert {role: parent.hash for role, parent in found.parents.items()} == {
        "student": chain.student.manifest.hash,
        "teacher": chain.teacher.manifest.hash,
        "dataset": chain.dataset.manifest.hash,
    }
    assert found.evaluation is not None
    assert (found.evaluation.episodes, found.evaluation.runtime) == (4, "onnxruntime")
    assert found.evaluation.success == chain.policy.manifest.results["success"]
    assert found.exporter["torch"] == torch.__version__ and set(found.exporter) >= {"onnx", "onnxruntime"}


def test_the_teacher_beside_it_carries_its_own_record(chain: Chain):
    found = OnnxPolicy(chain.policy.file(TEACHER_FILE), task=TASK).metadata
    assert (found.role, found.network.depth) == ("teacher", 8)
    assert found.evaluation is not None
    assert (found.evaluation.success, found.evaluation.runtime) == (0.75, "torch")
    assert list(found.parents) == ["teacher"]


@pytest.mark.parametrize("count", [1, 5, 300])
def test_the_file_does_what_the_network_does_for_any_batch(chain: Chain, count: int):
    policy, module = OnnxPolicy(chain.file), load_actor(chain.student).deployable(LIMITS)
    observation, goal = torch.randn(count, 4) * 3, torch.randn(count, 2) * 3
    with torch.no_grad():
        expected = module(observation, goal)
    action, control = policy.run(observation.numpy(), goal.numpy())
    np.testing.assert_allclose(action, expected.action.numpy(), atol=1e-5)
    np.testing.assert_allclose(control, expected.control.numpy(), atol=1e-5)


def leave_out_the_normalizer(module: DeployablePolicy) -> DeployablePolicy:
    """Return a copy with a mistake that exporters do make."""
    module = copy.deepcopy(module)
    module.actor.observation_normalizer.mean.zero_()
    return module


def test_a_graph_that_is_not_the_network_is_held_back(chain: Chain, monkeypatch: pytest.MonkeyPatch):
    convert = export.to_onnx
    monkeypatch.setattr(
        export, "to_onnx", lambda module, *sizes: convert(leave_out_the_normalizer(module), *sizes)
    )
    with pytest.raises(UserError, match="differs from the network") as caught:
        export_onnx.run(settings(include_teacher=False), context(chain.workspace), chain.student)
    failed = chain.workspace.artifacts("policy")[0]
    assert failed.manifest.status == "failed" and failed.manifest.results["error"] == str(caught.value)
    assert [path.name for path in failed.path.iterdir()] == ["manifest.json"]
    assert chain.workspace.newest("policy").name == chain.policy.name


def leave_out_the_limits(module: DeployablePolicy) -> DeployablePolicy:
    module = copy.deepcopy(module)
    module.goal_high.fill_(torch.inf)
    return module


def test_a_graph_that_does_not_clip_is_held_back(chain: Chain, monkeypatch: pytest.MonkeyPatch):
    convert = export.to_onnx
    monkeypatch.setattr(export, "to_onnx", lambda module, *rest: convert(leave_out_the_limits(module), *rest))
    with pytest.raises(UserError, match="differs from the network"):
        export_onnx.run(settings(include_teacher=False), context(chain.workspace), chain.student)


def test_an_exported_teacher_is_never_the_newest_policy(chain: Chain):
    policy = export_onnx.run(settings(opset=18), context(chain.workspace), chain.teacher)
    assert OnnxPolicy(policy.file(POLICY_FILE)).metadata.role == "teacher"
    assert set(policy.manifest.files) == {POLICY_FILE} and list(policy.manifest.parents) == ["teacher"]
    assert policy.manifest.results["opset"] == 18
    assert chain.workspace.newest("policy").name == chain.policy.name


def test_a_student_whose_teacher_is_gone_is_exported_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workspace = Workspace(tmp_path)
    parents = {"teacher": Parent("teacher", "teacher-1", "0" * 64)}
    student = make_network(workspace, "student", parents=parents)
    policy = export_onnx.run(settings(), context(workspace), student)
    assert set(policy.manifest.files) == {POLICY_FILE}
    assert "Without the teacher" in capsys.readouterr().out


def test_a_student_whose_teacher_is_damaged_is_not_exported_without_it(tmp_path: Path):
    workspace = Workspace(tmp_path)
    teacher = make_network(workspace, "teacher")
    student = make_network(workspace, "student", parents={"teacher": teacher.parent_entry()})
    manifest = teacher.file("manifest.json")
    manifest.write_text(manifest.read_text().replace('"selectable": true', '"selectable": false'))
    with pytest.raises(DamagedFileError, match=rf"{teacher.name}/manifest\.json was changed"):
        export_onnx.run(settings(), context(workspace), student)
    assert workspace.artifacts("policy") == [], "nothing was begun"


def test_a_student_of_another_model_is_exported_for_the_one_that_it_was_checked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    workspace = Workspace(tmp_path)
    with monkeypatch.context() as changed:
        changed.setattr(networks, "model_sha256", lambda model: "0" * 64)
        student = make_network(workspace, "student")
    policy = export_onnx.run(settings(), context(workspace), student)
    assert "trained on another model of task 'point_u_maze'" in " ".join(capsys.readouterr().err.split())
    metadata = OnnxPolicy(policy.file(POLICY_FILE)).metadata
    assert metadata.model_sha256 == model_sha256(compile_task(TASK).model)


def test_a_teacher_of_another_model_carries_no_success_of_the_one_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workspace = Workspace(tmp_path)
    with monkeypatch.context() as changed:
        changed.setattr(networks, "model_sha256", lambda model: "0" * 64)
        teacher = make_network(workspace, "teacher", depth=8)
    student = make_network(workspace, "student", parents={"teacher": teacher.parent_entry()})
    policy = export_onnx.run(settings(), context(workspace), student)
    found = OnnxPolicy(policy.file(TEACHER_FILE)).metadata
    assert found.evaluation is None and found.model_sha256 == model_sha256(compile_task(TASK).model)


def test_artifacts_that_do_not_belong_together_are_refused(chain: Chain, tmp_path: Path):
    other = make_network(Workspace(tmp_path), "teacher", depth=12)
    with pytest.raises(UserError, match="another teacher"):
        export_onnx.run(settings(), context(chain.workspace), chain.student, other)
    elsewhere = Workspace(tmp_path).create("dataset", task="point_big_maze", settings={})
    elsewhere.complete({})
    with pytest.raises(UserError, match=r"for task 'point_big_maze'.*'point_u_maze'"):
        export_onnx.run(settings(), context(chain.workspace), chain.student, None, elsewhere)


def test_one_episode_that_ends_otherwise_is_told_and_the_file_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    workspace = Workspace(tmp_path)
    act = gate.act_in_same_episodes

    def with_one_turned(policy: Any, *arguments: Any, **options: Any) -> Episodes:
        outcome = act(policy, *arguments, **options)
        if isinstance(policy, OnnxPolicy):
            outcome.success[0] = ~outcome.success[0]
        return outcome

    monkeypatch.setattr(gate, "act_in_same_episodes", with_one_turned)
    policy = export_onnx.run(settings(), context(workspace), make_network(workspace, "student"))
    results = policy.manifest.results
    assert abs(results["success"] - results["torch_success"]) == pytest.approx(1 / results["episodes"])
    said = capsys.readouterr()
    assert f"{results['episodes']} episodes are too few to tell that from chance" in said.out + said.err
    assert "--set closed_loop_episodes=" in said.out + said.err


def test_a_damaged_student_is_refused(tmp_path: Path):
    student = make_network(Workspace(tmp_path), "student")
    path = student.file(NETWORK_FILE)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DamagedFileError, match="differs from its recorded hash"):
        export_onnx.run(settings(), context(Workspace(tmp_path)), student)


def test_a_damaged_policy_file_is_refused(chain: Chain, tmp_path: Path):
    path = Path(shutil.copy(chain.file, tmp_path))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DamagedFileError, match="pipeline export-onnx"):
        OnnxPolicy(path)


@pytest.mark.parametrize(
    ("override", "word"),
    [("opset=17", "opset"), ("gate_state=5", "gate_states"), ("max_action_error=0.002", "max_action_error")],
)
def test_settings_that_make_no_sense_are_refused(override: str, word: str):
    with pytest.raises(SettingsError, match=word):
        resolve_settings(ExportOnnxSettings, "export_onnx", overrides=[override])


def test_the_golden_rows_are_the_networks_own_within_and_beyond_the_limits(chain: Chain):
    policy = OnnxPolicy(chain.file)
    golden, inputs = policy.golden(), policy.metadata.inputs
    rows = golden.arrays()
    assert golden.tolerance == chain.policy.manifest.results["allowed_action_error"] == 1e-5
    assert all(len(part) == 16 and part.dtype == np.float32 for part in rows)
    state = np.concatenate([rows.observation, rows.goal], 1)
    elements = [*inputs.observation, *inputs.goal]
    low, high = (np.float32([getattr(e, key) for e in elements]) for key in ("limit_low", "limit_high"))
    beyond = (state < low) | (state > high)
    assert not beyond[:12].any() and beyond[12:].any(1).all()
    assert (state > high).any() and (state < low).any(), "above and below"
    assert (rows.observation[:12] == 50).any() and (rows.observation[:12] != 50).any(), "of both sources"
    clipped = np.clip(state, low, high)
    actor = load_actor(chain.student).actor
    with torch.no_grad():
        mean = actor(torch.from_numpy(clipped[:, :4]), torch.from_numpy(clipped[:, 4:])).mean
    np.testing.assert_allclose(rows.action, torch.tanh(mean).numpy(), atol=1e-6)
    assert golden_error(policy.run, golden, policy.metadata) <= 1e-5


def test_the_limits_are_the_seen_range_and_its_width_on_both_sides(chain: Chain):
    for element in (*(inputs := OnnxPolicy(chain.file).metadata.inputs).observation, *inputs.goal):
        width = max(element.high - element.low, 1e-3)
        assert element.limit_low == pytest.approx(element.low - width, rel=1e-5)
        assert element.limit_high == pytest.approx(element.high + width, rel=1e-5)


def test_the_hash_and_the_licence_go_into_the_file(chain: Chain):
    policy = export_onnx.run(
        settings(licence="CC-BY-4.0", include_teacher=False), context(chain.workspace), chain.student
    )
    found = OnnxPolicy(policy.file(POLICY_FILE)).metadata
    assert found.graph_sha256 == read_model(policy.file(POLICY_FILE)).graph_sha256
    assert (found.licence, found.precision, found.opset) == ("CC-BY-4.0", "float32", 20)
    assert OnnxPolicy(chain.file).metadata.licence == ""
    tamper(policy.file(POLICY_FILE))
    with pytest.raises(DamagedFileError, match="changed since it was exported"):
        OnnxPolicy(policy.file(POLICY_FILE))
