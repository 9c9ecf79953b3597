"""Jobs in processes of their own: some at a time on this machine, each on its own CPUs, or on a cluster.

A job names a function and what that is given. Its process reads both as one line of JSON on its standard
input, and ends when that input ends: whatever becomes of the process that started it, none is left behind.
A job has a workspace of its own, so that nothing it makes is ever the newest of its kind elsewhere; what it
finds there of an earlier try it does not make again.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from thousandfold.ground.errors import DamagedFileError, SettingsError
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.artifacts import MANIFEST_NAME, Artifact, Workspace
from thousandfold.pipeline.console import error_boundary
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.output import guard_output
from thousandfold.pipeline.resume import find_unfinished
from thousandfold.pipeline.runtime import cpu_share
from thousandfold.pipeline.stopping import interruptible

LOG_FILE = "log.txt"
STOPPING_S = 60.0
"""How long processes may take to save what they have, once they are told to stop."""
_POLL_S = 0.05
_ERROR = "Error: "
_STOPPED = 130


@dataclass(frozen=True)
class Job:
    """What a process is to do.

    Attributes:
        name: for messages.
        folder: of its workspace, where its log goes too.
        function: called with `work`, as ``module:function``.
        work: what JSON can hold.
    """

    name: str
    folder: Path
    function: str
    work: Mapping[str, Any]

    @property
    def log(self) -> Path:
        """What its process says."""
        return self.folder / LOG_FILE


OnEnd = Callable[[Job, str | None], None]
"""Told each job that ended, and one line about what went wrong, or None."""


class JobProcess:
    """The process of a job.

    Args:
        job: what it is to do.
        cpus: that it may use; None: all that this process may use.
    """

    def __init__(self, job: Job, cpus: list[int] | None = None) -> None:
        self.job, self.cpus = job, cpus
        job.folder.mkdir(parents=True, exist_ok=True)
        threads = {} if cpus is None else {"OMP_NUM_THREADS": str(len(cpus))}
        with job.log.open("wb") as log:
            self._process = subprocess.Popen(
                # -P: whatever lies in the current folder is not imported.
                [sys.executable, "-P", "-m", "thousandfold.pipeline.jobs"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | threads,
                encoding="utf-8",
                # Out of reach of the terminal's Ctrl-C, which `stop` passes on once.
                start_new_session=True,
            )
        task = {
            "function": job.function,
            "work": dict(job.work),
            "cpus": cpus,
            "log_folder": str(job.folder),
        }
        with contextlib.suppress(BrokenPipeError):  # it died at once: its log says why
            self._input.write(json.dumps(task) + "\n")
            self._input.flush()

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask it to save what it has and to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self) -> str | None:
        """Wait for its end; return why it failed, in one line, or None where it did not."""
        code = self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        if code == 0:
            return None
        lines = self.job.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
        if said:
            return said[-1]
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{ended}; see {self.job.log}"


def cpu_sets(jobs: int) -> list[list[int]]:
    """Return the CPUs of each of so many processes (0: one a CPU): shares of their own while they suffice."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(usable_cpus()))
    jobs = jobs or len(cpus)
    share = cpu_share(jobs)
    return [[cpus[(index * share + i) % len(cpus)] for i in range(share)] for index in range(jobs)]


def run_jobs(jobs: Iterable[Job], sets: list[list[int]], on_end: OnEnd) -> None:
    """Run jobs here, as many at a time as there are sets of CPUs, in the order in which they are given.

    Args:
        jobs: what to run.
        sets: of CPUs, as `cpu_sets` returns them.
        on_end: told each job that ended.

    Raises:
        KeyboardInterrupt: Ctrl-C; every process has saved what it had and ended.
    """
    waiting, free, running = deque(jobs), list(sets), list[JobProcess]()
    try:
        while waiting or running:
            while waiting and free:
                running.append(JobProcess(waiting.popleft(), free.pop(0)))
            for process in [each for each in running if each.ended]:
                running.remove(process)
                free.append(process.cpus or [])
                on_end(process.job, process.wait())
            time.sleep(_POLL_S)
    finally:
        for process in running:
            process.stop()
        latest = time.monotonic() + STOPPING_S
        try:
            while time.monotonic() < latest and not all(process.ended for process in running):
                time.sleep(_POLL_S)
        finally:  # a second Ctrl-C comes here at once
            for process in running:
                process.kill()
            for process in running:
                process.wait()


class _Submitted:
    """A job as a cluster runs it; one that meets its time limit is queued again, and goes on."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self) -> str | None:
        return JobProcess(self._job).wait()

    def checkpoint(self) -> Any:
        """Return what submitit is to queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit_jobs(
    jobs: Iterable[Job], cluster: str, folder: Path, parameters: Mapping[str, Any], on_end: OnEnd
) -> None:
    """Submit all jobs to a cluster through submitit, and wait for them.

    Args:
        jobs: what to run; their folders lie on a file system that all machines share.
        cluster: ``slurm``, or ``local`` for processes of this machine.
        folder: where submitit keeps its own files.
        parameters: of `submitit.AutoExecutor.update_parameters`, such as ``timeout_min``.
        on_end: told each job that ended.

    Raises:
        SettingsError: there is no such cluster here, or it has no such parameter.
        KeyboardInterrupt: Ctrl-C; what was submitted is cancelled.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:  # as submitit raises
        raise SettingsError(f"--launcher {cluster}: {error}") from error
    submitted = [(job, executor.submit(_Submitted(job))) for job in jobs]
    try:
        while submitted:
            for pair in [pair for pair in submitted if pair[1].done()]:
                submitted.remove(pair)
                job, handle = pair
                error = handle.exception()
                on_end(job, handle.result() if error is None else f"{_last_line(error)}; see {folder}")
            time.sleep(_POLL_S)
    finally:
        for _, handle in submitted:
            handle.cancel()


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


# -- What a job finds in its workspace -------------------------------------------------------------


def finished(workspace: Workspace, kind: str) -> Artifact | None:
    """Return the completed artifact of a kind; None where there is none yet.

    Raises DamagedFileError where a manifest is damaged.
    """
    _require_undamaged(workspace)
    found = (artifact for artifact in workspace.artifacts(kind) if artifact.is_completed)
    return next(found, None)


def begun(workspace: Workspace, kind: str) -> Artifact | None:
    """Return the artifact that a stopped process has left with a checkpoint; None where there is none.

    Raises DamagedFileError where a manifest is damaged.
    """
    _require_undamaged(workspace)
    try:
        return find_unfinished(workspace, kind, None)
    except SettingsError:
        return None


def _require_undamaged(workspace: Workspace) -> None:
    """Raise DamagedFileError for the first damaged manifest of a job: what it is of may be made already."""
    for damaged in workspace.damaged:
        raise damaged.error


def remove_unfinished(workspace: Workspace, but: Artifact | None = None) -> None:
    """Remove what a process that was stopped has left behind, but for this artifact."""
    for folder in workspace.runs.glob("*/"):
        if but is not None and folder.name == but.path.name:
            continue
        try:
            whole = Artifact.load(folder).is_completed
        except DamagedFileError:  # killed before there was a manifest
            whole = (folder / MANIFEST_NAME).exists()
        if not whole:
            shutil.rmtree(folder)


# -- The process of a job --------------------------------------------------------------------------


def _end_with_starter() -> None:
    # Not through sys.stdin: a thread that waits in it would hold its lock when the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(_STOPPED)


def main() -> None:
    """Do what standard input says."""
    guard_output()
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_starter, daemon=True).start()
    if task["cpus"] is not None and hasattr(os, "sched_setaffinity"):
        # Torch and the simulators make as many threads as a process may use.
        os.sched_setaffinity(0, task["cpus"])
    module, _, name = task["function"].partition(":")
    with interruptible(Ranks()), error_boundary(Path(task["log_folder"])):
        getattr(importlib.import_module(module), name)(task["work"])


if __name__ == "__main__":
    main()
