"""What a stage runs in: its artifact's fate, its chain run, devices, seeds and Ctrl-C."""

from __future__ import annotations

import contextlib
import ctypes
import math
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core import runtime
from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.console import Console
from pipeline.core.distributed import Ranks
from pipeline.core.errors import (
    MissingArtifactError,
    NonFiniteError,
    SettingsError,
    StoppedByUser,
    UserError,
)
from pipeline.core.runtime import (
    StageContext,
    StopRequest,
    as_user_error,
    cpu_share,
    require_finite,
    require_precision,
    resolve_device,
    seed_sequence,
    stop_on_interrupt,
    torch_seed,
)
from pipeline.core.settings import StageSettings
from pipeline.core.tracking import NullTracker, StageRun

SETTINGS = StageSettings(seed=7)


class RecordingTracker(NullTracker):
    """Remembers chains and stages."""

    def __init__(self) -> None:
        super().__init__()
        self.chains: dict[str, bool | None] = {}
        self.stages: list[dict[str, Any]] = []

    def open_chain(self, name: str, tags: Any = None) -> str:
        self.chains[f"chain-{len(self.chains)}"] = None
        return f"chain-{len(self.chains) - 1}"

    def close_chain(self, chain_run_id: str | None, ok: bool) -> None:
        assert chain_run_id is not None
        self.chains[chain_run_id] = ok

    @contextmanager
    def stage(self, stage: str, **options: Any) -> Iterator[StageRun]:
        self.stages.append({"stage": stage, **options})
        run_id = options["run_id"] or f"run-{len(self.stages) - 1}"
        yield StageRun(NullTracker()._store, run_id, options["chain_run_id"])


@pytest.fixture
def tracker() -> RecordingTracker:
    return RecordingTracker()


@pytest.fixture
def context(tmp_path: Path, tracker: RecordingTracker) -> StageContext:
    return StageContext(Workspace(tmp_path), Console(), tracker)


def run_stage(
    context: StageContext,
    kind: str = "teacher",
    error: BaseException | None = None,
    complete: bool = True,
    **options: Any,
) -> Artifact:
    """Run a stage that completes its artifact or raises; return the artifact as it lies on the disk."""
    made: list[Path] = []
    try:
        with context.stage(kind, "a-stage", task="maze", settings=SETTINGS, **options) as work:
            made.append(work.artifact.path)
            work.artifact.file("data").write_text("data")
            if error is not None:
                raise error
            if complete:
                work.artifact.complete({"success": 1.0})
    except BaseException as raised:
        if raised is not error:
            raise
    return Artifact.load(made[0])


# -- what becomes of the artifact -------------------------------------------------------------------


def test_a_stage_that_succeeds_is_completed(context: StageContext, tracker: RecordingTracker):
    manifest = run_stage(context).manifest
    assert manifest.status == "completed" and manifest.results == {"success": 1.0}
    assert manifest.settings == {"seed": 7, "device": "auto"} and manifest.task == "maze"
    assert manifest.tracking["run_id"] == "run-0" and manifest.tracking["chain_run_id"] == "chain-0"
    assert tracker.stages[0]["name"] == manifest.name and tracker.stages[0]["stage"] == "a-stage"


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (UserError("the disk is a cheese"), "the disk is a cheese"),
        (ZeroDivisionError("by zero"), "by zero"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_stage_that_raises_is_failed_and_says_why(
    context: StageContext, error: BaseException, recorded: str
):
    manifest = run_stage(context, error=error).manifest
    assert manifest.status == "failed" and manifest.results == {"error": recorded}
    assert manifest.finished_at is not None


def test_a_stage_that_the_user_stopped_stays_open_for_resuming(
    context: StageContext, tracker: RecordingTracker
):
    manifest = run_stage(context, error=StoppedByUser("stopped")).manifest
    assert manifest.status == "running" and manifest.finished_at is None
    assert tracker.chains == {"chain-0": False}


def test_what_was_completed_before_the_error_stays_completed(context: StageContext):
    with (
        pytest.raises(UserError),
        context.stage("teacher", "s", task="maze", settings=StageSettings()) as work,
    ):
        work.artifact.complete({"success": 1.0})
        raise UserError("the tracking store is away")
    assert Artifact.load(work.artifact.path).manifest.status == "completed"


def test_a_full_disk_does_not_hide_the_error(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(ZeroDivisionError),
        context.stage("teacher", "s", task="maze", settings=StageSettings()),
    ):
        monkeypatch.setattr(Artifact, "fail", full)
        raise ZeroDivisionError


def test_a_resumed_stage_keeps_its_folder_and_run_and_forgets_the_failure(
    context: StageContext, tracker: RecordingTracker
):
    failed = run_stage(context, error=UserError("once"))
    with context.stage("teacher", "s", task="maze", settings=StageSettings(), resumed=failed) as work:
        manifest = Artifact.load(failed.path).manifest
        assert manifest.status == "running" and manifest.finished_at is None and manifest.results == {}
        work.artifact.complete({})
    assert work.artifact.path == failed.path
    assert tracker.stages[1]["run_id"] == "run-0"
    assert [path.name for path in context.workspace.runs.iterdir()] == [failed.name]


def test_parents_are_recorded_by_role_with_their_hash(context: StageContext):
    teacher = run_stage(context)
    dataset = run_stage(context, "dataset", parents={"teacher": teacher})
    parent = dataset.manifest.parents["teacher"]
    assert (parent.kind, parent.name, parent.hash) == ("teacher", teacher.name, teacher.manifest.hash)
    unfinished = run_stage(context, error=StoppedByUser("stopped"))
    with pytest.raises(MissingArtifactError, match="not completed"):
        run_stage(context, "dataset", parents={"teacher": unfinished})


def test_an_artifact_may_be_kept_from_being_the_newest(context: StageContext):
    assert run_stage(context).manifest.selectable
    assert not run_stage(context, selectable=False).manifest.selectable


def test_after_ctrl_c_no_further_stage_begins(context: StageContext, tracker: RecordingTracker):
    context.stop.requested = True
    with pytest.raises(StoppedByUser, match=r"Stopped before a-stage.*--resume"):
        run_stage(context)
    assert context.workspace.artifacts() == [] and tracker.stages == []


@pytest.mark.parametrize(("chain", "command"), [(None, "train-teacher"), ("chain-1", "run")])
def test_the_command_that_resumes_can_be_pasted_into_a_shell(tmp_path: Path, chain: str | None, command: str):
    root = tmp_path / "my runs; all"
    context = StageContext(Workspace(root), Console(), NullTracker(), chain=chain)
    assert shlex.split(context.resume_command) == ["pipeline", "--workspace", str(root), command, "--resume"]


# -- chain runs -------------------------------------------------------------------------------------


def test_a_stage_alone_opens_and_closes_its_own_chain(context: StageContext, tracker: RecordingTracker):
    run_stage(context)
    run_stage(context, error=UserError("no"))
    assert tracker.chains == {"chain-0": True, "chain-1": False}
    assert [stage["chain_run_id"] for stage in tracker.stages] == ["chain-0", "chain-1"]


def test_a_stage_nests_under_the_chain_of_what_it_takes(context: StageContext, tracker: RecordingTracker):
    teacher = run_stage(context)
    dataset = run_stage(context, "dataset", parents={"teacher": teacher})
    run_stage(context, "student", parents={"teacher": teacher, "dataset": dataset}, error=UserError("no"))
    assert [stage["chain_run_id"] for stage in tracker.stages] == ["chain-0"] * 3
    assert tracker.chains == {"chain-0": True}  # a later failure is not the chain's that the teacher opened


def test_a_chain_that_is_given_is_used_and_left_open(context: StageContext, tracker: RecordingTracker):
    teacher = run_stage(context)
    context.chain_run_id = tracker.open_chain("all")
    run_stage(context, "dataset", parents={"teacher": teacher})
    assert tracker.stages[-1]["chain_run_id"] == "chain-1" and tracker.chains["chain-1"] is None


def test_a_resumed_stage_closes_the_chain_that_it_opened(context: StageContext, tracker: RecordingTracker):
    stopped = run_stage(context, error=StoppedByUser("stopped"))
    assert tracker.chains == {"chain-0": False}
    again = run_stage(context, resumed=stopped, error=StoppedByUser("stopped"))
    run_stage(context, resumed=again)
    assert tracker.chains == {"chain-0": True}
    assert [stage["chain_run_id"] for stage in tracker.stages] == ["chain-0"] * 3


def test_a_resumed_stage_leaves_the_chain_of_others_open(context: StageContext, tracker: RecordingTracker):
    context.chain_run_id = tracker.open_chain("all")
    stopped = run_stage(context, error=StoppedByUser("stopped"))
    context.chain_run_id = None
    run_stage(context, resumed=stopped)
    assert tracker.chains == {"chain-0": None} and tracker.stages[-1]["chain_run_id"] == "chain-0"


def test_without_a_store_stages_run_all_the_same(tmp_path: Path):
    context = StageContext(Workspace(tmp_path), Console(), NullTracker())
    manifest = run_stage(context).manifest
    assert manifest.status == "completed" and manifest.tracking["run_id"] is None


# -- several ranks ----------------------------------------------------------------------------------


class ToldBy(Ranks):
    """A rank that is told by rank 0, or rank 0 that tells."""

    def __init__(self, rank: int, told: list[Any]) -> None:
        super().__init__(rank, 2, rank, 2)
        self.told = told

    def from_leader(self, make: Any) -> Any:
        if self.leads:
            self.told.append(make())
        return self.told[-1]


def test_other_ranks_read_the_artifact_of_rank_0_and_change_nothing(
    tmp_path: Path, tracker: RecordingTracker
):
    told: list[Any] = []
    leader = StageContext(Workspace(tmp_path), Console(), tracker, ranks=ToldBy(0, told))
    made = run_stage(leader, complete=False)
    before = made.file("manifest.json").read_bytes()
    other = StageContext(Workspace(tmp_path), Console(silent=True), NullTracker(), ranks=ToldBy(1, told))
    for error in (None, UserError("no")):
        with (
            contextlib.suppress(UserError),
            other.stage("teacher", "s", task="maze", settings=SETTINGS) as work,
        ):
            assert work.artifact.path == made.path and work.run.run_id is None
            work.run.log_metrics({"loss": 1.0}, 0)
            if error is not None:
                raise error
    assert made.file("manifest.json").read_bytes() == before
    assert len(tracker.stages) == 1 and len(Workspace(tmp_path).artifacts()) == 1


def test_a_rank_that_cannot_read_it_or_was_told_otherwise_says_so(tmp_path: Path):
    told: list[Any] = []
    run_stage(StageContext(Workspace(tmp_path), Console(), NullTracker(), ranks=ToldBy(0, told)))
    other = StageContext(Workspace(tmp_path), Console(), NullTracker(), ranks=ToldBy(1, told))
    with (
        pytest.raises(SettingsError, match="Rank 1 has another seed than rank 0: give every rank the same"),
        other.stage("teacher", "s", task="maze", settings=StageSettings(seed=8)),
    ):
        pass
    told.append(told[-1] | {"path": str(tmp_path / "elsewhere")})
    with (
        pytest.raises(UserError, match=r"Rank 1 cannot read .*elsewhere, .* that all machines share"),
        other.stage("teacher", "s", task="maze", settings=SETTINGS),
    ):
        pass


def test_the_command_that_resumes_starts_as_many_ranks(tmp_path: Path):
    context = StageContext(Workspace(tmp_path), Console(), NullTracker(), ranks=Ranks(0, 4, 0, 4))
    launcher = ["torchrun", "--nproc-per-node", "4", "--no-python"]
    words = shlex.split(context.resume_command)
    assert words == [*launcher, "pipeline", "--workspace", str(tmp_path), "train-teacher", "--resume"]


def test_signals_that_torchrun_repeats_are_one_request(capfd: pytest.CaptureFixture[str]):
    stop = StopRequest()
    with stop_on_interrupt(stop, Ranks(1, 2)):
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
    assert stop.requested and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("processes", "share"), [(1, 5), (2, 2), (5, 1), (9, 1)])
def test_cpus_are_shared_evenly_at_least_one_each(
    monkeypatch: pytest.MonkeyPatch, processes: int, share: int
):
    monkeypatch.setattr(runtime, "usable_cpus", lambda: 5)
    assert cpu_share(processes) == share


# -- devices and seeds ------------------------------------------------------------------------------


@pytest.mark.parametrize("available", [False, True])
def test_device_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, available: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto") == ("cuda" if available else "cpu")
    assert resolve_device("cpu") == "cpu"
    if available:
        assert resolve_device("cuda") == "cuda"
    else:
        with pytest.raises(SettingsError, match="no CUDA device here; use --device cpu"):
            resolve_device("cuda")


@pytest.mark.parametrize("able", [{}, {"avx512_f": True, "avx512_bf16": False}])
def test_bfloat16_is_refused_where_the_processor_has_none(monkeypatch: pytest.MonkeyPatch, able: dict):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    with pytest.raises(SettingsError, match=r"this processor has no instructions .* use precision=float32"):
        require_precision("bfloat16", "cpu")
    require_precision("float32", "cpu")


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bfloat16_runs_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, name: str):
    import torch

    able = {name: False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    with pytest.raises(SettingsError):
        require_precision("bfloat16", "cpu")
    able[name] = True
    require_precision("bfloat16", "cpu")


def test_streams_of_randomness_are_reproducible_and_independent():
    def draw(seed: int, *stream: int) -> np.ndarray:
        return np.random.default_rng(seed_sequence(seed, *stream)).standard_normal(4000)

    assert np.array_equal(draw(3, 1), draw(3, 1))
    streams = [draw(*key) for key in ((0, 1), (0, 2), (1, 1), (1, 2), (0, 1, 0), (0, 1, 2), (0, 12))]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)


def test_torch_seeds_are_distinct_and_accepted():
    seeds = {torch_seed(seed, stream) for seed in range(20) for stream in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
    assert torch_seed(5, 3) == torch_seed(5, 3)
    torch.Generator().manual_seed(max(seeds))


# -- Ctrl-C -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals):
    before = signal.getsignal(number)
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(stop):
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        signal.raise_signal(number)
        raise AssertionError("the second signal was ignored")
    assert signal.getsignal(number) is before


def test_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_interrupt(StopRequest()):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_runs_without_handlers():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stop_on_interrupt(StopRequest()):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named_with_where_and_what_is_kept(value: float):
    values = {"actor_loss": 1.0, "critic_loss": value, "alpha": math.nan}
    with pytest.raises(NonFiniteError) as raised:
        require_finite(values, "step 3,200", Path("/runs/checkpoint"))
    assert str(raised.value) == (
        f"critic_loss became {value} at step 3,200. The last good checkpoint is kept in /runs/checkpoint."
    )
    with pytest.raises(NonFiniteError) as raised:
        require_finite(values, "update 1")
    assert str(raised.value) == f"critic_loss became {value} at update 1."
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("values", [{"loss": -1e30, "zero": 0.0}, {}])
def test_finite_numbers_pass(values: dict[str, float]):
    assert require_finite(values, "anywhere") is None


def test_errors_of_the_ground_floor_become_one_line():
    def fail() -> None:
        raise KeyError("two\n  lines")

    with pytest.raises(UserError) as raised:
        as_user_error(fail, KeyError, ValueError)
    assert "\n" not in str(raised.value)
    with pytest.raises(KeyError):
        as_user_error(fail, ValueError)
    assert as_user_error(lambda: 3, ValueError) == 3


# Makes and frees eight matrices of 16 MiB, and prints how many MiB stay resident after that.
MEASURE_RESIDENT = """
import os
import sys
from pathlib import Path
import torch
from pipeline.core.runtime import keep_freed_memory

def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident_pages()
blocks = [torch.zeros(2**22) for _ in range(8)]
blocks.clear()
print((resident_pages() - before) * os.sysconf("SC_PAGE_SIZE") // 2**20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc/self/statm")
def test_freed_memory_is_kept_for_the_next_allocation():
    def resident(how: str) -> int:
        command = [sys.executable, "-c", MEASURE_RESIDENT, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert resident("keep") > 112  # of 128 MiB
    assert resident("give back") < 64
