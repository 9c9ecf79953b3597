"""One hash over all that a policy file says: its graph, its description and its golden rows.

It stands in the ONNX metadata under the key ``thousandfold_sha256``: the SHA-256 of the graph's hash (64 hex
digits), a line feed, the text under ``thousandfold``, a line feed and the text under ``thousandfold_golden``,
in UTF-8. It shows what was changed by accident or by hand; whoever writes another hash beside it is not found
out, for it is no signature.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.golden import GOLDEN_KEY
from thousandfold.stages.policy_file.metadata import METADATA_KEY, PolicyMetadata
from thousandfold.stages.policy_file.onnx_bytes import EXPORT_AGAIN, ModelBytes

INTEGRITY_KEY = "thousandfold_sha256"


def policy_sha256(model: ModelBytes) -> str:
    """Return the hash of a file as it lies there, in hexadecimal; a text that is missing counts as empty."""
    texts = (model.metadata.get(key, "") for key in (METADATA_KEY, GOLDEN_KEY))
    return hashlib.sha256("\n".join((model.graph_sha256, *texts)).encode()).hexdigest()


def with_hash(graph: ModelBytes, description: str, golden: str) -> ModelBytes:
    """Return a whole policy: the graph, both texts, and the hash over all of it.

    Args:
        graph: what the policy computes; metadata that it has is left out.
        description: JSON text of its `PolicyMetadata`.
        golden: JSON text of its `GoldenSet`.
    """
    digest = policy_sha256(graph.with_metadata({GOLDEN_KEY: golden, METADATA_KEY: description}))
    # The description comes last: a file cut off anywhere is without it.
    return graph.with_metadata({GOLDEN_KEY: golden, INTEGRITY_KEY: digest, METADATA_KEY: description})


def change_since_export(model: ModelBytes, metadata: PolicyMetadata) -> str | None:
    """Say which part of a file differs from its recorded hash; None where all is as it was exported.

    Args:
        model: the file.
        metadata: its description.
    """
    if model.graph_sha256 != metadata.graph_sha256:
        return "its graph differs from the recorded hash"
    if INTEGRITY_KEY not in model.metadata:
        return f"it has no {INTEGRITY_KEY}"
    if model.metadata[INTEGRITY_KEY] != policy_sha256(model):
        return "its description or golden rows differ from the recorded hash"
    return None


def require_unchanged(model: ModelBytes, metadata: PolicyMetadata, path: Path) -> None:
    """Raise DamagedFileError where a file differs from its recorded hash; arguments as above."""
    if change := change_since_export(model, metadata):
        raise DamagedFileError(
            f"{path} was changed since it was exported: {change}. Copy it anew, or {EXPORT_AGAIN}."
        )
