"""Where the artifacts of a report come from, and which of their settings are not the defaults."""

from __future__ import annotations

from collections.abc import Mapping

from thousandfold.ground.files import plain_json
from thousandfold.pipeline.console import as_set
from thousandfold.pipeline.settings import StageSettings
from thousandfold.stages.report.chain import Chain
from thousandfold.stages.report.page import Block, Lineage, Node, Note, Section, Table

SettingsClasses = Mapping[str, type[StageSettings]]
"""The settings of each kind of artifact."""


def lineage_section(chain: Chain) -> Section:
    """Draw every artifact below what it was made from, with hashes, seeds and versions."""
    rows = {hash_: row for row, hash_ in enumerate(chain.links)}
    nodes = []
    for link in chain.links.values():
        facts = []
        if link.artifact is not None:
            manifest = link.artifact.manifest
            facts.append(f"seed {manifest.settings.get('seed', '?')}")
            if manifest.seal is None:
                facts.append("unsealed, made by an earlier version")
            if manifest.finished_at:
                facts.append(manifest.finished_at[:10])
            if commit := manifest.git.get("commit"):
                facts.append(f"code {str(commit)[:7]}{' changed' if manifest.git.get('dirty') else ''}")
            elif version := manifest.versions.get("thousandfold"):
                facts.append(f"thousandfold {version}")
        parents = [(parent.kind, rows[link.hash] - rows[parent.hash]) for parent in link.parents.values()]
        nodes.append(Node(link.kind, link.name, link.hash[:12], facts, parents, link.problem))
    hashes = [[link.name, link.hash] for link in chain.links.values()]
    table = Table("Full hashes", ["artifact", "hash"], hashes, folded=True)
    lead = "Each artifact’s hash covers its settings, its files and the hashes of what it was made from."
    return Section("lineage", "Where it comes from", lead, [Lineage(nodes), table, _versions(chain)])


def _versions(chain: Chain) -> Table:
    """Return the packages by artifact, one column where all were made with the same."""
    made = [(artifact.kind, artifact.manifest.versions) for artifact in chain.artifacts()]
    packages = list(dict.fromkeys(name for _, versions in made for name in versions))
    rows = []
    for package in packages:
        used: dict[str, list[str]] = {}
        for kind, versions in made:
            used.setdefault(versions.get(package, "not installed"), []).append(kind)
        alike = len(used) == 1
        told = next(iter(used)) if alike else "; ".join(f"{v} ({', '.join(k)})" for v, k in used.items())
        rows.append([package, told])
    return Table("Versions", ["package", "version"], rows, folded=True)


def settings_section(chain: Chain, classes: SettingsClasses) -> Section:
    """List the settings that are not the defaults, a table an artifact."""
    blocks: list[Block] = []
    unchanged = []
    for artifact in chain.artifacts():
        if artifact.kind not in classes:
            continue
        rows = []
        for name, value in artifact.manifest.settings.items():
            field = classes[artifact.kind].model_fields.get(name)
            if field is None:
                rows.append([name, as_set(value), "–", "no setting of this version"])
                continue
            default = None
            if not field.is_required():
                default = plain_json(field.get_default(call_default_factory=True))
            if field.is_required() or value != default:
                shown = "must be given" if field.is_required() else as_set(default)
                rows.append([name, as_set(value), shown, field.description or ""])
        if rows:
            blocks.append(Table(artifact.name, ["setting", "value", "default", "meaning"], rows))
        else:
            unchanged.append(artifact.name)
    if unchanged:
        blocks.append(Note(f"Every setting at its default: {', '.join(unchanged)}."))
    lead = "What differs from the defaults of this version, by preset, flag or --set."
    return Section("settings", "How it was set", lead, blocks)
