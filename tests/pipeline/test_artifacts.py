"""Artifacts: atomic files, manifests that can be checked, and which artifact is the newest."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from thousandfold.ground import files
from thousandfold.ground.errors import DamagedFileError, MissingArtifactError, UserError, WorkspaceError
from thousandfold.ground.files import (
    atomic_file,
    file_sha256,
    folder_lock,
    write_atomic,
    write_json_atomic,
    write_sealed_json,
)
from thousandfold.pipeline.artifacts import (
    KINDS,
    Artifact,
    Manifest,
    Workspace,
    git_state,
    installed_versions,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def make(workspace: Workspace, kind: str = "teacher", text: str = "weights", **options: object) -> Artifact:
    """Make a completed artifact with one file."""
    artifact = workspace.create(kind, task="ant", settings={"depth": 8}, **options)  # type: ignore[arg-type]
    write_atomic(artifact.file("weights.bin"), text)
    artifact.complete({"success": 0.5})
    return artifact


def edit(artifact: Artifact, **changes: object) -> None:
    """Change the manifest as somebody with an editor does."""
    path = artifact.file("manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def unseal(artifact: Artifact) -> None:
    """Make the manifest one of format 1, which had no seal."""
    path = artifact.file("manifest.json")
    content = json.loads(path.read_text()) | {"format_version": 1}
    del content["seal"]
    path.write_text(json.dumps(content))


def rename(artifact: Artifact | Path, name: str) -> None:
    """Give an artifact another folder, with times of an artifact that was made when its name says."""
    path = artifact if isinstance(artifact, Path) else artifact.path
    new = path.rename(path.with_name(name))
    stamp = datetime.strptime(f"{name[-15:]}+0000", "%Y%m%d-%H%M%S%z")
    for file in new.rglob("*"):
        os.utime(file, (stamp.timestamp(), stamp.timestamp()))
    manifest = new / "manifest.json"
    text = re.sub(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d", stamp.isoformat()[:19], manifest.read_text())
    write_sealed_json(manifest, json.loads(text) | {"name": name})
    if isinstance(artifact, Artifact):
        artifact.path, artifact.manifest = new, Manifest.read(manifest)


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
            files.os, "fsync", lambda fd: (seen.append((tmp_path / "a").exists()), sync(fd))[1]
        )
        write_atomic(tmp_path / "a", "x")
        assert seen == [False, True]

    def test_a_folder_that_cannot_be_synced_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail_for_folders(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(files.os, "fsync", fail_for_folders)
        with pytest.raises(OSError) as raised:
            write_atomic(tmp_path / "a", "x")
        assert raised.value.filename == str(tmp_path / "a")

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

    def test_every_kind_is_read_and_no_other(self, workspace: Workspace) -> None:
        for kind in KINDS:
            assert Artifact.load(make(workspace, kind).path).kind == kind
        path = make(workspace).file("manifest.json")
        write_sealed_json(
            path, json.loads(path.read_text()) | {"kind": "dragon", "hash": None, "status": "failed"}
        )
        with pytest.raises(DamagedFileError, match="not a manifest"):
            Manifest.read(path)

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
        edit(artifact, format_version=3)
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
        monkeypatch.setattr("thousandfold.pipeline.artifacts._PACKAGES", ("pytest", "no-such-package"))
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

    @pytest.mark.parametrize(
        "change",
        [
            {"settings": {"depth": 1000}},
            {"results": {"success": 1.0}},
            {"results": {"success": 0.5, "retention": 1.0}},
            {"task": "ant_big_maze"},
            {"task_changes": {"episode_steps": 50}},
            {"created_at": "2026-01-31T12:00:00.000000+00:00"},
            {"finished_at": "2026-01-31T12:00:00.000000+00:00"},
            {"status": "running"},
            {"selectable": False},
            {"tracking": {"run_id": "other"}},
            {"unknown": 1},
            {"seal": None},
            {"seal": "0" * 64},
        ],
    )
    def test_a_changed_manifest_is_noticed(self, workspace: Workspace, change: dict[str, object]) -> None:
        artifact = make(workspace)
        edit(artifact, **change)
        with pytest.raises(DamagedFileError, match=r"manifest\.json was changed since it was written"):
            Artifact.load(artifact.path)
        with pytest.raises(DamagedFileError, match=rf"{artifact.name} may be the newest teacher"):
            workspace.newest("teacher")

    def test_settings_of_one_in_the_making_are_sealed_too(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={"depth": 8})
        edit(artifact, settings={"depth": 1000})
        with pytest.raises(DamagedFileError, match="was changed since it was written"):
            Artifact.load(artifact.path)

    def test_a_null_is_no_infinity(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={})
        artifact.complete({"retention": None})
        path = artifact.file("manifest.json")
        for number in ("NaN", "1e999"):
            path.write_text(path.read_text().replace('"retention": null', f'"retention": {number}'))
            with pytest.raises(DamagedFileError):
                Artifact.load(artifact.path)

    def test_a_key_that_comes_twice_is_damage(self, workspace: Workspace) -> None:
        path = make(workspace).file("manifest.json")
        path.write_text(path.read_text().replace('"results": {', '"results": {"success": 1.0, '))
        with pytest.raises(DamagedFileError, match="is damaged"):
            Manifest.read(path)

    def test_one_of_an_earlier_version_is_read_and_unsealed(self, workspace: Workspace) -> None:
        artifact = make(workspace)
        unseal(artifact)
        assert workspace.newest("teacher").manifest.seal is None
        edit(artifact, settings={"depth": 1000})  # its hash covers these
        with pytest.raises(DamagedFileError, match="was changed since it was completed"):
            Artifact.load(artifact.path)

    def test_one_of_an_earlier_version_that_goes_on_is_sealed(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={})
        unseal(artifact)
        Artifact.load(artifact.path).complete({})
        assert Artifact.load(artifact.path).manifest.format_version == 2
        assert Artifact.load(artifact.path).manifest.seal

    def test_what_an_interrupted_write_left_is_gone_when_it_is_completed(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={})
        write_atomic(artifact.file("checkpoint/.tmp-12ab-state.safetensors"), "half")
        write_atomic(artifact.file(".tmp-task/page.yaml"), "half")
        write_atomic(artifact.file("network.safetensors"), "whole")
        artifact.complete({}, exclude=("checkpoint",))
        assert [path.name for path in artifact.path.rglob(".*")] == []

    def test_so_is_the_lock_of_a_process_that_was_killed_and_no_other(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={})
        write_atomic(artifact.file(".lock"), "4711\n")
        with folder_lock(artifact.file("checkpoint")):
            artifact.complete({}, exclude=("checkpoint",))
            assert [path.parent.name for path in artifact.path.rglob(".*")] == ["checkpoint"]

    def test_one_whose_process_is_gone_is_stopped(self, workspace: Workspace) -> None:
        artifact = workspace.create("teacher", task="ant", settings={})
        assert artifact.status == "stopped"
        for folder in (artifact.path, artifact.file("checkpoint")):
            with folder_lock(folder):
                assert Artifact.load(artifact.path).status == "running"
        assert artifact.status == "stopped"
        artifact.complete({})
        assert artifact.status == "completed"

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

    def test_what_an_interrupted_write_left_long_ago_is_removed(self, workspace: Workspace) -> None:
        old, new = (workspace.runs / f".tmp-{name}-chain-20260131-120000-000000.json" for name in ("1", "2"))
        for path in (old, new):
            write_atomic(path, "{")
        os.utime(old, (0, 0))
        workspace.ensure_writable()
        assert list(workspace.runs.iterdir()) == [new]

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
        assert workspace.newest("dataset", of=chosen).name == wanted.name

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_missing_one_names_its_command(self, workspace: Workspace, kind: str) -> None:
        with pytest.raises(MissingArtifactError) as caught:
            workspace.newest(kind)
        expected = f"No completed {kind} in {workspace.runs}: make one with `pipeline {KINDS[kind]}`."
        assert str(caught.value) == expected

    def test_a_missing_one_says_what_was_asked_for(self, workspace: Workspace) -> None:
        teacher = make(workspace)
        with pytest.raises(MissingArtifactError, match=f"No completed dataset of teacher {teacher.name} in "):
            workspace.newest("dataset", of=teacher)

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
            (running.name, r"is not completed \(stopped\)"),
            (teacher.name.replace("teacher", "techer"), f"did you mean {teacher.name[:8]}"),
            ("/nowhere/x", "neither a folder nor in .*did you mean|`pipeline train-teacher`"),
        ):
            with pytest.raises(UserError, match=words):
                workspace.open(reference, "teacher")
        assert workspace.find(running.name, "teacher").name == running.name


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace('"success": 0.5', '"success": 1.0'))


def with_a_flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b'"status"') + 1] ^= 0x80
    path.write_bytes(data)


DAMAGES = [
    emptied,
    Path.unlink,
    edited,
    with_a_flipped_bit,
    pytest.param(lambda path: os.truncate(path, 30), id="truncated"),
    pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a folder"),
    pytest.param(lambda path: (path.unlink(), os.mkfifo(path)), id="a pipe"),
    pytest.param(lambda path: (path.unlink(), path.symlink_to("nowhere")), id="a dangling link"),
]


class TestDamagedArtifacts:
    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("kind", ["teacher", "dataset", "student", "policy"])
    def test_the_newest_is_named_and_nothing_older_taken(
        self, workspace: Workspace, kind: str, damage: Callable[[Path], None]
    ) -> None:
        older, bad = make(workspace, kind), make(workspace, kind)
        damage(bad.file("manifest.json"))
        with pytest.raises(DamagedFileError) as caught:
            workspace.newest(kind)
        message = str(caught.value)
        assert message.startswith(f"{bad.file('manifest.json')} ")
        assert f"{bad.name} may be the newest {kind}: restore the file, " in message
        assert f"with --{kind} NAME, or remove {bad.path} to go on without it." in message
        assert [damaged.path for damaged in workspace.damaged] == [bad.path]
        assert workspace.open(older.name, kind).name == older.name, "as told to"
        with pytest.raises(DamagedFileError):
            workspace.open(bad.name, kind)
        shutil.rmtree(bad.path)
        assert workspace.newest(kind).name == older.name, "as told to"

    def test_so_is_one_that_is_a_link_to_a_drive_that_is_away(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        older, newest = make(workspace), make(workspace)
        newest.path.rename(tmp_path / "drive")
        newest.path.symlink_to(tmp_path / "drive")
        (workspace.runs / "teacher-latest").symlink_to(tmp_path / "nowhere")  # no artifact's name
        (workspace.runs / "teacher-20260131-120000.json").symlink_to(newest.file("manifest.json"))
        assert workspace.newest("teacher").name == newest.name
        (tmp_path / "drive").rename(tmp_path / "away")
        with pytest.raises(
            DamagedFileError, match=f"is missing, and {newest.name} may be the newest teacher"
        ):
            workspace.newest("teacher")
        assert [damaged.path for damaged in workspace.damaged] == [newest.path]
        with pytest.raises(DamagedFileError, match="is missing"):
            workspace.open(newest.name, "teacher")
        newest.path.unlink()
        assert workspace.newest("teacher").name == older.name

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_one_older_than_the_newest_or_of_another_kind_is_nobodys_concern(
        self, workspace: Workspace, damage: Callable[[Path], None]
    ) -> None:
        older, newest, student = make(workspace), make(workspace), make(workspace, "student")
        rename(older, "teacher-20260101-120000")
        for bad in (older, student):
            damage(bad.file("manifest.json"))
        assert workspace.newest("teacher").name == newest.name
        with pytest.raises(DamagedFileError, match="may be the newest student"):
            workspace.newest("student")

    @pytest.mark.parametrize("damage", [emptied, edited, Path.unlink])
    def test_one_that_began_before_and_ended_after_is_named(
        self, workspace: Workspace, damage: Callable[[Path], None]
    ) -> None:
        slow = make(workspace)
        rename(slow, "teacher-20260101-120000")
        make(workspace)
        write_atomic(slow.file("weights.bin"), "weights")
        damage(slow.file("manifest.json"))
        with pytest.raises(DamagedFileError, match=f"{slow.name} may be the newest"):
            workspace.newest("teacher")

    def test_what_can_still_be_read_of_it_counts(self, workspace: Workspace) -> None:
        """A manifest that is broken off behind its times and its status is known to be no newer one."""
        whole = make(workspace)
        unfinished = workspace.create("teacher", task="ant", settings={})
        unfinished.file("curve.json").write_text("{}")
        path = unfinished.file("manifest.json")
        path.write_text(path.read_text().partition('"parents"')[0])
        assert workspace.newest("teacher").name == whole.name
        with pytest.raises(DamagedFileError, match="may be the newest unfinished teacher"):
            workspace.newest_unfinished("teacher", lambda _: True)

    def test_the_dataset_of_another_teacher_is_no_concern(self, workspace: Workspace) -> None:
        one, other = make(workspace, text="1"), make(workspace, text="2")
        wanted = make(workspace, "dataset", parents={"teacher": one.parent_entry()})
        path = make(workspace, "dataset", parents={"teacher": other.parent_entry()}).file("manifest.json")
        whole = path.read_text()
        path.write_text(whole.partition('"files"')[0])
        assert workspace.newest("dataset", of=one).name == wanted.name
        with pytest.raises(DamagedFileError):
            workspace.newest("dataset", of=other)
        path.write_text(whole.partition('"parents"')[0])
        for teacher in (one, other):
            with pytest.raises(DamagedFileError):
                workspace.newest("dataset", of=teacher)
        path.write_text(whole)
        later = make(workspace, text="3")
        rename(path.parent, "dataset-20260101-120000")
        emptied(workspace.runs / "dataset-20260101-120000" / "manifest.json")
        with pytest.raises(MissingArtifactError):
            workspace.newest("dataset", of=later)  # what began before its teacher is none of it

    def test_where_it_is_the_only_one_none_is_made_instead(self, workspace: Workspace) -> None:
        emptied(make(workspace).file("manifest.json"))
        with pytest.raises(DamagedFileError, match="may be the newest teacher"):
            workspace.newest("teacher")

    def test_a_folder_that_was_begun_and_nothing_more_is_no_damage(self, workspace: Workspace) -> None:
        newest = make(workspace)
        for number in range(3):
            folder = workspace.runs / f"teacher-20990101-00000{number}"
            folder.mkdir()
            if number:  # killed while the first manifest was written
                (folder / ".tmp-12ab-manifest.json").write_text("{")
        (workspace.runs / "teacher-notes").mkdir()
        (workspace.runs / "teacher-notes" / "a.txt").write_text("somebody's own")
        (workspace.runs / "error-20260101-120000-7.log").write_text("a file")
        assert workspace.newest("teacher").name == newest.name
        assert workspace.damaged == []

    def test_a_copy_that_was_cut_off_is_no_damage(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, newest = make(Workspace(workspace.root / "inside"), "student"), make(workspace, "student")
        monkeypatch.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            workspace.adopt(source, {}, {})
        assert workspace.newest("student").name == newest.name
        assert workspace.damaged == []

    def test_one_without_access_is_named(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        bad = make(workspace)

        def refuse(path: Path, **_: object) -> str:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "read_text", refuse)
        monkeypatch.setattr(Path, "iterdir", refuse)
        monkeypatch.setattr("os.path.lexists", lambda _: False)  # a folder that cannot be entered
        with pytest.raises(DamagedFileError, match=r"cannot be read \(Permission denied\)"):
            workspace.open(bad.name, "teacher")

    @pytest.mark.parametrize("reference", ["x" * 300, "a\0b", "", "."])
    def test_a_reference_that_is_no_name_is_said_to_be_none(
        self, workspace: Workspace, reference: str
    ) -> None:
        with pytest.raises(MissingArtifactError, match="No teacher"):
            workspace.find(reference, "teacher")


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


def test_an_error_without_a_number_keeps_its_words(tmp_path: Path):
    with pytest.raises(OSError, match=r"^no room in the file$"), atomic_file(tmp_path / "network.bin"):
        raise OSError("no room in the file")
