"""Every command through Click's runner, without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.envs.opengl_here import needs_opengl
from tests.stages.policy_file.handmade_policy import policy_artifact
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cli import cli
from thousandfold.stages.stage_settings import SECTIONS

STAGES = ["train-teacher", "generate-dataset", "distill", "export-onnx", "benchmark", "evaluate", "render"]
COMMANDS = ["run", *STAGES, "run-policy", "policy", "report", "dataset", "frontier", "study"]
COMMANDS += ["tasks", "presets", "settings", "runs", "info", "ui"]


@pytest.fixture(autouse=True)
def without_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "THOUSANDFOLD_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def invoke(workspace: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--workspace", str(workspace), *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def json_of(result: Result) -> dict[str, Any]:
    """Return the one JSON object that stands alone on the last line of stdout."""
    lines = result.stdout.splitlines()
    assert len(lines) == 1, result.stdout
    value = json.loads(lines[0])
    assert isinstance(value, dict)
    return value


def error_of(result: Result) -> str:
    """Return the one line of the error."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def completed(workspace: Path, kind: str, parents: dict[str, Artifact] | None = None) -> Artifact:
    """Return a completed artifact of no content."""
    artifact = Workspace(workspace).create(
        kind,
        task="point_u_maze",
        settings={"depth": 4},
        parents={role: parent.parent_entry() for role, parent in (parents or {}).items()},
    )
    artifact.complete({"success": 0.5})
    return artifact


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return policy_artifact(tmp_path_factory.mktemp("policies"))


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, tmp_path: Path, command: str) -> None:
        text = invoke(tmp_path, command, "--help").stdout
        assert text.startswith(f"Usage: cli {command} [OPTIONS]")
        assert len(text.splitlines()[2].strip()) > 15, "a sentence follows the usage line"

    def test_the_stages_stand_in_the_order_of_the_chain(self, tmp_path: Path) -> None:
        lines = invoke(tmp_path, "--help").stdout.partition("The chain:")[2].splitlines()
        listed = [line.split()[0] for line in lines if line[:2] == "  " and line[2:3].strip()]
        assert [name for name in listed if name in ("run", *STAGES)] == ["run", *STAGES]
        assert set(COMMANDS) <= set(listed)

    def test_every_stage_command_takes_the_common_options(self, tmp_path: Path) -> None:
        for command in ["run", *STAGES]:
            text = invoke(tmp_path, command, "--help").stdout
            for option in ("--preset", "--config", "--set", "--seed", "--device", "--dry-run", "--json"):
                assert option in text, command

    def test_help_and_dry_runs_leave_nothing_behind(self, tmp_path: Path) -> None:
        for command in ["run", *STAGES]:
            invoke(tmp_path / "new", command, "--help")
            invoke(tmp_path / "new", command, "--dry-run")
        assert not (tmp_path / "new").exists()

    def test_version(self, tmp_path: Path) -> None:
        assert invoke(tmp_path, "--version").stdout.startswith("pipeline, version ")


class TestDryRun:
    @pytest.mark.parametrize("command", STAGES)
    def test_prints_the_settings_as_yaml(self, tmp_path: Path, command: str) -> None:
        values = yaml.safe_load(invoke(tmp_path, command, "--dry-run", "--seed", "5").stdout)
        assert values["seed"] == 5

    def test_what_was_published_is_told_of_its_own_task_alone(self, tmp_path: Path) -> None:
        tiny = ["depth=4", "width=8", "num_worlds=2", "batch_size=4", "env_steps=4", "unroll_steps=2"]
        tiny += ["min_rows_per_world=2", "updates_per_unroll=1", "evaluation_episodes=1", "final_episodes=1"]
        tiny = [f"--set={setting}" for setting in [*tiny, "episode_steps=2"]]
        told = {}
        for task in ("arm_push_easy", "reacher"):
            arguments = ["--preset", "paper/arm_push_easy", "--device", "cpu", "--task", task, *tiny]
            told[task] = "Published, on other physics" in invoke(tmp_path, "train-teacher", *arguments).output
        assert told == {"arm_push_easy": True, "reacher": False}

    def test_how_long_a_task_took_is_told_with_the_preset_that_it_was_measured_with(
        self, tmp_path: Path
    ) -> None:
        tiny = ["depth=4", "width=8", "num_worlds=2", "batch_size=4", "env_steps=4", "unroll_steps=2"]
        tiny += ["min_rows_per_world=2", "updates_per_unroll=1", "evaluation_episodes=1", "final_episodes=1"]
        arguments = ["train-teacher", "--device", "cpu", *(f"--set={setting}" for setting in tiny)]
        said = invoke(tmp_path, *arguments, "--task", "reacher").output
        minutes = json_of(invoke(tmp_path, "tasks", "--json"))["tasks"]
        expected = next(row["minutes to 0.8"] for row in minutes if row["task"] == "reacher")
        assert f"With this preset reacher took {expected:g} minutes to 0.8 of success" in said
        assert "With this preset" not in invoke(tmp_path, *arguments, "--preset", "smoke").output

    def test_a_chain_takes_a_task_by_name(self, tmp_path: Path) -> None:
        result = invoke(tmp_path, "run", "--preset", "smoke", "--task", "reacher", "--dry-run", "--json")
        assert json_of(result)["train_teacher"]["task"] == "reacher"
        refused = invoke(tmp_path, "run", "--resume", "--task", "reacher", code=2)
        assert "leave --task out" in refused.stderr

    def test_of_the_chain_prints_every_stage(self, tmp_path: Path) -> None:
        result = invoke(tmp_path, "run", "--preset", "smoke", "--seed", "5", "--dry-run", "--json")
        values = json_of(result)
        assert tuple(values) == SECTIONS
        assert {section["seed"] for section in values.values()} == {5}
        assert yaml.safe_load(result.stderr) == values

    @pytest.mark.parametrize(
        ("arguments", "depth"),
        [
            (["--device", "cpu"], 4),  # cpu, the default preset there
            (["--preset", "smoke"], 4),
            (["--preset", "smoke", "--depth", "8"], 8),
            (["--preset", "smoke", "--depth", "8", "--set", "depth=12"], 12),
            (["--set", "depth=12", "--set", "depth=20"], 20),
        ],
    )
    def test_preset_then_flag_then_set(self, tmp_path: Path, arguments: list[str], depth: int) -> None:
        values = json_of(invoke(tmp_path, "train-teacher", *arguments, "--dry-run", "--json"))
        assert values["train_teacher"]["depth"] == depth

    def test_the_chain_takes_settings_by_stage(self, tmp_path: Path) -> None:
        values = json_of(
            invoke(
                tmp_path,
                *("run", "--dry-run", "--json", "--set", "train-teacher.depth=8"),
                *("--set", "distill.student_depth=2", "--set", "train_teacher.actor_learning_rate=1e-4"),
            )
        )
        assert values["train_teacher"]["depth"] == 8
        assert values["train_teacher"]["actor_learning_rate"] == 1e-4
        assert values["distill"]["student_depth"] == 2

    @pytest.mark.parametrize(
        "preset",
        [
            "cpu",
            "cpu/ant",
            "cpu/legs",
            "cpu/mazes",
            "cpu/poses",
            "quickstart",
            "smoke",
            "paper",
            "thousand-layers",
            "thousand-layers-cpu",
        ],
    )
    def test_every_preset_fits_every_stage(self, tmp_path: Path, preset: str) -> None:
        for command, sections in (("run", 7), ("evaluate", 1), ("report", 1)):
            values = json_of(invoke(tmp_path, command, "--preset", preset, "--dry-run", "--json"))
            assert len(values) == sections

    @pytest.mark.parametrize(
        ("command", "flags", "key", "value"),
        [
            ("train-teacher", ["--task", "point_big_maze"], "task", "point_big_maze"),
            ("train-teacher", ["--width", "32"], "width", 32),
            ("generate-dataset", ["--noise-levels", "0,0.5"], "noise_levels", [0.0, 0.5]),
            ("distill", ["--objective", "mse"], "objective", "mse"),
            ("distill", ["--student-kind", "plain"], "student_kind", "plain"),
            ("distill", ["--dagger-rounds", "3"], "dagger_rounds", 3),
            ("distill", ["--skip-damaged-shards"], "skip_damaged_shards", True),
            ("evaluate", ["--episodes", "3"], "episodes", 3),
            ("render", ["--distribution", "training"], "distribution", "training"),
            ("benchmark", ["--device", "cpu"], "device", "cpu"),
        ],
    )
    def test_flags_reach_the_settings(
        self, tmp_path: Path, command: str, flags: list[str], key: str, value: object
    ) -> None:
        (settings,) = json_of(invoke(tmp_path, command, *flags, "--dry-run", "--json")).values()
        assert settings[key] == value


class TestAnnouncement:
    @pytest.mark.parametrize(
        ("arguments", "first"),
        [
            (["--device", "cpu"], "Preset cpu (the default on the CPU)"),
            (["--preset", "smoke"], "Preset smoke (as asked)"),
        ],
    )
    @pytest.mark.parametrize("command", STAGES[1:])
    def test_the_first_line_names_the_preset(
        self, tmp_path: Path, command: str, arguments: list[str], first: str
    ) -> None:
        result = invoke(tmp_path, command, *arguments, code=2)
        assert result.stdout.splitlines()[0] == f"{first}; workspace {tmp_path}."


class TestEvaluatePicks:
    @pytest.mark.pictures
    def test_the_newest_policy_without_asking(self, policy: Artifact) -> None:
        result = invoke(policy.path.parents[1], "evaluate", "--episodes", "4", "--json")
        values = json_of(result)
        assert f"Taking policy {policy.name} (the newest completed)." in result.stderr
        assert values["kind"] == "evaluation"
        assert values["results"]["episodes"] == 4
        assert Path(values["files"]["rollouts.png"]).read_bytes()[1:4] == b"PNG"
        made = Workspace(policy.path.parents[1]).open(values["artifact"], "evaluation")
        assert made.manifest.parents["policy"].hash == policy.manifest.hash

    def test_a_policy_by_its_path(self, policy: Artifact) -> None:
        arguments = ("evaluate", "--policy", str(policy.path), "--episodes", "2", "--set", "num_paths=0")
        result = invoke(policy.path.parents[1], *arguments)
        assert f"Taking policy {policy.name} (as asked)." in result.stdout

    @pytest.mark.parametrize("flags", [("--policy", "--student"), ("--policy", "--teacher")])
    def test_not_several_at_once(self, tmp_path: Path, flags: tuple[str, str]) -> None:
        arguments = [word for flag in flags for word in (flag, "x")]
        message = error_of(invoke(tmp_path, "evaluate", *arguments, code=2))
        assert message == f"Error: Give one of {', '.join(flags)}, not several."

    def test_a_student_where_there_is_no_policy(self, tmp_path: Path) -> None:
        student = completed(tmp_path, "student")
        result = invoke(tmp_path, "evaluate", code=2)  # an artifact of no content cannot be evaluated
        assert f"Taking student {student.name} (the newest completed)." in result.stdout
        assert "network.safetensors is missing" in error_of(result)


class TestBenchmark:
    def test_takes_the_newest_policy(self, policy: Artifact) -> None:
        quick = ("compare=false", "cold_starts=0", "busy_processes=0", "back_to_back_s=0.02", "paced_s=0.1")
        arguments = ("benchmark", "--preset", "smoke", "--json", *(f"--set={value}" for value in quick))
        values = json_of(invoke(policy.path.parents[1], *arguments))
        assert values["results"]["policy"] == policy.name
        assert {"student", "teacher"} == set(values["results"]["networks"])


@needs_opengl
class TestRender:
    def test_draws_the_newest_policy_and_tracks_it(self, policy: Artifact) -> None:
        workspace = policy.path.parents[1]
        result = invoke(workspace, "render", "--preset", "smoke", "--distribution", "training", "--json")
        values = json_of(result)
        assert f"Taking policy {policy.name} (the newest completed)." in result.stderr
        files = {"episodes.mp4", "strip.png", "recording.json"}
        assert (values["kind"], set(values["files"])) == ("rendering", files)
        made = Workspace(workspace).open(values["artifact"], "rendering")
        assert made.manifest.settings["distribution"] == "training"
        tracked = {path.name for path in (workspace / "mlflow").rglob("*") if path.is_file()}
        assert files <= tracked


class TestLists:
    def test_tasks(self, tmp_path: Path) -> None:
        text = invoke(tmp_path, "tasks").stdout
        assert "point_u_maze" in text
        assert "thousandfold/PointUMaze-v0" in text
        assert "minutes to 0.8: of success, with the default preset of a CPU" in text
        rows = json_of(invoke(tmp_path, "tasks", "--json"))["tasks"]
        assert rows[0]["action"] == 2

    def test_presets(self, tmp_path: Path) -> None:
        assert "quickstart" in invoke(tmp_path, "presets").stdout
        names = [row["preset"] for row in json_of(invoke(tmp_path, "--json", "presets"))["presets"]]
        assert {"quickstart", "smoke", "paper"} <= set(names)

    def test_runs_of_an_empty_workspace(self, tmp_path: Path) -> None:
        result = invoke(tmp_path, "runs")
        assert result.stdout == (
            f"No artifacts in {tmp_path}/runs yet. Make the first with `pipeline run`.\n"
        )
        assert json_of(invoke(tmp_path, "runs", "--json")) == {"artifacts": [], "damaged": []}

    def test_runs(self, tmp_path: Path) -> None:
        teacher = completed(tmp_path, "teacher")
        dataset = completed(tmp_path, "dataset", {"teacher": teacher})
        text = invoke(tmp_path, "runs").stdout
        assert text.index(dataset.name) < text.index(teacher.name), "the newest comes first"
        rows = json_of(invoke(tmp_path, "runs", "--json"))["artifacts"]
        assert [row["from"] for row in rows] == [teacher.name, None]

    def test_info(self, tmp_path: Path) -> None:
        assert "python" in invoke(tmp_path, "info").stdout
        assert json_of(invoke(tmp_path, "info", "--json"))["thousandfold"]
        teacher = completed(tmp_path, "teacher")
        assert "success" in invoke(tmp_path, "info", teacher.name).stdout
        values = json_of(invoke(tmp_path, "info", teacher.name, "--json"))
        assert (values["artifact"], values["status"]) == (teacher.name, "completed")

    @pytest.mark.parametrize("by_variable", [True, False])
    def test_the_workspace_comes_from_the_environment_or_is_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
    ) -> None:
        teacher = completed(tmp_path, "teacher")
        if by_variable:
            monkeypatch.setenv("THOUSANDFOLD_WORKSPACE", str(tmp_path))
        else:
            monkeypatch.chdir(tmp_path)
        assert teacher.name in CliRunner().invoke(cli, ["runs"]).stdout


class TestUi:
    def test_without_runs_it_says_so(self, tmp_path: Path) -> None:
        assert f"No runs are recorded in {tmp_path} yet" in error_of(invoke(tmp_path, "ui", code=2))
        assert not list(tmp_path.iterdir())

    def test_a_server_has_a_page_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@tracking.example")
        message = error_of(invoke(tmp_path, "ui", code=2))
        assert "open that address instead" in message
        assert "secret" not in message


@pytest.mark.parametrize(
    "arguments",
    [["run", "e\x1b[31mvil"], ["policy", "verify", "a", "e\x1b[31mvil"], ["tasks", "check", "a", "\x9b1m"]],
)
def test_an_argument_too_many_steers_no_terminal(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments, color=True)
    assert result.exit_code == 2
    assert r"\x1b[31mvil" in result.stderr or r"\x9b1m" in result.stderr
    assert "\x1b" not in result.stderr and "\x9b" not in result.stderr
