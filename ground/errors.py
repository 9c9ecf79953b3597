"""Errors that a user can act on. The command line prints them as one line and exits with their code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Something a user can put right. The message is one line: what is wrong and what to do.

    Attributes:
        exit_code: what the command line exits with.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class SettingsError(UserError):
    """An unknown setting or a value out of bounds."""


class MissingArtifactError(UserError):
    """An artifact that a command needs does not exist; the message names the command that makes it."""


class DamagedFileError(UserError):
    """A file is truncated, foreign, or differs from its recorded hash."""


class DamagedRecordError(DamagedFileError):
    """A record of the workspace, such as a manifest, cannot be relied on.

    Attributes:
        path: of the record.
        problem: what is wrong, in words that follow its path.
    """

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        """Put the message together: path, problem and what to do."""
        super().__init__(f"{path} {problem}: {remedy}.")
        self.path, self.problem = path, problem


class WorkspaceError(UserError):
    """The workspace cannot be read or written."""


class FullStoreError(UserError):
    """There is no room for the tracking store."""


class NonFiniteError(UserError):
    """A loss, a simulation or an input became NaN or infinite; what was good before is kept."""


class LostRankError(UserError):
    """Another process of the run ended or does not answer; the last checkpoint is kept."""

    exit_code = 1


class TargetMissedError(UserError):
    """What was made is complete, and does not reach what was asked for."""

    exit_code = 1


class MissingExtraError(UserError):
    """A command needs packages of an extra that is not installed."""


class StoppedByUser(UserError):
    """Ctrl-C: the state was saved and the message says how to go on."""

    exit_code = 130


BAD_CONTENT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""what reading a file raises that is whole but does not hold what was written there once"""


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to `name`, or None when nothing is near."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return the message for an unknown name: the nearest valid one, or all of them."""
    valid = sorted(valid)
    nearest = nearest_name(name, valid)
    hint = f"did you mean {nearest!r}?" if nearest else f"valid: {', '.join(valid)}."
    return f"Unknown {kind} {name!r}: {hint}"


def is_disk_full(error: Exception) -> bool:
    """Tell a full disk by its number, or by the words of libraries that hide it (SQLite, safetensors)."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "disk is full"))
