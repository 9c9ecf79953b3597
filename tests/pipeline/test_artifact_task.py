"""A user's task in artifacts: kept, loaded wherever the artifact lies, and used by a teacher that goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.envs.user_tasks.user_pages import ARM, PAGE, STATEFUL_ARM, changed, write
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import TaskError
from thousandfold.ground.errors import DamagedFileError, SettingsError, StoppedByUser, UserError
from thousandfold.ground.files import write_sealed_json
from thousandfold.pipeline.artifact_task import (
    keep_task,
    load_task,
    own_task,
    require_episodes,
    task_record,
    warn_of_changed_task,
    warn_of_what_looks_wrong,
)
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.chain.chain import ChainRecord, resume_chain
from thousandfold.stages.networks import NETWORK_FILE, load_actor
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return write(tmp_path / "home")


def kept(root: Path, page: Path) -> Artifact:
    artifact = Workspace(root).create("teacher", task="my_arm", settings={})
    keep_task(compile_task(str(page)), artifact, Console())
    artifact.complete({})
    return artifact


def settings_of(page: Path) -> TrainTeacherSettings:
    return TrainTeacherSettings(**TINY_TEACHER.model_dump() | {"task": str(page)})


class TestGoalsOutOfReach:
    def test_a_training_begins_with_a_warning_and_goes_on_without(
        self, tmp_path: Path, capsys: Capture
    ) -> None:
        page = write(tmp_path, changed(PAGE, "[0.2, 0, -0.3], high: [0.3", "[0.6, 0, -0.3], high: [0.9"))
        settings = settings_of(page).model_copy(update={"env_steps": 240})
        teacher = train_teacher.run(settings, make_context(tmp_path / "ws"))
        said = capsys.readouterr().err.splitlines()
        training, evaluation = [line for line in said if "no configuration was found" in line]
        assert training.startswith("Warning: no configuration was found for 8 of 8 training goals: ")
        assert "8 of 8 evaluation goals" in evaluation and "looks closer" not in training
        assert evaluation.endswith(f" `pipeline tasks check {page}` looks closer.")
        assert teacher.manifest.status == "completed"

    def test_nothing_is_said_of_goals_in_reach_and_of_built_in_tasks(
        self, page: Path, capsys: Capture
    ) -> None:
        warn_of_what_looks_wrong(compile_task(str(page)), "training", Console())
        warn_of_what_looks_wrong(compile_task("point_u_maze"), "training", Console())
        assert capsys.readouterr().err == ""

    def test_a_training_says_what_a_check_would(self, page: Path, capsys: Capture) -> None:
        spinning = changed(ARM, 'range="0 120" damping="1"', 'damping="0" limited="false"')
        spinning = changed(
            spinning, 'joint="elbow" kp="10" ctrlrange="-0.5 1"', 'joint="elbow" ctrlrange="-9 9"'
        )
        page = write(
            page.parent,
            changed(PAGE, "{keyframe: home}", "{joints: [shoulder], positions: {list: [[3]]}}"),
            spinning.replace('<position name="bend"', '<motor name="bend"'),
        )
        warn_of_what_looks_wrong(compile_task(str(page)), "training", Console())
        fast, beyond, *_ = capsys.readouterr().err.splitlines()
        assert "too fast to be controlled every 0.05 s: joint 'elbow' turns at up to" in fast
        assert f"{page}, line 12, reset: starts with joint 'shoulder' at 3, beyond its range" in beyond


class TestEpisodesThatEndAtOnce:
    """`pipeline tasks check` warns of them; a training has nothing to learn from."""

    def page(self, folder: Path, low: float = 5.0) -> Path:
        return write(folder, PAGE + f"early_end: {{term: {{field: qpos}}, low: {low}, high: 6}}\n")

    def test_all_of_them_are_refused_before_anything_begins(self, tmp_path: Path) -> None:
        page = self.page(tmp_path)
        with pytest.raises(UserError) as raised:
            train_teacher.run(settings_of(page), make_context(tmp_path / "ws"))
        assert str(raised.value) == (
            f"64 of 64 episodes end at their first step: {page}, line 13, early_end holds at the start, "
            "where qpos must stay within 5 to 6. None of training has a second step to learn from."
        )
        assert not list((tmp_path / "ws").rglob("manifest.json"))

    def test_those_of_evaluation_alone_too(self, tmp_path: Path) -> None:
        page = self.page(tmp_path, low=-1.0)
        page.write_text(
            page.read_text() + "evaluation: {reset: {joints: [shoulder], positions: {list: [[-1.5]]}}}\n"
        )
        (tmp_path / "arm.xml").write_text(ARM.replace('damping="1"', 'damping="100"'))  # it hardly moves
        with pytest.raises(UserError, match="None of evaluation has a second step"):
            require_episodes(compile_task(str(page)), "training")

    def test_physics_that_diverge_in_the_first_step(self, tmp_path: Path) -> None:
        page = write(tmp_path, PAGE, ARM.replace('kp="10"', 'kp="1e12"'))
        with pytest.raises(UserError, match="diverged in the first step of all 64 episodes of training"):
            require_episodes(compile_task(str(page)), "training")

    def test_some_are_only_warned_of(self, tmp_path: Path, capsys: Capture) -> None:
        page = self.page(tmp_path, low=0.2)
        page.write_text(changed(page.read_text(), "{keyframe: home}", "{keyframe: home, qpos_noise: 0.1}"))
        task = compile_task(str(page))
        require_episodes(task, "training")
        warn_of_what_looks_wrong(task, "training", Console())
        assert "of 16 episodes end at their first step" in capsys.readouterr().err


class TestKeeping:
    def test_a_built_in_task_needs_no_copy(self, tmp_path: Path) -> None:
        artifact = Workspace(tmp_path).create("teacher", task="point_u_maze", settings={})
        keep_task(compile_task("point_u_maze"), artifact, Console())
        assert own_task(artifact) is None and task_record(artifact) == {}
        assert [path.name for path in artifact.path.iterdir()] == ["manifest.json"]
        assert load_task(artifact) is compile_task("point_u_maze")

    def test_it_is_loaded_from_where_the_artifact_lies(self, tmp_path: Path, page: Path) -> None:
        artifact = kept(tmp_path / "ws", page)
        shutil.rmtree(page.parent)
        moved = Artifact.load(Path(shutil.move(artifact.path, tmp_path / "moved")))
        task = load_task(moved)
        assert (task.name, task.spec.file) == ("my_arm", str(tmp_path / "moved/task/task.yaml"))

    def test_what_is_kept_stays(self, tmp_path: Path, page: Path) -> None:
        artifact = kept(tmp_path / "ws", page)
        page.write_text(
            changed(page.read_text(encoding="utf-8"), "radius: 0.05", "radius: 0.5"), encoding="utf-8"
        )
        keep_task(compile_task(str(page)), artifact, Console())
        assert load_task(artifact).spec.success[0].radius == 0.05

    def test_the_record_names_file_and_hash(self, tmp_path: Path, page: Path) -> None:
        record = task_record(kept(tmp_path / "ws", page))
        assert record["task_file"] == str(page) and len(record["task_sha256"]) == 64

    def test_a_copy_of_another_task(self, tmp_path: Path, page: Path) -> None:
        artifact = kept(tmp_path / "ws", page)
        artifact.update(task="another")
        with pytest.raises(DamagedFileError, match="is task 'my_arm', not 'another'"):
            load_task(artifact)

    def test_a_damaged_copy(self, tmp_path: Path, page: Path) -> None:
        artifact = kept(tmp_path / "ws", page)
        artifact.file("task/model/arm.xml").unlink()
        with pytest.raises(UserError, match=r"task\.yaml, line 2, model: there is no file"):
            load_task(artifact)

    def test_absolute_paths_are_warned_of(self, tmp_path: Path, page: Path, capsys: Capture) -> None:
        (tmp_path / "far").mkdir()
        corners = "v 0 0 0\nv .1 0 0\nv 0 .1 0\nv 0 0 .1\n"
        (tmp_path / "far/part.obj").write_text(corners + "f 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
        model = changed(
            ARM,
            "  <worldbody>",
            f'  <asset><mesh name="part" file="{tmp_path}/far/part.obj"/></asset>\n  <worldbody>',
        )
        model = changed(
            model, '<site name="fingertip"', '<geom type="mesh" mesh="part"/><site name="fingertip"'
        )
        kept(tmp_path / "ws", write(page.parent, model=model))
        assert "names files by absolute paths" in capsys.readouterr().err


class TestWarningOfChanges:
    def test_nothing_changed_or_gone(self, tmp_path: Path, page: Path, capsys: Capture) -> None:
        artifact = kept(tmp_path / "ws", page)
        warn_of_changed_task(artifact, Console())
        shutil.rmtree(page.parent)
        warn_of_changed_task(artifact, Console())
        assert capsys.readouterr().err == ""

    def test_a_changed_model_is_named(self, tmp_path: Path, page: Path, capsys: Capture) -> None:
        artifact = kept(tmp_path / "ws", page)
        (page.parent / "arm.xml").write_text(ARM + "\n")
        warn_of_changed_task(artifact, Console())
        message = capsys.readouterr().err
        assert f"{page.parent / 'arm.xml'} changed since {artifact.name} was made" in message
        assert "train another teacher to use the change" in message


def test_settings_hold_the_absolute_path(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(page.parent)
    assert settings_of(Path("robot.yaml")).task == str(page)
    page.write_text(
        changed(page.read_text(encoding="utf-8"), "object: fingertip, unit", "object: tip, unit"),
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="no site named 'tip'"):
        settings_of(page)


@pytest.fixture
def stopped(tmp_path: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Artifact, StageContext]:
    """A teacher of a user's task that was stopped at its first checkpoint."""
    context = make_context(tmp_path / "ws")
    collect = train_teacher.TeacherTraining.collect

    def stop_then_collect(training: train_teacher.TeacherTraining) -> object:
        context.stop.requested = training.progress.unrolls == 3
        return collect(training)

    with monkeypatch.context() as patch:
        patch.setattr(train_teacher.TeacherTraining, "collect", stop_then_collect)
        with pytest.raises(StoppedByUser):
            train_teacher.run(settings_of(page), context)
    context.stop.requested = False
    (artifact,) = context.workspace.artifacts("teacher")
    return artifact, context


class TestResuming:
    @pytest.fixture
    def page(self, tmp_path: Path) -> Path:
        """Its checkpoints fall inside episodes, and its state is more than positions and velocities."""
        (tmp_path / "home").mkdir()
        page = changed(
            changed(PAGE, "episode_steps: 30", "episode_steps: 40"),
            "{field: qpos,",
            "{field: act},{field: qpos,",
        )
        return write(tmp_path / "home", page.replace("- {field: act},", "- {field: act}\n  - "), STATEFUL_ARM)

    def test_with_the_task_gone(
        self, stopped: tuple[Artifact, StageContext], page: Path, tmp_path: Path
    ) -> None:
        whole = train_teacher.run(settings_of(page), make_context(tmp_path / "whole"))
        artifact, context = stopped
        shutil.rmtree(page.parent)
        settings, found = train_teacher.find_resumable(context.workspace, None)
        finished = train_teacher.run(settings, context, found)
        assert finished.name == artifact.name and finished.manifest.task == "my_arm"
        tensors = [load_tensors(each.file(NETWORK_FILE))[0] for each in (whole, finished)]
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
        assert load_actor(finished).task.name == "my_arm"

    def test_with_the_task_changed(
        self, stopped: tuple[Artifact, StageContext], page: Path, capsys: Capture
    ) -> None:
        artifact, context = stopped
        page.write_text(
            changed(page.read_text(encoding="utf-8"), "radius: 0.05", "radius: 5"), encoding="utf-8"
        )
        finished = train_teacher.run(settings_of(page), context, artifact)
        assert f"{page} changed since {artifact.name} was made" in capsys.readouterr().err
        assert load_task(finished).spec.success[0].radius == 0.05
        assert finished.manifest.results["success"] < 1.0, "every goal is met within 5 m"

    def test_a_chain_goes_on_with_the_copy(
        self, stopped: tuple[Artifact, StageContext], page: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifact, context = stopped
        self.write_record(context.workspace.runs, page, artifact.name)
        shutil.rmtree(page.parent)
        seen = []

        def run(settings: TrainTeacherSettings, *_: object) -> Artifact:
            seen.append(settings.task)
            raise UserError("enough")

        monkeypatch.setattr("thousandfold.stages.train_teacher.train_teacher.run", run)
        with pytest.raises(UserError, match="enough"):
            resume_chain(context)
        assert seen == [str(artifact.file("task/task.yaml"))]

    def test_a_chain_without_a_copy_says_what_is_gone(self, tmp_path: Path, page: Path) -> None:
        context = make_context(tmp_path / "ws")
        context.workspace.ensure_writable()
        self.write_record(context.workspace.runs, page, None)
        page.unlink()
        with pytest.raises(SettingsError, match=r"robot\.yaml is gone: put it back"):
            resume_chain(context)

    def write_record(self, runs: Path, page: Path, teacher: str | None) -> None:
        from thousandfold.pipeline.session import CommonOptions
        from thousandfold.stages.chain.chain import resolve_chain

        common = CommonOptions("smoke", (f"train_teacher.task={page}",), 0, "cpu", False)
        values = {name: each.model_dump(mode="json") for name, each in resolve_chain(common).items()}
        record = ChainRecord(values, teacher=teacher)
        write_sealed_json(runs / "chain-20260101-000000-000000.json", vars(record))


def test_an_unknown_task_is_no_users(tmp_path: Path) -> None:
    artifact = Workspace(tmp_path).create("teacher", task="gone_with_a_version", settings={})
    with pytest.raises(UserError, match="Unknown task 'gone_with_a_version'") as raised:
        load_task(artifact)
    assert isinstance(raised.value, TaskError)
