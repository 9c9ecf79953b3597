"""What the commands share: precedence of options, and which artifact is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.pretended_cuda import Pretend, pretend
from thousandfold.ground.errors import DamagedFileError, MissingArtifactError, SettingsError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.session import CommonOptions, Session, default_preset, describe
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.closed_loop.evaluate import EvaluateSettings
from thousandfold.stages.train_teacher.settings import CHANGEABLE_ON_RESUME, TrainTeacherSettings

__all__ = ["pretend"]


def options(**changes: object) -> CommonOptions:
    values: dict[str, object] = {
        "preset": None,
        "overrides": (),
        "seed": None,
        "device": None,
        "dry_run": False,
    }
    return CommonOptions(**(values | changes))  # type: ignore[arg-type]


def completed(root: Path, kind: str, *, selectable: bool = True) -> Artifact:
    artifact = Workspace(root).create(kind, task="point_u_maze", settings={}, selectable=selectable)
    artifact.file("data.txt").write_text(artifact.name)
    artifact.complete({"success": 1.0})
    return artifact


class TestOptions:
    def test_set_has_the_last_word(self) -> None:
        common = options(seed=3, overrides=("seed=4", "episodes=9"))
        settings = common.resolve(EvaluateSettings, "evaluate", {"episodes": 8})
        assert (settings.seed, settings.episodes) == (4, 9)

    def test_a_resumed_run_takes_no_settings(self) -> None:
        options().refuse_with_resume({"depth": None})
        for given, named in [
            (options(seed=0), "--seed"),
            (options(device="cpu"), "--device"),
            (options(preset="smoke"), "--preset"),
            (options(overrides=("a=1",)), "--set"),
        ]:
            with pytest.raises(SettingsError, match=f"leave {named} out"):
                given.refuse_with_resume()
        with pytest.raises(SettingsError, match="leave --depth out"):
            options().refuse_with_resume({"depth": 4})


class TestResumedSettings:
    STORED = TrainTeacherSettings(depth=64, env_steps=1000, max_gradient_norm=10.0)

    def resolve(self, common: CommonOptions, **flags: object) -> TrainTeacherSettings:
        return common.resolve_resumed(
            self.STORED, "train_teacher", flags, name="teacher-1", changeable=CHANGEABLE_ON_RESUME
        )

    def test_without_changes_they_are_the_runs_own(self) -> None:
        assert self.resolve(options(), depth=None) == self.STORED

    def test_null_stays_null_where_the_default_is_a_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stored = self.STORED.model_copy(update={"depth": 128, "max_gradient_norm": None})
        monkeypatch.setattr(self, "STORED", stored)
        assert self.resolve(options()).max_gradient_norm is None

    def test_the_same_value_may_be_given_again(self) -> None:
        assert self.resolve(options(seed=0, overrides=("max_gradient_norm=10",)), depth=64) == self.STORED

    def test_a_run_may_be_prolonged(self) -> None:
        changed = self.resolve(options(overrides=("env_steps=5000", "target_success=0.9")))
        assert changed == self.STORED.model_copy(update={"env_steps": 5000, "target_success": 0.9})

    @pytest.mark.parametrize(
        ("given", "flags", "said"),
        [
            (options(), {"depth": 1024}, "depth 64, not 1024"),
            (options(seed=7), {}, "seed 0, not 7"),
            (
                options(overrides=("discount=0.9", "energy=dot")),
                {},
                "energy norm, not dot, discount 0.99, not 0.9",
            ),
        ],
    )
    def test_what_differs_is_named(self, given: CommonOptions, flags: dict, said: str) -> None:
        with pytest.raises(SettingsError, match=f"^teacher-1 was started with {said}: leave that out"):
            self.resolve(given, **flags)

    def test_a_preset_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="leave --preset out"):
            self.resolve(options(preset="smoke"))


class TestTake:
    @pytest.fixture
    def session(self, tmp_path: Path) -> Session:
        return Session(str(tmp_path))

    def test_the_newest_completed(
        self, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        completed(tmp_path, "teacher")
        newest = completed(tmp_path, "teacher")
        completed(tmp_path, "teacher", selectable=False)
        Workspace(tmp_path).create("teacher", task="point_u_maze", settings={})
        assert session.take("teacher", None).name == newest.name
        assert capsys.readouterr().out == f"Taking teacher {newest.name} (the newest completed).\n"

    def test_by_name_even_if_it_is_not_selectable(self, session: Session, tmp_path: Path) -> None:
        hidden = completed(tmp_path, "teacher", selectable=False)
        assert session.take("teacher", hidden.name).path == hidden.path
        assert session.take("teacher", str(hidden.path)).path == hidden.path

    def test_a_damaged_newest_policy_is_not_replaced_by_a_student(
        self, session: Session, tmp_path: Path
    ) -> None:
        completed(tmp_path, "student")
        policy = completed(tmp_path, "policy")
        policy.file("manifest.json").write_text("")
        with pytest.raises(DamagedFileError, match=f"{policy.name} may be the newest policy.*--policy NAME"):
            session.take_one_of({"policy": None, "student": None, "teacher": None})

    def test_one_of_an_earlier_version_is_called_unsealed(
        self, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = completed(tmp_path, "teacher").file("manifest.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1, "seal": None}))
        assert session.take("teacher", None).manifest.seal is None
        assert "(the newest completed; unsealed, made by an earlier version)" in capsys.readouterr().out

    def test_of_several_kinds_the_first_that_exists(self, session: Session, tmp_path: Path) -> None:
        kinds: dict[str, str | None] = {"policy": None, "student": None, "teacher": None}
        teacher = completed(tmp_path, "teacher")
        assert session.take_one_of(kinds).name == teacher.name
        student = completed(tmp_path, "student")
        assert session.take_one_of(kinds).name == student.name
        assert session.take_one_of(kinds | {"teacher": teacher.name}).name == teacher.name

    def test_one_that_is_named_is_not_replaced_by_another(self, session: Session, tmp_path: Path) -> None:
        completed(tmp_path, "teacher")
        with pytest.raises(MissingArtifactError, match="No policy 'mine'"):
            session.take_one_of({"policy": "mine", "student": None, "teacher": None})


def test_a_description_holds_what_a_script_needs(tmp_path: Path) -> None:
    teacher = completed(tmp_path, "teacher")
    found = describe(teacher)
    assert found["path"] == str(teacher.path)
    assert found["hash"] == teacher.manifest.hash
    assert found["results"] == {"success": 1.0}
    assert Path(found["files"]["data.txt"]).read_text(encoding="utf-8") == teacher.name


@pytest.mark.parametrize(
    ("machine", "asked", "where"),
    [
        ({}, None, "with a CUDA device"),
        ({}, "cuda", "with a CUDA device"),
        ({}, "cpu", "on the CPU"),
        ({"torch_sees": False}, None, "on the CPU"),
        ({"warp_sees": False}, None, "on the CPU"),
        ({"driver": None}, None, "on the CPU"),
    ],
)
def test_the_default_preset_is_another_in_mazes_where_there_is_cuda(
    pretend: Pretend, machine: dict[str, Any], asked: str | None, where: str
) -> None:
    pretend(**machine)
    assert default_preset(asked) == default_preset(asked, "reacher") == ("cpu", f"the default {where}")
    of_mazes = {"with a CUDA device": "quickstart", "on the CPU": "cpu/mazes"}[where]
    assert default_preset(asked, "point_u_maze") == (of_mazes, f"the default {where} for a task with walls")
    common = CommonOptions(None, (), None, asked, False)
    depths = [
        common.resolve(TrainTeacherSettings, "train_teacher", {"task": task}).depth
        for task in ("reacher", "point_u_maze")
    ]
    assert depths == [4, {"quickstart": 16, "cpu/mazes": 4}[of_mazes]]


@pytest.mark.parametrize(
    ("task", "preset", "why"),
    [
        ("point_u_maze", "cpu/mazes", "the default on the CPU for a task with walls"),
        ("ant_u_maze", "cpu/ant", "the default on the CPU for ant_u_maze"),
        ("ant", "cpu/ant", "the default on the CPU for ant"),
        ("humanoid_u_maze", "cpu/mazes", "the default on the CPU for a task with walls"),
        ("humanoid", "cpu", "the default on the CPU"),
        ("reacher", "cpu", "the default on the CPU"),
        ("examples/submarine/submarine.yaml", "cpu", "the default on the CPU"),
    ],
)
@pytest.mark.parametrize("given", ["flag", "override"])
def test_a_task_with_walls_has_a_default_preset_of_its_own(given: str, task: str, preset: str, why: str):
    overrides = (f"task={task}",) if given == "override" else ()
    flags = {"task": task} if given == "flag" else {}
    assert default_preset("cpu", task) == (preset, why)
    found = CommonOptions(None, overrides, None, "cpu", False).resolve(
        TrainTeacherSettings, "train_teacher", flags
    )
    assert found == resolve_settings(
        TrainTeacherSettings, "train_teacher", preset=preset, overrides=[f"task={task}", "device=cpu"]
    )
    named = CommonOptions("cpu", overrides, None, "cpu", False)
    assert named.resolve(TrainTeacherSettings, "train_teacher", flags).num_worlds == 64


def test_settings_are_checked_with_the_default_preset_of_their_task():
    """The ant's has the clock that a dither wants."""
    common = CommonOptions(None, ("dither=0.3",), None, "cpu", False)
    found = common.resolve(TrainTeacherSettings, "train_teacher", {"task": "ant"})
    assert (found.dither, found.clock_s) == (0.3, 0.25)


def test_a_home_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, Session("~no-such-user/here").open():
        pass
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("Error: Workspace ~no-such-user/here cannot be found")
