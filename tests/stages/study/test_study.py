"""A study as a whole: what it trains, tells and keeps, and how one that was cut off goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.end_to_end.command_line import ROOT, clean_environment
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cli import cli
from thousandfold.pipeline.jobs import Job, OnEnd
from thousandfold.pipeline.resume import CHECKPOINT_FOLDER
from thousandfold.stages.study import study

TINY = {
    "depth": 4, "width": 8, "num_worlds": 4, "unroll_steps": 30, "env_steps": 1320, "updates_per_unroll": 3,
    "batch_size": 16, "replay_rows_per_world": 70, "min_rows_per_world": 20, "evaluate_every": 3,
    "evaluation_episodes": 4, "final_episodes": 4, "checkpoint_every": 2, "threads": 1, "episode_steps": 50,
}  # fmt: skip
PAGE = {
    "question": "Does width pay?",
    "tasks": ["reacher"],
    "seeds": [0, 1, 2],
    "settings": TINY,
    "arms": {"W8": {}, "W12": {"width": 12}},
    "claims": [
        "W12 reaches at least 0.0 of success at the end",
        "W12 reaches more than W8 of success at the end",
    ],
}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(PAGE))
    return path


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[list[str]]:
    """Have trainings done here, one after another; yield their names as they are done."""
    done: list[str] = []

    def run_jobs(jobs: Iterable[Job], sets: list[list[int]], on_end: OnEnd) -> None:
        for job in jobs:
            reason = None
            try:
                study.train_cell(job.work)
            except UserError as error:
                reason = str(error)
            done.append(job.name)
            on_end(job, reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "run_jobs", run_jobs)
        yield done


@pytest.fixture(scope="module")
def made(in_this_process: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command says of a study, which is tracked."""
    root = tmp_path_factory.mktemp("study")
    (root / "study.yaml").write_text(yaml.safe_dump(PAGE))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        output = invoke(root, str(root / "study.yaml"), "--json").stdout
    return json.loads(output.splitlines()[-1]) | {"root": root}


def invoke(workspace: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--workspace", str(workspace), "study", *arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


class TestResult:
    def test_it_holds_every_training_and_a_verdict_on_every_claim(self, made: dict[str, Any]) -> None:
        assert made["kind"] == "study" and made["results"]["trainings"] == 6
        content = json.loads(Path(made["files"]["study.json"]).read_text())
        trained = {(each["arm"], each["seed"]) for each in content["trainings"]}
        assert trained == {(arm, seed) for arm in ("W8", "W12") for seed in (0, 1, 2)}
        for each in content["trainings"]:
            lengths = {len(column) for column in each["curve"].values()}
            assert lengths == {4} and each["curve"]["env_steps"][-1] == 1320
        first, second = content["findings"]
        assert first["verdict"] == "shown" and first["interval"][0] >= 0
        assert second["claim"] == PAGE["claims"][1] and second["verdict"] in (
            "shown", "not shown", "contradicted",
        )  # fmt: skip
        assert made["results"]["shown"] >= 1
        assert Path(made["path"], "study.yaml").read_bytes() == (made["root"] / "study.yaml").read_bytes()

    def test_scores_are_those_of_the_teachers(self, made: dict[str, Any]) -> None:
        content = json.loads(Path(made["files"]["study.json"]).read_text())
        cells = Path(made["path"]) / "cells"
        for each in content["trainings"]:
            (teacher,) = Workspace(cells / f"reacher-{each['arm']}-{each['seed']}").artifacts("teacher")
            assert each["final"]["success"] == teacher.manifest.results["success"]
            assert not teacher.file(CHECKPOINT_FOLDER).exists()  # its memory is not kept
        assert Workspace(made["root"]).artifacts("teacher") == []

    def test_the_page_tells_claims_scores_and_settings(self, made: dict[str, Any]) -> None:
        text = Path(made["files"]["study.html"]).read_text()
        for words in (
            "Does width pay?",
            *PAGE["claims"],
            "6 of 6 trainings are done",
            "data:image/png;base64",
        ):
            assert str(words) in text
        told = text[text.index("What tells the arms apart") :]
        assert "width" in told[: told.index("</table>")] and "env_steps" not in told[: told.index("</table>")]

    def test_each_training_is_a_run_below_the_studys(self, made: dict[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        from thousandfold.pipeline.tracking_database import sqlite_uri

        client = MlflowClient(sqlite_uri(made["root"] / "mlflow" / "mlflow.db"))
        (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
        runs = client.search_runs([experiment.experiment_id])
        parent = made["tracking"]["run_id"]
        below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
        assert sorted(run.info.run_name or "" for run in below) == sorted(
            f"reacher-{arm}-{seed}" for arm in ("W8", "W12") for seed in (0, 1, 2)
        )
        curve = client.get_metric_history(below[0].info.run_id, "eval/success")
        assert [point.step for point in curve] == [360, 720, 1080, 1320]


@pytest.mark.slow
def test_what_failed_is_tried_again_and_what_is_done_is_not(
    page: Path, tmp_path: Path, in_this_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, broken = study.train_teacher.run, [True]

    def run(settings: Any, *arguments: Any) -> Artifact:
        if settings.seed == 1 and settings.width == 12 and broken:
            raise UserError("The moon was in the way.")
        return train(settings, *arguments)

    monkeypatch.setattr(study.train_teacher, "run", run)
    output = invoke(tmp_path, str(page), code=2).output
    assert "1 of 6 trainings failed, reacher-W12-1: The moon was in the way." in output
    (unfinished,) = Workspace(tmp_path).artifacts("study")
    assert "5 of 6 trainings are done" in unfinished.file("study.html").read_text()
    broken.clear()
    in_this_process.clear()
    invoke(tmp_path, "--resume")
    assert in_this_process == ["reacher-W12-1"]
    assert Artifact.load(unfinished.path).manifest.results["trainings"] == 6
    assert "is completed" in invoke(tmp_path, "--resume", unfinished.name, code=2).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give the FILE of a new study, or --resume"),
        (("FILE", "--resume"), "Give the FILE of a new study, or --resume"),
        (("FILE", "--seed", "3"), "--seed: the study's file sets its seeds"),
        (("FILE", "--submit", "timeout_min=3"), "--submit needs --launcher slurm or local"),
        (("FILE", "--scale", "gpu"), "--scale: Unknown scale 'gpu'"),
        (("gone.yaml",), "The study gone.yaml cannot be read: No such file"),
        (("--resume",), "No unfinished study"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    page: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [str(page) if each == "FILE" else each for each in arguments]
    output = invoke(tmp_path / "workspace", *given, code=2).output
    assert message in output
    assert not (tmp_path / "workspace" / "runs").exists()


def test_a_dry_run_tells_every_arms_settings(page: Path, tmp_path: Path) -> None:
    told = yaml.safe_load(invoke(tmp_path, str(page), "--dry-run").output)
    assert told["arms"]["W12"]["width"] == 12 and told["seeds"] == [0, 1, 2]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["--jobs", "2"], ["--launcher", "local", "--submit", "timeout_min=20"]])
def test_a_study_of_real_processes_goes_on_after_ctrl_c(tmp_path: Path, launcher: list[str]) -> None:
    longer = {**PAGE, "seeds": [0, 1], "settings": TINY | {"env_steps": 40_000, "evaluate_every": 40}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(longer))
    command = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(tmp_path), "study"]
    run: Callable[..., subprocess.Popen[str]] = lambda *arguments: subprocess.Popen(  # noqa: E731
        [*command, *arguments, *launcher],
        cwd=ROOT,
        env=clean_environment() | {"MLFLOW_TRACKING_URI": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process = run(str(path))
    while not list(tmp_path.rglob("teacher-*/checkpoint/manifest.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 130 and "study --resume" in output, output
    output = run("--resume").communicate(timeout=500)[0]
    (made,) = Workspace(tmp_path).artifacts("study")
    assert made.manifest.status == "completed", output
    logs = "".join(path.read_text() for path in made.path.glob("cells/*/log.txt"))
    assert "Resuming teacher-" in logs
