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
    """An artifact as those say that were made from it, or, where it is not to be had, the problem."""

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
    chain = Chain(end)
    known = [artifact for artifact in workspace.artifacts() if artifact.is_completed]
    damaged = {damaged.name: damaged.error for damaged in workspace.damaged}
    by_name = {artifact.name: artifact for artifact in known}
    by_hash = {str(artifact.manifest.hash): artifact for artifact in reversed(known)}

    def add(kind: str, name: str, hash_: str, artifact: Artifact | None) -> None:
        """Add an artifact after everything that it was made from."""
        if hash_ in chain.links:
            return
        problem = ""
        if artifact is None:
            changed = "is another than the one that was made use of: its hash differs"
            problem = changed if name in by_name else "is gone from the workspace"
        for parent in artifact.manifest.parents.values() if artifact else ():
            named = by_name.get(parent.name)
            # A copy of an artifact has another name.
            found = named if named and named.manifest.hash == parent.hash else by_hash.get(parent.hash)
            if found is None and parent.name in damaged:
                raise damaged[parent.name]
            add(parent.kind, found.name if found else parent.name, parent.hash, found)
        chain.links[hash_] = Link(kind, name, hash_, artifact, problem)

    add(end.kind, end.name, str(end.manifest.hash), end)
    for artifact in reversed(list(chain.artifacts())):  # a merged dataset comes before its parts
        chain.main.setdefault(artifact.kind, artifact)
    beside = _BESIDE if chain.get("dataset") else {"dataset": ("teacher",)} | _BESIDE
    for kind, sources in beside.items():
        found = (artifact for name in sources if (artifact := chain.get(name)))
        children = (workspace.newest_if_any(kind, artifact, option=None) for artifact in found)
        if (child := next(filter(None, children), None)) is not None:
            add(child.kind, child.name, str(child.manifest.hash), child)
            chain.main[kind] = child
    return chain
