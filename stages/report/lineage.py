"""Where the artifacts of a report come from, and which of their settings are not the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from thousandfold.ground.files import plain_json
from thousandfold.pipeline.console import as_set
from thousandfold.pipeline.settings import StageSettings
from thousandfold.stages.report.chain import Chain, Link
from thousandfold.stages.report.page import Block, Lineage, Node, Note, Section, Table

SettingsClasses = Mapping[str, type[StageSettings]]
"""The settings of each kind of artifact."""

_ABSENT = object()


def lineage_section(chain: Chain) -> Section:
    """Draw every artifact below what it was made from, with hashes, seeds and versions."""
    links = list(chain.links.values())
    rows = {link.hash: row for row, link in enumerate(links)}
    nodes = [_node(link, rows) for link in links]
    hashes = [[link.name, link.hash] for link in links]
    table = Table("Full hashes", ["artifact", "hash"], hashes, folded=True)
    lead = "Each artifact’s hash covers its settings, its files and the hashes of what it was made from."
    return Section("lineage", "Where it comes from", lead, [Lineage(nodes), table, _versions(chain)])


def _node(link: Link, rows: Mapping[str, int]) -> Node:
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
    return Node(link.kind, link.name, link.hash[:12], facts, parents, link.problem)


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
        if rows := changed_settings(artifact.manifest.settings, classes[artifact.kind]):
            blocks.append(Table(artifact.name, ["setting", "value", "default", "meaning"], rows))
        else:
            unchanged.append(artifact.name)
    if unchanged:
        blocks.append(Note(f"Every setting at its default: {', '.join(unchanged)}."))
    lead = "What differs from the defaults of this version, by preset, flag or --set."
    return Section("settings", "How it was set", lead, blocks)


def changed_settings(settings: Mapping[str, Any], cls: type[StageSettings]) -> list[list[str]]:
    """Return name, value, default and meaning of each setting that is not at its default."""
    rows = []
    for name, value in settings.items():
        field = cls.model_fields.get(name)
        default = _default(field)
        if field is None:
            rows.append([name, as_set(value), "–", "no setting of this version"])
        elif value != default:
            shown = "must be given" if default is _ABSENT else as_set(default)
            rows.append([name, as_set(value), shown, field.description or ""])
    return rows


def _default(field: FieldInfo | None) -> Any:
    """Return a setting's default as JSON holds it; `_ABSENT` where it has none."""
    if field is None or field.is_required():
        return _ABSENT
    return plain_json(field.get_default(call_default_factory=True))
