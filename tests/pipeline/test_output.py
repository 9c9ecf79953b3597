"""Output as a real process writes it: on poor terminals, to readers that went, on full disks, to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.end_to_end.command_line import clean_environment

TABLE = """
import sys
from thousandfold.pipeline.output import guard_output
guard_output()
import click
from thousandfold.pipeline.console import Console
with Console("--json" in sys.argv) as console:
    console.table("Zeiten ±", ("Größe", "µ"), [("p50 9 µs – ½", 1.5), ("naïve \\udcff", None)])
    console.warn("5 µs → 4 µs")
    click.echo("done… é")
    with console.progress("läuft", 2) as bar:
        bar.update(2)
    console.result({"µ": 1})
print("ended", file=sys.stderr)
"""


def run(
    *arguments: str, code: str = TABLE, shell: str = '"$@"', **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run Python code below a shell command in which "$@" stands for it."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"  # an argument would be read by the locale
        script.write_text(code, encoding="utf-8")
        done = subprocess.run(
            ["bash", "-c", shell, "bash", sys.executable, str(script), *arguments],
            env=clean_environment(**environment),
            capture_output=True,
            timeout=100,
        )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a German locale in Latin-1."""
    folder = tmp_path_factory.mktemp("locales")
    made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no localedef: {error}")
    return folder


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=["io", "locale"]
)
def test_an_ascii_terminal_gets_plain_letters(environment: dict[str, str]) -> None:
    done = run(**environment)
    out, err = done.stdout.decode("ascii"), done.stderr.decode("ascii")
    assert done.returncode == 0 and err.endswith("ended\n")
    assert "Zeiten +/-" in out and "p50 9 us - \\xbd" in out and "done... \\xe9" in out
    assert "na\\xefve \\udcff" in out and "Gr\\xf6\\xdfe" in out
    assert "Warning: 5 us -> 4 us" in err


def test_a_latin_1_terminal_gets_what_it_has(locales: Path) -> None:
    done = run(LC_ALL="de_DE.ISO-8859-1", LOCPATH=str(locales), PYTHONUTF8="0")
    out = done.stdout.decode("latin-1")
    assert done.returncode == 0
    assert "Zeiten ±" in out and "p50 9 µs - ½" in out and "done... é" in out and "Größe" in out


def test_utf_8_is_as_it_was_and_a_foreign_file_name_is_escaped() -> None:
    done = run(PYTHONIOENCODING="utf-8")
    out = done.stdout.decode("utf-8")
    assert "p50 9 µs – ½" in out and "─" in out and "naïve \\udcff" in out


def test_a_reader_that_goes_is_not_heard_of() -> None:
    done = run(shell='"$@" | true; exit ${PIPESTATUS[0]}')
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == ["Warning: 5 µs → 4 µs", "ended"]


def test_nor_are_both_readers() -> None:
    done = run(shell='"$@" 2>&1 | true; exit ${PIPESTATUS[0]}')
    assert done.returncode == 0 and done.stderr == b""


@pytest.mark.parametrize("shell", ['"$@" >&-', '"$@" >&- 2>&-', '"$@" <&- >&- 2>&-', '"$@" 2>/dev/full'])
def test_streams_that_take_nothing_end_no_work(shell: str) -> None:
    assert run(shell=shell).returncode == 0


def test_a_file_that_is_opened_does_not_get_what_is_printed(tmp_path: Path) -> None:
    code = (
        "from thousandfold.pipeline.output import guard_output\nguard_output()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\nimport os\nos.write(1, b'printed')\nprint('printed')"
    )
    assert run(code=code, shell='"$@" >&-').returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_full_disk_is_told_on_standard_error() -> None:
    done = run(shell='"$@" >/dev/full')
    assert done.returncode == 0
    assert "Warning: standard output has gaps (No space left on device)." in done.stderr.decode()


def test_a_result_that_was_asked_for_and_could_not_be_written_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "thousandfold.pipeline", "--json", "presets"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, env=clean_environment(), cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, timeout=100
        )
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1] == (
        "Error: The result could not be written to standard output (No space left on device)."
    )


def test_a_pipe_that_is_full_and_does_not_block_is_waited_for() -> None:
    code = (
        "import os\nfrom thousandfold.pipeline.output import guard_output\nos.set_blocking(1, False)\n"
        "guard_output()\nprint('x' * 500_000)"
    )
    assert len(run(code=code, shell='"$@" | (sleep 0.5; cat)').stdout) == 500_001


def test_commands_that_print_tables_print_them_in_ascii(tmp_path: Path) -> None:
    for arguments in (["tasks"], ["presets"], ["runs"], ["info"], ["--help"], ["frontier", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "thousandfold.pipeline", *arguments],
            env=clean_environment(LC_ALL="C", PYTHONUTF8="0"),
            cwd=tmp_path,
            capture_output=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode("ascii").strip() and os.fsdecode(done.stderr) == ""
