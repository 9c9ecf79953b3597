"""What the user sees: text, tables, progress, one JSON result, and errors as one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import numbers
import os
import re
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import rich.console
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from thousandfold.ground.errors import StoppedByUser, UserError, is_disk_full
from thousandfold.ground.files import plain_json
from thousandfold.pipeline.output import lost_output
from thousandfold.pipeline.tables import Column, break_line, fit_columns, stack_columns

EXTRA_OF_PACKAGE = dict.fromkeys(("gymnasium", "mujoco", "onnxruntime"), "") | dict.fromkeys(
    (
        "h5py", "PIL", "imageio", "imageio_ffmpeg", "jinja2", "matplotlib", "minari", "mlflow", "mujoco_warp",
        "onnx", "safetensors", "scipy", "threadpoolctl", "torch", "warp",
    ),
    "train",
) | {"cryptography": "sign", "huggingface_hub": "hub", "submitit": "cluster"}  # fmt: skip
"""The extra of thousandfold that brings a package, by the name under which it is imported; "": no extra does,
for every installation has it."""
_BAR_WIDTH = 24
_STEERING = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Console:
    """The one place that prints. With `json_output`, stdout holds a JSON object alone and stderr the rest.

    Used as a context manager it prints the result at the end, unless an exception passes. A silent one prints
    nothing at all.
    """

    def __init__(self, json_output: bool = False, interval_s: float = 5.0, *, silent: bool = False) -> None:
        """Choose the streams; `interval_s` is the time between progress lines outside a terminal."""
        self.last_result: dict[str, Any] = {}
        self._json_output = json_output and not silent
        self._interval_s = interval_s
        self._silent = silent
        self._warned: set[str] = set()
        self._human = rich.console.Console(
            stderr=json_output,
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=True,
            quiet=silent,
            force_jupyter=False,  # there a line would become a display of its own, progress included
        )
        if not self._human.is_terminal:
            self._human.width = 10_000  # nothing to fit into: a pipe must not get shortened cells

    def __enter__(self) -> Console:
        """Return the console itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print the result of a command that succeeded, and say so where standard output did not take it."""
        if kind is not None:
            return
        self.print_result()
        if (reason := lost_output()) is None:
            return
        if self._json_output:
            raise UserError(f"The result could not be written to standard output ({reason}).")
        self.warn(f"standard output has gaps ({reason}).")

    def say(self, text: str) -> None:
        """Print text; on a terminal its lines end at words. Control characters are escaped."""
        self._human.print(self._broken(text))

    def warn(self, text: str, *, once: bool = False) -> None:
        """Print a warning to stderr; with `once`, not again what was warned of before."""
        if self._silent or (once and text in self._warned):
            return
        self._warned.add(text)
        # Named, because under a bar rich replaces sys.stderr, which click's err=True would bypass.
        said = f"Warning: {text}"
        said = self._broken(said) if sys.stderr.isatty() else printable(said)
        click.secho(said, fg="yellow", file=sys.stderr)

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], spare: Sequence[str] = ()
    ) -> None:
        """Print a table of which no name and no number is cut, however narrow the terminal is.

        Columns of numbers are aligned on the right and None is shown as a dash. Where a table does not fit,
        its text is wrapped at words; where that is not enough, columns of `spare` are left out, the first of
        them first; and where that is not enough either, every row becomes a block of lines.
        """
        rows = [list(row) for row in rows]
        shown = [
            Column(
                printable(name, newlines=False),
                ["-" if row[i] is None else printable(short(row[i]), newlines=False) for row in rows],
                bool(rows) and all(isinstance(row[i], numbers.Real | None) for row in rows),
            )
            for i, name in enumerate(columns)
        ]
        # As the table's own it would wrap at the table's width.
        self._human.print(Text(self._broken(title), style="italic"))
        kept = shown
        for count in range(len(spare) + 1):
            kept = [column for column in shown if column.name not in spare[:count]]
            table = fit_columns(kept, self._human.width)
            if table is not None:
                self._human.print(table, soft_wrap=False)
                break
        else:
            for line in stack_columns(shown, self._human.width):
                self._human.print(line)
            return
        if len(kept) < len(shown):
            left_out = ", ".join(column.name for column in shown if column not in kept)
            self.say(f"Not shown, for want of room: {left_out}. --json and a wider terminal show them.")

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int, *, unit: str = "steps", completed: int = 0
    ) -> Iterator[Progress]:
        """Show how far a loop is: a bar on a terminal, elsewhere a line every few seconds and one at the end.

        The count goes from `completed`, for work that is resumed, to `total`; the rate is shown as `unit/s`.
        """
        progress = Progress(printable(description), total, unit, completed)
        shown = self._bar(progress) if self._human.is_terminal else self._lines(progress)
        with shown:
            yield progress

    def result(self, values: Mapping[str, Any]) -> None:
        """Remember what the command found; the last call counts."""
        self.last_result = dict(values)

    def print_result(self) -> None:
        """With `json_output`, print the remembered result as one line of JSON on stdout."""
        if self._json_output:
            print(json.dumps(plain_json(self.last_result), allow_nan=False), flush=True)

    def _broken(self, text: str) -> str:
        """Return text that can be printed, in lines that fit."""
        width = self._human.width
        return "\n".join(line for long in printable(text).split("\n") for line in break_line(long, width))

    @contextlib.contextmanager
    def _bar(self, progress: Progress) -> Iterator[None]:
        """Show `progress` as a bar, with its figures behind it or, where they do not fit, below it."""
        from rich.live import Live
        from rich.progress_bar import ProgressBar

        def drawn() -> rich.console.RenderableType:
            name, width = Text(progress.description), self._human.width
            head = Table.grid(padding=(0, 1))
            bar = ProgressBar(progress.total, progress.completed, width=_BAR_WIDTH)
            status = progress.status()
            if name.cell_len + _BAR_WIDTH + cell_len(status) + 2 <= width:
                head.add_row(name, bar, Text(status))
                return head
            head.add_row(name, bar)
            # A figure stays with what it is of.
            whole = ", ".join(part.replace(" ", "\xa0") for part in progress.parts())
            lines = "\n".join(break_line(whole, width)).replace("\xa0", " ")
            return rich.console.Group(head, Text(lines, no_wrap=True, overflow="ignore"))

        with Live(get_renderable=drawn, console=self._human):  # drawn a few times a second, by a thread
            yield

    @contextlib.contextmanager
    def _lines(self, progress: Progress) -> Iterator[None]:
        """Show `progress` as plain lines, at most one every `interval_s` and one at the end."""
        next_line, shown = time.monotonic() + self._interval_s, -1

        def show() -> None:
            nonlocal next_line, shown
            self.say(f"{progress.description}: {progress.status()}")
            next_line, shown = time.monotonic() + self._interval_s, progress.completed

        def show_when_due() -> None:
            if time.monotonic() >= next_line:
                show()

        progress.on_change = show_when_due
        yield
        if shown != progress.completed:
            show()


class Progress:
    """A count with its rate, its remaining time and the caller's own fields; made by `Console.progress`."""

    def __init__(self, description: str, total: int, unit: str, completed: int) -> None:
        """Start the clock."""
        self.description = description
        self.total = total
        self.completed = completed
        self.on_change: Callable[[], None] = lambda: None
        self._unit = unit
        self._start = completed
        self._started_s = time.monotonic()
        self._fields: dict[str, object] = {}

    def advance(self, count: int = 1, **fields: object) -> None:
        """Add to the count; `fields` such as `success=0.5` are shown until they change."""
        self.update(self.completed + count, **fields)

    def update(self, completed: int, **fields: object) -> None:
        """Set the count; `fields` as in `advance`."""
        self.completed = completed
        self._fields = {**self._fields, **fields}  # another one, for a thread may be reading the old one
        self.on_change()

    def status(self) -> str:
        """Return for example `1,200/5,000 steps, 310 steps/s, success 0.42, ETA 0:00:12`."""
        return ", ".join(self.parts())

    def parts(self) -> list[str]:
        """Return the figures of `status`; a field that is None so far is not among them."""
        parts = [f"{self.completed:,}/{self.total:,} {self._unit}"]
        elapsed_s = time.monotonic() - self._started_s
        done = self.completed - self._start
        if done > 0 and elapsed_s > 0:
            parts.append(f"{short(done / elapsed_s)} {self._unit}/s")
        fields = [(name, value) for name, value in self._fields.items() if value is not None]
        parts += [f"{name.replace('_', ' ')} {short(value)}" for name, value in fields]
        if done > 0 and self.completed < self.total:
            remaining_s = (self.total - self.completed) * elapsed_s / done
            parts.append(f"ETA {timedelta(seconds=round(remaining_s))}")
        return list(map(printable, parts))


@contextlib.contextmanager
def error_boundary(
    log_folder: Path | None = None, speaks: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Turn exceptions of a command into one line on stderr and an exit code (SystemExit).

    Errors of users exit with their own code, Ctrl-C with 130, the unexpected with 1 after its traceback was
    written to `log_folder`, or to the folder for temporary files where that one cannot be written.
    Click's own exceptions pass, and with THOUSANDFOLD_TRACEBACK=1 all but Ctrl-C. Works as a decorator too.
    Without the line where `speaks`, asked after an error, says that another process prints it.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        if speaks():
            click.echo("Stopped.", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("THOUSANDFOLD_TRACEBACK") == "1":
            raise
        message, code = _describe(error, log_folder)
        message = " ".join(message.split())
        if speaks():
            message = printable(message)
            click.echo(message if isinstance(error, StoppedByUser) else f"Error: {message}", err=True)
        raise SystemExit(code) from None


def _describe(error: Exception, log_folder: Path | None) -> tuple[str, int]:
    """Return an error's line and its exit code; the traceback of an unexpected one is written to a file."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if is_disk_full(error):
        path = getattr(error, "filename", None)
        where = f" while writing {path}" if path else ""
        return f"The disk is full{where}: free some space or choose another --workspace DIR.", 2
    if _is_out_of_memory(error):
        where = "The GPU's memory" if "CUDA" in str(error) else "The memory"
        return f"{where} is too small for this ({_first_sentence(error)}): {_MEMORY_LEVERS}", 2
    if isinstance(error, OSError):
        return _describe_os_error(error), 2
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in EXTRA_OF_PACKAGE:
        extra = EXTRA_OF_PACKAGE[package]
        install = f'pip install "thousandfold[{extra}]"' if extra else "pip install thousandfold"
        return f"This command needs {package}, which is not installed: {install}", 2
    said = _first_sentence(error)
    if isinstance(error, ImportError) and re.search(r"shared object|undefined symbol|DLL|GLIBC|\.so\b", said):
        return f"{error.name or 'A package'} cannot be loaded ({said}): install it again.", 2
    if isinstance(error, BrokenExecutor):
        return "A process of this command ended, perhaps for lack of memory: free some, and run it again.", 2
    if isinstance(error, RuntimeError) and "Could not determine home directory" in said:
        return "A path begins with the home folder (~) of a user who has none: write it out.", 2
    log = _write_traceback(error, log_folder)
    where = f"the traceback is in {log}" if log else "set THOUSANDFOLD_TRACEBACK=1 to see the traceback"
    if isinstance(error, _OF_DAMAGED_FILES) or type(error).__name__ == "ValidationError":
        reason = f"{type(error).__name__}: {said}"
        return f"A file that this command reads is damaged or of another kind ({reason}): {where}.", 2
    return f"{type(error).__name__}: {str(error)[:500]} (unexpected; {where})", 1


_MEMORY_LEVERS = (
    "lower batch_size, num_worlds, width, the replay or the number of episodes (--set), or free some memory."
)
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out of memory|bad_alloc|bad allocation|could not allocate|failed to allocate"
    r"|unable to allocate|cannot allocate memory|std::length_error",
    re.IGNORECASE,
)
"""How torch, CUDA, Warp, C++, MuJoCo, ONNX Runtime, NumPy and Linux say it."""
_OF_DAMAGED_FILES = (
    json.JSONDecodeError, UnicodeError, zipfile.BadZipFile, EOFError, struct.error, RecursionError,
    OverflowError,
)  # fmt: skip
_OS_ADVICE = {
    errno.ENOENT: "check the name, and that nothing removes it meanwhile",
    errno.EIO: "the disk or the network drive fails: check it, then run this again",
    errno.ESTALE: "the network drive was changed or lost: mount it again, then run this again",
    errno.ENAMETOOLONG: "choose a shorter name or another --workspace DIR",
    errno.ELOOP: "links lead back to themselves: remove one",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many files open: close other programs",
    errno.EAGAIN: "there are too many processes or locks: end other programs, or raise ulimit -u",
    errno.ENOTDIR: "a file is where a folder should be: remove it or choose another name",
    errno.EISDIR: "a folder is where a file should be: remove it or choose another name",
    errno.EFBIG: "it is larger than the file system or the limit allows",
    errno.ETIMEDOUT: "the network does not answer: check it, then run this again",
}


def _is_out_of_memory(error: Exception) -> bool:
    """Tell it by its type or number, or by the words of libraries that raise something general."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | ValueError) and _OUT_OF_MEMORY.search(str(error)) is not None


def _describe_os_error(error: OSError) -> str:
    """Return what the system refused, of which file, and what to do."""
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No access to {files or 'a file'} ({error.strerror}): check its permissions."
    said = error.strerror or _first_sentence(error) or type(error).__name__
    advice = _OS_ADVICE.get(error.errno or 0, "check it, then run this again")
    return f"{files or 'A file or a connection'} cannot be used ({said}): {advice}."


def _first_sentence(error: Exception) -> str:
    """Return how an error's text begins, on one line."""
    text = " ".join(str(error).split())
    return re.split(r"(?<=\w)\. ", text, maxsplit=1)[0][:200] or type(error).__name__


def _write_traceback(error: Exception, log_folder: Path | None) -> Path | None:
    """Write the traceback to the first folder that takes it; None where none does."""
    name = f"error-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"
    text = "".join([" ".join(sys.argv), "\n\n", *traceback.format_exception(error)])
    for folder in (log_folder, Path(tempfile.gettempdir())):
        if folder is not None:
            with contextlib.suppress(OSError):
                (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
                return folder / name
    return None


def printable(text: str, newlines: bool = True) -> str:
    """Return text in which what would steer a terminal is written out, such as ESC as ``\\x1b``.

    These are the control characters, but for tabs and, where `newlines`, line ends, and the marks that turn
    the direction of writing. Names of files, tasks and artifacts may hold any of them.
    """

    def written_out(found: re.Match[str]) -> str:
        character = found[0]
        if character == "\n" and newlines:
            return character
        return character.encode("unicode_escape").decode()

    return _STEERING.sub(written_out, text)


def as_set(value: object) -> str:
    """Return a setting as `--set` takes it: 0.0003, null, true, [256, 256], or text as it is."""
    return value if isinstance(value, str) else json.dumps(plain_json(value), ensure_ascii=False)


def figure(value: object) -> str:
    """Return a measured value as text: fractions to three places, counts with commas, None as undefined.

    A small fraction has three digits behind its zeros instead, for 0.0004 is not 0.
    """
    if value is None:
        return "undefined"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(figure(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def short(value: object) -> str:
    """Return a number in a readable length, anything else as text."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    number = float(value)
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
