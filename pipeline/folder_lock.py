"""One process at a time writes to a folder, or makes a database."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from thousandfold.pipeline.errors import UserError

LOCK_FILE = ".lock"
SAY_AFTER_S = 5.0
# Whoever asks `is_locked` holds the lock for an instant, which must not turn a writer away.
_PATIENCE_S, _LOOK_AGAIN_S = 0.1, 0.02


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, which is made; raise UserError where one does.

    The file of the lock is removed in the end.
    """
    path = folder / LOCK_FILE
    while True:
        with file_lock(path, str(folder)) as descriptor:
            if not _is_at(descriptor, path):
                continue  # whoever held it has removed it: this is the lock of no file any more
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


@contextlib.contextmanager
def file_lock(
    path: Path, what: str, patience_s: float = _PATIENCE_S, say: Callable[[str], None] | None = None
) -> Iterator[int]:
    """Hold a file's lock, which ends with the process at the latest; the file says who holds it.

    Yields the descriptor of the file.

    Args:
        path: Of the file; it and its folder are made, and stay.
        what: What the lock keeps others from using, for messages.
        patience_s: How long to wait for another process.
        say: Takes the line about a wait that is not over in a moment.

    Raises:
        UserError: Another process, which the message names, holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(_open(path), "r+b", buffering=0) as file:
        started = time.monotonic()
        while not _try_lock(file.fileno()):
            owner = file.read(20).decode(errors="replace").strip()
            holder = f"another process ({owner})" if owner else "another process"
            file.seek(0)
            waited = time.monotonic() - started
            if waited >= patience_s:
                after = f" after {patience_s:.0f} s" if patience_s >= 1.0 else ""
                raise UserError(f"{what} is in use by {holder}{after}: wait for it, or stop it.")
            if say is not None and waited >= SAY_AFTER_S:
                say(f"Waiting for {holder}: {what} is in use (up to {patience_s:.0f} s).")
                say = None
            time.sleep(_LOOK_AGAIN_S)
        with contextlib.suppress(OSError):  # a file system that is read-only or full
            file.truncate()
            file.write(f"{os.getpid()}\n".encode())
        yield file.fileno()


def is_locked(folder: Path) -> bool:
    """Tell whether a process, this one included, holds the folder's lock; nothing is written."""
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, as a rule
        return False
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not path.exists():
            raise
        return os.open(path, os.O_RDONLY)  # enough for a lock


def _try_lock(descriptor: int) -> bool:
    """Take the lock, or return False where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
