"""Where else runs are recorded beside MLflow: TensorBoard's event files, and Weights & Biases.

THOUSANDFOLD_SINKS names them, joined by commas; without it there are none. Each is a package of its own that
is imported where it is named.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thousandfold.ground.errors import MissingExtraError, SettingsError, UserError

if TYPE_CHECKING:
    from tensorboard.summary.writer.record_writer import RecordWriter
    from wandb import Run

SINKS_VARIABLE = "THOUSANDFOLD_SINKS"
_PROJECT = "thousandfold"
"""Of Weights & Biases, where its own settings, such as WANDB_PROJECT, name none."""
_INIT_S = 25.0
_UPLOAD_S = 60.0
"""How long the end of a run, and that of the process, waits for what is still to be sent."""
_VIDEOS = (".mp4", ".gif")


@dataclass(frozen=True)
class RecordedStage:
    """What a sink is told of a stage as it begins.

    Attributes:
        name: of the run, usually the artifact's.
        stage: name of the command.
        group: what the stages of one chain have in common; None: it is part of none.
        tags: such as its task.
        earlier: what the sink called the run when it was interrupted; None: it is new.
        watched: whether the sink may sample the machine meanwhile, which a measurement of time would notice.
    """

    name: str
    stage: str
    group: str | None
    tags: Mapping[str, str]
    earlier: str | None
    watched: bool


class SinkRun(Protocol):
    """The record of one stage in a sink. Its methods raise whatever the sink's package does."""

    id: str
    """What the sink calls the run, and goes on with when it is resumed."""

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Record settings, whose keys are flat."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step, which need not be above the last one."""
        ...

    def log_file(self, path: Path) -> None:
        """Record a picture or a video where the sink shows such, and no other file."""
        ...

    def end(self, status: str) -> None:
        """End the run; `status` is one of MLflow's."""
        ...


class Sink(Protocol):
    """A place where runs are recorded."""

    name: str
    """As SINKS_VARIABLE has it."""
    title: str
    """As people call it."""

    def begin(self, stage: RecordedStage) -> SinkRun:
        """Begin the record of a stage, or go on with the one that it had before."""
        ...


class TensorBoard:
    """Event files below the workspace's folder `tensorboard`, one folder a run."""

    name, title = "tensorboard", "TensorBoard"

    def __init__(self, workspace_root: Path) -> None:
        self._root = workspace_root.resolve()

    def begin(self, stage: RecordedStage) -> SinkRun:
        """Take the folder that the run had; for a new one make a folder of its name."""
        folder = self._root / (stage.earlier or f"tensorboard/{stage.name}")
        number = 1
        while stage.earlier is None and folder.exists():
            number += 1
            folder = folder.with_name(f"{stage.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        return _EventFile(folder, folder.relative_to(self._root).as_posix(), stage.name)


class _EventFile:
    """Writes events at once, without TensorBoard's own thread, which prints a call stack where it fails."""

    def __init__(self, folder: Path, id: str, name: str) -> None:
        self.id = id
        self._folder, self._name = folder, name
        self._step = 0
        self._writer: RecordWriter | None = None

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        plain = {key: each if isinstance(each, float | int) else str(each) for key, each in settings.items()}
        self._write(0, hparams_pb(plain, trial_id=self._name))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        self._step = step
        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._write(step, Summary(value=values))

    def log_file(self, path: Path) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        if path.suffix != ".png":
            return
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # in every PNG file's first chunk, IHDR
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        self._write(self._step, Summary(value=[Summary.Value(tag=f"pictures/{path.stem}", image=image)]))

    def end(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.summary.writer.record_writer import RecordWriter

        writer, self._writer = self._writer, None  # a file that takes no more is not gone on with
        if writer is None:
            now = time.time_ns()
            name = f"events.out.tfevents.{now // 10**9}.{os.uname().nodename}.{os.getpid()}.{now}"
            writer = RecordWriter((self._folder / name).open("xb"))
            writer.write(Event(wall_time=now / 1e9, file_version="brain.Event:2").SerializeToString())
        writer.write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())
        writer.flush()
        self._writer = writer


class WeightsAndBiases:
    """Runs of Weights & Biases, on its server or, with WANDB_MODE=offline, in the workspace's folder `wandb`.

    Raises:
        UserError: it is to send to a server, and nobody is logged in.
    """

    name, title = "wandb", "Weights & Biases"

    def __init__(self, workspace_root: Path) -> None:
        import wandb

        self._root = workspace_root.resolve()
        # `silent` also keeps it from asking for a key, and from printing whose key it found.
        settings = wandb.setup(wandb.Settings(silent=True, console="off")).settings
        if settings.mode not in ("offline", "dryrun", "disabled") and not wandb.login(
            prompt=False, verify=False
        ):
            raise UserError(
                f"{SINKS_VARIABLE} names wandb, and nobody is logged in: run `wandb login`, or set "
                "WANDB_API_KEY, or set WANDB_MODE=offline to send the runs later."
            )
        self._project = settings.project or _PROJECT

    def begin(self, stage: RecordedStage) -> SinkRun:
        """Begin a run, or go on with the one of that id."""
        import wandb

        run = wandb.init(
            project=self._project,
            dir=self._root,
            id=stage.earlier,
            name=stage.name,
            group=stage.group,
            job_type=stage.stage,
            config={"stage": stage.stage, **stage.tags},
            resume="allow",
            reinit="create_new",  # stages nest
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=_INIT_S,
                finish_timeout=_UPLOAD_S,
                disable_code=True,
                x_disable_stats=not stage.watched,
            ),
        )
        # Its own steps only rise; a run's are steps of the environment, updates, or 0.
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return _WandbRun(run)


class _WandbRun:
    def __init__(self, run: Run) -> None:
        self.id = run.id
        self._run = run
        self._step = 0

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        self._run.config.update(dict(settings), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._step = step
        self._run.log({**metrics, "step": step})

    def log_file(self, path: Path) -> None:
        import wandb

        if path.suffix == ".png":
            self._run.log({f"pictures/{path.stem}": wandb.Image(str(path)), "step": self._step})
        elif path.suffix in _VIDEOS:
            video = wandb.Video(str(path), format=path.suffix[1:])  # pyright: ignore[reportArgumentType]
            self._run.log({f"videos/{path.stem}": video, "step": self._step})

    def end(self, status: str) -> None:
        # 255 is what Weights & Biases calls killed.
        self._run.finish(exit_code={"FINISHED": 0, "KILLED": 255}.get(status, 1))


_SINKS: dict[str, Callable[[Path], Sink]] = {each.name: each for each in (TensorBoard, WeightsAndBiases)}


def open_sinks(workspace_root: Path) -> list[Sink]:
    """Return the sinks that THOUSANDFOLD_SINKS names.

    Raises:
        SettingsError: It names one that does not exist.
        MissingExtraError: The package of one is not installed.
        UserError: One cannot be used as it is set up.
    """
    given = os.environ.get(SINKS_VARIABLE, "").lower().split(",")
    names = dict.fromkeys(name.strip() for name in given if name.strip())
    for name in names:
        if name not in _SINKS:
            raise SettingsError(
                f"{SINKS_VARIABLE} names {name!r}; the sinks are {' and '.join(_SINKS)}, joined by a comma."
            )
        if not is_installed(name):
            raise MissingExtraError(
                f'{SINKS_VARIABLE} names {name}, which is not installed: pip install "thousandfold[{name}]".'
            )
    return [_SINKS[name](workspace_root) for name in names]


def is_installed(package: str) -> bool:
    """Tell a library from a folder of that name, which Python takes for an empty namespace package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
