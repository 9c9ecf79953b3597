"""Which artifacts a report is about: from one of them back to all it was made from, and forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.core.artifacts import Artifact, Parent, Workspace
from pipeline.core.errors import UserError

_FORWARD = {"teacher": "student", "student": "policy"}
# What is made of others without leading further, and of which of them, the first that has one.
_BESIDE = {
    "benchmark": ("policy",),
    "rendering": ("policy", "student", "teacher"),
    "evaluation": ("policy", "student", "teacher"),
    "frontier": ("teacher",),
}


@dataclass(frozen=True)
class Link:
    """An artifact as those say that were made from it, and what was found of it.

    Attributes:
        kind, name, hash: as recorded.
        artifact: None where it is not to be had.
        problem: why; empty where it is.
    """

    kind: str
    name: str
    hash: str
    artifact: Artifact | None
    problem: str = ""

    @property
    def parents(self) -> dict[str, Parent]:
        """What it was made from, by role; nothing where it is not to be had."""
        return self.artifact.manifest.parents if self.artifact else {}


@dataclass
class Chain:
    """The artifacts of a report.

    Attributes:
        end: the last of those that lead from teacher to policy.
        links: all of them by hash, each after what it was made from.
        main: of each kind the one that the report tells of.
    """

    end: Artifact
    links: dict[str, Link] = field(default_factory=dict)
    main: dict[str, Artifact] = field(default_factory=dict)

    def get(self, kind: str) -> Artifact | None:
        """Return the artifact of a kind that the report tells of; None where there is none."""
        return self.main.get(kind)

    @property
    def problems(self) -> list[str]:
        """One line for each artifact that is recorded and not to be had."""
        return [f"{link.name} {link.problem}." for link in self.links.values() if link.problem]

    def artifacts(self) -> Iterator[Artifact]:
        """Yield what was found, parents before children."""
        yield from (link.artifact for link in self.links.values() if link.artifact)


def collect_chain(workspace: Workspace, source: Artifact) -> Chain:
    """Return the chain that a teacher, a student or a policy belongs to.

    It goes forward to the newest student of a teacher and the newest policy of a student, from there back
    to everything that these were made from, and takes the newest benchmark, rendering, evaluation and
    frontier of what it found.

    Raises:
        DamagedFileError: the manifest of the source was changed since it was completed.
        MissingArtifactError: the source is not completed.
    """
    source.require_sealed()
    known = [artifact for artifact in workspace.artifacts() if artifact.manifest.status == "completed"]
    end = source
    while end.kind in _FORWARD and (child := _newest_child(known, _FORWARD[end.kind], end)):
        end = child
    chain = Chain(end)
    _add_with_parents(chain, _link_of(end), _Finder(workspace, known))
    for artifact in reversed(list(chain.artifacts())):  # a merged dataset comes before its parts
        chain.main.setdefault(artifact.kind, artifact)
    if chain.get("dataset") is None and (teacher := chain.get("teacher")):
        _add_beside(chain, known, "dataset", (teacher,), workspace)
    for kind, sources in _BESIDE.items():
        found = tuple(artifact for name in sources if (artifact := chain.get(name)))
        _add_beside(chain, known, kind, found, workspace)
    return chain


def _add_beside(
    chain: Chain, known: list[Artifact], kind: str, sources: tuple[Artifact, ...], workspace: Workspace
) -> None:
    """Add the newest artifact of a kind that was made of the first source that has one."""
    children = (_newest_child(known, kind, source) for source in sources)
    if (child := next((child for child in children if child), None)) is not None:
        _add_with_parents(chain, _link_of(child), _Finder(workspace, known))
        chain.main[kind] = child


def _newest_child(known: list[Artifact], kind: str, parent: Artifact) -> Artifact | None:
    """Return the newest sealed artifact of a kind that names `parent` by its hash."""

    def counts(artifact: Artifact) -> bool:
        named = artifact.manifest.parents.get(parent.kind)
        return (
            artifact.kind == kind
            and artifact.manifest.selectable
            and named is not None
            and named.hash == parent.manifest.hash
            and not _problem_of(artifact)
        )

    return max(filter(counts, known), key=lambda artifact: artifact.manifest.finished_at or "", default=None)


class _Finder:
    """Finds recorded parents by their hash, for a copy of an artifact has another name."""

    def __init__(self, workspace: Workspace, known: list[Artifact]) -> None:
        self._workspace = workspace
        self._by_hash: dict[str, Artifact] = {}
        for artifact in known:
            self._by_hash.setdefault(str(artifact.manifest.hash), artifact)
        self._names = {artifact.name: artifact for artifact in known}

    def find(self, parent: Parent) -> Link:
        """Return the parent, or what is wrong with it."""
        named = self._names.get(parent.name)
        exact = named if named and named.manifest.hash == parent.hash else self._by_hash.get(parent.hash)
        if exact is None:
            problem = self._why_missing(parent)
        elif not (problem := _problem_of(exact)):
            return Link(parent.kind, exact.name, parent.hash, exact)
        return Link(parent.kind, parent.name, parent.hash, None, problem)

    def _why_missing(self, parent: Parent) -> str:
        if parent.name in self._names:
            return "is another than the one that was made use of: its hash differs"
        if any(path.parent.name == parent.name for path in self._workspace.damaged):
            return "is damaged: its manifest cannot be read"
        return "is gone from the workspace"


def _problem_of(artifact: Artifact) -> str:
    """Return what is wrong with the manifest of a completed artifact; empty where nothing is."""
    try:
        artifact.require_sealed()
    except UserError:
        return "is damaged: its manifest was changed since it was completed"
    return ""


def _link_of(artifact: Artifact) -> Link:
    return Link(artifact.kind, artifact.name, str(artifact.manifest.hash), artifact)


def _add_with_parents(chain: Chain, link: Link, finder: _Finder) -> None:
    """Add a link after everything that it was made from."""
    if link.hash in chain.links:
        return
    for parent in link.parents.values():
        _add_with_parents(chain, finder.find(parent), finder)
    chain.links[link.hash] = link
