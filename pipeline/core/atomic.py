"""Files that are either whole or absent, their hashes, and strict JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TEMPORARY_PREFIX = ".tmp-"


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, so that a reader sees the old file or the new one, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented strict JSON; see `plain_json` for what it may hold."""
    write_atomic(path, json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n")


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


def file_sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of `value` as canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(plain_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_temporary(path: Path) -> bool:
    """Tell whether a file is a leftover of an interrupted write."""
    return path.name.startswith(_TEMPORARY_PREFIX) or path.suffix == ".tmp"


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
