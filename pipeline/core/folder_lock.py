"""One process at a time writes to a folder."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import UserError

LOCK_FILE = ".lock"
# Whoever asks `is_locked` holds the lock for an instant, which must not turn a writer away.
_TRIES, _BETWEEN_S = 5, 0.02


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, which is made; raise UserError where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as file:
        for attempt in range(1, _TRIES + 1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if attempt == _TRIES:
                    raise UserError(
                        f"{folder} is in use by another process: wait for it, or stop it."
                    ) from error
                time.sleep(_BETWEEN_S)
        yield


def is_locked(folder: Path) -> bool:
    """Tell whether a process, this one included, holds the folder's lock; nothing is written."""
    try:
        with (folder / LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, as a rule
        return False
    return False
