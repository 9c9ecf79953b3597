"""`pipeline policy` at a user's hands: pages, verdicts with their exit codes, and the registry's aliases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.test_cli import invoke
from tests.stages.policy_file.c_programs import require_compiler
from tests.stages.policy_file.handmade_policy import edited, metadata, policy_artifact, tamper, write_policy
from tests.stages.untrained_networks import make_network
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.tracking import NullTracker, open_tracker
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.export_onnx.export_onnx import ExportOnnxSettings
from thousandfold.stages.policies import load_policy
from thousandfold.stages.policy_file import c_code, c_policy
from thousandfold.stages.policy_file.c_code import c_files
from thousandfold.stages.policy_file.onnx_bytes import read_model

EPISODES = ("--episodes", "8")


@pytest.fixture(autouse=True)
def without_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "THOUSANDFOLD_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    """A file that says that it reaches nothing, which is true."""
    never = {"success": 0.0, "success_interval": [0, 0.1], "episodes": 32, "runtime": "onnxruntime"}
    return write_policy(tmp_path / "policy.onnx", json.dumps(metadata(evaluation=never)))


def result_of(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])


def refused(workspace: Path, *arguments: str) -> str:
    """Run a command that must fail as a user's mistake; return its one line."""
    done = invoke(workspace, "policy", *arguments, code=2)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert "Traceback" not in done.output
    return line


class TestInspect:
    def test_a_file_outside_any_workspace(self, honest: Path, tmp_path: Path) -> None:
        text = invoke(tmp_path / "none", "policy", "inspect", str(honest)).stdout
        for words in (
            "student for task point_u_maze", "10 Hz (every 0.1 s)", "depth 1, width 2, 14 parameters",
            "0.000 [0.000, 0.100] over 32 episodes", "CC0-1.0", "Input observation (4)", "qvel:y[0]",
            "Output control (2)", "student-1", "16, to 1e-05",
        ):  # fmt: skip
            assert words in text, words
        assert not (tmp_path / "none").exists()

    def test_json_holds_the_whole_metadata(self, honest: Path, tmp_path: Path) -> None:
        found = result_of(invoke(tmp_path, "policy", "inspect", str(honest), "--json").stdout)
        assert found["metadata"]["inputs"]["goal"][1]["limit_high"] == 3.0
        assert found["intact"] is True and found["bytes"] == honest.stat().st_size
        assert found["golden"] == {"rows": 16, "tolerance": 1e-5}

    def test_the_newest_or_one_by_name(self, tmp_path: Path) -> None:
        first, second = policy_artifact(tmp_path), policy_artifact(tmp_path)
        for arguments, artifact in (((), second), ((first.name,), first)):
            found = result_of(invoke(tmp_path, "policy", "inspect", *arguments, "--json").stdout)
            assert found["policy"] == artifact.name

    def test_a_changed_graph_is_said(self, honest: Path, tmp_path: Path) -> None:
        done = invoke(tmp_path, "policy", "inspect", str(tamper(honest)))
        assert (
            "its graph differs from the recorded hash" in done.stderr
            and "the file's is another" in done.stdout
        )

    def test_an_edited_description_is_said(self, honest: Path, tmp_path: Path) -> None:
        edited(honest, "thousandfold", lambda text: text["outputs"]["control"][0].update(high=99.0))
        done = invoke(tmp_path, "policy", "inspect", str(honest), "--json")
        assert "its description or golden rows differ from the recorded hash" in done.stderr
        assert result_of(done.stdout)["intact"] is False


class TestVerify:
    def test_an_honest_file_exits_with_0(self, honest: Path, tmp_path: Path) -> None:
        done = invoke(tmp_path / "none", "policy", "verify", str(honest), *EPISODES, "--json")
        found = result_of(done.stdout)
        assert found["passed"] is True and len(found["checks"]) == 8
        assert "every check passed" in done.stderr
        assert not (tmp_path / "none").exists()

    def test_a_failed_check_exits_with_1_and_still_says_all(self, honest: Path, tmp_path: Path) -> None:
        done = invoke(tmp_path, "policy", "verify", str(tamper(honest)), *EPISODES, "--json", code=1)
        found = result_of(done.stdout)
        failed = [check["name"] for check in found["checks"] if check["passed"] is False]
        assert found["passed"] is False and failed == ["graph hash", "policy hash", "golden rows"]
        assert "3 of 8 checks failed" in done.stderr and "FAILED" in done.stderr


class TestToC:
    def test_the_code_is_checked_and_written(self, honest: Path, tmp_path: Path) -> None:
        require_compiler()
        out = tmp_path / "out"
        done = invoke(tmp_path, "policy", "to-c", str(honest), "--out", str(out), *EPISODES, "--json")
        found = result_of(done.stdout)
        model = read_model(honest)
        assert {path.name: path.read_text() for path in out.iterdir()} == c_files(model, honest)
        assert found["files"] == {name: str(out / name) for name in ("policy.h", "policy.c")}
        assert found["sha256"] == model.policy_sha256
        checks = {check["name"]: check for check in found["verification"]["checks"]}
        for name in ("C: golden rows", "C: self-test", "C: closed loop"):
            assert checks[name]["passed"] is True, name
        assert "ONNX Runtime 0.000, over the same 8 episodes" in checks["C: closed loop"]["detail"]
        assert "checked as compiled here" in done.stderr

    def test_an_artifact_by_its_name(self, tmp_path: Path) -> None:
        artifact, out = policy_artifact(tmp_path), tmp_path / "out"
        invoke(tmp_path, "policy", "to-c", artifact.name, "--out", str(out), "--unchecked")
        assert (out / "policy.c").read_text() == c_files(read_model(artifact.file("policy.onnx")), out)[
            "policy.c"
        ]

    @pytest.mark.parametrize("unchecked", [(), ("--unchecked",)])
    def test_a_changed_file_is_refused(
        self, unchecked: tuple[str, ...], honest: Path, tmp_path: Path
    ) -> None:
        line = refused(tmp_path, "to-c", str(tamper(honest)), "--out", str(tmp_path / "out"), *unchecked)
        assert "was changed since it was exported" in line and not (tmp_path / "out").exists()

    def test_what_is_not_its_own_is_not_replaced(self, honest: Path, tmp_path: Path) -> None:
        (tmp_path / "policy.c").write_text("my own code")
        line = refused(tmp_path, "to-c", str(honest), "--out", str(tmp_path), "--unchecked")
        assert "policy.c was not written by to-c" in line
        assert (tmp_path / "policy.c").read_text() == "my own code" and not (tmp_path / "policy.h").exists()

    def test_its_own_files_are_replaced(self, honest: Path, tmp_path: Path) -> None:
        arguments = ("policy", "to-c", str(honest), "--out", str(tmp_path / "out"), "--unchecked")
        invoke(tmp_path, *arguments)
        first = (tmp_path / "out" / "policy.c").read_text()
        (tmp_path / "out" / "policy.c").write_text("/* A policy in C99 of earlier */")
        invoke(tmp_path, *arguments)
        assert (tmp_path / "out" / "policy.c").read_text() == first

    def test_without_a_compiler_it_is_written_on_request_alone(
        self, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(c_policy, "c_compiler", lambda: None)
        out = tmp_path / "out"
        line = refused(tmp_path, "to-c", str(honest), "--out", str(out))
        assert "There is no C compiler here (cc, gcc, clang): nothing was written. --unchecked" in line
        assert not out.exists()
        done = invoke(tmp_path, "policy", "to-c", str(honest), "--out", str(out), "--unchecked", "--json")
        assert result_of(done.stdout)["verification"] is None and "unchecked" in done.stderr
        assert sorted(path.name for path in out.iterdir()) == ["policy.c", "policy.h"]

    def test_code_that_computes_something_else_is_not_written(
        self, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        require_compiler()

        def wrong(*arguments: Any) -> dict[str, str]:
            files = c_files(*arguments)
            return files | {"policy.c": files["policy.c"].replace("tanhf(", "sinf(")}

        monkeypatch.setattr(c_code, "c_files", wrong)
        line = refused(tmp_path, "to-c", str(honest), "--out", str(tmp_path / "out"), *EPISODES)
        assert (
            "is not written as C, because these checks failed: C: golden rows (16 rows, off by at most"
            in line
        )
        assert "C: self-test (golden row 1 gives another result)" in line and not (tmp_path / "out").exists()

    def test_code_that_does_not_compile_is_said(
        self, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        require_compiler()
        monkeypatch.setattr(c_code, "c_files", lambda *_: {"policy.h": "", "policy.c": "int policy_run(;\n"})
        line = refused(tmp_path, "to-c", str(honest), "--out", str(tmp_path / "out"))
        assert "does not compile the policy's C code (" in line and "error: " in line

    def test_it_is_verified_as_a_file_is(self, tmp_path: Path) -> None:
        require_compiler()
        boastful = write_policy(tmp_path / "policy.onnx")  # says 0.9, and reaches nothing
        line = refused(tmp_path, "to-c", str(boastful), "--out", str(tmp_path / "out"), *EPISODES)
        assert "these checks failed: closed loop (" in line and not (tmp_path / "out").exists()


class TestBadInput:
    @pytest.mark.parametrize("command", ["inspect", "verify"])
    def test_files_that_are_none(self, command: str, honest: Path, tmp_path: Path) -> None:
        whole = honest.read_bytes()
        honest.write_bytes(whole[: len(whole) // 2])
        assert "truncated or no ONNX file" in refused(tmp_path, command, str(honest))
        write_policy(honest, key="")
        assert "Thousandfold did not write" in refused(tmp_path, command, str(honest))
        write_policy(honest, json.dumps(metadata(format_version=1)))
        assert "of format 1, this version reads 3 and 4: export" in refused(tmp_path, command, str(honest))
        assert "absent.onnx is no file" in refused(tmp_path, command, str(tmp_path / "absent.onnx"))
        assert "No policy 'policy-7'" in refused(tmp_path, command, "policy-7")
        assert "make one with `pipeline export-onnx`" in refused(tmp_path, command)

    def test_promote_takes_artifacts_alone(self, honest: Path, tmp_path: Path) -> None:
        assert "promote one by its name" in refused(tmp_path, "promote", str(honest))

    def test_a_policy_of_another_model_is_refused_where_a_task_is_at_hand(self, tmp_path: Path) -> None:
        artifact = Workspace(tmp_path).create("policy", task="point_u_maze", settings={})
        write_policy(artifact.file("policy.onnx"), json.dumps(metadata(model_sha256="0" * 64)))
        artifact.complete({})
        with pytest.raises(UserError, match="was made for another model of task 'point_u_maze'"):
            load_policy(artifact, "cpu", Console())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Artifact]]:
    """A workspace with two policies that were exported with tracking, a teacher behind the first."""
    workspace = Workspace(tmp_path_factory.mktemp("registry"))
    console = Console(silent=True)
    context = StageContext(workspace, console, open_tracker(workspace.root))
    settings = ExportOnnxSettings(gate_states=32, closed_loop_episodes=4, licence="CC0 | <b>`x`</b>")
    teacher = make_network(workspace, "teacher", depth=8)
    teacher.update(tracking={"run_id": context.tracker.open_chain("training of the teacher")})
    student = make_network(workspace, "student", parents={"teacher": teacher.parent_entry()})
    return workspace.root, [export_onnx.run(settings, context, student, teacher) for _ in range(2)]


def test_c_code_with_int8_weights(tmp_path: Path) -> None:
    require_compiler()
    workspace, root = Workspace(tmp_path / "w"), tmp_path / "w"
    settings = ExportOnnxSettings(gate_states=32, closed_loop_episodes=4)
    context = StageContext(workspace, Console(silent=True), NullTracker())
    policy = export_onnx.run(settings, context, make_network(workspace, "student", width=32))
    to_c = ("policy", "to-c", policy.name, "--out", str(tmp_path / "out"), "--weights", "int8", *EPISODES)
    found = result_of(invoke(root, *to_c, "--json").stdout)
    checks = {check["name"]: check for check in found["verification"]["checks"]}
    for name in ("C: golden rows", "C: int8 weights", "C: self-test", "C: closed loop"):
        assert checks[name]["passed"] is True, name
    assert "off the file's golden rows by at most" in checks["C: int8 weights"]["detail"]
    assert '#define POLICY_WEIGHTS "int8"' in (tmp_path / "out/policy.h").read_text()
    line = refused(root, *to_c[1:], "--unchecked")
    assert "int8 weights are compiled and checked" in line


class TestRegistry:
    @pytest.fixture
    def copied(self, exported: tuple[Path, list[Artifact]], tmp_path: Path) -> tuple[Path, list[Artifact]]:
        """Its policies in a copy; the registry is the same, for it names its files by absolute paths."""
        root, policies = exported
        shutil.copytree(root / "runs", tmp_path / "copy" / "runs")
        shutil.copytree(root / "mlflow", tmp_path / "copy" / "mlflow")
        return tmp_path / "copy", policies

    def client(self, root: Path) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow/mlflow.db")

    def test_the_candidate_is_an_onnx_model(
        self, exported: tuple[Path, list[Artifact]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import mlflow
        from mlflow import onnx as flavour

        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{exported[0]}/mlflow/mlflow.db")
        uri = "models:/policy-point_u_maze@candidate"
        model = flavour.load_model(uri)
        assert [node.name for node in model.graph.input] == ["observation", "goal"]
        loaded = mlflow.pyfunc.load_model(uri)
        assert [spec.name for spec in loaded.metadata.signature.inputs.inputs] == ["observation", "goal"]
        assert [spec.shape for spec in loaded.metadata.signature.outputs.inputs] == [(-1, 2), (-1, 2)]
        example = {key: np.asarray(rows, np.float32) for key, rows in loaded.input_example.items()}
        assert loaded.predict(example)["control"].shape == (2, 2)

    def test_one_page_leads_back_to_the_teachers_run(self, exported: tuple[Path, list[Artifact]]) -> None:
        root, policies = exported
        client = self.client(root)
        assert set(client.get_registered_model("policy-point_u_maze").aliases) >= {"candidate", "newest"}
        version = client.get_model_version_by_alias("policy-point_u_maze", "candidate")
        assert version.tags["artifact"] == policies[1].name and int(version.version) == 2
        run_id = version.tags["teacher_run_id"]
        run = client.get_run(run_id)
        assert run.info.run_name == "training of the teacher"
        page = version.description
        link = f"[run](#/experiments/{run.info.experiment_id}/runs/{run_id})"
        (row,) = (line for line in page.splitlines() if line.startswith("| teacher |"))
        assert link in row and version.tags["teacher"] in row and version.tags["teacher_hash"][:12] in row
        assert f"runs/{policies[1].manifest.tracking['run_id']})" in page
        assert "Licence: CC0 / &lt;b&gt;'x'&lt;/b&gt;." in page

    def test_production_moves_to_what_was_verified(self, copied: tuple[Path, list[Artifact]]) -> None:
        root, (first, second) = copied
        done = invoke(root, "policy", "promote", first.name, *EPISODES, "--json")
        moved = result_of(done.stdout)
        assert (moved["from_version"], moved["to_version"]) == (None, "1")
        assert "which no version had, is now on version 1" in done.stderr
        moved = result_of(invoke(root, "policy", "promote", *EPISODES, "--json").stdout)
        assert (moved["from_version"], moved["to_version"], moved["policy"]) == ("1", "2", second.name)
        client = self.client(root)
        holder = client.get_model_version_by_alias("policy-point_u_maze", "production")
        assert int(holder.version) == 2 and "over 8 episodes, seed 0" in holder.tags["verified_success"]
        assert int(client.get_model_version_by_alias("policy-point_u_maze", "candidate").version) == 2

    def test_a_teacher_is_promoted_on_request_alone(self, copied: tuple[Path, list[Artifact]]) -> None:
        root, (first, _) = copied
        workspace = Workspace(root)
        teacher = workspace.open(first.manifest.parents["teacher"].name, "teacher")
        context = StageContext(workspace, Console(silent=True), open_tracker(root))
        policy = export_onnx.run(ExportOnnxSettings(gate_states=32, closed_loop_episodes=4), context, teacher)
        line = refused(root, "promote", policy.name, *EPISODES)
        assert f"{policy.name} is an exported teacher" in line and "with --teacher" in line
        assert "production" not in self.client(root).get_registered_model("policy-point_u_maze").aliases
        done = invoke(root, "policy", "promote", policy.name, "--teacher", *EPISODES, "--json")
        assert result_of(done.stdout)["policy"] == policy.name

    def test_what_does_not_pass_is_not_promoted(self, copied: tuple[Path, list[Artifact]]) -> None:
        root, (first, _) = copied
        tamper(Workspace(root).open(first.name, "policy").file("policy.onnx"))
        line = refused(root, "promote", first.name, *EPISODES)
        assert "is not promoted, because these checks failed: graph hash (" in line and "artifact (" in line
        assert "production" not in self.client(root).get_registered_model("policy-point_u_maze").aliases

    def test_what_is_not_registered_or_another_file_is_not_promoted(
        self, copied: tuple[Path, list[Artifact]]
    ) -> None:
        root, _ = copied
        other = policy_artifact(root)
        never = {"success": 0.0, "success_interval": [0, 1], "episodes": 4, "runtime": "torch"}
        write_policy(other.file("policy.onnx"), json.dumps(metadata(evaluation=never)))
        other.complete({})
        assert "is not registered as policy-point_u_maze" in refused(root, "promote", other.name, *EPISODES)
        client = self.client(root)
        client.set_model_version_tag("policy-point_u_maze", "1", "artifact", other.name)
        assert "in the registry is not" in refused(root, "promote", other.name, *EPISODES)
