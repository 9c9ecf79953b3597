"""Which unfinished work `--resume` goes on with, with which settings, and from which parents."""

from __future__ import annotations

from typing import Any, TypeVar

import pydantic

from pipeline.core.artifacts import MANIFEST_NAME, Artifact, Workspace
from pipeline.core.checkpoint import CheckpointFolder
from pipeline.core.distributed import Ranks
from pipeline.core.errors import DamagedFileError, MissingArtifactError, SettingsError
from pipeline.core.settings import StageSettings

CHECKPOINT_FOLDER = "checkpoint"
"""Folder of an artifact in training that holds its `CheckpointFolder`."""

Settings = TypeVar("Settings", bound=StageSettings)


def checkpoint_of(artifact: Artifact, ranks: Ranks | None = None) -> CheckpointFolder:
    """Return the checkpoint of an artifact in training, whether or not one was saved.

    Args:
        artifact: in training.
        ranks: that save together; None: this process alone.
    """
    return CheckpointFolder(artifact.file(CHECKPOINT_FOLDER), ranks)


def find_unfinished(workspace: Workspace, kind: str, reference: str | None) -> Artifact:
    """Return the unfinished artifact to resume.

    Args:
        workspace: where to look.
        kind: of the artifact.
        reference: its name or path; None: the newest unfinished one with a checkpoint.

    Raises:
        SettingsError: there is none, or the one named is finished or has no checkpoint.
        DamagedFileError: the one named is damaged, or one that may be the newest.
    """
    if reference is None:
        newest = workspace.newest_unfinished(kind, lambda a: checkpoint_of(a).exists, CHECKPOINT_FOLDER)
        if newest is None:
            raise SettingsError(f"No unfinished {kind} with a checkpoint in {workspace.runs} to resume.")
        return newest
    artifact = workspace.find(reference, kind)
    require_unfinished(artifact)
    if not checkpoint_of(artifact).exists:
        raise SettingsError(
            f"{kind.capitalize()} {artifact.name} has no checkpoint to go on from: train another."
        )
    return artifact


def require_unfinished(artifact: Artifact) -> None:
    """Raise SettingsError where an artifact is completed."""
    if artifact.manifest.status == "completed":
        kind = artifact.kind.capitalize()
        raise SettingsError(f"{kind} {artifact.name} is completed: there is nothing to resume.")


def still_unfinished(artifact: Artifact) -> Artifact:
    """Return an artifact as it is by now, once its lock is held: another process may have finished it.

    Raises:
        SettingsError: it is completed.
    """
    artifact = Artifact.load(artifact.path)
    require_unfinished(artifact)
    return artifact


def find_parent(
    artifact: Artifact, role: str, workspace: Workspace, reference: str | None = None
) -> Artifact:
    """Return what an unfinished artifact was begun with.

    Args:
        artifact: the unfinished one.
        role: of its parent, which is the parent's kind as well.
        workspace: where the parent is looked for by its name.
        reference: the parent's name or path, where it lies elsewhere; None: as recorded.

    Raises:
        MissingArtifactError: it is not there.
        DamagedFileError: the artifact does not say what it was begun with, or that is another one now.
    """
    recorded = artifact.manifest.parents.get(role)
    if recorded is None:
        raise DamagedFileError(f"{artifact.path / MANIFEST_NAME} cannot be resumed: it names no {role}.")
    try:
        parent = workspace.open(reference or recorded.name, role)
    except MissingArtifactError:
        if reference is not None:
            raise
        raise MissingArtifactError(
            f"{artifact.name} cannot go on without its {role} {recorded.name}, which is not in "
            f"{workspace.runs}: put it back, or give its folder with --{role}."
        ) from None
    require_parent(artifact, role, parent)
    return parent


def require_parent(artifact: Artifact, role: str, parent: Artifact) -> None:
    """Raise DamagedFileError where an artifact was begun with another parent, by hash, than this one."""
    recorded = artifact.manifest.parents.get(role)
    if recorded is None or recorded.hash != parent.manifest.hash:
        raise DamagedFileError(f"{parent.path} is not the {role} that {artifact.name} was begun with.")


def stored_settings(artifact: Artifact, cls: type[Settings], **changes: Any) -> Settings:
    """Return the settings that an artifact was begun with, and with these changes.

    Raises:
        DamagedFileError: its manifest holds settings that are none of this version's.
    """
    try:
        return cls(**artifact.manifest.settings | changes)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedFileError(
            f"{artifact.path / MANIFEST_NAME} cannot be resumed: setting {place}: {first['msg']}."
        ) from error
