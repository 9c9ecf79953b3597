"""The whole chain on the smallest preset, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner, Result

from tests.end_to_end.command_line import clean_environment, pipeline, result_of
from tests.envs.opengl_here import REASON
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cli import cli
from thousandfold.pipeline.tracking import NEWEST_ALIAS
from thousandfold.pipeline.tracking_database import sqlite_uri

SECTIONS = ("train_teacher", "generate_dataset", "distill", "export_onnx", "benchmark", "render", "report")
PICTURES = {
    "train_teacher": ("learning_curve.png", "rollouts.png"),
    "generate_dataset": ("coverage.png",),
    "distill": ("learning_curve.png",),
    "benchmark": ("latency.png",),
    "render": () if REASON else ("strip.png",),  # without OpenGL a chain records episodes, and draws none
}
PARENTS = {
    "train_teacher": set(),
    "generate_dataset": {"train_teacher"},
    "distill": {"train_teacher", "generate_dataset"},
    "export_onnx": {"train_teacher", "generate_dataset", "distill"},
    "benchmark": {"export_onnx"},
    "render": {"export_onnx"},
    "report": set(SECTIONS) - {"report"},
}
PARENTS = {section: PARENTS[section] for section in SECTIONS}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "-a b?c%41#é;&'"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def run(workspace: Path) -> subprocess.CompletedProcess[str]:
    return pipeline(workspace, "run", "--preset", "smoke", "--seed", "1", "--json")


@pytest.fixture(scope="module")
def made(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return result_of(run)


@pytest.fixture(scope="module")
def artifacts(made: dict[str, Any]) -> dict[str, Artifact]:
    return {section: Artifact.load(Path(entry["path"])) for section, entry in made.items()}


@pytest.fixture(scope="module")
def client(workspace: Path, made: dict[str, Any]) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=sqlite_uri(workspace / "mlflow" / "mlflow.db"))


def invoke(workspace: Path, *arguments: str) -> Result:
    """Run a command in this process, which has the libraries loaded already."""
    result = CliRunner().invoke(cli, ["--workspace", str(workspace), *arguments])
    assert result.exit_code == 0, result.output
    return result


def python(code: str, folder: Path, **environment: str) -> str:
    """Run code in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestRun:
    def test_it_says_what_it_does(self, run: subprocess.CompletedProcess[str], workspace: Path) -> None:
        lines = run.stderr.splitlines()
        assert lines[0] == f"Preset smoke (as asked); workspace {workspace}."
        for number, section in enumerate(SECTIONS, start=1):
            assert f"[{number}/7] {section.replace('_', '-')}" in lines
        assert "Traceback" not in run.stderr

    def test_it_reports_every_artifact(self, made: dict[str, Any], workspace: Path) -> None:
        assert tuple(made) == SECTIONS
        for entry in made.values():
            assert Path(entry["path"]).parent == workspace / "runs"
            assert all(Path(path).is_file() for path in entry["files"].values())

    def test_every_artifact_is_whole_and_knows_its_parents(self, artifacts: dict[str, Artifact]) -> None:
        assert artifacts.keys() == PARENTS.keys()
        for section, artifact in artifacts.items():
            artifact.verify()
            recorded = {parent.hash for parent in artifact.manifest.parents.values()}
            assert recorded == {artifacts[parent].manifest.hash for parent in PARENTS[section]}
            assert artifact.manifest.settings["seed"] == 1
            assert artifact.manifest.versions["mujoco"]

    def test_the_pictures_are_pictures(self, artifacts: dict[str, Artifact]) -> None:
        for section, names in ((section, PICTURES.get(section, ())) for section in SECTIONS):
            for name in names:
                content = artifacts[section].file(name).read_bytes()
                assert content[:8] == b"\x89PNG\r\n\x1a\n", name
                assert len(content) > 5_000, name

    def test_nothing_half_written_is_left(self, workspace: Path, made: dict[str, Any]) -> None:
        assert not [path for path in workspace.rglob("*") if path.name.startswith(".tmp-")]
        assert {path.name for path in workspace.iterdir()} == {"cache", "runs", "mlflow"}


class TestTracking:
    def test_one_parent_with_a_child_a_stage(self, client: Any, artifacts: dict[str, Artifact]) -> None:
        (experiment,) = (found for found in client.search_experiments() if found.name == "thousandfold")
        runs = client.search_runs([experiment.experiment_id])
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(parents) == 1
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
        assert {run.info.run_name for run in children} == {artifact.name for artifact in artifacts.values()}
        assert len(runs) == 1 + len(SECTIONS)
        page = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
        assert page == {"report.html"}
        assert {run.info.status for run in runs} == {"FINISHED"}

    def test_settings_metrics_and_pictures_are_recorded(
        self, client: Any, artifacts: dict[str, Artifact]
    ) -> None:
        for section, artifact in artifacts.items():
            run_id = artifact.manifest.tracking["run_id"]
            run = client.get_run(run_id)
            assert run.data.params["seed"] == "1"
            assert run.data.metrics, section
            names = {file.path for file in client.list_artifacts(run_id)}
            assert {"manifest.json", *PICTURES.get(section, ())} <= names
            if section == "render":
                assert "recording.json" in names and ("episodes.mp4" in names) == (not REASON)
        steps = client.get_metric_history(
            artifacts["train_teacher"].manifest.tracking["run_id"], "eval/success"
        )
        assert len(steps) > 1

    def test_the_chain_can_be_compared(self, client: Any, artifacts: dict[str, Artifact]) -> None:
        chain = client.get_run(artifacts["distill"].manifest.tracking["chain_run_id"])
        results = {section: artifact.manifest.results for section, artifact in artifacts.items()}
        timing = results["benchmark"]["networks"]["student"]["back_to_back"]
        expected = {
            **{f"teacher_{n}": results["train_teacher"][n] for n in ("success", "time_at_goal", "elapsed_s")},
            **{f"student_{n}": results["distill"][n] for n in ("success", "retention")},
            "student_parameters": results["distill"]["student_parameters"],
            "policy_success": results["export_onnx"]["success"],
            **{f"latency_{name}": timing[name] for name in ("p50_us", "p99_us")},
            "latency_speedup": results["benchmark"]["speedup"],
        }
        assert chain.data.metrics == {name: value for name, value in expected.items() if value is not None}
        depth = artifacts["train_teacher"].manifest.settings["depth"]
        assert chain.data.params["train_teacher.depth"] == str(depth)
        assert chain.info.run_name.startswith(f"{depth}×") and chain.info.run_name.endswith(", point_u_maze")
        described = chain.data.tags["mlflow.note.content"]
        assert all(artifact.name in described for artifact in artifacts.values())

    def test_datasets_are_logged(self, client: Any, artifacts: dict[str, Artifact]) -> None:
        for section in ("generate_dataset", "distill"):
            run = client.get_run(artifacts[section].manifest.tracking["run_id"])
            (used,) = run.inputs.dataset_inputs
            assert used.dataset.name == artifacts["generate_dataset"].name
            assert str(artifacts["generate_dataset"].manifest.hash).startswith(used.dataset.digest)

    @pytest.mark.parametrize(
        ("model", "section", "file", "registered"),
        [
            ("teacher", "train_teacher", "network.safetensors", "data/network.safetensors"),
            ("student", "distill", "network.safetensors", "data/network.safetensors"),
            ("policy", "export_onnx", "policy.onnx", "model.onnx"),
        ],
    )
    def test_models_are_registered(
        self,
        client: Any,
        artifacts: dict[str, Artifact],
        model: str,
        section: str,
        file: str,
        registered: str,
    ) -> None:
        version = client.get_model_version_by_alias(f"{model}-point_u_maze", NEWEST_ALIAS)
        assert version.tags["artifact"] == artifacts[section].name
        folder = Path(unquote(version.source.removeprefix("file://")))
        assert (folder / registered).read_bytes() == artifacts[section].file(file).read_bytes()


class TestElsewhere:
    def test_minari_loads_the_dataset(self, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
        dataset = artifacts["generate_dataset"]
        text = python(
            """
            import json, minari
            data = minari.load_dataset("thousandfold/point_u_maze-v0")
            episode = data[0]
            print(json.dumps([data.total_episodes, data.total_steps, sorted(episode.observations)]))
            """,
            tmp_path,
            MINARI_DATASETS_PATH=str(dataset.file("minari")),
        )
        episodes, rows, keys = json.loads(text.splitlines()[-1])
        assert (episodes, rows) == (dataset.manifest.results["episodes"], dataset.manifest.results["rows"])
        assert {"observation", "achieved_goal", "desired_goal"} <= set(keys)

    def test_the_policy_runs_with_onnxruntime_alone(
        self, artifacts: dict[str, Artifact], tmp_path: Path
    ) -> None:
        text = python(
            f"""
            import json, sys
            import numpy as np, onnxruntime
            session = onnxruntime.InferenceSession({str(artifacts["export_onnx"].file("policy.onnx"))!r})
            told = json.loads(session.get_modelmeta().custom_metadata_map["thousandfold"])
            rows = [np.zeros((3, len(told["inputs"][n])), np.float32) for n in ("observation", "goal")]
            action, control = session.run(["action", "control"], dict(zip(("observation", "goal"), rows)))
            own = [n for n in ("torch", "onnx", "thousandfold") if n in sys.modules]
            print(json.dumps([action.shape, control.shape, float(abs(action).max()), own, told["task"]]))
            """,
            tmp_path,
        )
        action, control, largest, own, task = json.loads(text)
        assert action == control == [3, 2]
        assert largest <= 1
        assert own == []
        assert task == "point_u_maze"


class TestStageByStage:
    def test_each_stage_takes_the_newest_before_it(self, made: dict[str, Any], workspace: Path) -> None:
        teacher = made["train_teacher"]["artifact"]
        before = made
        for section in SECTIONS[1:]:
            sets = {
                "render": ("video=false",) if REASON else (),
                "benchmark": ("compare=false", "cold_starts=0", "busy_processes=0"),
            }
            more = [f"--set={value}" for value in sets.get(section, ())]
            done = invoke(workspace, section.replace("_", "-"), "--preset", "smoke", "--json", *more)
            entry = json.loads(done.stdout)
            assert done.stderr.splitlines()[0].startswith("Preset smoke (as asked)")
            assert entry["artifact"] != made[section]["artifact"]
            assert entry["tracking"]["chain_run_id"] == made[section]["tracking"]["chain_run_id"]
            before = before | {section: entry}
            parents = Artifact.load(Path(entry["path"])).manifest.parents
            assert {parent.name for parent in parents.values()} == {
                before[parent]["artifact"] for parent in PARENTS[section]
            }
        listed = invoke(workspace, "runs").stdout
        assert listed.count(teacher) >= 4, "it, both datasets and what came of them"

    def test_evaluate_takes_student_and_teacher(self, made: dict[str, Any], workspace: Path) -> None:
        for kind, section in (("student", "distill"), ("teacher", "train_teacher")):
            name = made[section]["artifact"]
            result = invoke(workspace, "evaluate", f"--{kind}", name, "--episodes", "4", "--json")
            (parent,) = Workspace(workspace).artifacts("evaluation")[0].manifest.parents.values()
            assert (parent.kind, parent.name) == (kind, name)
            assert json.loads(result.stdout)["results"]["episodes"] == 4


def test_distil_right_after_the_teacher_makes_the_dataset_first(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    teacher = json.loads(invoke(tmp_path, "train-teacher", "--preset", "smoke", "--json").stdout)
    arguments = ("distill", "--student-depth", "4", "--preset", "smoke", "--json")
    done = invoke(tmp_path, *arguments)
    assert f"No dataset of teacher {teacher['artifact']} yet: making one first." in done.stderr
    student = json.loads(done.stdout)
    (dataset,) = Workspace(tmp_path).artifacts("dataset")
    found = {artifact.kind: artifact for artifact in Workspace(tmp_path).artifacts()}
    assert found["student"].manifest.parents["dataset"].hash == dataset.manifest.hash
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    chain = teacher["tracking"]["chain_run_id"]
    runs = [artifact.manifest.tracking["run_id"] for artifact in found.values()]
    assert len(set(runs)) == 3
    for run_id in runs:
        assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == chain
    assert "making one first" not in invoke(tmp_path, *arguments).stderr
    assert student["task"] == "point_u_maze"
