"""Tables of tasks, presets, artifacts, and one artifact in full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thousandfold.ground.errors import MissingArtifactError
from thousandfold.ground.files import folder_lock
from thousandfold.pipeline import listing
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.stages.tasks import command

Capture = pytest.CaptureFixture[str]


def make(root: Path, kind: str, results: dict[str, object] | None = None) -> Artifact:
    artifact = Workspace(root).create(kind, task="point_u_maze", settings={"depth": 4, "inner": {"x": 1}})
    if results is not None:
        artifact.file("data.txt").write_text("data")
        artifact.complete(results)
    return artifact


def test_every_task_is_listed_with_its_sizes() -> None:
    from thousandfold.envs.registry import task_names

    console = Console()
    command.show_tasks(console)
    rows = console.last_result["tasks"]
    assert [row["task"] for row in rows] == task_names()
    assert all(row["observation"] and row["goal"] and row["action"] for row in rows)


def test_every_task_has_a_preset_that_trains_it_as_published() -> None:
    from thousandfold.envs.registry import task_names
    from thousandfold.pipeline.settings import resolve_settings
    from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

    for name in task_names():
        settings = resolve_settings(TrainTeacherSettings, "train_teacher", preset=f"paper/{name}")
        assert settings.task == name and settings.depth == 64
    console = Console()
    listing.show_presets(console)
    published = {row["preset"]: row["published"] for row in console.last_result["presets"]}
    assert "time at goal 649 at depth 64 in 11 h" in published["paper/humanoid"]
    assert sum(text is not None for text in published.values()) == 10  # of the paper's table
    assert published["paper/reacher"] is None


class TestRuns:
    def test_what_an_artifact_reached(self, tmp_path: Path) -> None:
        make(tmp_path, "teacher", {"success": 0.98765, "episodes": 256})
        make(tmp_path, "dataset", {"success": 0.5, "rows": 100_000})
        make(tmp_path, "student", {"success": 1.0, "retention": None})
        timing = {"p50_us": 13.71, "p99_us": 32.4}
        make(tmp_path, "benchmark", {"networks": {"student": {"back_to_back": timing}}})
        make(tmp_path, "teacher")
        console = Console()
        listing.show_runs(console, Workspace(tmp_path))
        found = [(row["status"], row["result"]) for row in console.last_result["artifacts"]]
        assert found == [
            ("stopped", None),
            ("completed", "p50 13.7 µs, p99 32.4 µs"),
            ("completed", "success 1.000, retention undefined"),
            ("completed", "success 0.500, rows 100,000"),
            ("completed", "success 0.988"),
        ]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("{", "is damaged or not a manifest of thousandfold"),
            ("", "is damaged or not a manifest of thousandfold"),
            (None, "is missing"),
            ('"success": 0.5', "was changed since it was written: its seal does not fit"),
        ],
    )
    def test_a_damaged_one_is_listed_as_damaged(
        self, tmp_path: Path, capsys: Capture, content: str | None, problem: str
    ) -> None:
        make(tmp_path, "policy", {"success": 0.75})
        manifest = make(tmp_path, "teacher", {"success": 1.0}).file("manifest.json")
        if content is None:
            manifest.unlink()
        else:
            edited = manifest.read_text().replace('"success": 1.0', content)
            manifest.write_text(edited if "success" in content else content)
        console = Console()
        listing.show_runs(console, Workspace(tmp_path))
        found = {row["artifact"]: row for row in console.last_result["artifacts"]}
        assert found[manifest.parent.name]["status"] == "damaged"
        assert found[manifest.parent.name]["result"] == f"manifest {problem}"
        assert [row["status"] for row in found.values()].count("completed") == 1
        assert console.last_result["damaged"] == [str(manifest)]
        assert f"{manifest} {problem}" in capsys.readouterr().err

    def test_a_living_one_is_told_from_a_dead_one(self, tmp_path: Path) -> None:
        dead, living = make(tmp_path, "teacher"), make(tmp_path, "dataset")
        console = Console()
        with folder_lock(living.path):
            listing.show_runs(console, Workspace(tmp_path))
            found = {row["artifact"]: row["status"] for row in console.last_result["artifacts"]}
            listing.show_info(console, Workspace(tmp_path), dead.name)
        assert found == {dead.name: "stopped", living.name: "running"}
        assert console.last_result["status"] == "stopped"

    def test_one_of_an_earlier_version_is_marked(self, tmp_path: Path, capsys: Capture) -> None:
        path = make(tmp_path, "teacher", {"success": 1.0}).file("manifest.json")
        content = json.loads(path.read_text()) | {"format_version": 1, "seal": None}
        path.write_text(json.dumps(content))
        make(tmp_path, "student", {"success": 1.0})
        console = Console()
        listing.show_runs(console, Workspace(tmp_path))
        assert [row["sealed"] for row in console.last_result["artifacts"]] == [True, False]
        assert capsys.readouterr().out.count("completed, unsealed") == 1


class TestInfo:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (3e-4, "0.0003"),
            (1e-05, "1e-05"),
            (0.123456789, "0.123456789"),
            (None, "null"),
            (True, "true"),
            ([256, 0.0001], "[256, 0.0001]"),
            (1_000_000, "1000000"),
            ("ant", "ant"),
            ({}, "{}"),
        ],
    )
    def test_settings_are_shown_as_they_were_set(
        self, tmp_path: Path, capsys: Capture, value: object, shown: str
    ) -> None:
        artifact = Workspace(tmp_path).create("teacher", task="ant", settings={"key": value})
        listing.show_info(Console(), Workspace(tmp_path), artifact.name)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["key"]]
        assert line.split(maxsplit=1)[1].strip() == shown

    def test_versions_commit_and_workspace(self, tmp_path: Path) -> None:
        console = Console()
        listing.show_info(console, Workspace(tmp_path), None)
        facts = console.last_result
        assert facts["workspace"] == str(tmp_path)
        assert facts["mujoco"]
        if (Path(listing.__file__).parents[1] / ".git").exists():
            assert len(facts["commit"]) == 40

    def test_one_artifact_in_full(self, tmp_path: Path, capsys: Capture) -> None:
        artifact = make(tmp_path, "teacher", {"success": 0.5, "interval": [0.25, 0.75], "none": None})
        listing.show_info(Console(), Workspace(tmp_path), artifact.name)
        text = capsys.readouterr().out
        for words in ("teacher of point_u_maze, completed", "[0.250, 0.750]", "inner.x", "data.txt"):
            assert words in text

    def test_why_one_failed(self, tmp_path: Path, capsys: Capture) -> None:
        artifact = make(tmp_path, "teacher")
        artifact.fail("NonFiniteError: loss became nan")
        listing.show_info(Console(), Workspace(tmp_path), artifact.name)
        assert "loss became nan" in capsys.readouterr().out

    def test_an_unknown_name_of_any_kind(self, tmp_path: Path) -> None:
        with pytest.raises(MissingArtifactError, match="`pipeline runs` lists them"):
            listing.show_info(Console(), Workspace(tmp_path), "xyz")
