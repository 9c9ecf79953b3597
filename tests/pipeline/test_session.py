"""What the commands share: precedence of options, and which artifact is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.errors import MissingArtifactError, SettingsError, UserError
from pipeline.session import CommonOptions, Session, describe
from stages.evaluate import EvaluateSettings


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
    def test_flags_that_were_not_given_leave_the_defaults(self) -> None:
        settings = options().resolve(EvaluateSettings, "evaluate", {"episodes": None})
        assert settings == EvaluateSettings()

    def test_set_has_the_last_word(self) -> None:
        common = options(seed=3, overrides=("seed=4", "episodes=9"))
        settings = common.resolve(EvaluateSettings, "evaluate", {"episodes": 8})
        assert (settings.seed, settings.episodes) == (4, 9)

    def test_an_error_names_the_stage(self) -> None:
        with pytest.raises(SettingsError, match=r"^evaluate: Unknown setting 'episode': did you mean"):
            options(overrides=("episode=9",)).resolve(EvaluateSettings, "evaluate")

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

    def test_an_unfinished_one_is_refused_by_name(self, session: Session, tmp_path: Path) -> None:
        unfinished = Workspace(tmp_path).create("teacher", task="point_u_maze", settings={})
        with pytest.raises(UserError, match=unfinished.name):
            session.take("teacher", unfinished.name)

    def test_where_none_fits_the_command_is_named(self, session: Session, tmp_path: Path) -> None:
        completed(tmp_path, "dataset")
        with pytest.raises(MissingArtifactError, match="`pipeline generate-dataset`"):
            session.take("dataset", None, where=lambda _: False)

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
    assert Path(found["files"]["data.txt"]).read_text() == teacher.name


def test_a_home_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, Session("~no-such-user/here").open():
        pass
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("Error: Workspace ~no-such-user/here cannot be found")
