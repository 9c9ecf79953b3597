"""Standard output and standard error that no letter, no reader that went and no full disk can break."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys

_ERRORS = "thousandfold"
_PLAIN = {
    "µ": "u", "μ": "u", "→": "->", "←": "<-", "×": "x", "±": "+/-", "·": "*", "°": " deg", "…": "...",
    "–": "-", "—": "-", "−": "-", "’": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=", "≈": "~",
    "α": "alpha", "β": "beta", "γ": "gamma", "ρ": "rho", "σ": "sigma", "ν": "nu", "π": "pi", "\u202f": " ",
    "\xa0": " ", "─": "-", "━": "-", "╸": "-", "╺": "-", "│": "|", "┃": "|",
}  # fmt: skip


class _Descriptor(io.RawIOBase):
    """Writes to a file descriptor and drops what it does not take.

    Attributes:
        lost: the first error with which something was not taken; None where all of it was.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lost: OSError | None = None

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: object, /) -> int:
        """Write all of `data`, or drop the rest of it; return its length."""
        rest = memoryview(data).cast("B")  # pyright: ignore[reportArgumentType]
        length = len(rest)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # a terminal or pipe that somebody else set to non-blocking is full
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.lost = self.lost or error
                break
        return length


class Output(io.TextIOWrapper):
    """A text stream on a descriptor: what its encoding lacks is written in plain letters."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        """Write to the descriptor in this encoding."""
        self.descriptor = _Descriptor(descriptor)
        buffer = io.BufferedWriter(self.descriptor)
        super().__init__(buffer, encoding, _ERRORS, line_buffering=True)

    @property
    def lost(self) -> OSError | None:
        """The error with which output was lost; None where none was, or where its reader went on purpose."""
        error = self.descriptor.lost
        return None if error is None or error.errno == errno.EPIPE else error

    @property
    def buffer(self) -> io.BufferedWriter:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Raises AttributeError: click would write UTF-8 to it where the encoding is ASCII."""
        raise AttributeError("buffer")


def guard_output() -> None:
    """Put an `Output` in the place of standard output and of standard error.

    A descriptor of the three that is closed is opened on the null device: the next file to be opened would
    get its number, and what is printed after that.
    """
    codecs.register_error(_ERRORS, _in_plain_letters)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed
            setattr(sys, name, Output(os.open(os.devnull, os.O_WRONLY), "utf-8"))
        else:
            setattr(sys, name, Output(stream.fileno(), stream.encoding))


def lost_output() -> str | None:
    """Return why standard output did not take everything; None where it did, or its reader has gone."""
    output = sys.stdout
    if not isinstance(output, Output):
        return None
    output.flush()
    return None if output.lost is None else output.lost.strerror


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for letters that an encoding lacks, as a handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    escaped = (letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(_PLAIN.get(letter, text) for letter, text in zip(letters, escaped, strict=True)), error.end
