"""Files that were damaged, exchanged or edited: named in one line, exit code 2, no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.refusals import SMOKE, invoke, make_foreign, newest, refused, truncate
from thousandfold.pipeline.artifacts import Artifact


def seal_again(artifact: Artifact) -> None:
    """Record the files as they are, so that only their content can tell."""
    artifact.complete(artifact.manifest.results, exclude=("checkpoint",))


NETWORK_READERS = [
    ("teacher", "network.safetensors", "generate-dataset"),
    ("teacher", "network.safetensors", "distill"),
    ("student", "network.safetensors", "export-onnx"),
    ("policy", "policy.onnx", "benchmark"),
    ("policy", "policy.onnx", "evaluate"),
]


class TestDamagedFiles:
    @pytest.mark.parametrize("damage", [truncate, make_foreign])
    @pytest.mark.parametrize(("kind", "file", "reader"), NETWORK_READERS)
    def test_a_changed_file_is_named(
        self, copied: Path, kind: str, file: str, reader: str, damage: Callable[[Path], None]
    ) -> None:
        path = newest(copied, kind).file(file)
        damage(path)
        message = refused(copied, reader, *SMOKE)
        assert message.startswith(f"{path} differs from its recorded hash: restore it, or make the {kind}")

    @pytest.mark.parametrize("damage", [truncate, make_foreign])
    @pytest.mark.parametrize(("kind", "file", "reader"), NETWORK_READERS)
    def test_a_file_that_was_recorded_so_is_named_too(
        self, copied: Path, kind: str, file: str, reader: str, damage: Callable[[Path], None]
    ) -> None:
        artifact = newest(copied, kind)
        damage(artifact.file(file))
        seal_again(artifact)
        assert refused(copied, reader, *SMOKE).startswith(f"{artifact.file(file)} is truncated or no ")

    @pytest.mark.parametrize(("kind", "file", "reader"), NETWORK_READERS)
    def test_a_file_of_another_task_is_named(self, copied: Path, kind: str, file: str, reader: str) -> None:
        artifact = newest(copied, kind)
        artifact.update(task="point_big_maze")
        message = refused(copied, reader, *SMOKE)
        assert message.startswith(str(artifact.file(file)))
        assert "point_u_maze" in message
        assert "point_big_maze" in message

    def test_an_onnx_file_of_somebody_else(self, copied: Path) -> None:
        import onnx

        artifact = newest(copied, "policy")
        model = onnx.load(artifact.file("policy.onnx"))
        del model.metadata_props[:]
        onnx.save(model, artifact.file("policy.onnx"))
        seal_again(artifact)
        assert "is an ONNX file that Thousandfold did not write" in refused(copied, "benchmark", *SMOKE)

    def test_a_missing_file_is_named(self, copied: Path) -> None:
        path = newest(copied, "teacher").file("network.safetensors")
        path.unlink()
        assert refused(copied, "distill", *SMOKE).startswith(f"{path} is missing: restore it, or make")

    @pytest.mark.parametrize("seal", [False, True])
    def test_a_truncated_dataset(self, copied: Path, seal: bool) -> None:
        artifact = newest(copied, "dataset")
        path = next(artifact.path.rglob("shard_*/data/*.hdf5"))
        truncate(path)
        if seal:
            seal_again(artifact)
        arguments = ("distill", *SMOKE, "--dataset", artifact.name)
        assert str(path if not seal else artifact.path) in refused(copied, *arguments)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "teacher"}', "null"])
    def test_a_damaged_manifest_is_named(self, copied: Path, content: str) -> None:
        manifest = newest(copied, "teacher").file("manifest.json")
        manifest.write_text(content)
        message = refused(copied, "generate-dataset")
        assert message.startswith(f"{manifest} is damaged or not a manifest")
        assert "may be the newest teacher" in message and "--teacher NAME" in message
        named = refused(copied, "generate-dataset", "--teacher", manifest.parent.name)
        assert named.startswith(f"{manifest} is damaged or not a manifest")

    @pytest.mark.parametrize(
        ("kind", "command"),
        [
            ("teacher", ("generate-dataset",)),
            ("teacher", ("train-teacher", "--resume", "{name}")),
            ("teacher", ("distill", "--teacher", "{name}")),
            ("teacher", ("report", "--teacher", "{name}")),
            ("dataset", ("distill",)),
            ("dataset", ("dataset", "info")),
            ("dataset", ("frontier",)),
            ("student", ("export-onnx",)),
            ("student", ("report",)),
            ("policy", ("benchmark",)),
            ("policy", ("evaluate",)),
            ("policy", ("run-policy",)),
            ("policy", ("policy", "verify")),
            ("benchmark", ("report",)),
            ("benchmark", ("info", "{name}")),
        ],
    )
    def test_an_edited_manifest_is_named_by_whoever_reads_it(
        self, copied: Path, kind: str, command: tuple[str, ...]
    ) -> None:
        path = newest(copied, kind).file("manifest.json")
        content = json.loads(path.read_text())
        content["results"]["success"] = 1.0
        path.write_text(json.dumps(content, indent=2))
        message = refused(copied, *(word.format(name=path.parent.name) for word in command))
        assert message.startswith(f"{path} was changed since it was written: its seal does not fit")

    def test_settings_that_were_changed_afterwards(self, copied: Path) -> None:
        artifact = newest(copied, "teacher")
        artifact.update(settings=artifact.manifest.settings | {"depth": 8})
        assert "was changed since it was completed" in refused(copied, "generate-dataset")


class TestCheckpoint:
    @pytest.fixture
    def unfinished(self, copied: Path) -> Artifact:
        """A teacher that was cut off after its last checkpoint."""
        artifact = newest(copied, "teacher")
        artifact.update(status="running", hash=None, finished_at=None)
        return artifact

    def test_a_whole_one_is_resumed(self, unfinished: Artifact) -> None:
        result = invoke(unfinished.path.parents[1], "train-teacher", "--resume", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["artifact"] == unfinished.name
        Artifact.load(unfinished.path).verify()

    @pytest.mark.parametrize("damage", [truncate, make_foreign, Path.unlink])
    @pytest.mark.parametrize("name", ["state-*.safetensors", "replay-*.safetensors"])
    def test_a_damaged_one_is_named(
        self, unfinished: Artifact, name: str, damage: Callable[[Path], None]
    ) -> None:
        path = sorted(unfinished.file("checkpoint").glob(name))[-1]
        damage(path)
        message = refused(unfinished.path.parents[1], "train-teacher", "--resume", unfinished.name)
        assert message.startswith(str(path))
        assert len(message) < 400

    @pytest.mark.parametrize("damage", [truncate, make_foreign])
    def test_its_damaged_manifest_is_named(
        self, unfinished: Artifact, damage: Callable[[Path], None]
    ) -> None:
        path = unfinished.file("checkpoint/manifest.json")
        damage(path)
        message = refused(unfinished.path.parents[1], "train-teacher", "--resume")
        assert message.startswith(f"{path} is truncated or no checkpoint manifest: restore it, or ")

    def test_without_one_there_is_nothing_to_resume(self, unfinished: Artifact) -> None:
        unfinished.file("checkpoint/manifest.json").unlink()
        message = refused(unfinished.path.parents[1], "train-teacher", "--resume", unfinished.name)
        assert message == f"{unfinished.name} has saved nothing to continue from: start it again."

    @pytest.mark.parametrize("change", [{"width": 8}, {"num_worlds": 4}, {"task": "point_big_maze"}])
    def test_one_of_other_settings_is_refused(self, unfinished: Artifact, change: dict[str, object]) -> None:
        unfinished.update(settings=unfinished.manifest.settings | change)
        message = refused(unfinished.path.parents[1], "train-teacher", "--resume", unfinished.name)
        assert str(unfinished.path) in message

    def test_settings_of_another_version_are_refused(self, unfinished: Artifact) -> None:
        unfinished.update(settings=unfinished.manifest.settings | {"gone": 1})
        message = refused(unfinished.path.parents[1], "train-teacher", "--resume", unfinished.name)
        assert unfinished.name in message
