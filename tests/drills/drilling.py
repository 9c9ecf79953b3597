"""What the drills share: the product in forks of one loaded process, workspaces to spoil, and verdicts.

A drill is a script: ``python -m tests.drills.kill --trials 20``. It ends with exit code 1 where something was
lost, and keeps the workspace of each failure. A trial costs no imports: it is a fork of the drill's process
that runs the command line in a session of its own, and it is killed, stopped or starved like any process.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import thousandfold

LIBRARIES = (
    "alembic.command",
    "h5py",
    "matplotlib.pyplot",
    "minari",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "mujoco",
    "onnx",
    "onnxruntime",
    "rich.console",
    "safetensors.torch",
    "torch",
)
STAGES = {
    "train-teacher": "teacher",
    "generate-dataset": "dataset",
    "distill": "student",
    "export-onnx": "policy",
    "benchmark": "benchmark",
    "report": "report",
}
"""Every stage of a chain, in order, and the kind of artifact that it makes."""

RESUMABLE = ("train-teacher", "generate-dataset", "distill")
_TINY = {
    "train-teacher": {},
    "generate-dataset": {"episodes": 16, "num_worlds": 4},
    "distill": {"updates": 60, "checkpoint_every": 10, "evaluate_every": 20},
    "export-onnx": {"closed_loop_episodes": 8, "gate_states": 64},
    "benchmark": {
        "compare": "false",
        "rates_hz": "[]",
        "back_to_back_s": 0.05,
        "warmup_s": 0.01,
        "paced_s": 0.1,
        "busy_processes": 0,
    },
    "report": {},
}
_TIMES = re.compile(r"elapsed|second|per_s|speed|wall|_s$|finished|created")


def stage_command(stage: str, *more: str) -> list[str]:
    """Return the command of a stage on a tiny setting."""
    sets = [argument for key, value in _TINY[stage].items() for argument in ("--set", f"{key}={value}")]
    return [stage, "--preset", "smoke", *sets, *more]


def chain_command() -> list[str]:
    """Return the command of the whole chain on the same settings."""
    sets = [
        argument
        for stage, values in _TINY.items()
        for key, value in values.items()
        for argument in ("--set", f"{stage.replace('-', '_')}.{key}={value}")
    ]
    return ["run", "--preset", "smoke", *sets]


@dataclass
class Outcome:
    """How a command ended.

    Attributes:
        code: exit code, negative for a signal; None where it took too long and was killed.
        text: what it printed on both streams.
        seconds: wall-clock time.
    """

    code: int | None
    text: str
    seconds: float

    @property
    def traceback(self) -> bool:
        """Whether a user saw a Python traceback or an error that nobody foresaw."""
        return "Traceback (most recent call last)" in self.text or "(unexpected)" in self.text

    @property
    def warnings(self) -> list[str]:
        """Its warnings, but for that of a tiny training which is no better than random."""
        found = [line for line in self.text.splitlines() if "Warning:" in line]
        return [
            line for line in found if "reached none of" not in line and "no better than random" not in line
        ]

    @property
    def said(self) -> str:
        """The error's one line, or else the last line."""
        found = self.text.rfind("Error")
        text = self.text[found:] if found >= 0 else self.text[-300:]
        return " ".join(text.split())[:400]


class Drill:
    """A drill's options, its scratch folder and its verdicts.

    Args:
        description: what the drill does; its name is that of the module.
        trials: default of --trials.
        add_options: adds options of the drill's own.
    """

    def __init__(
        self,
        description: str | None,
        trials: int,
        add_options: Callable[[argparse.ArgumentParser], None] | None = None,
    ) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--trials", type=int, default=trials, help=f"trials of each case [{trials}]")
        parser.add_argument("--root", type=Path, help="scratch folder, kept [a temporary one, removed]")
        parser.add_argument("--seed", type=int, default=0)
        if add_options is not None:
            add_options(parser)
        self.options = parser.parse_args()
        self.trials: int = self.options.trials
        self.survived = self.total = 0
        self.random = random.Random(self.options.seed)
        if self.options.root is None:
            self.root = Path(tempfile.mkdtemp(prefix="drill-"))
            atexit.register(_remove_as, os.getpid(), self.root)
        else:
            self.root = self.options.root.resolve()
            self.root.mkdir(parents=True, exist_ok=True)
        self._outputs = 0
        os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg")
        for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "THOUSANDFOLD_TRACEBACK"):
            os.environ.pop(name, None)
        _load_product()

    def launch(
        self,
        arguments: Sequence[str],
        workspace: Path,
        *,
        prepare: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command in a process and a session of its own.

        Args:
            arguments: the command line, without ``pipeline --workspace``.
            workspace: the workspace.
            prepare: called in the new process before the command.
            environment: more variables.
        """
        self._outputs += 1
        output = self.root / f"output-{os.getpid()}-{self._outputs}"
        output.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return Running(pid, output, time.monotonic())
        code = 70
        try:
            os.setsid()
            with output.open("ab", buffering=0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL if number != signal.SIGPIPE else signal.SIG_IGN)
            os.environ.update(environment or {})
            os.chdir(tempfile.gettempdir())
            sys.argv = ["pipeline", "--workspace", str(workspace), *arguments]
            if prepare is not None:
                prepare()
            code = _run_command_line()
        finally:
            os._exit(code)

    def call(
        self,
        arguments: Sequence[str],
        workspace: Path,
        *,
        timeout_s: float = 240.0,
        prepare: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run a command to its end; see `launch`."""
        return self.launch(arguments, workspace, prepare=prepare, environment=environment).wait(timeout_s)

    def workspace_before(self, stage: str) -> Path:
        """Return a workspace in which every stage before this one is complete ("end": all); made once."""
        order = [*STAGES, "end"]
        place = self.root / "base" / f"before-{stage}"
        if (place / ".ready").exists():
            return place
        shutil.rmtree(place, ignore_errors=True)
        number = order.index(stage)
        if number == 0:
            place.mkdir(parents=True)
            # A teacher of a few steps makes the tracking store, so that trials need not.
            self.must(stage_command("train-teacher", "--set", "env_steps=800"), place)
            shutil.rmtree(place / "runs")
        else:
            copied(self.workspace_before(order[number - 1]), place)
            (place / ".ready").unlink()
            self.must(stage_command(order[number - 1]), place)
        (place / ".ready").touch()
        return place

    def must(self, arguments: Sequence[str], workspace: Path) -> Outcome:
        """Run a command whose failure makes the drill worthless."""
        done = self.call(arguments, workspace)
        if done.code != 0:
            raise SystemExit(f"drill: {' '.join(arguments)} ended with {done.code}:\n{done.text}")
        return done

    def go_on(self, stage: str, workspace: Path) -> tuple[str, Outcome]:
        """Go on with a stage, or ``run``, as the product tells: resume it, or else begin it anew."""
        if stage in (*RESUMABLE, "run"):
            done = self.call([stage, "--resume"], workspace)
            if not nothing_to_resume(done):
                return "resumed", done
        return "anew", self.call(chain_command() if stage == "run" else stage_command(stage), workspace)

    def verdict(self, case: str, problems: Sequence[str], workspace: Path | None = None) -> None:
        """Count a trial; print it, and keep its workspace where it has problems."""
        self.total += 1
        if not problems:
            self.survived += 1
            print(f"ok   {case}", flush=True)
            return
        print(f"LOST {case}: {' | '.join(problems)}", flush=True)
        if workspace is not None and self.options.root is not None:
            kept = self.root / "kept" / f"{self.name}-{self.total}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(workspace, kept, symlinks=True, ignore_dangling_symlinks=True)

    @property
    def name(self) -> str:
        """Name of the drill's script."""
        return Path(sys.modules["__main__"].__file__ or "drill").stem

    def finish(self) -> NoReturn:
        """Print the last line; exit with 1 where something was lost or nothing was tried."""
        print(f"{self.name}: survived {self.survived} of {self.total}", flush=True)
        sys.exit(0 if self.survived == self.total > 0 else 1)


@dataclass
class Running:
    """A command that runs in a fork."""

    pid: int
    output: Path
    begun: float

    def wait(self, timeout_s: float = 240.0) -> Outcome:
        """Return how it ended; kill it after the timeout."""
        deadline = time.monotonic() + timeout_s
        code: int | None = None
        while time.monotonic() < deadline:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.01)
        else:
            self.kill()
            os.waitpid(self.pid, 0)
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        return Outcome(code, text, time.monotonic() - self.begun)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and to what it started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has not made its session yet, or has ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 120.0) -> None:
        """Return once the condition holds or the command has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not condition():
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.005)


def _remove_as(pid: int, folder: Path) -> None:
    """Remove a folder, in the process that made it alone: forks run what is registered for the exit, too."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_served(port: int) -> bool:
    """Return whether a server of MLflow on this machine answers within two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(0.3)
    return False


def nothing_to_resume(done: Outcome) -> bool:
    """Tell whether a --resume was refused because nothing was saved."""
    text = " ".join(done.text.split())
    return done.code == 2 and ("to resume" in text or "start it again" in text)


def copied(source: Path, target: Path) -> Path:
    """Copy a workspace, in place of whatever lies at the target."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target


@dataclass
class Found:
    """An artifact as it lies on disk, read without the product's help."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def completed(self) -> bool:
        """Whether its manifest says that it is complete."""
        return self.content.get("status") == "completed"

    def faults(self) -> list[str]:
        """Return which of its files are missing or differ from their hashes."""
        wrong = []
        for name, expected in self.content.get("files", {}).items():
            path = self.path / name
            if not path.is_file():
                wrong.append(f"{name} is missing")
            elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                wrong.append(f"{name} differs")
        return wrong

    def fingerprint(self) -> dict[str, Any]:
        """Return what must equal that of an unbroken run: files bit for bit, and results without times."""
        kind, files = self.content["kind"], self.content["files"]
        exact = {"teacher": ("network.safetensors",), "student": ("network.safetensors",)}.get(kind, ())
        prints: dict[str, Any] = {
            name: digest for name, digest in files.items() if name in exact or name.endswith(".hdf5")
        }
        if "history.json" in files:
            prints["history"] = _without_times(json.loads((self.path / "history.json").read_text()))
        if kind in ("teacher", "dataset", "student"):
            prints["results"] = _without_times(self.content["results"])
        return prints


def artifacts(workspace: Path, kind: str | None = None) -> list[Found]:
    """Return the artifacts of a workspace, oldest first; a manifest that cannot be read is empty."""
    found = []
    for path in sorted(workspace.glob("runs/*/")):
        content: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((path / "manifest.json").read_text())
        if kind in (None, content.get("kind", path.name.partition("-")[0])):
            found.append(Found(path, content))
    return found


def newest(workspace: Path, kind: str) -> Found:
    """Return the completed artifact of a kind that finished last."""
    done = [found for found in artifacts(workspace, kind) if found.completed]
    return max(done, key=lambda found: found.content["finished_at"])


def broken(workspace: Path) -> list[str]:
    """Return what is wrong with artifacts that count as complete."""
    return [
        f"half an artifact counts as complete: {found.name}: {fault}"
        for found in artifacts(workspace)
        if found.completed
        for fault in found.faults()
    ]


def leftovers(folder: Path) -> list[str]:
    """Return the temporary files below a folder."""
    return [f"temporary file is left: {path.name}" for path in folder.rglob(".tmp-*")]


def hashes(workspace: Path) -> dict[Path, str]:
    """Return the hashes of all files below runs/, to see what was lost."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(workspace.glob("runs/**/*"))
        if path.is_file() and path.name != ".lock"
    }


def differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """Return which parts of two fingerprints differ."""
    parts = sorted({*expected, *got})
    return [f"{part} differs from an unbroken run" for part in parts if expected.get(part) != got.get(part)]


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if not _TIMES.search(key)}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _run_command_line() -> int:
    """Run `pipeline` in this process and return its exit code, as the interpreter would."""
    from thousandfold.pipeline.__main__ import main

    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _modules() -> Iterator[str]:
    return (module.name for module in pkgutil.walk_packages(thousandfold.__path__, "thousandfold."))


def _load_product() -> None:
    """Import what commands import, so that forks need not."""
    for name in (
        *LIBRARIES,
        *(name for name in _modules() if not name.endswith(("__main__", "fresh_probe"))),
    ):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
