"""Processes of a frontier: their CPUs, how their failures are told, and that none is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.end_to_end.command_line import ROOT, clean_environment
from thousandfold.stages.frontier import jobs
from thousandfold.stages.frontier.cells import LOG_FILE
from thousandfold.stages.frontier.jobs import Job, cpu_sets, run_jobs


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cpus")
def test_every_process_has_cpus_of_its_own_while_there_are_enough() -> None:
    assert cpu_sets(0) == [[i] for i in range(8)]
    assert cpu_sets(2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cpu_sets(3) == [[0, 1], [2, 3], [4, 5]]
    assert cpu_sets(10)[8:] == [[0], [1]]


def job(tmp_path: Path, name: str) -> Job:
    """Return a job whose teacher is not there: it fails before anything large is imported."""
    folder = tmp_path / name
    names = {part: str(tmp_path / part) for part in ("teacher", "dataset", "cache", "episode_cache")}
    return Job(name, folder, names | {"workspace": str(folder), "distill": None, "export_onnx": {}})


def test_a_process_that_fails_says_why_in_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    ended: dict[str, str | None] = {}
    jobs = [job(tmp_path, name) for name in ("1x4", "2x4", "4x4")]
    run_jobs(jobs, cpu_sets(2), lambda which, error: ended.update({which.name: error}))
    assert set(ended) == {"1x4", "2x4", "4x4"}
    for error in ended.values():
        assert error is not None and "\n" not in error
        assert error.startswith(str(tmp_path / "teacher" / "manifest.json"))
    assert "Traceback" not in (tmp_path / "1x4" / LOG_FILE).read_text()


def test_processes_are_ended_when_what_waits_for_them_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def sleeping(command: list[str], **options: object) -> subprocess.Popen[str]:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[-1]

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.subprocess, "Popen", sleeping)
    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job(tmp_path, "1x4"), job(tmp_path, "2x4")], cpu_sets(2), lambda *_: None)
    assert len(started) == 2 and all(process.returncode is not None for process in started)


def test_a_process_that_was_killed_says_by_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    dying = lambda command, **options: popen([sys.executable, "-c", code], **options)  # noqa: E731
    monkeypatch.setattr(jobs.subprocess, "Popen", dying)
    ended: list[str | None] = []
    run_jobs([job(tmp_path, "1x4")], cpu_sets(1), lambda _, error: ended.append(error))
    assert ended == [f"killed by SIGKILL; see {tmp_path / '1x4' / LOG_FILE}"]


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """The start of a worker's work is replaced by a sleep of a minute; its input ends after a second."""
    code = "import time\nfrom thousandfold.stages.frontier import worker\n"
    code += "worker.run_job = lambda job: (print('at work', flush=True), time.sleep(60))\n"
    code += "worker.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=clean_environment(),
    )
    assert process.stdin is not None and process.stdout is not None
    work = {**job(tmp_path, "1x4").work, "cpus": sorted(os.sched_getaffinity(0))[:1]}
    process.stdin.write(json.dumps(work) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "at work\n"
    began = time.monotonic()
    threading.Timer(0.2, process.stdin.close).start()
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - began < 10
