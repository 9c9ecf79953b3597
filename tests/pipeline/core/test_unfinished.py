"""Which unfinished training is resumed, and with which settings."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.errors import DamagedFileError, MissingArtifactError, SettingsError
from pipeline.core.settings import StageSettings
from pipeline.core.unfinished import checkpoint_of, find_unfinished, still_unfinished, stored_settings


class MadeUpSettings(StageSettings):
    depth: int = pydantic.Field(default=4, ge=1)


def make(root: Path, *, saved: bool, **settings: object) -> Artifact:
    artifact = Workspace(root).create("student", task="point_u_maze", settings=settings)
    if saved:
        checkpoint_of(artifact).save(1, {}, {})
    return artifact


def test_the_newest_with_a_checkpoint_or_the_one_named(tmp_path: Path):
    workspace = Workspace(tmp_path)
    with pytest.raises(SettingsError, match="No unfinished student with a checkpoint in"):
        find_unfinished(workspace, "student", None)
    first, second = make(tmp_path, saved=True), make(tmp_path, saved=True)
    second.fail("cut off")
    bare = make(tmp_path, saved=False)
    assert find_unfinished(workspace, "student", None).name == second.name
    assert find_unfinished(workspace, "student", first.name).name == first.name
    with pytest.raises(SettingsError, match=f"{bare.name} has no checkpoint to go on from: train another"):
        find_unfinished(workspace, "student", bare.name)
    second.complete({})
    assert find_unfinished(workspace, "student", None).name == first.name
    with pytest.raises(SettingsError, match=f"^Student {second.name} is completed: there is nothing"):
        find_unfinished(workspace, "student", second.name)
    with pytest.raises(MissingArtifactError, match="is a student, not a teacher"):
        find_unfinished(workspace, "teacher", first.name)


def test_one_that_another_process_finished_since_it_was_found_is_refused(tmp_path: Path):
    found = make(tmp_path, saved=True)
    assert still_unfinished(found).name == found.name
    Artifact.load(found.path).complete({"success": 1.0})
    assert found.manifest.status == "running"
    with pytest.raises(SettingsError, match=f"{found.name} is completed: there is nothing to resume"):
        still_unfinished(found)
    assert Artifact.load(found.path).manifest.results == {"success": 1.0}


def test_settings_come_from_the_manifest(tmp_path: Path):
    assert stored_settings(make(tmp_path, saved=False, depth=8), MadeUpSettings).depth == 8
    assert stored_settings(make(tmp_path, saved=False, depth=8), MadeUpSettings, depth=9).depth == 9
    other = make(tmp_path, saved=False, depth=0)
    with pytest.raises(
        DamagedFileError, match=r"manifest\.json cannot be resumed: setting depth: "
    ) as raised:
        stored_settings(other, MadeUpSettings)
    assert other.name in str(raised.value) and "\n" not in str(raised.value)
