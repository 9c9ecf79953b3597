"""Which unfinished work `--resume` goes on with, with which settings, and from which parents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pydantic

from thousandfold.ground.errors import DamagedFileError, MissingArtifactError, SettingsError
from thousandfold.ground.files import is_locked
from thousandfold.pipeline.artifacts import KINDS, MANIFEST_NAME, Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.settings import StageSettings

CHECKPOINT_FOLDER = "checkpoint"
"""Folder of an artifact in training that holds its `CheckpointFolder`."""

CONTINUED = "continued"
"""Role of the completed artifact whose training another one of its kind goes on with."""

Settings = TypeVar("Settings", bound=StageSettings)


def checkpoint_of(artifact: Artifact, ranks: Ranks | None = None) -> CheckpointFolder:
    """Return the checkpoint of an artifact in training, whether or not one was saved.

    Args:
        artifact: in training.
        ranks: that save together; None: this process alone.
    """
    return CheckpointFolder(artifact.file(CHECKPOINT_FOLDER), ranks)


def has_checkpoint(artifact: Artifact) -> bool:
    """Return whether a training can go on: from its own checkpoint, or from that of what it continues."""
    return checkpoint_of(artifact).exists or CONTINUED in artifact.manifest.parents


def find_unfinished(
    workspace: Workspace,
    kind: str,
    reference: str | None,
    *,
    saved: Callable[[Artifact], bool] = has_checkpoint,
    counts: Callable[[Artifact], bool] = lambda _: True,
    trace: str = CHECKPOINT_FOLDER,
) -> Artifact:
    """Return the unfinished artifact to resume.

    Args:
        workspace: where to look.
        kind: of the artifact.
        reference: its name or path; None: the newest unfinished one.
        saved: tells whether an artifact has anything to go on from.
        counts: tells whether an unfinished artifact is one of those to choose from.
        trace: folder of an artifact that its work lies in; a damaged one without it has saved nothing.

    Raises:
        SettingsError: there is none, it has saved nothing, or the one named is finished. Where the newest has
            saved nothing an older one is named, but not taken: it is another run.
        DamagedFileError: the one named is damaged, or one that may be the newest.
    """
    if reference is not None:
        artifact = workspace.find(reference, kind)
        require_unfinished(artifact)
        if not saved(artifact):
            raise SettingsError(f"{artifact.name} has saved nothing to go on from: start it again.")
        return artifact
    newest = workspace.newest_unfinished(kind, counts, trace)
    if newest is None:
        raise SettingsError(
            f"No unfinished {kind} in {workspace.runs} to resume: start one with `pipeline {KINDS[kind]}`."
        )
    if saved(newest):
        return newest
    others = (a for a in workspace.artifacts(kind) if not is_completed(a) and counts(a) and saved(a))
    older = next(others, None)
    remedy = "wait for it" if is_locked(newest.path) else "start it again"
    instead = "" if older is None else f"; or name an older one to go on with: --resume {older.name}"
    raise SettingsError(
        f"The newest unfinished {kind}, {newest.name}, has saved nothing to go on from: {remedy}{instead}."
    )


def find_trainable(workspace: Workspace, kind: str, reference: str | None) -> Artifact:
    """Return what a training is to go on with: an unfinished artifact, or one that is completed and named.

    Args:
        workspace: where to look.
        kind: of the artifact.
        reference: its name or path; None: the newest unfinished one.

    Raises:
        SettingsError: as of `find_unfinished`, or the completed one has no checkpoint left.
        DamagedFileError: as of `find_unfinished`.
    """
    if reference is None or not is_completed(artifact := workspace.find(reference, kind)):
        return find_unfinished(workspace, kind, reference)
    if not checkpoint_of(artifact).exists:
        raise SettingsError(
            f"{artifact.name} is completed and has no checkpoint left to train on from: make another."
        )
    return artifact


def continued_by(artifact: Artifact, workspace: Workspace) -> Artifact | None:
    """Return the completed artifact whose training one without a checkpoint goes on with; None: of no other.

    Raises:
        MissingArtifactError, DamagedFileError: as of `find_parent`.
    """
    if CONTINUED not in artifact.manifest.parents or checkpoint_of(artifact).exists:
        return None
    return find_parent(artifact, CONTINUED, workspace)


def is_completed(artifact: Artifact) -> bool:
    """Return whether an artifact is completed."""
    return artifact.manifest.status == "completed"


def require_unfinished(artifact: Artifact) -> None:
    """Raise SettingsError where an artifact is completed."""
    if is_completed(artifact):
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
        role: of its parent.
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
        parent = workspace.open(reference or recorded.name, recorded.kind)
    except MissingArtifactError:
        if reference is not None:
            raise
        what, other_place = f"its {role} {recorded.name}", f", or give its folder with --{role}"
        if role == CONTINUED:
            what, other_place = f"the {recorded.kind} {recorded.name} that it continues", ""
        raise MissingArtifactError(
            f"{artifact.name} cannot go on without {what}, which is not in {workspace.runs}: put it "
            f"back{other_place}."
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
