"""A full disk, a workspace that cannot be written, a tracking store that is away: one clear line each."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.command_line import ROOT, clean_environment, command
from tests.end_to_end.refusals import SMOKE, invoke, newest, refused
from tests.envs.user_tasks.user_pages import write
from thousandfold.ground import files
from thousandfold.pipeline.artifacts import Workspace


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


@pytest.fixture(scope="module")
def latin_1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose locale is a German one in Latin-1, so that file names are taken for that."""
    places = tmp_path_factory.mktemp("locales")
    made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(places / "de_DE.ISO-8859-1")]
    if shutil.which("localedef") is None or subprocess.run(made, capture_output=True).returncode:
        pytest.skip("localedef makes no German locale in Latin-1 here")
    return {"LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(places), "PYTHONUTF8": "0"}


class TestNames:
    """Names of files that are no ASCII, under locales that are no UTF-8, and names that are no text."""

    def test_nothing_lands_beside_the_workspace(self, tmp_path: Path, latin_1: dict[str, str]) -> None:
        code = (
            "import sys; from pathlib import Path; from thousandfold.pipeline.tracking import open_tracker\n"
            "root = Path(sys.argv[1]); root.mkdir(); (root / 'file').write_text('mine')\n"
            "with open_tracker(root).stage('benchmark', name='b') as run: run.log_file(root / 'file')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "Änew")],
            env=clean_environment(**latin_1),
            capture_output=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert [path.name for path in tmp_path.iterdir()] == ["Änew"]
        kept = [path.read_text() for path in (tmp_path / "Änew" / "mlflow").rglob("file")]
        assert kept == ["mine"]

    def test_a_model_in_a_folder_with_an_umlaut_is_read(
        self, tmp_path: Path, latin_1: dict[str, str]
    ) -> None:
        folder = tmp_path / "Ü"
        folder.mkdir()
        page = write(folder)
        done = subprocess.run(
            command("tasks", "check", str(page)),
            env=clean_environment(**latin_1),
            capture_output=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    @pytest.mark.parametrize("arguments", [("tasks", "check"), ("train-teacher", *SMOKE, "--task")])
    def test_a_name_that_is_no_text_is_refused(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        folder = tmp_path / "a\udcff"
        folder.mkdir()
        assert "is no name in UTF-8: rename it." in refused(tmp_path, *arguments, str(write(folder)))

    def test_nor_is_it_a_workspace(self, tmp_path: Path) -> None:
        place = tmp_path / "a\udcff"
        done = subprocess.run(
            command("--workspace", str(place), "train-teacher", *SMOKE),
            env=clean_environment(),
            capture_output=True,
            cwd=ROOT,
        )
        told = done.stderr.decode().splitlines()[-1]
        assert told.endswith("is no name in UTF-8: rename it, or choose another --workspace DIR.")
        assert done.returncode == 2 and not place.exists()

    def test_an_unexpected_error_is_written_down_whatever_it_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise LookupError("a\udcff")

        monkeypatch.setattr(Workspace, "ensure_writable", fail)
        told = invoke(tmp_path, "train-teacher", *SMOKE).stderr
        match = re.search(r"\(unexpected; the traceback is in (\S+)\)", told)
        assert match is not None, told
        log = Path(match[1])
        assert "LookupError: a\\udcff" in log.read_text()
        log.unlink()


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

        monkeypatch.setattr(files.os, "fsync", full)
        message = refused(copied, stage, *SMOKE)
        assert message.startswith("The disk is full")
        monkeypatch.undo()
        for artifact in Workspace(copied).artifacts():
            if artifact.name in before:
                artifact.verify()
            else:
                assert artifact.manifest.status != "completed"


class TestTracking:
    def test_a_server_that_is_away(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert refused(tmp_path, "train-teacher", *SMOKE) == (
            f"Cannot open the tracking store {address}: the server does not answer, or not as MLflow's does. "
            "Put that right, let MLFLOW_TRACKING_URI name another store, or set it to none to go on "
            "untracked."
        )
        assert not Workspace(tmp_path).artifacts()

    def test_a_store_that_cannot_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/below.db")
        message = refused(tmp_path, "train-teacher", *SMOKE)
        assert message.startswith(f"Cannot open the tracking store sqlite:///{tmp_path}/file/below.db: ")
        assert "sqlalche.me" not in message

    def test_none_goes_on_untracked(self, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
        before = (copied / "mlflow" / "mlflow.db").read_bytes()
        result = invoke(copied, "evaluate", *SMOKE, "--episodes", "2")
        assert result.exit_code == 0, result.output
        assert newest(copied, "evaluation").manifest.tracking["store"] == "none"
        assert newest(copied, "evaluation").manifest.tracking["run_id"] is None
        assert newest(copied, "teacher").manifest.tracking["store"] == "workspace"
        for arguments in (["ui"], ["policy", "promote", "--episodes", "2", "--teacher"]):
            assert "MLFLOW_TRACKING_URI is none" in refused(copied, *arguments)
        assert (copied / "mlflow" / "mlflow.db").read_bytes() == before


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

    def test_a_store_that_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "mlflow").mkdir()
        (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"not a database" * 100)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        result = invoke(tmp_path, "ui", "--port", str(port))
        assert result.exit_code == 2 and "MLflow UI on" not in result.output
        assert result.stderr.startswith("Error: Cannot open the tracking store") and result.stdout == ""
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
    def test_it_serves_and_ends(self, chain: Path, ending: signal.Signals) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = subprocess.Popen(
            command("ui", "--no-browser", "--port", str(port)),
            cwd=chain,
            env=clean_environment(UI_OF=str(port)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert "<!doctype html>" in fetch(f"http://127.0.0.1:{port}/", server)
        finally:
            for _ in range(3):
                server.send_signal(ending)
                time.sleep(0.05)
            stderr = server.communicate(timeout=60)[1]
        if ending == signal.SIGKILL:
            assert server.returncode == -signal.SIGKILL
        else:
            assert server.returncode == 130 and stderr.endswith(b"Stopped.\n") and b"Traceback" not in stderr
        deadline = time.monotonic() + 60
        while processes_with(f"UI_OF={port}") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes_with(f"UI_OF={port}"), "what it has started ends with it"
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))


def processes_with(variable: str) -> list[int]:
    """Return the processes that have an environment variable; a zombie has none any more."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def fetch(address: str, server: subprocess.Popen[bytes]) -> str:
    """Return a page of a server that may still be starting."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=10).read().decode()
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"{address} does not answer")
