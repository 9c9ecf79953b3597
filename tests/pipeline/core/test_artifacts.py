"""Artifacts: atomic files, manifests that can be checked, and which artifact is the newest."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from pipeline.core import atomic
from pipeline.core.artifacts import (
    KINDS,
    Artifact,
    Manifest,
    Workspace,
    atomic_file,
    file_sha256,
    write_atomic,
    write_json_atomic,
)
from pipeline.core.errors import DamagedFileError, MissingArtifactError, UserError, WorkspaceError
from pipeline.core.manifest import git_state, installed_versions


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def make(workspace: Workspace, kind: str = "teacher", text: str = "weights", **options: object) -> Artifact:
    """Make a completed artifact with one file."""
    artifact = workspace.create(kind, task="ant", settings={"depth": 8}, **options)  # type: ignore[arg-type]
    write_atomic(artifact.file("weights.bin"), text)
    artifact.complete({"success": 0.5})
    return artifact


class TestAtomicFiles:
    def test_bytes_and_text_are_written(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / "new" / "a.bin", b"\x00\xff")
        write_atomic(tmp_path / "a.txt", "é\n")
        assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\xff"
        assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"

    def test_a_failed_write_leaves_the_old_file_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        write_atomic(path, "old")
        with pytest.raises(RuntimeError), atomic_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_the_mode_is_the_umasks_whatever_the_writer_made(
        self, tmp_path: Path, umask: int, mode: int
    ) -> None:
        before = os.umask(umask)
        try:
            with atomic_file(tmp_path / "network.safetensors") as temporary:
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600))  # as safetensors does
            write_atomic(tmp_path / "manifest.json", "{}")
        finally:
            os.umask(before)
        assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [mode, mode]

    def test_nothing_is_visible_before_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "picture.png"
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            assert not path.exists()
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".png"
        assert path.read_text() == "half"

    def test_the_file_is_on_disk_before_the_rename(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        sync = os.fsync
        monkeypatch.setattr(
            atomic.os, "fsync", lambda fd: (seen.append((tmp_path / "a").exists()), sync(fd))[1]
        )
        write_atomic(tmp_path / "a", "x")
        assert seen == [False, True]

    def test_json_is_strict(self, tmp_path: Path) -> None:
        value = {
            1: np.float32(0.5),
            "a": np.arange(2),
            "nan": float("nan"),
            "p": Path("x"),
            "b": np.bool_(True),
        }
        write_json_atomic(tmp_path / "a.json", value)
        assert json.loads((tmp_path / "a.json").read_text()) == {
            "1": 0.5,
            "a": [0, 1],
            "nan": None,
            "p": "x",
            "b": True,
        }

    def test_sha256(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / "a", b"abc")
        assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


class TestManifest:
    def test_it_reads_back_as_written(self, workspace: Workspace) -> None:
        teacher = make(workspace)
        student = make(workspace, "student", parents={"teacher": teacher.parent_entry()})
        student.update(tracking={"run_id": "r", "chain_run_id": "c"})
        assert Artifact.load(student.path).manifest == student.manifest
        assert student.manifest.parents["teacher"].hash == teacher.manifest.hash

    def test_it_says_where_it_was_made(self, workspace: Workspace) -> None:
        manifest = make(workspace).manifest
        assert {"python", "thousandfold", "numpy"} <= set(manifest.versions)
        assert set(manifest.git) == {"commit", "dirty"}
        assert manifest.platform
        assert manifest.finished_at is not None
        assert datetime.fromisoformat(manifest.finished_at).utcoffset() == timedelta(0)
        assert len(manifest.created_at) == len("2026-01-31T12:00:00.000000+00:00")

    def test_every_kind_is_allowed(self) -> None:
        assert set(get_args(get_type_hints(Manifest)["kind"])) == set(KINDS)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"kind": "teacher"}', "\xff", "[" * 100_000])
    def test_a_damaged_one_is_named(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(DamagedFileError, match=r"manifest\.json"):
            Artifact.load(tmp_path)

    def test_every_truncation_is_noticed(self, workspace: Workspace) -> None:
        path = make(workspace).file("manifest.json")
        whole = path.read_bytes().rstrip()
        for length in range(0, len(whole), 97):
            path.write_bytes(whole[:length])
            with pytest.raises(DamagedFileError):
                Manifest.read(path)

    def test_a_newer_format_is_refused(self, workspace: Workspace) -> None:
        artifact = make(workspace)
        artifact.update(format_version=2)
        with pytest.raises(DamagedFileError, match="update thousandfold"):
            Artifact.load(artifact.path)

    def test_the_hash_depends_on_what_was_made_from_what(self, workspace: Workspace) -> None:
        teacher = make(workspace)
        assert make(workspace).manifest.hash == teacher.manifest.hash
        assert make(workspace, text="other").manifest.hash != teacher.manifest.hash
        assert (
            make(workspace, parents={"dataset": teacher.parent_entry()}).manifest.hash
            != teacher.manifest.hash
        )

    def test_the_hash_does_not_depend_on_the_order_of_settings(self, workspace: Workspace) -> None:
        one = workspace.create("teacher", task="ant", settings={"a": 1, "b": (2,)})
        two = workspace.create("teacher", task="ant", settings={"b": [2], "a": 1})
        assert one.manifest.content_hash() == two.manifest.content_hash()

    def test_outside_a_repository_there_is_no_commit(self, tmp_path: Path) -> None:
        assert git_state(tmp_path) == {"commit": None, "dirty": None}

    def test_packages_that_are_absent_are_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.core.manifest._PACKAGES", ("pytest", "no-such-package"))
        versions = installed_versions()
        assert versions.keys() == {"python", "thousandfold", "pytest"}
        assert versions["pytest"] == pytest.__version__


class TestArtifact:
    def test_complete_hashes_what_counts(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={})
        for name in (
            "a.bin",
            "deep/b.bin",
            "checkpoint/c.bin",
            "left.tmp",
            ".tmp-12ab-d.bin",
            "checkpoints.txt",
        ):
            artifact.file(name).parent.mkdir(exist_ok=True)
            artifact.file(name).write_text(name)
        artifact.complete({}, exclude=("checkpoint",))
        assert set(artifact.manifest.files) == {"a.bin", "deep/b.bin", "checkpoints.txt"}
        artifact.verify()

    def test_a_changed_file_is_named(self, workspace: Workspace) -> None:
        artifact = make(workspace)
        artifact.file("weights.bin").write_text("weighty")
        with pytest.raises(DamagedFileError, match=r"weights\.bin differs .* `pipeline train-teacher`"):
            artifact.verify()

    def test_a_missing_file_is_named(self, workspace: Workspace) -> None:
        artifact = make(workspace)
        artifact.file("weights.bin").unlink()
        with pytest.raises(DamagedFileError, match=r"weights\.bin is missing"):
            artifact.verify()

    def test_a_changed_manifest_is_noticed(self, workspace: Workspace) -> None:
        artifact = make(workspace)
        artifact.update(settings={"depth": 1000})
        with pytest.raises(DamagedFileError, match=r"manifest\.json was changed"):
            artifact.verify()

    def test_what_is_not_completed_has_no_children(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={})
        for action in (artifact.parent_entry, artifact.verify):
            with pytest.raises(MissingArtifactError, match="not completed"):
                action()

    def test_a_failure_says_why(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={})
        artifact.fail("the loss is NaN")
        manifest = Artifact.load(artifact.path).manifest
        assert manifest.status == "failed"
        assert manifest.results == {"error": "the loss is NaN"}


class TestWorkspace:
    def test_the_option_wins_over_the_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("THOUSANDFOLD_WORKSPACE", raising=False)
        assert Workspace.resolve(None).root == tmp_path
        monkeypatch.setenv("THOUSANDFOLD_WORKSPACE", str(tmp_path / "variable"))
        assert Workspace.resolve(None).runs == tmp_path / "variable" / "runs"
        assert Workspace.resolve("option").tracking == tmp_path / "option" / "mlflow"

    def test_one_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        workspace = Workspace(tmp_path / "file")
        with pytest.raises(WorkspaceError, match=r"file cannot be written .*--workspace"):
            workspace.ensure_writable()
        with pytest.raises(WorkspaceError):
            workspace.create("teacher", task="ant", settings={})

    def test_ensure_writable_leaves_nothing(self, workspace: Workspace) -> None:
        workspace.ensure_writable()
        assert list(workspace.runs.iterdir()) == []

    def test_an_unknown_kind_is_a_mistake_of_the_programmer(self, workspace: Workspace) -> None:
        with pytest.raises(ValueError, match="teachers"):
            workspace.create("teachers", task="ant", settings={})

    def test_names_are_unique_under_concurrency(self, workspace: Workspace) -> None:
        with ThreadPoolExecutor(8) as pool:
            paths = list(
                pool.map(lambda _: workspace.create("teacher", task="a", settings={}).path, range(16))
            )
        assert len(set(paths)) == 16
        assert all(path.name.startswith("teacher-2") for path in paths)

    def test_artifacts_are_newest_first(self, workspace: Workspace) -> None:
        first, second, third = make(workspace), make(workspace, "student"), make(workspace)
        assert [a.name for a in workspace.artifacts()] == [third.name, second.name, first.name]
        assert [a.name for a in workspace.artifacts("teacher")] == [third.name, first.name]

    def test_an_empty_workspace_has_none(self, workspace: Workspace) -> None:
        assert workspace.artifacts() == []
        assert workspace.damaged == []

    def test_newest_goes_by_finish_time(self, workspace: Workspace) -> None:
        slow = workspace.create("teacher", task="ant", settings={})
        make(workspace)
        slow.complete({})
        assert workspace.newest("teacher").name == slow.name

    def test_newest_leaves_out_what_does_not_count(self, workspace: Workspace) -> None:
        wanted = make(workspace)
        make(workspace, selectable=False)
        make(workspace, "student")
        workspace.create("teacher", task="ant", settings={})
        workspace.create("teacher", task="ant", settings={}).fail("no")
        assert workspace.newest("teacher").name == wanted.name

    def test_newest_dataset_of_the_chosen_teacher(self, workspace: Workspace) -> None:
        chosen, other = make(workspace, text="1"), make(workspace, text="2")
        wanted = make(workspace, "dataset", parents={"teacher": chosen.parent_entry()})
        make(workspace, "dataset", parents={"teacher": other.parent_entry()})
        found = workspace.newest(
            "dataset", lambda a: a.manifest.parents["teacher"].hash == chosen.manifest.hash
        )
        assert found.name == wanted.name

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_missing_one_names_its_command(self, workspace: Workspace, kind: str) -> None:
        with pytest.raises(MissingArtifactError) as caught:
            workspace.newest(kind)
        expected = f"No completed {kind} in {workspace.runs}: make one with `pipeline {KINDS[kind]}`."
        assert str(caught.value) == expected

    def test_a_missing_one_says_what_was_asked_for(self, workspace: Workspace) -> None:
        make(workspace)
        with pytest.raises(MissingArtifactError, match="No completed teacher of depth 9 in "):
            workspace.newest("teacher", lambda _: False, why="of depth 9")

    def test_damaged_manifests_are_skipped_and_listed(self, workspace: Workspace) -> None:
        good, bad = make(workspace), make(workspace)
        path = bad.file("manifest.json")
        path.write_text(path.read_text()[:100])
        assert workspace.newest("teacher").name == good.name
        assert workspace.damaged == [path]
        good.update(selectable=False)
        with pytest.raises(MissingArtifactError, match=r"Damaged and left out: .*manifest\.json"):
            workspace.newest("teacher")

    def test_open_takes_a_name_or_a_folder(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = make(workspace).name
        assert workspace.open(name, "teacher").name == name
        assert workspace.open(str(workspace.runs / name), "teacher").name == name
        monkeypatch.chdir(workspace.runs)
        assert workspace.open(f"./{name}", "teacher").path == workspace.runs / name

    def test_open_refuses_what_a_stage_cannot_use(self, workspace: Workspace) -> None:
        student = make(workspace, "student")
        running = workspace.create("teacher", task="ant", settings={})
        teacher = make(workspace)
        for reference, words in (
            (student.name, "is a student, not a teacher"),
            (running.name, r"is not completed \(running\)"),
            (teacher.name.replace("teacher", "techer"), f"did you mean {teacher.name[:8]}"),
            ("/nowhere/x", "neither a folder nor in .*did you mean|`pipeline train-teacher`"),
        ):
            with pytest.raises(UserError, match=words):
                workspace.open(reference, "teacher")
        assert workspace.find(running.name, "teacher").name == running.name


class TestAdoption:
    def test_a_copy_has_the_same_content_and_is_the_newest(self, workspace: Workspace) -> None:
        teacher = make(workspace)
        inside = Workspace(workspace.root / "inside")
        parents = {"teacher": teacher.parent_entry()}
        source = make(inside, "student", parents=parents, selectable=False)
        make(workspace, "student")
        copy = workspace.adopt(source, results={"frontier": "frontier-1"}, tracking={"run_id": "7"})
        copy.verify()
        assert copy.manifest.hash == source.manifest.hash and copy.manifest.parents == parents
        assert copy.file("weights.bin").read_text() == "weights"
        assert copy.manifest.results == {"success": 0.5, "frontier": "frontier-1"}
        assert copy.manifest.tracking == {"run_id": "7"}
        assert workspace.newest("student").name == copy.name == copy.path.name
        assert Artifact.load(source.path).manifest == source.manifest

    def test_files_that_are_no_part_of_the_result_stay_behind(self, workspace: Workspace) -> None:
        source = workspace.create("student", task="ant", settings={})
        for name in ("task/task.yaml", "checkpoint/state"):
            write_atomic(source.file(name), name)
        source.complete({}, exclude=["checkpoint"])
        copy = Workspace(workspace.root / "other").adopt(source, results={}, tracking={})
        assert copy.file("task/task.yaml").is_file() and not copy.file("checkpoint").exists()

    def test_what_is_not_completed_is_refused(self, workspace: Workspace) -> None:
        source = workspace.create("student", task="ant", settings={})
        with pytest.raises(MissingArtifactError, match="not completed"):
            workspace.adopt(source, results={}, tracking={})
        assert len(workspace.artifacts()) == 1

    def test_a_workspace_may_share_the_cache_of_another(self, workspace: Workspace) -> None:
        assert Workspace(workspace.root / "inside", workspace.cache).cache == workspace.root / "cache"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_write_to_a_full_disk_names_the_file(tmp_path: Path):
    with pytest.raises(OSError) as raised, atomic_file(tmp_path / "network.bin") as temporary:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"0" * 100)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "network.bin")
    assert list(tmp_path.iterdir()) == []
