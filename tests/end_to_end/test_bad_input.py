"""What goes wrong at a user's hands: one clear line, exit code 2, nothing lost, no traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import cli
from pipeline.core import atomic
from pipeline.core.artifacts import Artifact, Workspace
from tests.end_to_end.command_line import clean_environment, command, error_of, pipeline, result_of

SMOKE = ("--preset", "smoke")


@pytest.fixture(autouse=True)
def without_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "THOUSANDFOLD_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def invoke(workspace: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--workspace", str(workspace), *arguments])


def refused(workspace: Path, *arguments: str) -> str:
    """Run a command that must fail as a user's mistake; return its one line without `Error: `."""
    result = invoke(workspace, *arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert not result.stdout.startswith("{"), "no result"
    return error_of(result.stderr).removeprefix("Error: ")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one artifact of every kind; not to be changed."""
    workspace = tmp_path_factory.mktemp("chain")
    result = invoke(workspace, "run", *SMOKE)
    assert result.exit_code == 0, result.output
    return workspace


@pytest.fixture
def copied(chain: Path, tmp_path: Path) -> Path:
    """A copy of that workspace, to be damaged."""
    shutil.copytree(chain / "runs", tmp_path / "copy" / "runs")
    (tmp_path / "copy" / "mlflow").mkdir()
    shutil.copy(chain / "mlflow" / "mlflow.db", tmp_path / "copy" / "mlflow")  # a new one takes a second
    return tmp_path / "copy"


def newest(workspace: Path, kind: str) -> Artifact:
    return Workspace(workspace).artifacts(kind)[0]


class TestNames:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("train-teacher", "--task", "point_u_mase"),
                "train_teacher: Unknown task 'point_u_mase': did you mean 'point_u_maze'? "
                "`pipeline tasks` lists them.",
            ),
            (("run", "--preset", "quikstart"), "Unknown preset 'quikstart': did you mean 'quickstart'?"),
            (
                ("train-teacher", "--set", "detph=4"),
                "train_teacher: Unknown setting 'detph': did you mean 'depth'?",
            ),
            (
                ("run", "--set", "train_teacher.detph=4"),
                "train_teacher: Unknown setting 'detph': did you mean 'depth'?",
            ),
            (
                ("run", "--set", "distil.student_depth=4"),
                "--set distil.student_depth=4: Unknown stage 'distil': did you mean 'distill'?",
            ),
            (("run", "--set", "depth=4"), "--set depth=4: name the stage too, as in train_teacher.depth=32."),
            (
                ("train-teacher", "--set", "training_distribution=trainin"),
                "train_teacher: Task 'point_u_maze' has no episode distribution 'trainin'; "
                "it has evaluation, training, training_from_start.",
            ),
        ],
    )
    def test_unknown_ones_offer_the_nearest(
        self, tmp_path: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        assert refused(tmp_path, *arguments) == message
        assert not Workspace(tmp_path).artifacts()

    def test_of_the_task_in_a_chain(self, tmp_path: Path) -> None:
        message = refused(tmp_path, "run", *SMOKE, "--set", "train_teacher.task=point_u_mase")
        assert message.startswith("train_teacher: Unknown task 'point_u_mase': did you mean 'point_u_maze'?")
        assert not Workspace(tmp_path).artifacts()

    def test_of_an_evaluation_s_distribution(self, chain: Path) -> None:
        message = refused(chain, "evaluate", "--set", "distribution=evaluaton")
        assert message.startswith("Task 'point_u_maze' has no episode distribution 'evaluaton'; it has")


class TestValues:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("train-teacher", "--depth", "6"),
                "train_teacher: depth 6 of a residual network is not a multiple of 4: use 4 or 8",
            ),
            (
                ("run", "--set", "train_teacher.depth=18"),
                "train_teacher: depth 18 of a residual network is not a multiple of 4: use 16 or 20",
            ),
            (
                ("distill", "--student-depth", "6", "--student-kind", "residual"),
                "distill: depth 6 of a residual network is not a multiple of 4: use 4 or 8",
            ),
            (("train-teacher", "--set", "depth"), "--set depth: expected key=value."),
            (
                ("train-teacher", "--set", "depth=[1"),
                "--set depth=[1 is not valid YAML: expected ',' or ']', but got '<stream end>' (line 1).",
            ),
            (
                ("train-teacher", "--seed", "-1"),
                "train_teacher: seed must be greater than or equal to 0 (got -1)",
            ),
        ],
    )
    def test_out_of_bounds_say_what_is_allowed(
        self, tmp_path: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        assert refused(tmp_path, *arguments) == message
        assert not list(tmp_path.iterdir())


class TestMissingArtifacts:
    @pytest.mark.parametrize(
        ("stage", "kind", "maker"),
        [
            ("generate-dataset", "teacher", "train-teacher"),
            ("distill", "teacher", "train-teacher"),
            ("export-onnx", "student", "distill"),
            ("benchmark", "policy", "export-onnx"),
        ],
    )
    def test_name_the_command_that_makes_them(
        self, tmp_path: Path, stage: str, kind: str, maker: str
    ) -> None:
        expected = f"No completed {kind} in {tmp_path}/runs: make one with `pipeline {maker}`."
        assert refused(tmp_path, stage) == expected
        assert not list(tmp_path.iterdir()), "nothing is made on the way"

    def test_by_name_offer_the_nearest(self, chain: Path) -> None:
        teacher = newest(chain, "teacher").name
        assert refused(chain, "evaluate", "--teacher", teacher[:-1]).endswith(f"did you mean {teacher}?")

    def test_of_another_kind(self, chain: Path) -> None:
        message = refused(chain, "generate-dataset", "--teacher", newest(chain, "student").name)
        assert message.endswith("is a student, not a teacher: give a teacher instead.")

    @pytest.mark.parametrize("command_name", ["evaluate", "export-onnx"])
    def test_not_two_at_once(self, chain: Path, command_name: str) -> None:
        arguments = ("--student", newest(chain, "student").name, "--teacher", newest(chain, "teacher").name)
        message = refused(chain, command_name, *arguments)
        assert message == "Give one of --student, --teacher, not several."

    def test_a_dataset_of_another_teacher(self, copied: Path) -> None:
        assert invoke(copied, "train-teacher", *SMOKE, "--seed", "7").exit_code == 0
        dataset = newest(copied, "dataset").name
        message = refused(copied, "distill", *SMOKE, "--dataset", dataset)
        assert f"Dataset {dataset} was made by" in message
        assert "make one with `pipeline generate-dataset --teacher" in message

    def test_nothing_to_resume(self, chain: Path, tmp_path: Path) -> None:
        assert "No unfinished teacher" in refused(tmp_path, "train-teacher", "--resume")
        assert "No unfinished chain" in refused(tmp_path, "run", "--resume")
        teacher = newest(chain, "teacher").name
        message = refused(chain, "train-teacher", "--resume", teacher)
        assert message == f"Teacher {teacher} is completed: there is nothing to resume."
        assert "No unfinished chain" in refused(chain, "run", "--resume")

    def test_a_resumed_chain_takes_no_settings(self, tmp_path: Path) -> None:
        given = [("--seed", "0"), ("--set", "depth=8"), SMOKE, ("--device", "cpu"), ("--dry-run",)]
        for flags in given:
            message = refused(tmp_path, "run", "--resume", *flags)
            assert message == f"--resume goes on with the run's own settings: leave {flags[0]} out."


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 something else entirely")


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
        assert message.startswith("No completed teacher")
        assert f"Damaged and left out: {manifest}" in message
        named = refused(copied, "generate-dataset", "--teacher", manifest.parent.name)
        assert named.startswith(f"{manifest} is damaged or not a manifest")

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
        assert message == f"{path} is truncated or no checkpoint manifest."

    def test_without_one_there_is_nothing_to_resume(self, unfinished: Artifact) -> None:
        unfinished.file("checkpoint/manifest.json").unlink()
        message = refused(unfinished.path.parents[1], "train-teacher", "--resume", unfinished.name)
        assert message == f"Teacher {unfinished.name} has no checkpoint to go on from: train another."

    @pytest.mark.parametrize("change", [{"width": 8}, {"num_worlds": 4}, {"task": "point_big_maze"}])
    def test_one_of_other_settings_is_refused(self, unfinished: Artifact, change: dict[str, object]) -> None:
        unfinished.update(settings=unfinished.manifest.settings | change)
        message = refused(unfinished.path.parents[1], "train-teacher", "--resume", unfinished.name)
        assert str(unfinished.path) in message

    def test_settings_of_another_version_are_refused(self, unfinished: Artifact) -> None:
        unfinished.update(settings=unfinished.manifest.settings | {"gone": 1})
        message = refused(unfinished.path.parents[1], "train-teacher", "--resume", unfinished.name)
        assert unfinished.name in message


class TestWorkspace:
    @pytest.mark.parametrize("arguments", [("train-teacher", *SMOKE), ("run", *SMOKE)])
    def test_below_a_file(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        (tmp_path / "file").write_text("mine")
        expected = "cannot be written (Not a directory): choose another with --workspace DIR."
        for place in (tmp_path / "file", tmp_path / "file" / "below"):
            assert refused(place, *arguments) == f"Workspace {place} {expected}"
        assert (tmp_path / "file").read_text() == "mine"

    def test_without_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(path: Path, data: bytes) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(Path, "write_bytes", deny)
        expected = f"Workspace {tmp_path} cannot be written (Permission denied): choose another"
        assert refused(tmp_path, "train-teacher", *SMOKE).startswith(expected)

    def test_a_read_only_one(self, small_disk: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        expected = f"Workspace {small_disk} cannot be written (Read-only file system): choose another"
        assert refused(small_disk, "train-teacher", *SMOKE).startswith(expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """Take the free space of a file system but for `leave` bytes; deleting the file gives it back."""
    ballast = place / "ballast"
    free = shutil.disk_usage(place).free
    ballast.write_bytes(bytes(max(0, free - leave)))
    return ballast


class TestFullDisk:
    def test_nothing_is_lost(self, small_disk: Path) -> None:
        result = invoke(small_disk, "train-teacher", *SMOKE)
        assert result.exit_code == 0, result.output
        for leave in (0, 60_000):
            ballast = fill(small_disk, leave)
            message = refused(small_disk, "train-teacher", *SMOKE, "--seed", "1")
            assert "disk is full" in message or "No space left on device" in message, message
            assert "--workspace DIR" in message
            ballast.unlink()
            first = Workspace(small_disk).newest("teacher")
            first.verify()
        assert not [path for path in small_disk.rglob("*") if path.name.startswith(".tmp-")]
        resumed = invoke(small_disk, "train-teacher", *SMOKE, "--seed", "1")
        assert resumed.exit_code == 0, resumed.output

    @pytest.mark.parametrize("stage", ["train-teacher", "generate-dataset", "distill", "export-onnx"])
    def test_while_a_stage_writes(self, copied: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
        before = {artifact.name for artifact in Workspace(copied).artifacts()}

        def full(_: int) -> None:
            names = {path.name for path in (copied / "runs").iterdir()} - before
            if any(path.suffix != ".json" for name in names for path in (copied / "runs" / name).rglob("*")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(atomic.os, "fsync", full)
        message = refused(copied, stage, *SMOKE)
        assert message.startswith("The disk is full")
        monkeypatch.undo()
        for artifact in Workspace(copied).artifacts():
            if artifact.name in before:
                artifact.verify()
            else:
                assert artifact.manifest.status != "completed"


def test_nan_in_the_loss_stops_and_says_where(tmp_path: Path) -> None:
    arguments = ("train-teacher", *SMOKE, "--set", "env_steps=8000", "--set", "actor_learning_rate=1e30")
    done = pipeline(tmp_path, *arguments, code=2)
    line = error_of(done.stderr)
    assert " became nan at step " in line or " became inf at step " in line
    (teacher,) = Workspace(tmp_path).artifacts("teacher")
    assert teacher.manifest.status == "failed"
    assert teacher.manifest.results["error"] in line
    assert "No completed teacher" in refused(tmp_path, "generate-dataset")


class TestTracking:
    def test_a_server_that_is_away(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert refused(tmp_path, "train-teacher", *SMOKE) == (
            f"Cannot open the tracking store {address}: the server does not answer. "
            "Put that right, or let MLFLOW_TRACKING_URI name another store."
        )
        assert not Workspace(tmp_path).artifacts()

    def test_a_store_that_cannot_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/below.db")
        message = refused(tmp_path, "train-teacher", *SMOKE)
        assert message.startswith(f"Cannot open the tracking store sqlite:///{tmp_path}/file/below.db: ")
        assert "sqlalche.me" not in message


class TestUi:
    def test_a_port_in_use(self, chain: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            message = refused(chain, "ui", "--port", str(port))
        assert message == (
            f"Cannot listen on 127.0.0.1:{port} (Address already in use): choose another --port or --host."
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
    def test_it_serves_and_ends(self, chain: Path, ending: signal.Signals) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = subprocess.Popen(
            command("ui", "--port", str(port)), cwd=chain, env=clean_environment(), stdout=subprocess.PIPE
        )
        try:
            assert "<!doctype html>" in fetch(f"http://127.0.0.1:{port}/", server)
        finally:
            server.send_signal(ending)
            server.communicate(timeout=60)
        assert server.returncode == 128 + ending
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))


def fetch(address: str, server: subprocess.Popen[bytes]) -> str:
    """Return a page of a server that may still be starting."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=10).read().decode()
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"{address} does not answer")


def interrupt_at(workspace: Path, words: str, *arguments: str) -> tuple[int, str, str]:
    """Run a command, send SIGINT once a line of its output has `words`; return exit code and output."""
    running = subprocess.Popen(
        command(*arguments),
        cwd=workspace,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    guard = threading.Timer(300, running.kill)
    guard.start()
    lines = []
    for line in running.stdout:
        lines.append(line)
        if words in line:
            running.send_signal(signal.SIGINT)
            break
    out, err = running.communicate()
    guard.cancel()
    return running.returncode, "".join(lines) + out, err


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ("train-teacher", *SMOKE, "--set", "env_steps=100000000")
    code, out, err = interrupt_at(tmp_path, "Teacher: depth", *arguments)
    assert code == 130
    assert "Traceback" not in out + err
    line = err.splitlines()[-1]
    assert "state saved" in line
    assert line.endswith("train-teacher --resume")
    (teacher,) = Workspace(tmp_path).artifacts("teacher")
    assert teacher.file("checkpoint/manifest.json").is_file()


@pytest.mark.slow
def test_a_chain_goes_on_after_ctrl_c_in_every_stage(tmp_path: Path) -> None:
    stages = ("train-teacher", "generate-dataset", "distill", "export-onnx", "benchmark")
    # Long enough that the signal meets the stage that was announced.
    longer = ("--set", "benchmark.paced_s=3", "--set", "generate_dataset.episodes=200")
    arguments = ("run", *SMOKE, *longer)
    for number, stage in enumerate(stages, start=1):
        code, out, err = interrupt_at(tmp_path, f"[{number}/6] {stage}", *arguments)
        assert code == 130, out + err
        assert "Traceback" not in out + err
        assert "run --resume" in err.splitlines()[-1], err
        arguments = ("run", "--resume")
    made = result_of(pipeline(tmp_path, "run", "--resume", "--json"))
    assert len(made) == 6
    for entry in made.values():
        Artifact.load(Path(entry["path"])).verify()
    finished = [a for a in Workspace(tmp_path).artifacts() if a.manifest.status == "completed"]
    assert len(finished) == 6
