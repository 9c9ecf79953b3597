"""Curves, settings and pictures beside MLflow: TensorBoard's own reader and W&B's own files tell."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thousandfold.ground.errors import MissingExtraError, SettingsError
from thousandfold.pipeline import tracking, tracking_sinks
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import StageSettings
from thousandfold.pipeline.tracking import NullTracker, open_tracker

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "examples" / "cable_arm" / "cable_arm.png"


@pytest.fixture(autouse=True)
def _tensorboard_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    monkeypatch.setenv("THOUSANDFOLD_SINKS", "tensorboard")


def events(folder: Path) -> Any:
    """Return all event files of a folder, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in events(folder).Scalars(name)]


class TestTensorBoard:
    def test_metrics_settings_and_pictures_arrive_without_mlflow(self, tmp_path: Path) -> None:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        tracker = open_tracker(tmp_path)
        assert isinstance(tracker, NullTracker)
        with tracker.stage("train-teacher", name="teacher-1", tags={"task": "reacher"}) as run:
            run.log_settings({"depth": 4, "loss": {"kind": "info_nce"}, "weights": None})
            run.log_metrics({"train/loss": 2.0, "eval/success": 0.5}, 1000)
            run.log_metrics({"train/loss": math.inf}, 2000)
            run.log_headline({"teacher_success": 0.75, "teacher_gap": None}, 2000)
            run.log_file(PICTURE)
            run.log_file(Path(__file__))
        assert run.run_id is None and run.sink_ids == {"tensorboard": "tensorboard/teacher-1"}

        found = events(tmp_path / "tensorboard" / "teacher-1")
        tags = found.Tags()
        assert set(tags["scalars"]) == {"train/loss", "eval/success", "teacher_success"}
        assert [(p.step, p.value) for p in found.Scalars("train/loss")] == [(1000, 2.0), (2000, math.inf)]
        assert tags["images"] == ["pictures/cable_arm"]
        (picture,) = found.Images("pictures/cable_arm")
        assert picture.encoded_image_string == PICTURE.read_bytes() and picture.step == 2000
        content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        started = HParamsPluginData.FromString(content).session_start_info
        assert started.hparams["depth"].number_value == 4
        assert started.hparams["loss.kind"].string_value == "info_nce" and started.group_name == "teacher-1"

    def test_metrics_can_be_read_while_the_stage_runs(self, tmp_path: Path) -> None:
        with open_tracker(tmp_path).stage("distill", name="student-1") as run:
            run.log_metrics({"train/loss": 2.0}, 1)
            assert curve(tmp_path / "tensorboard" / "student-1", "train/loss") == [(1, 2.0)]

    def test_runs_of_one_name_keep_apart(self, tmp_path: Path) -> None:
        for _ in range(2):
            with open_tracker(tmp_path).stage("frontier-student", name="depth2-width16") as run:
                pass
        assert run.sink_ids == {"tensorboard": "tensorboard/depth2-width16-2"}

    def test_after_a_failure_a_new_file_is_begun(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        write, full = RecordWriter.write, []

        def half(self: Any, data: bytes) -> None:
            if full:
                self._writer.write(b"half a record")
                raise OSError(28, "No space left on device")
            write(self, data)

        monkeypatch.setattr(RecordWriter, "write", half)
        warnings: list[str] = []
        said: list[str] = []
        with open_tracker(tmp_path, warnings.append, said.append).stage("distill", name="student-1") as run:
            for step in range(4):
                full[:] = [True] if step == 1 else []
                run.log_metrics({"train/loss": 2.0}, step)
                run._sinks[0][0]._away_until = 0.0  # the rest that a failure brings is over
        assert [step for step, _ in curve(tmp_path / "tensorboard" / "student-1", "train/loss")] == [0, 2, 3]
        assert len(warnings) == 1 and "TensorBoard" in warnings[0] and "No space left" in warnings[0]
        assert said == ["Not recorded in TensorBoard: metrics. The files below runs/ are whole."]

    def test_a_resumed_artifact_goes_on_with_its_curves(self, tmp_path: Path) -> None:
        def run_stage(resumed: Artifact | None, step: int) -> Artifact:
            context = StageContext(Workspace(tmp_path), Console(silent=True), open_tracker(tmp_path))
            with context.stage(
                "teacher", "train-teacher", task="maze", settings=StageSettings(), resumed=resumed
            ) as work:
                work.run.log_metrics({"train/loss": 1.0 / step}, step)
            return Artifact.load(work.artifact.path)

        teacher = run_stage(None, 1)
        again = run_stage(teacher, 2)
        folder = teacher.manifest.tracking["sinks"]["tensorboard"]
        assert folder == f"tensorboard/{teacher.name}" == again.manifest.tracking["sinks"]["tensorboard"]
        assert [step for step, _ in curve(tmp_path / folder, "train/loss")] == [1, 2]
        assert teacher.manifest.tracking["chain_run_id"] == again.manifest.tracking["chain_run_id"]

    def test_torch_and_mlflow_are_not_imported(self, tmp_path: Path) -> None:
        script = (
            "import sys; from pathlib import Path; from thousandfold.pipeline.tracking import open_tracker\n"
            f"with open_tracker(Path({str(tmp_path)!r})).stage('distill', name='student-1') as run:\n"
            "    run.log_metrics({'train/loss': 1.0}, 1); run.log_settings({'depth': 4})\n"
            "print(sorted({'torch', 'mlflow', 'tensorflow', 'wandb'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == ("[]\n", "")


class TestChoice:
    def test_it_is_off_unless_it_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("THOUSANDFOLD_SINKS")
        tracker = open_tracker(tmp_path)
        assert tracker.open_chain("chain") is None
        with tracker.stage("distill", name="student-1") as run:
            run.log_metrics({"train/loss": 2.0}, 1)
        assert run.sink_ids == {} and list(tmp_path.iterdir()) == []

    def test_a_wrong_name_lists_the_right_ones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("THOUSANDFOLD_SINKS", "tensorboard, tensorbord")
        with pytest.raises(
            SettingsError, match=r"'tensorbord'; the sinks are tensorboard and wandb"
        ) as caught:
            open_tracker(tmp_path)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("name", ["tensorboard", "wandb"])
    def test_a_missing_package_names_its_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv("THOUSANDFOLD_SINKS", name)
        # A folder of the package's name is found, too, and is not the package.
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace(origin=None))
        with pytest.raises(MissingExtraError, match=rf'pip install "thousandfold\[{name}\]"'):
            open_tracker(tmp_path)


class StubbornSink:
    """A sink that fails, or that answers when it is told to."""

    name, title = "tensorboard", "Stubborn"

    def __init__(self, _: Path) -> None:
        self.id, self.told = "an id", []
        self.answers = threading.Event()
        self.fails: set[str] = set()
        self.stages: list[tracking_sinks.RecordedStage] = []

    def begin(self, stage: tracking_sinks.RecordedStage) -> StubbornSink:
        self.stages.append(stage)
        self._tell("begin")
        return self

    def log_settings(self, settings: Any) -> None:
        self._tell("settings")

    def log_metrics(self, metrics: Any, step: int) -> None:
        self._tell("metrics")

    def log_file(self, path: Path) -> None:
        self._tell("file")

    def end(self, status: str) -> None:
        self._tell(status)

    def _tell(self, what: str) -> None:
        self.told.append(what)
        if what in self.fails:
            raise ConnectionError(f"no {what}\ntoday")
        if what == "metrics":
            assert self.answers.wait(60)


class TestFailures:
    @pytest.fixture
    def sink(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubbornSink:
        sink = StubbornSink(tmp_path)
        monkeypatch.setitem(tracking_sinks._SINKS, "tensorboard", lambda _: sink)
        return sink

    def test_a_sink_that_does_not_begin_ends_nothing(self, sink: StubbornSink, tmp_path: Path) -> None:
        sink.fails.add("begin")
        warnings: list[str] = []
        said: list[str] = []
        with open_tracker(tmp_path, warnings.append, said.append).stage("distill", name="student-1") as run:
            run.log_metrics({"train/loss": 1.0}, 1)
        assert run.sink_ids == {} and sink.told == ["begin"]
        assert warnings == [
            "Tracking in Stubborn failed and will have gaps; the work goes on: no begin today"
        ]
        assert said == ["Not recorded in Stubborn: the run of student-1. The files below runs/ are whole."]

    def test_a_sink_that_stops_answering_does_not_hold_a_stage(
        self, sink: StubbornSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tracking, "PATIENCE_S", 0.05)
        warnings: list[str] = []
        said: list[str] = []
        with open_tracker(tmp_path, warnings.append, said.append).stage("distill", name="student-1") as run:
            for step in range(3):
                run.log_metrics({"train/loss": 1.0}, step)
        sink.answers.set()
        assert sink.told == ["begin", "metrics"] and len(warnings) == 1
        assert said == ["Not recorded in Stubborn: 3 metrics, how it ended. The files below runs/ are whole."]

    @pytest.mark.parametrize(
        ("error", "status"), [(None, "FINISHED"), (ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")]
    )
    def test_a_sink_is_told_how_a_stage_ended(
        self, sink: StubbornSink, tmp_path: Path, error: BaseException | None, status: str
    ) -> None:
        tracker = open_tracker(tmp_path)
        try:
            with tracker.stage("distill", name="s", chain_run_id=tracker.open_chain("c"), watched=True):
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt) as raised:
            assert raised is error
        assert sink.told == ["begin", status]
        assert sink.stages[0].group is not None and sink.stages[0].watched


@pytest.mark.slow
def test_weights_and_biases_record_offline_and_go_on(tmp_path: Path) -> None:
    """In a process of its own: the package reads the environment once, and starts another process."""
    script = f"""
import json, sys
from pathlib import Path
from thousandfold.pipeline.tracking import open_tracker

tracker = open_tracker(Path({str(tmp_path)!r}))
tags = {{"task": "maze"}}
with tracker.stage("train-teacher", name="teacher-1", chain_run_id="c" * 32, tags=tags) as first:
    first.log_settings({{"depth": 4, "loss": {{"kind": "info_nce"}}}})
    first.log_metrics({{"train/loss": 2.0}}, 1000)
    with tracker.stage("frontier-student", name="student-1") as nested:
        nested.log_metrics({{"student/success": 0.5}}, 0)
    first.log_metrics({{"train/loss": 1.5}}, 2000)
    first.log_file(Path({str(PICTURE)!r}))
with tracker.stage("train-teacher", name="teacher-1", sink_ids=first.sink_ids) as again:
    again.log_metrics({{"train/loss": 1.0, "eval/success": float("nan")}}, 1500)
assert again.sink_ids == first.sink_ids != nested.sink_ids
print(json.dumps(first.sink_ids))
"""
    environment = {"THOUSANDFOLD_SINKS": "wandb", "WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": "none"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    run_id = json.loads(done.stdout)["wandb"]
    first, again = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    records = wandb_records(first)
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.display_name, run.project) == (run_id, "teacher-1", "thousandfold")
    assert (run.run_group, run.job_type) == ("c" * 32, "train-teacher")
    begun = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert begun["task"] == "maze"
    later = {i.key: json.loads(i.value_json) for record in records for i in record.config.update}
    assert later["depth"] == 4 and later["loss.kind"] == "info_nce"
    history = [row for row in map(history_row, records) if row]
    assert [(row["train/loss"], row["step"]) for row in history[:2]] == [(2.0, 1000), (1.5, 2000)]
    assert history[2]["pictures/cable_arm/_type"] == "image-file" and history[2]["step"] == 2000
    (row,) = filter(None, map(history_row, wandb_records(again)))
    assert (row["train/loss"], row["step"]) == (1.0, 1500) and math.isnan(row["eval/success"])
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


@pytest.mark.slow
def test_weights_and_biases_without_a_login_are_one_clear_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "thousandfold.pipeline", "train-teacher", "--preset", "smoke"],
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "THOUSANDFOLD_SINKS": "wandb",
            "MLFLOW_TRACKING_URI": "none",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "nobody is logged in" in line and "WANDB_MODE=offline" in line


def wandb_records(path: Path) -> list[Any]:
    """Return the records of a W&B file: LevelDB's log format, after a header of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, records, payload = path.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        payload += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(payload))
            payload = b""
    return records


def history_row(record: Any) -> dict[str, Any]:
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
    }
