"""Processes of jobs: their CPUs, how failures are told, that none is left behind, and what they find."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command_line import ROOT, clean_environment
from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.pipeline import jobs
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.jobs import Job, cpu_sets, finished, remove_unfinished, run_jobs, submit_jobs


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture(autouse=True)
def found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of jobs import what is below."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


# -- What the processes of these tests do ----------------------------------------------------------


def write(work: Mapping[str, Any]) -> None:
    Path(work["file"]).write_text(f"{work['text']} on {len(os.sched_getaffinity(0))}")


def refuse(work: Mapping[str, Any]) -> None:
    raise UserError(f"There is no {work['what']}.")


def die(work: Mapping[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(work: Mapping[str, Any]) -> None:
    """Sleep for a minute; when asked to stop, note that it was."""
    try:
        Path(work["file"]).write_text("at work")
        time.sleep(60)
    except KeyboardInterrupt:
        Path(work["file"]).write_text("saved")
        raise


def job(folder: Path, name: str, function: str, **work: Any) -> Job:
    return Job(name, folder / name, f"{__name__}:{function}", work)


@pytest.mark.usefixtures("eight_cpus")
def test_every_process_has_cpus_of_its_own_while_there_are_enough() -> None:
    assert cpu_sets(0) == [[i] for i in range(8)]
    assert cpu_sets(2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cpu_sets(3) == [[0, 1], [2, 3], [4, 5]]
    assert cpu_sets(10)[8:] == [[0], [1]]


def test_each_job_is_done_and_one_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    ended: dict[str, str | None] = {}
    made = [tmp_path / f"{name}.txt" for name in ("first", "second")]
    work = [
        job(tmp_path, "1", "write", file=str(made[0]), text="first"),
        job(tmp_path, "2", "refuse", what="teacher"),
        job(tmp_path, "3", "die"),
        job(tmp_path, "4", "write", file=str(made[1]), text="second"),
    ]
    cpus = [[min(os.sched_getaffinity(0))]] * 2
    run_jobs(work, cpus, lambda which, error: ended.update({which.name: error}))
    killed = f"killed by SIGKILL; see {tmp_path / '3' / jobs.LOG_FILE}"
    assert ended == {"1": None, "2": "There is no teacher.", "3": killed, "4": None}
    assert [path.read_text() for path in made] == ["first on 1", "second on 1"]
    assert "Traceback" not in work[1].log.read_text()


def test_a_stop_lets_the_processes_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = [tmp_path / name for name in ("1.txt", "2.txt")]
    work = [job(tmp_path, path.stem, "sleep", file=str(path)) for path in notes]
    pause = time.sleep

    def interrupt(seconds: float) -> None:
        pause(seconds)
        if all(path.exists() for path in notes) and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt

    stopped: list[bool] = []
    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(work, cpu_sets(2), lambda *_: None)
    assert [path.read_text() for path in notes] == ["saved", "saved"]


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "thousandfold.pipeline.jobs"],
        stdin=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    note = tmp_path / "note.txt"
    task = {"function": f"{__name__}:sleep", "work": {"file": str(note)}, "cpus": None}
    process.stdin.write(json.dumps(task | {"log_folder": str(tmp_path)}) + "\n")
    process.stdin.flush()
    while not note.exists():
        time.sleep(0.05)
    began = time.monotonic()
    threading.Timer(0.2, process.stdin.close).start()
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - began < 10


class TestCluster:
    def test_each_job_is_done_and_one_that_fails_says_why(self, tmp_path: Path) -> None:
        ended: dict[str, str | None] = {}
        made = tmp_path / "made.txt"
        submit_jobs(
            [
                job(tmp_path, "1", "write", file=str(made), text="done"),
                job(tmp_path, "2", "refuse", what="teacher"),
            ],
            "local",
            tmp_path / "submitted",
            {"timeout_min": 5},
            lambda which, error: ended.update({which.name: error}),
        )
        assert ended == {"1": None, "2": "There is no teacher."}
        assert made.read_text().startswith("done on ")

    @pytest.mark.parametrize(
        ("cluster", "parameters", "message"),
        [
            ("slurm", {}, "--launcher slurm: "),
            ("local", {"colour": "green"}, "--launcher local: .*colour"),
            ("local", {"timeout_min": "soon"}, "--launcher local: .*timeout_min"),
        ],
    )
    def test_what_it_cannot_do_is_refused(
        self, tmp_path: Path, cluster: str, parameters: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            submit_jobs([], cluster, tmp_path / "submitted", parameters, lambda *_: None)


def student(workspace: Workspace, *, complete: bool) -> Artifact:
    artifact = workspace.create("student", task="point_u_maze", settings={})
    if complete:
        artifact.complete({})
    return artifact


def test_leftovers_go_and_what_is_finished_stays(tmp_path: Path) -> None:
    inside = Workspace(tmp_path)
    remove_unfinished(inside)  # there is nothing yet
    kept = student(inside, complete=True)
    student(inside, complete=False)
    student(inside, complete=False).fail("cut off")
    (inside.runs / "policy-1").mkdir()
    remove_unfinished(inside)
    assert [path.name for path in inside.runs.iterdir()] == [kept.name]
    found = finished(inside, "student")
    assert found is not None and found.name == kept.name and finished(inside, "policy") is None
