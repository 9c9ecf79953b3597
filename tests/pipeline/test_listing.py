"""Tables of tasks, presets, artifacts, and one artifact in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import listing
from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.console import Console
from pipeline.core.errors import DamagedFileError, MissingArtifactError

Capture = pytest.CaptureFixture[str]


def make(root: Path, kind: str, results: dict[str, object] | None = None) -> Artifact:
    artifact = Workspace(root).create(kind, task="point_u_maze", settings={"depth": 4, "inner": {"x": 1}})
    if results is not None:
        artifact.file("data.txt").write_text("data")
        artifact.complete(results)
    return artifact


def test_every_task_is_listed_with_its_sizes() -> None:
    from envs.registry import task_names

    console = Console()
    listing.show_tasks(console)
    rows = console.last_result["tasks"]
    assert [row["task"] for row in rows] == task_names()
    assert all(row["observation"] and row["goal"] and row["action"] for row in rows)


def test_every_preset_has_a_description() -> None:
    console = Console()
    listing.show_presets(console)
    rows = console.last_result["presets"]
    assert {"quickstart", "smoke"} <= {row["preset"] for row in rows}
    assert all(len(row["description"]) > 10 for row in rows)


def test_every_task_has_a_preset_that_trains_it_as_published() -> None:
    from envs.registry import task_names
    from pipeline.core.settings import resolve_settings
    from stages.teacher_training import TrainTeacherSettings

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
            ("running", None),
            ("completed", "p50 14 µs, p99 32 µs"),
            ("completed", "success 1.000, retention undefined"),
            ("completed", "success 0.500, rows 100,000"),
            ("completed", "success 0.988"),
        ]

    def test_a_damaged_one_is_named_and_left_out(self, tmp_path: Path, capsys: Capture) -> None:
        damaged = make(tmp_path, "teacher", {"success": 1.0})
        damaged.file("manifest.json").write_text("{")
        listing.show_runs(Console(), Workspace(tmp_path))
        assert f"{damaged.file('manifest.json')} is damaged and left out" in capsys.readouterr().err


class TestInfo:
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

    @pytest.mark.parametrize("relative", [True, False])
    def test_an_artifact_by_its_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
    ) -> None:
        artifact, console = make(tmp_path, "teacher", {"success": 0.5}), Console()
        monkeypatch.chdir(tmp_path)
        name = f"runs/{artifact.name}" if relative else str(artifact.path)
        listing.show_info(console, Workspace(tmp_path / "elsewhere"), name)
        assert console.last_result["path"] == str(artifact.path)

    def test_why_one_failed(self, tmp_path: Path, capsys: Capture) -> None:
        artifact = make(tmp_path, "teacher")
        artifact.fail("NonFiniteError: loss became nan")
        listing.show_info(Console(), Workspace(tmp_path), artifact.name)
        assert "loss became nan" in capsys.readouterr().out

    def test_an_unknown_name_offers_the_nearest(self, tmp_path: Path) -> None:
        artifact = make(tmp_path, "teacher", {})
        with pytest.raises(MissingArtifactError, match=f"did you mean {artifact.name}"):
            listing.show_info(Console(), Workspace(tmp_path), artifact.name[:-2])
        with pytest.raises(MissingArtifactError, match="`pipeline runs` lists them"):
            listing.show_info(Console(), Workspace(tmp_path), "xyz")

    def test_a_damaged_one_is_called_damaged(self, tmp_path: Path) -> None:
        artifact = make(tmp_path, "teacher", {})
        artifact.file("manifest.json").write_text("{")
        with pytest.raises(DamagedFileError, match="is damaged or not a manifest"):
            listing.show_info(Console(), Workspace(tmp_path), artifact.name)
