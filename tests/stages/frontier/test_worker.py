"""The work of one process of a frontier: what is there is not made again, and a student goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stages.frontier.frontier_runs import make_dataset, make_teacher
from thousandfold.ground.errors import StoppedByUser
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.settings import dump_settings
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.settings import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.frontier.worker import run_job

SETTINGS = DistillSettings(
    student_depth=2,
    student_width=8,
    updates=20,
    evaluate_every=10,
    checkpoint_every=5,
    evaluation_episodes=4,
    final_episodes=4,
    max_final_episodes=4,
    threads=1,
    device="cpu",
)


class Killed(BaseException):
    """Stands for SIGKILL: the process ends without saving."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a teacher and its dataset."""
    root = tmp_path_factory.mktemp("frontier")
    make_dataset(root, make_teacher(root))
    return root


@pytest.fixture(autouse=True)
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Leave out the export and the curve, which take longer than the student; return what was exported."""
    names: list[str] = []
    monkeypatch.setattr(export_onnx, "run", lambda _, __, source, **___: names.append(source.name))
    monkeypatch.setattr(distill, "draw_learning_curve", lambda *_, **__: None)
    return names


def run_cell(root: Path, cell: Path) -> Artifact:
    """Run the job of a cell in this process; return its only student."""
    outer = Workspace(root)
    job: dict[str, Any] = {
        "workspace": str(cell),
        "cache": str(outer.cache),
        "teacher": str(outer.newest("teacher").path),
        "dataset": str(outer.newest("dataset").path),
        "episode_cache": str(root / "episodes"),
        "distill": dump_settings(SETTINGS),
        "export_onnx": {},
    }
    run_job(job)
    (student,) = Workspace(cell).artifacts("student")
    return student


def cut_off(root: Path, cell: Path) -> Artifact:
    """Kill the job of a cell in its 13th update; return its student."""
    update = StudentTraining._update

    def dying(training: StudentTraining, *arguments: Any) -> Any:
        if training.updates == 12:
            raise Killed
        return update(training, *arguments)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(StudentTraining, "_update", dying)
        with pytest.raises(Killed):
            run_cell(root, cell)
    (student,) = Workspace(cell).artifacts("student")
    return student


def test_a_student_that_was_cut_off_goes_on(
    root: Path, tmp_path: Path, exported: list[str], monkeypatch: pytest.MonkeyPatch
):
    whole, begun = run_cell(root, tmp_path / "whole"), cut_off(root, tmp_path / "cell")
    load, updates = StudentTraining.load, list[int]()

    def recorded(training: StudentTraining, *arguments: Any) -> None:
        load(training, *arguments)
        updates.append(training.updates)

    monkeypatch.setattr(StudentTraining, "load", recorded)
    student = run_cell(root, tmp_path / "cell")
    assert updates == [10] and student.name == begun.name
    of_one, of_the_other = (
        {name: digest for name, digest in each.manifest.files.items() if not name.endswith(".png")}
        for each in (student, whole)
    )  # pictures name their artifact
    assert of_one == of_the_other
    assert exported == [whole.name, student.name]


def test_one_whose_checkpoint_is_damaged_is_made_again(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    begun = cut_off(root, tmp_path)
    begun.file("checkpoint/state-00000010.safetensors").write_bytes(b"")
    assert run_cell(root, tmp_path).manifest.status == "completed"
    assert "state-00000010.safetensors" in capsys.readouterr().err


def test_a_finished_student_is_not_distilled_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    student = run_cell(root, tmp_path)
    monkeypatch.setattr(StudentTraining, "_update", lambda *_: pytest.fail("distilled again"))
    assert run_cell(root, tmp_path).name == student.name


def test_one_that_was_stopped_in_its_closing_evaluation_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(distill, "run_pairs", interrupted)
        with pytest.raises(StoppedByUser):
            run_cell(root, tmp_path)
    monkeypatch.setattr(StudentTraining, "_update", lambda *_: pytest.fail("distilled again"))
    assert run_cell(root, tmp_path).manifest.status == "completed"
