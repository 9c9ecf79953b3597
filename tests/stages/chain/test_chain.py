"""The chain: order, what is handed on, and going on where it was cut off. Stages are stand-ins here."""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from thousandfold.envs.pictures.opengl import NoOpenGLError
from thousandfold.ground.errors import (
    DamagedFileError,
    MissingArtifactError,
    SettingsError,
    StoppedByUser,
    TargetMissedError,
    UserError,
)
from thousandfold.ground.files import write_sealed_json
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.session import CommonOptions
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.chain.chain import resolve_chain, resume_chain, start_chain
from thousandfold.stages.stage_settings import KIND_OF_SECTION, SECTIONS

ROOT = Path(__file__).resolve().parents[3]

RESULTS = {
    "train_teacher": {"success": 1.0, "elapsed_s": 2.0},
    "generate_dataset": {"rows": 10, "elapsed_s": 3.0},
    "distill": {"success": 1.0, "retention": None, "elapsed_s": 4.0},
    "export_onnx": {"success": 1.0},
    "benchmark": {"networks": {"student": {"back_to_back": {"p50_us": 12.0, "p99_us": 30.0}}}},
    "render": {"reached": 1, "episodes": 2},
    "report": {"bytes": 1000},
}


class RecordingTracker(NullTracker):
    def __init__(self):
        super().__init__()
        self.opened, self.closed, self.endings = 0, [], []

    def open_chain(self, name, tags=None):
        self.opened += 1
        return f"chain-{self.opened}"

    def close_chain(self, chain_run_id, error=None):
        self.closed.append((chain_run_id, error is None))
        self.endings.append(error)


FOLDERS = {"generate_dataset": "dataset", "render": "closed_loop"}
STAGES = {section: f"thousandfold.stages.{FOLDERS.get(section, section)}.{section}" for section in SECTIONS}


@pytest.fixture
def context(tmp_path):
    return StageContext(Workspace(tmp_path), Console(), RecordingTracker())


@pytest.fixture
def calls(monkeypatch):
    """Replace every stage by one that makes an empty artifact; `fails` names the one that raises."""
    made = []

    def install(fails=None):
        made.clear()
        for section in SECTIONS:
            monkeypatch.setattr(f"{STAGES[section]}.run", stand_in(section, fails))
        return made

    def stand_in(section, fails):
        def run(settings, context, *sources):
            artifacts = [source for source in sources if hasattr(source, "manifest")]
            made.append((section, [artifact.kind for artifact in artifacts], context.chain_run_id))
            if artifacts and artifacts[-1].kind == KIND_OF_SECTION[section]:
                artifact = artifacts[-1]
            else:
                artifact = context.workspace.create(
                    KIND_OF_SECTION[section], task="point_u_maze", settings={}
                )
            if section in ("train_teacher", "generate_dataset", "distill"):
                sources[-1](artifact)
            if section == fails:
                raise UserError("cut off")
            artifact.complete(RESULTS[section])
            return artifact

        return run

    return install


def settings(*more):
    return resolve_chain(CommonOptions("smoke", ("train_teacher.depth=8", *more), 3, None, False))


@pytest.mark.parametrize("asks", ["generate_dataset.teacher_samples=4", "distill.objective=critic"])
def test_a_stage_that_asks_a_critic_of_temporal_differences_is_refused_at_once(asks):
    overrides = ("train_teacher.critic=temporal_difference",)
    assert resolve_chain(CommonOptions("smoke", overrides, None, None, False))
    with pytest.raises(SettingsError, match=f"cannot choose or judge actions: set {asks.split('=')[0]}="):
        resolve_chain(CommonOptions("smoke", (*overrides, asks), None, None, False))


@pytest.mark.parametrize("asks", ["generate_dataset.teacher_samples=4", "distill.objective=critic"])
def test_a_stage_that_asks_a_critic_that_cannot_know_what_is_achieved_is_refused_at_once(asks):
    page = str(
        ROOT / "examples/submarine/submarine.yaml"
    )  # it observes the hull's joint, and achieves its place
    options = CommonOptions("cpu", (asks,), None, "cpu", False)
    with pytest.raises(
        SettingsError, match="observation of submarine_dive does not contain the achieved goal"
    ):
        resolve_chain(options, page)
    absolute = replace(options, overrides=(asks, "train_teacher.critic_goals=absolute"))
    assert resolve_chain(absolute, page) and resolve_chain(options, "arm_reach")


def test_stages_run_in_order_on_what_came_before(context, calls):
    made = calls()
    artifacts = start_chain(settings(), context)
    assert [call[0] for call in made] == list(SECTIONS)
    assert [call[1] for call in made] == [
        [],
        ["teacher"],
        ["teacher", "dataset"],
        ["student", "teacher", "dataset"],
        ["policy"],
        ["policy"],
        ["policy"],
    ]
    assert {call[2] for call in made} == {"chain-1"}
    assert list(artifacts) == list(SECTIONS)
    assert context.tracker.closed == [("chain-1", True)]


@pytest.mark.parametrize("goals", [9, 0])
def test_without_opengl_the_chain_says_so_in_a_line_and_records_alone(
    context, calls, monkeypatch, capsys, goals
):
    monkeypatch.setitem(RESULTS, "render", {"recorded_reached": 7, "recorded_goals": 9})
    made = calls()
    record, asked = importlib.import_module(STAGES["render"]).run, []

    def refuse(settings, *arguments):
        asked.append(settings.video)
        if settings.video:
            raise NoOpenGLError("MUJOCO_GL=disable switches it off")
        return record(settings, *arguments)

    monkeypatch.setattr(f"{STAGES['render']}.run", refuse)
    artifacts = start_chain(settings(f"render.recorded_goals={goals}"), context)
    assert list(artifacts) == [section for section in SECTIONS if section != "render" or goals]
    assert [call[0] for call in made] == list(artifacts) and asked == [True, False][: 1 + bool(goals)]
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("No video is made:")]
    assert ("7 of 9 goals recorded were reached" in said) == bool(goals)
    assert len(lines) == 1 and "drawing needs OpenGL" in lines[0]
    record = json.loads(next(context.workspace.runs.glob("chain-*.json")).read_text())
    assert record["completed"] and ("render" in record["done"]) == bool(goals)


def test_overrides_and_seed_reach_their_stages():
    resolved = settings()
    assert resolved["train_teacher"].model_dump()["depth"] == 8
    assert {values.seed for values in resolved.values()} == {3}


@pytest.mark.parametrize("fails", SECTIONS)
def test_a_chain_that_was_cut_off_goes_on_where_it_was(context, calls, fails):
    calls(fails)
    with pytest.raises(UserError, match="cut off"):
        start_chain(settings(), context)
    assert context.tracker.closed == [("chain-1", False)]
    made = calls()
    artifacts = resume_chain(context)
    assert [call[0] for call in made] == list(SECTIONS[SECTIONS.index(fails) :])
    assert {call[2] for call in made} == {"chain-1"}
    assert all(artifact.manifest.status == "completed" for artifact in artifacts.values())
    assert context.tracker.closed[-1] == ("chain-1", True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoppedByUser("saved")])
def test_a_chain_that_the_user_stopped_is_closed_as_stopped(context, monkeypatch, error):
    def stopped(*_):
        raise error

    monkeypatch.setattr("thousandfold.stages.train_teacher.train_teacher.run", stopped)
    with pytest.raises(StoppedByUser):
        start_chain(settings(), context)
    assert isinstance(context.tracker.endings[0], KeyboardInterrupt | StoppedByUser)


def test_an_unfinished_teacher_is_resumed_not_trained_anew(context, calls):
    calls("train_teacher")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    made = calls()
    resume_chain(context)
    assert made[0] == ("train_teacher", ["teacher"], "chain-1")
    assert len(context.workspace.artifacts("teacher")) == 1


def test_an_unfinished_dataset_is_resumed_not_made_anew(context, calls):
    calls("generate_dataset")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    made = calls()
    resume_chain(context)
    assert made[0] == ("generate_dataset", ["teacher", "dataset"], "chain-1")
    assert len(context.workspace.artifacts("dataset")) == 1


def test_an_unfinished_student_is_resumed_not_distilled_anew(context, calls):
    calls("distill")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    made = calls()
    resume_chain(context)
    assert made[0] == ("distill", ["teacher", "dataset", "student"], "chain-1")
    assert len(context.workspace.artifacts("student")) == 1


def test_a_student_that_was_finished_but_not_noted_is_kept(context, calls):
    calls("export_onnx")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    path = next(context.workspace.runs.glob("chain-*.json"))
    record = json.loads(path.read_text())
    del record["done"]["distill"], record["seconds"]["distill"]
    write_sealed_json(path, record)
    made = calls()
    artifacts = resume_chain(context)
    assert made[0][0] == "export_onnx"
    assert artifacts["distill"].name == record["student"]
    assert json.loads(path.read_text())["seconds"]["distill"] == 4.0


def test_a_dataset_that_was_finished_but_not_noted_is_kept(context, calls):
    calls("distill")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    path = next(context.workspace.runs.glob("chain-*.json"))
    record = json.loads(path.read_text())
    del record["done"]["generate_dataset"]
    write_sealed_json(path, record)
    made = calls()
    artifacts = resume_chain(context)
    assert made[0][0] == "distill"
    assert artifacts["generate_dataset"].name == record["dataset"]


def test_a_teacher_that_was_finished_but_not_noted_is_kept(context, calls):
    calls("generate_dataset")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    path = next(context.workspace.runs.glob("chain-*.json"))
    record = json.loads(path.read_text())
    write_sealed_json(path, record | {"done": {}, "seconds": {}})
    made = calls()
    artifacts = resume_chain(context)
    assert made[0][0] == "generate_dataset"
    assert artifacts["train_teacher"].name == record["teacher"]


def test_resuming_uses_the_settings_that_the_chain_began_with(context, calls, monkeypatch):
    calls("distill")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    calls()
    seen = []
    monkeypatch.setattr(
        "thousandfold.stages.distill.distill.run", lambda values, *rest: seen.append(values) or _stop()
    )
    with pytest.raises(UserError):
        resume_chain(context)
    assert seen[0] == settings()["distill"]


def _stop():
    raise UserError("enough")


def test_what_a_chain_made_and_is_gone_is_named(context, calls):
    calls("distill")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    (dataset,) = context.workspace.artifacts("dataset")
    shutil.rmtree(dataset.path)
    gone = rf"chain's dataset {dataset.name} is not in .*another chain"
    with pytest.raises(MissingArtifactError, match=gone):
        resume_chain(context)


def test_a_completed_chain_is_not_resumed(context, calls):
    calls()
    start_chain(settings(), context)
    with pytest.raises(SettingsError, match="No unfinished chain"):
        resume_chain(context)


def test_a_chain_that_began_before_there_were_videos_and_reports_gets_them(context, calls):
    calls("benchmark")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    path = next(context.workspace.runs.glob("chain-*.json"))
    record = json.loads(path.read_text())
    del record["settings"]["render"], record["settings"]["report"]
    write_sealed_json(path, record)
    made = calls()
    resume_chain(context)
    assert [call[0] for call in made] == ["benchmark", "render", "report"]


@pytest.mark.parametrize("change", [{"completed": True}, {"teacher": None}, {"seconds": {}}, {"more": 1}])
def test_an_edited_record_is_named(context, calls, change):
    calls("distill")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    path = next(context.workspace.runs.glob("chain-*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedFileError, match="was changed since it was written: its seal does not fit"):
        resume_chain(context)


def test_a_record_of_an_earlier_version_is_taken_and_called_unsealed(context, calls, capsys):
    calls("distill")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    path = next(context.workspace.runs.glob("chain-*.json"))
    record = json.loads(path.read_text())
    del record["format_version"], record["seal"]
    path.write_text(json.dumps(record))
    calls()
    resume_chain(context)
    assert f"{path} is unsealed" in capsys.readouterr().err
    assert json.loads(path.read_text())["seal"]


@pytest.mark.parametrize("section", ["train_teacher", "generate_dataset", "distill"])
def test_a_damaged_artifact_in_the_making_is_not_made_again_in_silence(context, calls, section):
    calls(section)
    with pytest.raises(UserError):
        start_chain(settings(), context)
    (begun,) = context.workspace.artifacts(KIND_OF_SECTION[section])
    begun.file("manifest.json").write_text("")
    made = calls()
    with pytest.raises(DamagedFileError, match=begun.name):
        resume_chain(context)
    assert made == []
    shutil.rmtree(begun.path)
    resume_chain(context)
    assert made[0][0] == section


def test_a_damaged_record_is_named(context, calls):
    calls("report")
    with pytest.raises(UserError):
        start_chain(settings(), context)
    record = next(context.workspace.runs.glob("chain-*.json"))
    assert json.loads(record.read_text())["done"].keys() == set(SECTIONS[:-1])
    record.write_text(record.read_text()[:50])
    with pytest.raises(DamagedFileError, match=record.name):
        resume_chain(context)


def test_a_chain_stops_after_a_teacher_below_what_is_asked_and_goes_on_all_the_same(
    context, calls, monkeypatch
):
    monkeypatch.setitem(RESULTS, "train_teacher", {"success": 0.25, "episodes": 8, "elapsed_s": 1.0})
    made = calls()
    with pytest.raises(TargetMissedError) as caught:
        start_chain(settings(), context, min_success=0.5)
    said = str(caught.value)
    assert caught.value.exit_code == 1 and "\n" not in said
    assert "reaches 0.250 of its goals, below --min-success 0.5" in said and "run --resume" in said
    assert [call[0] for call in made] == ["train_teacher"]
    with pytest.raises(TargetMissedError):
        resume_chain(context, min_success=0.5)
    artifacts = resume_chain(context)
    assert [call[0] for call in made] == list(SECTIONS) and list(artifacts) == list(SECTIONS)
    assert list(start_chain(settings(), context, min_success=0.25)) == list(SECTIONS)


def test_the_table_of_a_chain_says_what_is_no_better_than_random(context, calls, monkeypatch, capsys):
    chance = {"random_success": 0.25, "random_episodes": 64}
    learned = {"success": 0.25, "episodes": 64, "elapsed_s": 1.0} | chance
    monkeypatch.setitem(RESULTS, "train_teacher", learned)
    calls()
    start_chain(settings(), context)
    (row,) = [
        line for line in capsys.readouterr().out.splitlines() if "teacher-2" in line and "success" in line
    ]
    assert "success 0.250 (no better than random)" in row
