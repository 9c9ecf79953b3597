"""The package as a program uses it: the example of docs/api.md, and what stands beside it there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import thousandfold
from tests.pages import blocks
from thousandfold import (
    Artifact,
    MissingArtifactError,
    NonFiniteError,
    Policy,
    SettingsError,
    StoppedByUser,
    UserError,
)
from thousandfold.pipeline.cli import cli
from thousandfold.pipeline.tracking_database import sqlite_uri

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the names of the example stand for after it has run, on the smoke preset."""
    (block,) = blocks("docs/api.md", "python")
    code = block.text.replace('"quickstart"', '"smoke"').replace(
        "on_evaluation=print", "on_evaluation=heard.append"
    )
    names: dict[str, Any] = {"heard": [], "folder": tmp_path_factory.mktemp("api")}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("THOUSANDFOLD_WORKSPACE", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(names["folder"])
        exec(code, names)
    return names


@pytest.fixture
def workspace(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's workspace; the current folder is another, and nothing is tracked."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    return example["folder"] / "demo"


class TestStages:
    def test_each_returns_its_artifact_in_the_workspace(self, example: dict[str, Any]) -> None:
        kinds = {"teacher": "teacher", "student": "student", "exported": "policy", "evaluation": "evaluation"}
        for name, kind in {**kinds, "timed": "benchmark"}.items():
            artifact = example[name]
            assert isinstance(artifact, Artifact) and artifact.kind == kind
            assert artifact.path == example["folder"] / "demo" / "runs" / artifact.name
            assert artifact.results == Artifact.load(artifact.path).manifest.results
        assert example["evaluation"].results["episodes"] == 16

    def test_a_missing_dataset_is_made_first(self, example: dict[str, Any]) -> None:
        assert [p.kind for p in example["student"].manifest.parents.values()] == ["teacher", "dataset"]

    def test_settings_are_those_of_the_command(self, example: dict[str, Any]) -> None:
        made = {
            "train-teacher": (example["teacher"], "--seed=1"),
            "distill": (example["student"], "--student-depth=2"),
            "export-onnx": (example["exported"], "--json"),
        }
        for command, (artifact, flag) in made.items():
            shown = CliRunner().invoke(cli, [command, "--preset=smoke", flag, "--dry-run", "--json"])
            (settings,) = json.loads(shown.stdout.splitlines()[-1]).values()
            settled = {"dagger_rounds": 0} if command == "distill" else {}  # for this task
            assert artifact.manifest.settings == settings | settled

    def test_they_are_tracked_in_one_chain(self, example: dict[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(sqlite_uri(example["folder"] / "demo" / "mlflow" / "mlflow.db"))
        chain = example["teacher"].manifest.tracking["chain_run_id"]
        for name in ("teacher", "student", "exported"):
            run = client.get_run(example[name].manifest.tracking["run_id"])
            assert run.info.status == "FINISHED"
            assert run.data.tags["mlflow.parentRunId"] == chain

    def test_without_a_workspace_it_is_the_artifacts_own(
        self, example: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
        monkeypatch.chdir(tmp_path)
        evaluation = thousandfold.evaluate(example["policy"], preset="smoke", episodes=2)
        assert evaluation.path.parents[1] == example["folder"] / "demo"
        assert not list(tmp_path.iterdir())

    def test_each_evaluation_of_a_training_is_told(self, example: dict[str, Any], workspace: Path) -> None:
        history = json.loads(example["teacher"].file("history.json").read_text())["history"]
        assert example["heard"] == history and len(history) > 1
        heard: list[dict[str, float]] = []
        student = thousandfold.distill(
            example["teacher"], workspace=workspace, preset="smoke", on_evaluation=heard.append
        )
        assert heard == json.loads(student.file("history.json").read_text())["history"]

    def test_ctrl_c_saves_and_says_how_to_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
        with pytest.raises(
            StoppedByUser, match=r"state saved in .* train-teacher --resume (teacher-[0-9-]+)"
        ):
            thousandfold.train_teacher(
                workspace=tmp_path,
                preset="smoke",
                on_evaluation=lambda _: signal.raise_signal(signal.SIGINT),
            )
        done = CliRunner().invoke(cli, ["--workspace", str(tmp_path), "train-teacher", "--resume"])
        assert done.exit_code == 0, done.output

    def test_what_a_listener_raises_ends_the_training_and_the_callers_threads_are_as_they_were(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
        torch.set_num_threads(3)
        with pytest.raises(KeyError, match="reward"):
            thousandfold.train_teacher(
                workspace=tmp_path, preset="smoke", on_evaluation=lambda found: found["reward"]
            )
        (teacher,) = (tmp_path / "runs").glob("teacher-*")
        assert Artifact.load(teacher).status == "failed" and torch.get_num_threads() == 3

    def test_an_artifact_is_given_by_name_or_folder(self, example: dict[str, Any], workspace: Path) -> None:
        teacher = example["teacher"]
        for reference in (teacher.name, teacher.path, str(teacher.path)):
            dataset = thousandfold.generate_dataset(
                reference, workspace=workspace, preset="smoke", episodes=4, noise_levels=(0.0,)
            )
            assert dataset.manifest.parents["teacher"].name == teacher.name
            assert dataset.results["episodes"] == 4

    def test_a_file_is_timed_as_it_lies(
        self, example: dict[str, Any], workspace: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "robot.onnx"
        file.write_bytes(example["exported"].file("policy.onnx").read_bytes())
        short = {"rates_hz": (), "paced_s": 0.05, "back_to_back_s": 0.05, "busy_processes": 0}
        timed = thousandfold.benchmark(
            thousandfold.load(file), workspace=tmp_path, compare=False, cold_starts=0, **short
        )
        assert timed.path.parent == tmp_path / "runs" and timed.manifest.parents == {}

    def test_a_none_is_a_null(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="batch_size must be a valid integer"):
            thousandfold.train_teacher(workspace=tmp_path, batch_size=None)

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            (lambda: thousandfold.train_teacher("point_umaze"), "did you mean 'point_u_maze'"),
            (lambda: thousandfold.train_teacher(deph=8), "Unknown setting 'deph': did you mean 'depth'"),
            (lambda: thousandfold.train_teacher(depth=6), "depth"),
            (lambda: thousandfold.train_teacher(preset="smoky"), "did you mean 'smoke'"),
            (lambda: thousandfold.distill("t", learning_rat=1), "did you mean 'learning_rate'"),
            (lambda: thousandfold.distill("t"), "No teacher 't'"),
            (lambda: thousandfold.evaluate("p", episodes=0), "episodes must be greater than or equal to 1"),
            (lambda: thousandfold.export_onnx("p"), "No artifact 'p'"),
            (lambda: thousandfold.benchmark("p.onnx"), "p.onnx is no file"),
        ],
    )
    def test_what_is_wrong_is_refused_in_one_line(
        self, call: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("THOUSANDFOLD_WORKSPACE", str(tmp_path))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
        with pytest.raises(UserError, match=re.escape(reason)) as error:
            call()
        assert "\n" not in str(error.value)
        assert not (tmp_path / "runs").exists()

    def test_another_kind_is_refused(self, example: dict[str, Any], workspace: Path) -> None:
        for call in (thousandfold.evaluate, thousandfold.export_onnx, thousandfold.load):
            with pytest.raises(MissingArtifactError, match="is a benchmark: give a "):
                call(example["timed"], workspace=workspace)
        with pytest.raises(MissingArtifactError, match="give the artifact"):
            thousandfold.evaluate(example["exported"].file("policy.onnx"), workspace=workspace)

    def test_several_processes_are_for_training_and_datasets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="distill is one process"):
            thousandfold.distill("t")


class TestPolicies:
    @pytest.fixture(params=["teacher", "student", "exported", "file"])
    def policy(self, request: pytest.FixtureRequest, example: dict[str, Any]) -> Policy:
        if request.param == "file":
            return thousandfold.load(example["exported"].file("policy.onnx"))
        return thousandfold.load(example[request.param])

    def test_a_row_gives_a_row_and_a_batch_a_batch(self, policy: Policy) -> None:
        task, rng = policy.task, np.random.default_rng(0)
        observations = rng.normal(size=(5, task.observation_dim))
        goals = rng.normal(size=(5, task.goal_dim))
        actions = policy.predict(observations, goals)
        assert actions.shape == (5, task.action_dim) and actions.dtype == np.float32
        assert np.abs(actions).max() <= 1
        rows = [policy.predict(*pair) for pair in zip(observations, goals, strict=True)]
        assert rows[0].shape == (task.action_dim,)
        np.testing.assert_allclose(rows, actions, atol=1e-6)
        assert policy.predict(observations[:0], goals[:0]).shape == (0, task.action_dim)

    def test_other_shapes_and_numbers_are_refused(self, policy: Policy) -> None:
        observation, goal = np.zeros(policy.task.observation_dim), np.zeros(policy.task.goal_dim)
        with pytest.raises(ValueError, match="observation has shape"):
            policy.predict(observation[1:], goal)
        with pytest.raises(ValueError, match="goal has shape"):
            policy.predict(observation, goal[None, None])
        with pytest.raises(ValueError, match="give as many rows"):
            policy.predict(observation[None], goal)
        with pytest.raises(NonFiniteError, match="goal holds NaN"):
            policy.predict(observation, goal + np.nan)

    def test_it_says_what_it_is(self, policy: Policy, example: dict[str, Any]) -> None:
        assert policy.task.name == policy.metadata["task"] == "point_u_maze"
        assert policy.artifact is not None and "success" in policy.artifact.results

    def test_the_file_acts_as_the_student(self, example: dict[str, Any]) -> None:
        env = thousandfold.make_vec("point_u_maze", 8)
        state, _ = env.reset(seed=0)
        inputs = state["observation"], state["desired_goal"]
        student, file = thousandfold.load(example["student"]), thousandfold.load(example["exported"])
        np.testing.assert_allclose(student.predict(*inputs), file.predict(*inputs), atol=1e-5)

    def test_it_is_found_by_name_in_a_workspace(self, example: dict[str, Any], workspace: Path) -> None:
        name = example["student"].name
        assert thousandfold.load(name, workspace=workspace).name == name
        with pytest.raises(MissingArtifactError, match=f"did you mean {name}"):
            thousandfold.load(name + "1", workspace=workspace)

    def test_a_file_needs_neither_torch_nor_its_artifact(
        self, example: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "robot.onnx").write_bytes(example["exported"].file("policy.onnx").read_bytes())
        script = (
            "import sys\n"
            "sys.modules.update(torch=None, mlflow=None, onnx=None, safetensors=None)\n"
            "import thousandfold\n"
            "policy = thousandfold.load('robot.onnx')\n"
            "inputs = [[0.0] * len(part) for part in policy.metadata['inputs'].values()]\n"
            "print(policy.predict(*inputs).shape, policy.artifact, policy.task.name)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == "(2,) None point_u_maze", done.stderr


class TestTasks:
    def test_every_built_in_one_is_listed(self) -> None:
        assert {"point_u_maze", "humanoid", "arm_reach"} <= set(thousandfold.tasks())

    def test_they_are_made_by_name(self) -> None:
        env = thousandfold.make("point_u_maze", episode_steps=3)
        env.reset(seed=0)
        ends = [env.step(env.action_space.sample())[3] for _ in range(3)]
        assert ends == [False, False, True]
        assert thousandfold.make_vec("point_u_maze", 3).num_envs == 3

    def test_they_are_made_by_their_id_and_of_a_policy(self, example: dict[str, Any]) -> None:
        assert thousandfold.make("thousandfold/PointUMaze-v0").unwrapped.task.name == "point_u_maze"  # pyright: ignore
        assert thousandfold.make(example["policy"]).unwrapped.task.name == "point_u_maze"  # pyright: ignore

    def test_a_file_is_made_too(self) -> None:
        page = next(EXAMPLES.rglob("*.yaml"))
        env, vector = thousandfold.make(page), thousandfold.make_vec(str(page), num_envs=2)
        assert env.observation_space == vector.single_observation_space  # pyright: ignore

    def test_an_unknown_name_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(UserError, match="did you mean 'point_u_maze'"):
            thousandfold.make("point_umaze")


def test_every_public_name_is_there() -> None:
    assert set(thousandfold.__all__) <= set(dir(thousandfold))
    assert all(getattr(thousandfold, name) is not None for name in thousandfold.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = thousandfold.lod  # pyright: ignore
