"""Stages that `--resume` goes on with: which unfinished work, with which settings, from which parents.

A command finds what to go on with (`find_unfinished`, `find_trainable`, `stored_settings`, `find_parent`);
the stage then runs in `resumable_stage`, whether its artifact is new or resumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pydantic

from thousandfold.ground.errors import (
    DamagedFileError,
    LostRankError,
    MissingArtifactError,
    SettingsError,
    StoppedByUser,
)
from thousandfold.ground.files import folder_lock, is_locked
from thousandfold.pipeline.artifacts import KINDS, MANIFEST_NAME, Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.runtime import StageContext, StageWork
from thousandfold.pipeline.settings import StageSettings
from thousandfold.pipeline.stopping import stop_on_interrupt

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
            raise SettingsError(f"{artifact.name} has saved nothing to continue from: start it again.")
        return artifact
    newest = workspace.newest_unfinished(kind, counts, trace)
    if newest is None:
        raise SettingsError(
            f"No unfinished {kind} in {workspace.runs} to resume: start one with `pipeline {KINDS[kind]}`."
        )
    if saved(newest):
        return newest
    others = (a for a in workspace.artifacts(kind) if not a.is_completed and counts(a) and saved(a))
    older = next(others, None)
    remedy = "wait for it" if is_locked(newest.path) else "start it again"
    instead = "" if older is None else f"; or name an older one to go on with: --resume {older.name}"
    raise SettingsError(
        f"The newest unfinished {kind}, {newest.name}, has saved nothing to continue from: {remedy}{instead}."
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
    if reference is None or not (artifact := workspace.find(reference, kind)).is_completed:
        return find_unfinished(workspace, kind, reference)
    if not checkpoint_of(artifact).exists:
        raise SettingsError(
            f"{artifact.name} is completed and has no checkpoint left to continue from: make another."
        )
    return artifact


def to_go_on_with(resumed: Artifact | None, workspace: Workspace) -> tuple[Artifact | None, Artifact | None]:
    """Return the unfinished artifact to go on with, and the completed one to start from where it left off.

    A completed artifact is not written to again: a new one continues its training.

    Raises:
        MissingArtifactError, DamagedFileError: as of `find_parent`.
    """
    if resumed is None or resumed.is_completed:
        return None, resumed
    if CONTINUED not in resumed.manifest.parents or checkpoint_of(resumed).exists:
        return resumed, None
    return resumed, find_parent(resumed, CONTINUED, workspace)


def require_unfinished(artifact: Artifact) -> None:
    """Raise SettingsError where an artifact is completed."""
    if artifact.is_completed:
        kind = artifact.kind.capitalize()
        raise SettingsError(f"{kind} {artifact.name} is completed: there is nothing to resume.")


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
            f"{artifact.name} cannot continue without {what}, which is not in {workspace.runs}: put it "
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
        DamagedFileError: its manifest holds settings that this version does not read.
    """
    try:
        return cls.stored(artifact.manifest.settings | changes)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedFileError(
            f"{artifact.path / MANIFEST_NAME} cannot be resumed: setting {place}: {first['msg']}."
        ) from error


# -- A stage under way -----------------------------------------------------------------------------


class Trainable(Protocol):
    """A training whose state a checkpoint holds."""

    @property
    def position(self) -> str:
        """How far it has come, as in ``3,000 steps``."""
        ...

    def load(self, folder: CheckpointFolder) -> None:
        """Restore what the checkpoint of the same training holds."""
        ...

    def train_on(self, folder: CheckpointFolder) -> None:
        """Restore where another training has ended, as the beginning of this one."""
        ...


@dataclass
class ResumableWork(StageWork):
    """The work of a stage that `--resume` can go on with.

    Attributes:
        context: what the stage was given.
        stage: name of the command.
        continued: the completed artifact whose training this one goes on with.
        place: folder of the artifact that the work lies in; "": the artifact itself.
        saves: subject of the line that says what is kept.
        training: what `restore` was given, whose position messages name.
    """

    context: StageContext
    stage: str
    continued: Artifact | None
    place: str
    saves: str
    training: Trainable | None = None

    @property
    def checkpoint(self) -> CheckpointFolder:
        """Where a training saves its state."""
        return checkpoint_of(self.artifact, self.context.ranks)

    @property
    def stopping(self) -> bool:
        """Whether the user wants to stop; all ranks ask together."""
        return self.context.ranks.any(self.context.stop.requested)

    def stoppable(self) -> contextlib.AbstractContextManager[None]:
        """Let the first signal to stop be a request, which `stopping` tells."""
        return stop_on_interrupt(self.context.stop, self.context.ranks)

    def restore(self, training: Trainable, note: Callable[[], str] = lambda: "") -> None:
        """Let a training go on from its checkpoint, or from that of what it continues, and say so.

        Args:
            training: at its start; it stays there where there is neither.
            note: what is added to the line about what it continues.
        """
        self.training, name, say = training, self.artifact.name, self.context.console.say
        if self.context.ranks.from_leader(lambda: self.checkpoint.exists):
            training.load(self.checkpoint)
            say(f"Resuming {name} at {training.position}.")
        elif self.continued is not None:
            training.train_on(checkpoint_of(self.continued, self.context.ranks))
            say(f"Training on from {self.continued.name} at {training.position}, as {name}{note()}.")

    def stopped(self) -> StoppedByUser:
        """Return the error that ends the stage for the user: what is kept, and how to go on."""
        if self.training is None:
            return StoppedByUser(f"Stopped. {self._kept()}")
        saved = f"state saved in {self.checkpoint.path}"
        return StoppedByUser(f"Stopped at {self.training.position}, {saved}. {self._go_on()}")

    def lost(self, error: LostRankError) -> LostRankError:
        """Return the error about a rank that is gone, with what is kept, and how to go on."""
        at = "" if self.training is None else f" at {self.training.position}"
        return LostRankError(f"{error}{at}. {self._kept()}")

    def _kept(self) -> str:
        if self.place and not self.checkpoint.exists:
            return "No checkpoint had been saved yet: start again."
        return f"{self.saves} kept in {self.artifact.file(self.place)}. {self._go_on()}"

    def _go_on(self) -> str:
        return f"Continue with: {self.context.resume_command(self.stage, self.artifact)}"


@contextlib.contextmanager
def resumable_stage(
    context: StageContext,
    kind: str,
    stage: str,
    *,
    resumed: Artifact | None,
    continued: Artifact | None = None,
    parents: Mapping[str, Artifact] | None = None,
    place: str = CHECKPOINT_FOLDER,
    saves: str = "The last checkpoint is",
    saved: Callable[[Artifact], bool] = has_checkpoint,
    require: Callable[[Artifact], None] = require_unfinished,
    **others: Any,
) -> Iterator[ResumableWork]:
    """Open a stage on a new artifact, or on one that it resumes, and keep other processes from writing there.

    Args:
        context: of the stage.
        kind, stage: of the artifact, and name of the command.
        resumed: the unfinished artifact to go on with. Once its lock is held it is read again: another
            process may have finished it.
        continued: the completed artifact whose training this one goes on with; one of the parents.
        parents: what the artifact is made from, by role; a resumed one must have been begun with the same.
        place: folder of the artifact that the work lies in, and that is locked; "": the artifact itself.
        saves: subject of the line that says what is kept.
        saved: tells whether there is anything to go on from.
        require: raises SettingsError where nothing is left to do for the one that is resumed.
        others: further arguments of `StageContext.stage`.

    Raises:
        SettingsError: the artifact is completed by now.
        UserError: another process is making it.
        DamagedFileError: it was begun with other parents.
        LostRankError: another rank is gone; the message says what is kept, and how to go on.
    """
    parents = {**(parents or {}), **({} if continued is None else {CONTINUED: continued})}
    with contextlib.ExitStack() as stack:
        if resumed is not None and context.ranks.leads:
            stack.enter_context(folder_lock(resumed.file(place)))
            resumed = Artifact.load(resumed.path)
            require(resumed)
            for role, parent in parents.items():
                require_parent(resumed, role, parent)
        opened = context.stage(kind, stage, parents=parents, resumed=resumed, saved=saved, **others)
        begun = stack.enter_context(opened)
        if resumed is None and place and context.ranks.leads:
            stack.enter_context(folder_lock(begun.artifact.file(place)))
        work = ResumableWork(begun.artifact, begun.run, context, stage, continued, place, saves)
        try:
            yield work
        except LostRankError as error:
            raise work.lost(error) from error
