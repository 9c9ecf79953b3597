"""Regular files of a bounded size: a named pipe, a device or a folder never makes a reader wait."""

from __future__ import annotations

import errno
import math
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "it is a folder"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a named pipe"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device"),
)


def require_plain(path: str | Path, most_bytes: int) -> int:
    """Return a file's size in bytes.

    Raises:
        OSError: it cannot be found, is no regular file, or is larger; `strerror` says so in words.
    """
    return _checked(os.stat(path), path, most_bytes)


def read_plain(path: str | Path, most_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: as `require_plain`, or it cannot be read.
    """
    _checked(os.stat(path), path, most_bytes)
    # Should it have become a pipe since, opening it does not wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        _checked(os.fstat(file.fileno()), path, most_bytes)
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:  # files below /proc have size 0
        raise _too_large(path, most_bytes)
    return content


def _checked(found: os.stat_result, path: str | Path, most_bytes: int) -> int:
    for is_kind, number, words in _KINDS:
        if is_kind(found.st_mode):
            raise OSError(number, f"{words}, and must be a regular file", str(path))
    if found.st_size > most_bytes:
        raise _too_large(path, most_bytes)
    return found.st_size


def _too_large(path: str | Path, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {in_bytes(most_bytes)}", str(path))


def in_bytes(count: float) -> str:
    """Return a number of bytes as people read it, such as ``1.5 GiB``."""
    power = min(int(math.log2(max(count, 1))) // 10, 4)
    return f"{round(count / 1024**power, 1):g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
