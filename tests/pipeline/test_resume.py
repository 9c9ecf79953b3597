"""Which unfinished training is resumed, and with which settings."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from tests.stages.tiny_runs import make_context
from thousandfold.ground.errors import DamagedFileError, MissingArtifactError, SettingsError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.resume import (
    CONTINUED,
    checkpoint_of,
    find_trainable,
    find_unfinished,
    resumable_stage,
    stored_settings,
    to_go_on_with,
)
from thousandfold.pipeline.settings import StageSettings


class MadeUpSettings(StageSettings):
    depth: int = pydantic.Field(default=4, ge=1)


def make(root: Path, *, saved: bool, **settings: object) -> Artifact:
    artifact = Workspace(root).create("student", task="point_u_maze", settings=settings)
    if saved:
        checkpoint_of(artifact).save(1, {}, {})
    return artifact


def resumed_by(artifact: Artifact, **parents: Artifact) -> str:
    """Return the name of the artifact that a stage goes on with, given one that was found before."""
    with resumable_stage(
        make_context(artifact.path.parents[1]),
        "student",
        "distill",
        task="point_u_maze",
        settings=MadeUpSettings(),
        parents=parents,
        resumed=artifact,
    ) as work:
        return work.artifact.name


def test_the_newest_or_the_one_named(tmp_path: Path):
    workspace = Workspace(tmp_path)
    with pytest.raises(
        SettingsError, match=r"^No unfinished student in .* start one with `pipeline distill`"
    ):
        find_unfinished(workspace, "student", None)
    first, second = make(tmp_path, saved=True), make(tmp_path, saved=True)
    second.fail("cut off")
    assert find_unfinished(workspace, "student", None).name == second.name
    assert find_unfinished(workspace, "student", first.name).name == first.name
    second.complete({})
    assert find_unfinished(workspace, "student", None).name == first.name
    with pytest.raises(SettingsError, match=f"^Student {second.name} is completed: there is nothing"):
        find_unfinished(workspace, "student", second.name)
    with pytest.raises(MissingArtifactError, match="is a student, not a teacher"):
        find_unfinished(workspace, "teacher", first.name)


def test_an_older_one_is_not_taken_for_the_newest_that_saved_nothing(tmp_path: Path):
    workspace = Workspace(tmp_path)
    older, newest = make(tmp_path, saved=True), make(tmp_path, saved=False)
    alone = (
        rf"^The newest unfinished student, {newest.name}, has saved nothing to continue from: start it again"
    )
    with pytest.raises(SettingsError, match=alone + rf"; or name an older .*: --resume {older.name}\.$"):
        find_unfinished(workspace, "student", None)
    assert find_unfinished(workspace, "student", older.name).name == older.name
    older.complete({})
    with pytest.raises(SettingsError, match=alone + r"\.$"):
        find_unfinished(workspace, "student", None)
    with pytest.raises(
        SettingsError, match=f"^{newest.name} has saved nothing to continue from: start it again"
    ):
        find_unfinished(workspace, "student", newest.name)


def test_what_a_stage_does_not_make_itself_does_not_count(tmp_path: Path):
    older = make(tmp_path, saved=True, depth=8)
    make(tmp_path, saved=False)
    found = find_unfinished(
        Workspace(tmp_path), "student", None, counts=lambda each: "depth" in each.manifest.settings
    )
    assert found.name == older.name


def test_a_completed_one_is_trained_on_where_it_is_named_and_has_a_checkpoint(tmp_path: Path):
    workspace, done = Workspace(tmp_path), make(tmp_path, saved=True)
    done.complete({}, exclude=("checkpoint",))
    with pytest.raises(SettingsError, match="No unfinished student"):
        find_trainable(workspace, "student", None)
    assert find_trainable(workspace, "student", done.name).name == done.name
    begun = workspace.create(
        "student", task="point_u_maze", settings={}, parents={CONTINUED: done.parent_entry()}
    )
    assert find_trainable(workspace, "student", None).name == begun.name
    assert to_go_on_with(done, workspace) == (None, done)
    resumed, parent = to_go_on_with(begun, workspace)
    assert resumed is begun and parent is not None and parent.name == done.name
    elsewhere = done.path.rename(tmp_path / "elsewhere")
    with pytest.raises(
        MissingArtifactError, match=f"without the student {done.name} that it continues, which"
    ):
        to_go_on_with(begun, workspace)
    elsewhere.rename(done.path)
    checkpoint_of(begun).save(1, {}, {})
    assert to_go_on_with(begun, workspace) == (begun, None)  # its own counts
    done.file("checkpoint/manifest.json").unlink()
    with pytest.raises(SettingsError, match=f"^{done.name} is completed and has no checkpoint left"):
        find_trainable(workspace, "student", done.name)


def test_one_that_another_process_finished_since_it_was_found_is_refused(tmp_path: Path):
    found = make(tmp_path, saved=True)
    assert resumed_by(found) == found.name
    Artifact.load(found.path).complete({"success": 1.0})
    assert found.manifest.status == "running"
    with pytest.raises(SettingsError, match=f"{found.name} is completed: there is nothing to resume"):
        resumed_by(found)
    assert Artifact.load(found.path).manifest.results == {"success": 1.0}


def test_one_that_was_begun_with_another_parent_is_refused(tmp_path: Path):
    teachers = [Workspace(tmp_path).create("teacher", task="point_u_maze", settings={}) for _ in range(2)]
    for teacher in teachers:
        teacher.file("teacher.safetensors").write_text(teacher.name)
        teacher.complete({})
    begun = Workspace(tmp_path).create(
        "student", task="point_u_maze", settings={}, parents={"teacher": teachers[0].parent_entry()}
    )
    assert resumed_by(begun, teacher=teachers[0]) == begun.name
    with pytest.raises(DamagedFileError, match=f"is not the teacher that {begun.name} was begun with"):
        resumed_by(begun, teacher=teachers[1])


def test_settings_come_from_the_manifest(tmp_path: Path):
    assert stored_settings(make(tmp_path, saved=False, depth=8), MadeUpSettings).depth == 8
    assert stored_settings(make(tmp_path, saved=False, depth=8), MadeUpSettings, depth=9).depth == 9
    other = make(tmp_path, saved=False, depth=0)
    with pytest.raises(
        DamagedFileError, match=r"manifest\.json cannot be resumed: setting depth: "
    ) as raised:
        stored_settings(other, MadeUpSettings)
    assert other.name in str(raised.value) and "\n" not in str(raised.value)
