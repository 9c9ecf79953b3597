"""The console: where text and JSON go, progress with and without a terminal, and errors as exit codes."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click
import pytest
import rich.console
import torch
from click.testing import CliRunner

from thousandfold.ground.errors import MissingArtifactError, StoppedByUser, UserError
from thousandfold.pipeline import console as console_module
from thousandfold.pipeline.console import Console, error_boundary, figure

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a test moves `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    return now


def exit_of(error: BaseException, capsys: Capture, log_folder: Path | None = None) -> tuple[int, str]:
    """Raise an error inside the boundary; return the exit code and the one line on stderr."""
    with pytest.raises(SystemExit) as caught, error_boundary(log_folder):
        raise error
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return int(str(caught.value.code)), err.rstrip("\n")


class TestStreams:
    def test_text_is_printed_as_it_is(self, capsys: Capture) -> None:
        text = "[bold]actions[/] in [−1, 1] :smile: " + "long " * 40
        Console().say(text)
        assert capsys.readouterr().out == text + "\n"

    def test_a_notebook_gets_text_like_any_stream(
        self, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
        Console().say("a line")
        assert capsys.readouterr().out == "a line\n"

    def test_without_json_stdout_has_the_text_alone(self, capsys: Capture) -> None:
        with Console() as console:
            console.say("hello")
            console.result({"success": 0.5})
        assert capsys.readouterr() == ("hello\n", "")

    @pytest.mark.parametrize("as_json", [True, False])
    def test_a_silent_one_prints_nothing(self, capsys: Capture, as_json: bool) -> None:
        with Console(as_json, silent=True) as console:
            console.say("hello")
            console.warn("oh")
            console.table("Tasks", ["name"], [["ant"]])
            console.result({"success": 0.5})
            with console.progress("collect", 2) as progress:
                progress.advance(2)
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("error", [MissingArtifactError("no"), KeyboardInterrupt(), StoppedByUser("s")])
    def test_an_error_that_another_process_tells_leaves_its_code_alone(
        self, capsys: Capture, error: BaseException
    ) -> None:
        with pytest.raises(SystemExit) as caught, error_boundary(speaks=lambda: False):
            raise error
        assert caught.value.code in (2, 130)
        assert capsys.readouterr() == ("", "")

    def test_with_json_stdout_has_one_object_alone(self, capsys: Capture) -> None:
        with Console(json_output=True) as console:
            console.say("hello")
            console.table("Tasks", ["name"], [["ant"]])
            console.result({"success": 0.1})
            with console.progress("collect", 2) as progress:
                progress.advance(2)
            console.result({"success": float("nan"), "path": Path("a")})
        out, err = capsys.readouterr()
        assert json.loads(out) == {"success": None, "path": "a"}
        assert out.count("\n") == 1
        assert "hello" in err
        assert "ant" in err

    def test_without_a_result_the_object_is_empty(self, capsys: Capture) -> None:
        with Console(json_output=True):
            pass
        assert capsys.readouterr().out == "{}\n"

    def test_a_failed_command_prints_no_result(self, capsys: Capture) -> None:
        with pytest.raises(RuntimeError), Console(json_output=True) as console:
            console.result({"success": 1})
            raise RuntimeError
        assert capsys.readouterr().out == ""

    def test_warnings_go_to_stderr(self, capsys: Capture) -> None:
        Console().warn("slow disk")
        assert capsys.readouterr() == ("", "Warning: slow disk\n")


STEERING = "a\x1b[31mb\x07c\x9bd\re\x7f\u202ef"
WRITTEN_OUT = r"a\x1b[31mb\x07c\x9bd\re\x7f\u202ef"


class TestControlCharacters:
    """Names of tasks, files and artifacts may hold what would steer the user's terminal."""

    def test_no_way_of_printing_lets_them_through(self, capsys: Capture) -> None:
        console = Console(interval_s=0.0)
        console.say(STEERING)
        console.warn(STEERING)
        console.table(STEERING, [STEERING], [[STEERING]])
        with console.progress(STEERING, 1, unit=STEERING) as progress:
            progress.advance(1, **{STEERING: STEERING})
        out, err = capsys.readouterr()
        assert out.count(WRITTEN_OUT) >= 7 and WRITTEN_OUT in err
        assert not set(STEERING) & set(out + err) - set("abcdef[31m")

    @pytest.mark.parametrize("error", [UserError(STEERING), StoppedByUser(STEERING), OSError(STEERING)])
    def test_no_error_lets_them_through(self, tmp_path: Path, capsys: Capture, error: Exception) -> None:
        said = exit_of(error, capsys, tmp_path)[1]
        assert r"a\x1b[31mb\x07c\x9bd" in said and said.isprintable()

    def test_lines_and_other_writing_stay(self, capsys: Capture) -> None:
        text = "Größe µs – 機械\n  in two lines 🤖"
        Console().say(text)
        assert capsys.readouterr().out == text + "\n"

    def test_a_cell_is_one_line(self, capsys: Capture) -> None:
        Console().table("Runs", ["name"], [["teacher-1\nteacher-2"]])
        assert r"teacher-1\nteacher-2" in capsys.readouterr().out


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.98765, "0.988"),
            (0.0, "0.000"),
            (1.0, "1.000"),
            (3e-4, "0.0003"),
            (-2.5e-7, "-2.5e-07"),
            (0.00999, "0.00999"),
            (12345, "12,345"),
            (None, "undefined"),
            ([0.25, None], "[0.250, undefined]"),
            (True, "True"),
        ],
    )
    def test_a_measured_value_is_never_shown_as_a_zero_that_it_is_not(self, value: object, text: str) -> None:
        assert figure(value) == text


class TestTable:
    def test_cells_are_whole_outside_a_terminal(self, capsys: Capture) -> None:
        long = "x" * 150
        Console().table("Runs", ["name", "steps"], [[long, 1200], ["[red]", None]])
        out = capsys.readouterr().out
        assert long in out
        assert "[red]" in out
        assert "1,200" in out

    def test_numbers_are_aligned_on_the_right(self, capsys: Capture) -> None:
        Console().table("", ["name", "steps"], [["a", 1200], ["b", 7]])
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        ends = [len(line) for line in lines if line.strip().startswith(("a", "b"))]
        assert len(ends) == 2
        assert ends[0] == ends[1]

    def test_an_empty_table_has_its_head(self, capsys: Capture) -> None:
        Console().table("Runs", ["name"], [])
        assert "name" in capsys.readouterr().out


class TestProgress:
    def test_plain_lines_come_at_most_every_interval(self, capsys: Capture, clock: list[float]) -> None:
        with Console(interval_s=5.0).progress("collect", 1000) as progress:
            for _ in range(100):
                clock[0] += 0.1
                progress.advance(10, success=0.25)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("100 steps/s, success 0.25, ETA 0:00:05")
        assert 2 <= len(lines) <= 3  # after 5 s, perhaps after 10 s (the sum of a hundred 0.1 s), at the end
        assert lines[-1] == "collect: 1,000/1,000 steps, 100 steps/s, success 0.25"

    def test_work_that_is_resumed_counts_its_own_rate(self, clock: list[float]) -> None:
        with Console().progress("train", 3000, unit="updates", completed=2000) as progress:
            clock[0] += 10
            progress.update(2500, gradient_norm=1.5)
            status = progress.status()
        assert status == "2,500/3,000 updates, 50 updates/s, gradient norm 1.5, ETA 0:00:10"

    def test_an_interrupted_loop_prints_no_last_line(self, capsys: Capture) -> None:
        with pytest.raises(KeyboardInterrupt), Console().progress("collect", 10):
            raise KeyboardInterrupt
        assert capsys.readouterr().out == ""

    def test_a_terminal_gets_a_bar(self) -> None:
        stream = io.StringIO()
        console = Console()
        console._human = rich.console.Console(file=stream, force_terminal=True, width=120)
        with console.progress("collect", 10) as progress:
            progress.advance(10, success=1.0)
        assert "━" in stream.getvalue()
        assert "10/10 steps" in stream.getvalue()
        assert "success 1" in stream.getvalue()


class TestErrorBoundary:
    def test_a_users_error_is_one_line(self, capsys: Capture) -> None:
        code, line = exit_of(MissingArtifactError("No teacher:\n make one."), capsys)
        assert (code, line) == (2, "Error: No teacher: make one.")

    def test_stopping_keeps_its_own_words(self, capsys: Capture) -> None:
        code, line = exit_of(StoppedByUser("Stopped; go on with --resume."), capsys)
        assert (code, line) == (130, "Stopped; go on with --resume.")

    def test_ctrl_c(self, capsys: Capture) -> None:
        assert exit_of(KeyboardInterrupt(), capsys) == (130, "Stopped.")

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device", "/data/a.bin"),
            RuntimeError("I/O error: No space left on device (os error 28)"),
            RuntimeError("(sqlite3.OperationalError) database or disk is full"),
        ],
    )
    def test_a_full_disk(self, error: Exception, capsys: Capture) -> None:
        code, line = exit_of(error, capsys)
        assert code == 2
        assert line.startswith("Error: The disk is full")
        assert ("/data/a.bin" in line) == isinstance(error, OSError)

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
    def test_no_access_names_the_path(self, number: int, capsys: Capture) -> None:
        code, line = exit_of(OSError(number, "refused", "/data/runs"), capsys)
        assert code == 2
        assert line == "Error: No access to /data/runs (refused): check its permissions."

    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (errno.EIO, "drive fails"),
            (errno.ESTALE, "mount it again"),
            (errno.ENAMETOOLONG, "shorter name"),
            (errno.ELOOP, "links lead back"),
            (errno.EMFILE, "ulimit -n"),
            (errno.ENOENT, "check the name"),
            (errno.EISDIR, "choose another name"),
            (errno.ENODEV, "check it"),
        ],
    )
    def test_what_the_system_refuses_names_the_path(self, number: int, words: str, capsys: Capture) -> None:
        code, line = exit_of(OSError(number, os.strerror(number), "/data/runs"), capsys)
        assert code == 2
        assert line.startswith(f"Error: /data/runs cannot be used ({os.strerror(number)}): ")
        assert words in line

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            MemoryError("Unable to allocate 74.5 GiB for an array with shape (100000, 100000)"),
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you "
                "tried to allocate 80000000000 bytes. Error code 12 (Cannot allocate memory)"
            ),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 74.51 GiB. GPU 0 has"),
            RuntimeError("std::bad_alloc"),
            ValueError("Error: engine error: Could not allocate memory"),
            RuntimeError("Failed to allocate 100 bytes on device 'cuda:0'"),
            OSError(errno.ENOMEM, "Cannot allocate memory"),
        ],
    )
    def test_too_little_memory_names_the_levers(self, error: Exception, capsys: Capture) -> None:
        code, line = exit_of(error, capsys)
        assert code == 2
        assert "memory is too small for this" in line.replace("The memory", "memory")
        assert "lower batch_size, num_worlds" in line and "unexpected" not in line

    @pytest.mark.parametrize(
        "error",
        [
            json.JSONDecodeError("Expecting value", "x", 0),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            zipfile.BadZipFile("File is not a zip file"),
            RecursionError("maximum recursion depth exceeded while decoding a JSON array"),
            OverflowError("int too large to convert to float"),
        ],
    )
    def test_a_file_that_no_reader_took_is_found_in_the_log(
        self, error: Exception, tmp_path: Path, capsys: Capture
    ) -> None:
        code, line = exit_of(error, capsys, tmp_path)
        (log,) = tmp_path.iterdir()
        assert code == 2
        assert line.startswith("Error: A file that this command reads is damaged or of another kind (")
        assert type(error).__name__ in line and str(log) in line

    def test_a_process_that_died_and_a_library_that_does_not_load(self, capsys: Capture) -> None:
        code, line = exit_of(BrokenProcessPool("terminated abruptly"), capsys)
        assert (code, "run it again" in line) == (2, True)
        error = ImportError("libGL.so.1: cannot open shared object file: No such file", name="cv2")
        code, line = exit_of(error, capsys)
        assert (code, line.endswith("install it again.")) == (2, True)
        code, line = exit_of(RuntimeError("Could not determine home directory."), capsys)
        assert (code, line.endswith("write it out.")) == (2, True)

    def test_a_missing_extra_is_named(self, capsys: Capture) -> None:
        code, line = exit_of(ModuleNotFoundError("no", name="mlflow.entities"), capsys)
        assert code == 2
        assert "mlflow" in line
        assert line.endswith('pip install "thousandfold[train]"')

    def test_a_missing_package_of_every_installation_is_named(self, capsys: Capture) -> None:
        code, line = exit_of(ModuleNotFoundError("no", name="onnxruntime.capi"), capsys)
        assert code == 2
        assert line.endswith("needs onnxruntime, which is not installed: pip install thousandfold")

    @pytest.mark.parametrize(
        "error",
        [
            ZeroDivisionError("by\nzero"),
            ModuleNotFoundError("no", name="numpy"),
            ImportError("cannot import x"),
        ],
    )
    def test_the_unexpected_leaves_its_traceback(
        self, error: Exception, tmp_path: Path, capsys: Capture
    ) -> None:
        code, line = exit_of(error, capsys, tmp_path)
        (log,) = tmp_path.iterdir()
        assert code == 1
        assert str(log) in line
        assert line.startswith(f"Error: {type(error).__name__}: ")
        assert "Traceback (most recent call last)" in log.read_text()

    def test_the_traceback_goes_to_the_temporary_folder_without_a_workspace(
        self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(console_module.tempfile, "gettempdir", lambda: str(tmp_path))
        _, line = exit_of(ZeroDivisionError("zero"), capsys, tmp_path / "absent")
        assert str(tmp_path / "error-") in line

    def test_the_variable_lets_errors_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("THOUSANDFOLD_TRACEBACK", "1")
        with pytest.raises(ZeroDivisionError), error_boundary():
            raise ZeroDivisionError

    def test_clicks_own_exceptions_pass(self) -> None:
        for error in (click.UsageError("x"), click.exceptions.Exit(3), click.Abort()):
            with pytest.raises(type(error)), error_boundary():
                raise error

    def test_it_decorates_a_command(self) -> None:
        @click.command()
        @error_boundary()
        def command() -> None:
            raise MissingArtifactError("No teacher.")

        for _ in range(2):
            result = CliRunner().invoke(command)
            assert result.exit_code == 2
            assert result.stderr == "Error: No teacher.\n"
            assert result.stdout == ""


def test_the_ground_floor_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom thousandfold.pipeline import artifacts, console, settings\n"
        "print(*{'torch', 'mlflow', 'matplotlib', 'numpy', 'mujoco'} & set(sys.modules))"
    )
    root = Path(console_module.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
