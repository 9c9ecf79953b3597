"""What a stage runs in: what becomes of its artifact, its chain run, and several ranks."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from thousandfold.ground.errors import MissingArtifactError, SettingsError, StoppedByUser, UserError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import StageSettings
from thousandfold.pipeline.tracking import NullTracker, StageRun

SETTINGS = StageSettings(seed=7)


class RecordingTracker(NullTracker):
    """Remembers chains and stages."""

    def __init__(self) -> None:
        super().__init__()
        self.chains: dict[str, bool | None] = {}
        self.stages: list[dict[str, Any]] = []
        self.endings: list[BaseException | None] = []

    def open_chain(self, name: str, tags: Any = None) -> str:
        self.chains[f"chain-{len(self.chains)}"] = None
        return f"chain-{len(self.chains) - 1}"

    def close_chain(self, chain_run_id: str | None, error: BaseException | None = None) -> None:
        assert chain_run_id is not None
        self.chains[chain_run_id] = error is None
        self.endings.append(error)

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
    with pytest.raises(StoppedByUser, match=r"^Stopped before a-stage\.$"):
        run_stage(context)
    context.chain = "chain-1"
    with pytest.raises(StoppedByUser, match=r"^Stopped before a-stage\. Continue with: .* run --resume$"):
        run_stage(context)
    assert context.workspace.artifacts() == [] and tracker.stages == []


@pytest.mark.parametrize(("chain", "words"), [(None, ["s", "--resume", "NAME"]), ("c", ["run", "--resume"])])
def test_the_command_that_resumes_can_be_pasted_into_a_shell(
    tmp_path: Path, chain: str | None, words: list[str]
):
    root = tmp_path / "my runs; all"
    context = StageContext(Workspace(root), Console(), NullTracker(), chain=chain)
    made = run_stage(context)
    command = shlex.split(context.resume_command("s", made))
    assert command == ["pipeline", "--workspace", str(root), *(w.replace("NAME", made.name) for w in words)]


@pytest.mark.parametrize(
    ("chain", "saved", "message"),
    [
        (
            None,
            True,
            r"^Stopped {name}; what it has saved is kept in {path}. "
            r"Continue with: .* a-stage --resume {name}$",
        ),
        (None, False, r"^Stopped {name}; it had saved nothing yet: start it again.$"),
        (
            "chain-1",
            True,
            r"^Stopped {name}; what it has saved is kept in {path}. Continue with: .* run --resume$",
        ),
        ("chain-1", False, r"^Stopped {name}; it had saved nothing yet. Continue with: .* run --resume$"),
    ],
)
def test_an_interrupted_stage_is_named_and_says_how_to_go_on(
    context: StageContext, tracker: RecordingTracker, chain: str | None, saved: bool, message: str
):
    context.chain = chain
    with (
        pytest.raises(StoppedByUser) as raised,
        context.stage("teacher", "a-stage", task="m", settings=SETTINGS, saved=lambda _: saved) as work,
    ):
        raise KeyboardInterrupt
    artifact = Artifact.load(work.artifact.path)
    assert re.match(message.format(name=artifact.name, path=artifact.path), str(raised.value))
    assert artifact.manifest.status == ("running" if saved else "failed")
    assert isinstance(tracker.endings[-1], KeyboardInterrupt)


def test_an_interruption_after_the_end_leaves_the_artifact_completed(context: StageContext):
    with (
        pytest.raises(StoppedByUser, match=r"^Stopped; teacher-.* is completed\.$"),
        context.stage("teacher", "a-stage", task="m", settings=SETTINGS) as work,
    ):
        work.artifact.complete({"success": 1.0})
        raise KeyboardInterrupt
    assert Artifact.load(work.artifact.path).manifest.status == "completed"


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
    assert isinstance(tracker.endings[0], StoppedByUser), "so that the chain counts as killed, as its stage"
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
    alone = StageContext(Workspace(tmp_path), Console(), NullTracker())
    words = shlex.split(context.resume_command("train-teacher", run_stage(alone)))
    assert words[:-1] == [*launcher, "pipeline", "--workspace", str(tmp_path), "train-teacher", "--resume"]
