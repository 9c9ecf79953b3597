"""What every stage runs in: workspace, console, tracking, device, threads and seeds."""

from __future__ import annotations

import contextlib
import ctypes
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from thousandfold.ground.errors import (
    DamagedFileError,
    NonFiniteError,
    SettingsError,
    StoppedByUser,
    WorkspaceError,
)
from thousandfold.ground.files import folder_lock
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.cuda import cuda_problem, describe_device, has_driver_files
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.settings import StageSettings, dump_settings
from thousandfold.pipeline.stopping import StopRequest
from thousandfold.pipeline.tracking import NOTE_TAG, StageRun, Tracker

Result = TypeVar("Result")

# Kinds of artifacts whose settings and figures a chain's run has, and those that take long and time nothing.
_COMPARED = ("teacher", "dataset", "student", "policy", "benchmark")
_WATCHED = ("teacher", "dataset", "student")

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@dataclass
class StageContext:
    """What a stage is given besides its settings.

    Attributes:
        chain_run_id: the chain run that stages nest under; None: the one of the artifact they take.
        chain: name of the chain that the stage is part of, or None where it was called alone.
        stop: Ctrl-C.
        ranks: the processes that run the stage together; this one alone, as a rule.
        episode_cache: folder of a teacher's closed-loop episodes, for stages that would run the same ones
            again; None: they are run each time.
    """

    workspace: Workspace
    console: Console
    tracker: Tracker
    chain_run_id: str | None = None
    chain: str | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    ranks: Ranks = field(default_factory=Ranks)
    episode_cache: Path | None = None

    def resume_command(self, stage: str = "", artifact: Artifact | None = None) -> str:
        """Return the command that goes on with a stage's artifact, or with the chain that is under way."""
        command = f"{stage} --resume {artifact.name}" if artifact and not self.chain else "run --resume"
        workspace = shlex.quote(str(self.workspace.root))
        return f"{self.ranks.launcher}pipeline --workspace {workspace} {command}"

    @contextlib.contextmanager
    def stage(
        self,
        kind: str,
        stage: str,
        *,
        task: str,
        settings: StageSettings,
        parents: Mapping[str, Artifact] | None = None,
        resumed: Artifact | None = None,
        task_changes: Mapping[str, Any] | None = None,
        selectable: bool = True,
        saved: Callable[[Artifact], bool] = lambda _: False,
    ) -> Iterator[StageWork]:
        """Create the stage's artifact and its tracking run; close both with what became of them.

        Rank 0 does so; the others are given its artifact to read, and track nothing.

        Args:
            kind: of the artifact.
            stage: name of the command.
            task, settings: written to the manifest.
            parents: artifacts that this one is made from, by role.
            resumed: the artifact to go on with, instead of a new one.
            task_changes: what was changed of the task; None: what was for the parents.
            selectable: whether the artifact may be picked as the newest of its kind.
            saved: tells whether --resume can go on with the artifact as it lies on the disk.

        Raises:
            StoppedByUser: Ctrl-C came while the stage before was at its end, or interrupted this one: the
                message says how to go on.
            UserError: this rank cannot read the artifact of rank 0, or was given other settings.
        """
        if not self.ranks.leads:
            artifact = _artifact_of_leader(self.ranks, settings)
            with self.tracker.stage(stage, name=artifact.name) as run:
                yield StageWork(artifact, run)
            return
        if self.stop.requested:
            go_on = f" Continue with: {self.resume_command()}" if self.chain else ""
            raise StoppedByUser(f"Stopped before {stage}.{go_on}")
        parents = parents or {}
        inherited = (parent.manifest.task_changes for parent in parents.values())  # all of one chain
        artifact = resumed or self.workspace.create(
            kind,
            task=task,
            settings=dump_settings(settings),
            parents={role: parent.parent_entry() for role, parent in parents.items()},
            task_changes=next(inherited, {}) if task_changes is None else task_changes,
            selectable=selectable,
        )
        self.ranks.from_leader(lambda: {"path": str(artifact.path), "settings": dump_settings(settings)})
        # A stage that resumes holds a lock already; the lock of a new artifact tells that somebody makes it.
        lock = folder_lock(artifact.path) if resumed is None else contextlib.nullcontext()
        try:
            with lock, self._tracked(artifact, stage, settings, parents) as work:
                yield work
        except KeyboardInterrupt:
            raise self._stopped(stage, Artifact.load(artifact.path), saved) from None

    @contextlib.contextmanager
    def _tracked(
        self, artifact: Artifact, stage: str, settings: StageSettings, parents: Mapping[str, Artifact]
    ) -> Iterator[StageWork]:
        """Track the making of an artifact; close run, chain and manifest with what became of it."""
        chain, own_chain = self._chain(artifact, parents)
        before = artifact.manifest.tracking
        run_id, sink_ids = before.get("run_id"), before.get("sinks", {})
        tags = {"task": artifact.manifest.task, "artifact": artifact.name}
        tracked = self.tracker.stage(
            stage,
            name=artifact.name,
            chain_run_id=chain,
            run_id=run_id,
            tags=tags | {NOTE_TAG: _description(artifact, stage, parents, self.tracker)},
            watched=artifact.kind in _WATCHED,
            sink_ids=sink_ids,
        )
        ended_by: BaseException | None = None
        try:
            with tracked as run:
                # A run that is not recorded this time may be recorded again when it is resumed.
                ids = {"run_id": run.run_id or run_id, "chain_run_id": chain}
                tracking = {**ids, "own_chain": own_chain, "store": self.tracker.store_name}
                if sinks := sink_ids | run.sink_ids:
                    tracking["sinks"] = sinks
                values = dump_settings(settings)
                begun = {"status": "running", "finished_at": None, "results": {}}
                artifact.update(settings=values, tracking=tracking, **begun)
                run.log_settings(values)
                work = StageWork(artifact, run)
                if work.counts_for_chain:
                    run.log_chain_settings({stage.replace("-", "_"): values})
                yield work
        except BaseException as error:
            ended_by = error
            if not isinstance(error, StoppedByUser | KeyboardInterrupt):
                _record_failure(artifact, error)
            raise
        finally:
            if own_chain:
                self.tracker.close_chain(chain, ended_by)

    def _stopped(self, stage: str, artifact: Artifact, saved: Callable[[Artifact], bool]) -> StoppedByUser:
        """Return what is said of an artifact whose making was interrupted; what cannot go on is failed."""
        if artifact.is_completed:
            return StoppedByUser(f"Stopped; {artifact.name} is completed.")
        resumable = saved(artifact)
        if not resumable:
            _record_failure(artifact, StoppedByUser("stopped by the user"))
        if resumable or self.chain:
            kept = (
                f"what it has saved is kept in {artifact.path}" if resumable else "it had saved nothing yet"
            )
            command = self.resume_command(stage, artifact)
            return StoppedByUser(f"Stopped {artifact.name}; {kept}. Continue with: {command}")
        return StoppedByUser(f"Stopped {artifact.name}; it had saved nothing yet: start it again.")

    def _chain(self, artifact: Artifact, parents: Mapping[str, Artifact]) -> tuple[str | None, bool]:
        """Return the chain run to nest under, and whether this stage opened it and so closes it."""
        before = artifact.manifest.tracking
        known = [self.chain_run_id, before.get("chain_run_id")]
        known += [parent.manifest.tracking.get("chain_run_id") for parent in parents.values()]
        for chain in known:
            if chain:
                return chain, chain == before.get("chain_run_id") and before.get("own_chain", False)
        task = artifact.manifest.task
        note = f"What was made of `{artifact.name}` and from it, one command after another, for task {task}."
        return self.tracker.open_chain(f"chain of {artifact.name}", {"task": task, NOTE_TAG: note}), True


@dataclass
class StageWork:
    """The artifact being made and the tracking run that records it."""

    artifact: Artifact
    run: StageRun

    @property
    def counts_for_chain(self) -> bool:
        """Whether the chain's run has the artifact's settings and headline figures, too."""
        return self.artifact.kind in _COMPARED and self.artifact.manifest.selectable

    def log_headline(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Record the few figures that runs are compared by, and chains; see `StageRun.log_headline`."""
        self.run.log_headline(metrics, step, chain=self.counts_for_chain)

    def note_device(self, device: str) -> None:
        """Write to the manifest what the stage computes on; `device` is resolved."""
        self.artifact.update(device=describe_device(device))

    def log_files(self, *names: str) -> None:
        """Send files of the artifact to the tracking store, where they exist."""
        for name in names:
            if self.artifact.file(name).exists():
                self.run.log_file(self.artifact.file(name))


def _description(artifact: Artifact, stage: str, parents: Mapping[str, Artifact], tracker: Tracker) -> str:
    """Return what MLflow's page says of a stage's run: what it makes, of what, and where that lies."""
    lines = [
        f"`pipeline {stage}` for task {artifact.manifest.task}. "
        f"What it makes lies in `runs/{artifact.name}` of the workspace."
    ]
    if parents:
        lines += ["", "| made from | artifact |", "|---|---|"]
    for role, parent in parents.items():
        page = tracker.page_of(parent.manifest.tracking.get("run_id"))
        lines.append(f"| {role} | {f'[{parent.name}]({page})' if page else parent.name} |")
    return "\n".join(lines)


def _artifact_of_leader(ranks: Ranks, settings: StageSettings) -> Artifact:
    """Return what rank 0 has made. Raises UserError where it is out of reach or has other settings."""
    told = ranks.from_leader(dict)
    path, own = Path(told["path"]), dump_settings(settings)
    if other := [name for name, value in told["settings"].items() if own.get(name) != value]:
        raise SettingsError(
            f"Rank {ranks.rank} has another {', '.join(other)} than rank 0: give every rank the same command."
        )
    try:
        return Artifact.load(path)
    except DamagedFileError:
        raise WorkspaceError(
            f"Rank {ranks.rank} cannot read {path}, which rank 0 has made: the workspace must lie on a file "
            "system that all machines share."
        ) from None


def _record_failure(artifact: Artifact, error: BaseException) -> None:
    """Mark an unfinished artifact as failed; a full disk must not hide the error that led here."""
    if artifact.manifest.status == "running":
        with contextlib.suppress(OSError):
            artifact.fail(str(error) or type(error).__name__)


def resolve_device(name: str, console: Console) -> str:
    """Return ``cpu`` or ``cuda`` for a device setting.

    Warns where ``auto`` becomes the CPU on a machine with an NVIDIA driver.

    Raises:
        SettingsError: ``cuda`` is asked for, and the driver, torch or Warp is missing or does not fit; says
            what would.
    """
    if name == "cpu":
        return name
    problem = cuda_problem()
    if problem is None:
        return "cuda"
    if name == "cuda":
        raise SettingsError(f"device cuda: {problem}; or use --device cpu.")
    if has_driver_files():
        console.warn(f"The CPU computes, not the GPU: {problem}. --device cpu silences this.", once=True)
    return "cpu"


def require_precision(precision: str, device: str) -> None:
    """Raise SettingsError where the device has no instructions for bfloat16 and would only emulate it."""
    import torch

    if precision != "bfloat16":
        return
    if device != "cpu":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        supported = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"))
    if not supported:
        raise SettingsError(
            f"precision bfloat16: this {'processor' if device == 'cpu' else 'CUDA device'} has no "
            "instructions for it and would be slower than in float32; use precision=float32."
        )


def set_up_torch(threads: int, processes: int = 1) -> None:
    """Let torch compute on so many CPU threads, 0: a process's share, and keep the memory that it frees."""
    import torch

    torch.set_num_threads(threads or cpu_share(processes))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next allocation, where it is glibc.

    An update frees all of its activations. Given back to the system, each of their pages is cleared and
    mapped anew in the next update, which takes longer than some of what is computed in them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Below this size memory comes from the heap, which can be kept. Before glibc 2.35 no more is accepted
    # than 32 MiB, and the other two parameters alone would leave every matrix outside the heap.
    if mallopt is not None and (mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)):
        mallopt(_M_TRIM_THRESHOLD, -1)  # never
        mallopt(_M_TOP_PAD, 2**26)


def cpu_share(processes: int) -> int:
    """Return how many of the usable CPUs fall to each of so many processes, at least one."""
    return max(1, usable_cpus() // processes)


def seed_sequence(seed: int, *stream: int) -> np.random.SeedSequence:
    """Return the seed of one named stream of randomness, independent of all others."""
    # As a spawn key: a plain list is padded with zeros, so that (seed, 4) and (seed, 4, 0) would be the same.
    return np.random.SeedSequence(seed, spawn_key=stream)


def torch_seed(seed: int, *stream: int) -> int:
    """Return a 63-bit seed for a torch generator, from the same tree of streams."""
    return int(seed_sequence(seed, *stream).generate_state(1, np.uint64)[0] >> np.uint64(1))


def require_finite(values: Mapping[str, float], where: str, kept: Path | None = None) -> None:
    """Raise NonFiniteError naming the first value that is NaN or infinite, and what was kept."""
    for name, value in values.items():
        if not np.isfinite(value):
            rest = f" The last good checkpoint is kept in {kept}." if kept else ""
            raise NonFiniteError(f"{name} became {value} at {where}.{rest}")


def describe_host() -> dict[str, Any]:
    """Return facts of the machine that a measurement needs beside it."""
    import platform

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = text.partition("\n\n")[0].splitlines()
        said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        model = said.get("model name", model)
        # Clouds give generations of processors the same name.
        if "cpu family" in said:
            model += f", family {said['cpu family']}, model {said.get('model', '?')}"
    return {"cpu": model, "usable_cpus": usable_cpus(), "system": platform.platform()}
