"""Files that are either whole or absent, their hashes, strict JSON with a seal, and locks.

A lock keeps other processes from writing to a folder, or from making the same database.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from thousandfold.ground.errors import DamagedRecordError, UserError

FORMAT_VERSION = 2
"""Of sealed files; format 1 had no seals."""
_TEMPORARY_PREFIX = ".tmp-"
LOCK_FILE = ".lock"
SAY_AFTER_S = 5.0
"""How long to wait before the user is told what for."""
# Whoever asks `is_locked` holds the lock for an instant, which must not turn a writer away.
_PATIENCE_S, _LOOK_AGAIN_S = 0.1, 0.02


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` and survives a power cut.

    The temporary name ends like the final one, for writers that go by the suffix. The parent folder is made.
    The file's mode is the umask's, whatever mode the writer gave it.
    After an exception the temporary file is removed and `path` is as it was. An OSError that names no file,
    as that of a full disk, is given `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        temporary.touch()  # the one way to ask for the umask that changes it for no other thread
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # to an error without a number it would take the place of its words
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, so that a reader sees the old file or the new one, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def is_temporary(path: Path) -> bool:
    """Tell whether a file is a leftover of an interrupted write."""
    return path.name.startswith(_TEMPORARY_PREFIX) or path.suffix == ".tmp"


def file_sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_json(value: Any) -> Any:
    """Return `value` in JSON's own types: arrays become lists, paths text, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors; neither is imported here
        return plain_json(value.tolist())
    return str(value) if isinstance(value, Path) else value


def strict_json(text: str) -> Any:
    """Parse JSON without NaN, infinity and keys that come twice.

    Raises ValueError, also where it is nested too deeply.
    """

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is no number of JSON")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return found

    try:
        return plain_json(json.loads(text, parse_constant=finite, parse_float=finite, object_pairs_hook=once))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of `value` as canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(plain_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented strict JSON; see `plain_json` for what it may hold."""
    write_atomic(path, json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n")


def write_sealed_json(path: Path, values: Mapping[str, Any]) -> str:
    """Write an object of JSON together with its seal, a hash over all else that it says; return the seal."""
    content = plain_json(dict(values))
    content["seal"] = _seal(content)
    write_json_atomic(path, content)
    return content["seal"]


def read_sealed_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """Return the object that `write_sealed_json` wrote, its `seal` included.

    One whose `format_version` is 1, or that has none, is from before there were seals: its `seal` is None.

    Args:
        path: of the file.
        what: it should be, for the message.
        remedy: what to do about a damaged one, for the message.

    Raises:
        DamagedRecordError: it is missing, cannot be read, is no strict JSON, or was changed since.
    """
    damaged = DamagedRecordError(path, f"is damaged or not {what}", remedy)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise DamagedRecordError(path, "is no file", remedy)
        content = strict_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedRecordError(path, "is missing", remedy) from None
    except OSError as error:
        raise DamagedRecordError(path, f"cannot be read ({error.strerror})", remedy) from None
    except ValueError:
        raise damaged from None
    version = content.setdefault("format_version", 1) if isinstance(content, dict) else None
    if type(version) is not int or not version > 0:
        raise damaged
    if version > FORMAT_VERSION:
        problem = f"has format {version}, this version reads up to {FORMAT_VERSION}"
        raise DamagedRecordError(path, problem, "update thousandfold")
    seal = content.setdefault("seal", None)
    if seal is None and version > 1:
        raise DamagedRecordError(path, "was changed since it was written: its seal is gone", remedy)
    if seal is not None and seal != _seal(content):
        raise DamagedRecordError(path, "was changed since it was written: its seal does not fit", remedy)
    return content


def _seal(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain JSON in canonical form, without the seal that it may have."""
    rest = {key: value for key, value in content.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, which is made; raise UserError where one does.

    The file of the lock is removed in the end.
    """
    path = folder / LOCK_FILE
    while True:
        with file_lock(path, str(folder)) as descriptor:
            try:
                still_there = os.path.samestat(os.fstat(descriptor), path.stat())
            except FileNotFoundError:
                still_there = False
            if not still_there:
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
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY)  # enough for a lock
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        started = time.monotonic()
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
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
        yield descriptor


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
