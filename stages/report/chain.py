"""Which artifacts a report is about: from one of them back to all it was made from, and forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from thousandfold.pipeline.artifacts import Artifact, Parent, Workspace

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
        DamagedFileError: the manifest of an artifact that belongs to the chain, or may do so, is damaged.
        MissingArtifactError: the source is not completed.
    """
    source.require_completed()
    end = source
    while end.kind in _FORWARD and (child := workspace.newest_if_any(_FORWARD[end.kind], end)):
        end = child
    chain, finder = Chain(end), _Finder(workspace)
    _add_with_parents(chain, _link_of(end), finder)
    for artifact in reversed(list(chain.artifacts())):  # a merged dataset comes before its parts
        chain.main.setdefault(artifact.kind, artifact)
    beside = dict(_BESIDE)
    if chain.get("dataset") is None:
        beside = {"dataset": ("teacher",)} | beside
    for kind, sources in beside.items():
        found = (artifact for name in sources if (artifact := chain.get(name)))
        children = (workspace.newest_if_any(kind, artifact, option=None) for artifact in found)
        if (child := next(filter(None, children), None)) is not None:
            _add_with_parents(chain, _link_of(child), finder)
            chain.main[kind] = child
    return chain


class _Finder:
    """Finds recorded parents by their hash, for a copy of an artifact has another name."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        known = [artifact for artifact in workspace.artifacts() if artifact.manifest.status == "completed"]
        self._damaged = {damaged.name: damaged.error for damaged in workspace.damaged}
        self._by_hash: dict[str, Artifact] = {}
        for artifact in known:
            self._by_hash.setdefault(str(artifact.manifest.hash), artifact)
        self._names = {artifact.name: artifact for artifact in known}

    def find(self, parent: Parent) -> Link:
        """Return the parent, or why it is not to be had. Raises DamagedFileError where it is damaged."""
        named = self._names.get(parent.name)
        exact = named if named and named.manifest.hash == parent.hash else self._by_hash.get(parent.hash)
        if exact is not None:
            return Link(parent.kind, exact.name, parent.hash, exact)
        if parent.name in self._damaged:
            raise self._damaged[parent.name]
        problem = "is gone from the workspace"
        if parent.name in self._names:
            problem = "is another than the one that was made use of: its hash differs"
        return Link(parent.kind, parent.name, parent.hash, None, problem)


def _link_of(artifact: Artifact) -> Link:
    return Link(artifact.kind, artifact.name, str(artifact.manifest.hash), artifact)


def _add_with_parents(chain: Chain, link: Link, finder: _Finder) -> None:
    """Add a link after everything that it was made from."""
    if link.hash in chain.links:
        return
    for parent in link.parents.values():
        _add_with_parents(chain, finder.find(parent), finder)
    chain.links[link.hash] = link
