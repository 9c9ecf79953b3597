"""A policy file as a page to read: what it is, what goes in and out, how well it does, its descent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from thousandfold.pipeline.console import Console

if TYPE_CHECKING:
    from thousandfold.stages.policy_file.metadata import Element, InputElement, PolicyMetadata
    from thousandfold.stages.policy_file.onnx_bytes import ModelBytes
    from thousandfold.stages.policy_file.source import PolicyPlace


def show_policy(console: Console, place: PolicyPlace) -> None:
    """Print a policy file's page.

    Raises:
        UserError: the file cannot be read, or is none of this version.
    """
    from thousandfold.stages.policy_file.golden import GOLDEN_KEY, parse_golden
    from thousandfold.stages.policy_file.graph import require_known_graph
    from thousandfold.stages.policy_file.integrity import INTEGRITY_KEY, change_since_export
    from thousandfold.stages.policy_file.metadata import METADATA_KEY, parse_metadata
    from thousandfold.stages.policy_file.onnx_bytes import read_model

    model = read_model(place.path)
    metadata = parse_metadata(model.metadata.get(METADATA_KEY), place.path)
    require_known_graph(model, place.path)
    golden = parse_golden(model.metadata.get(GOLDEN_KEY), metadata, place.path)
    change = change_since_export(model, metadata)
    facts = [
        ("file", str(place.path)),
        ("size", f"{place.path.stat().st_size / 1e6:.2f} MB"),
        *_identity(metadata),
        ("golden rows", f"{len(golden.action)}, to {golden.tolerance:.0e}"),
        *_hashes(metadata, model),
    ]
    console.table(f"{place.name}: {metadata.role} for task {metadata.task}", ("what", "value"), facts)
    _show_elements(console, metadata)
    parents = [(role, origin.name, origin.hash) for role, origin in metadata.parents.items()]
    console.table("Made from", ("role", "artifact", "hash"), parents)
    console.table("Written by", ("package", "version"), list(metadata.exporter.items()))
    if change is not None:
        console.warn(f"{change}: the file was changed since it was exported.")
    console.result(
        {
            "policy": place.name,
            "path": str(place.path),
            "bytes": place.path.stat().st_size,
            "intact": change is None,
            "sha256": model.metadata.get(INTEGRITY_KEY),
            "golden": {"rows": len(golden.action), "tolerance": golden.tolerance},
            "metadata": metadata.model_dump(mode="json"),
        }
    )


def _hashes(metadata: PolicyMetadata, model: ModelBytes) -> Iterator[tuple[str, str]]:
    """Yield the recorded hashes, with a note where the file's own are others."""
    from thousandfold.stages.policy_file.integrity import INTEGRITY_KEY, policy_sha256

    for name, recorded, actual in (
        ("graph SHA-256", metadata.graph_sha256, model.graph_sha256),
        ("policy SHA-256", model.metadata.get(INTEGRITY_KEY, "none"), policy_sha256(model)),
    ):
        yield name, recorded if recorded == actual else f"{recorded} (the file's is another)"


def _identity(metadata: PolicyMetadata) -> Iterator[tuple[str, Any]]:
    """Yield what a policy is, does and promises."""
    network, measured = metadata.network, metadata.evaluation
    yield "format", str(metadata.format_version)
    yield "control rate", f"{1 / metadata.control_dt_s:g} Hz (every {metadata.control_dt_s:g} s)"
    yield "episode", f"{metadata.episode_steps:,} steps, {metadata.episode_steps * metadata.control_dt_s:g} s"
    yield (
        "network",
        f"{network.kind}, depth {network.depth}, width {network.width}, {network.parameters:,} parameters",
    )
    yield "numbers inside", f"{metadata.precision}, ONNX operator set {metadata.opset}"
    if measured is None:
        yield "success", "not measured"
    else:
        low, high = measured.success_interval
        yield (
            "success",
            f"{measured.success:.3f} [{low:.3f}, {high:.3f}] over {measured.episodes:,} episodes, in "
            f"{measured.runtime}",
        )
    yield "input beyond its limits", "clipped, inside the graph"
    yield "input that is not finite", "to be refused, before the call"
    yield "licence", metadata.licence or "none stated"
    yield "model SHA-256", metadata.model_sha256
    if metadata.task_file is not None:
        yield "task file", metadata.task_file
        yield "task SHA-256", metadata.task_sha256 or "unknown"
    for name, value in metadata.task_changes.items():
        yield f"task changed: {name}", str(value)


def _show_elements(console: Console, metadata: PolicyMetadata) -> None:
    """Print every number that goes in and comes out, in order."""
    columns = ("#", "name", "unit", "seen from", "to", "limit from", "to")
    for name, elements in metadata.inputs:
        rows = [[*row, e.limit_low, e.limit_high] for row, e in zip(_rows(elements), elements, strict=True)]
        console.table(f"Input {name} ({len(rows)})", columns, rows)
    for name, elements in metadata.outputs:
        rows = _rows(elements)
        console.table(f"Output {name} ({len(rows)})", ("#", "name", "unit", "from", "to"), rows)


def _rows(elements: Sequence[Element] | Sequence[InputElement]) -> list[list[Any]]:
    return [[index, e.name, e.unit, e.low, e.high] for index, e in enumerate(elements)]
