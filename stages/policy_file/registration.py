"""A policy in MLflow's registry: a model that `mlflow.onnx.load_model` opens, and one page of its descent."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.model_registry import ARTIFACT_TAG, CANDIDATE_ALIAS, write_onnx_model
from thousandfold.pipeline.runtime import StageWork
from thousandfold.pipeline.tracking import NEWEST_ALIAS, StageRun
from thousandfold.stages.policy_file.metadata import PolicyMetadata
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

_EXAMPLE_ROWS = 2
_GENERATIONS = ("policy", "student", "dataset", "teacher")


def registered_name(task: str) -> str:
    """Return the name under which policies of a task are registered."""
    return f"policy-{task}"


def register_policy(work: StageWork, policy: OnnxPolicy, parents: Mapping[str, Artifact]) -> str | None:
    """Register an exported policy; return its version, or None where nothing is recorded.

    An exported teacher, which is never the newest, gets no alias. `parents` are what the policy was made
    from, by role.
    """
    artifact, metadata, run = work.artifact, policy.metadata, work.run
    if run.run_id is None:
        return None
    golden = policy.golden().arrays()
    example = {"observation": golden.observation[:_EXAMPLE_ROWS], "goal": golden.goal[:_EXAMPLE_ROWS]}
    sizes = {name: len(elements) for name, elements in dict(metadata.outputs).items()}
    # A store that was given up on may still be writing there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "model"

        def write() -> Path:
            write_onnx_model(folder, policy.path, sizes, example)
            return folder

        return run.register_model(
            registered_name(metadata.task),
            write,
            _tags(artifact, metadata, parents),
            (NEWEST_ALIAS, CANDIDATE_ALIAS) if artifact.manifest.selectable else (),
            _page(artifact, metadata, parents, run),
        )


def _tags(artifact: Artifact, metadata: PolicyMetadata, parents: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return what versions are looked up and compared by."""
    tags: dict[str, Any] = {
        ARTIFACT_TAG: artifact.name,
        "role": metadata.role,
        "task": metadata.task,
        "depth": metadata.network.depth,
        "width": metadata.network.width,
        "precision": metadata.precision,
        "graph_sha256": metadata.graph_sha256,
        "model_sha256": metadata.model_sha256,
    }
    if metadata.evaluation is not None:
        tags["success"] = f"{metadata.evaluation.success:.4f}"
    for role, origin in metadata.parents.items():
        tags |= {role: origin.name, f"{role}_hash": origin.hash}
        if role in parents and (run_id := parents[role].manifest.tracking.get("run_id")):
            tags[f"{role}_run_id"] = run_id
    return tags


def _page(
    artifact: Artifact, metadata: PolicyMetadata, parents: Mapping[str, Artifact], run: StageRun
) -> str:
    """Return the version's description in Markdown: what it is, and its descent with links to every run."""
    network, measured = metadata.network, metadata.evaluation
    lines = [
        f"**{artifact.name}**: {metadata.role} of depth {network.depth} and width {network.width} for task "
        f"{one_cell(metadata.task)}, every {metadata.control_dt_s:g} s, {metadata.precision}.",
        "",
    ]
    if measured is not None:
        low, high = measured.success_interval
        lines += [
            f"Success {measured.success:.3f} [{low:.3f}, {high:.3f}] over {measured.episodes:,} fresh "
            f"episodes ({measured.runtime}).",
            "",
        ]
    lines += [f"Licence: {one_cell(metadata.licence) or 'none stated'}.", ""]
    lines += ["| | artifact | hash | made with | run |", "|---|---|---|---|---|"]
    made = {"policy": artifact, **parents}
    descent = {role: (origin.name, origin.hash) for role, origin in metadata.parents.items()}
    descent["policy"] = (artifact.name, str(artifact.manifest.hash))
    for role in sorted(descent, key=lambda role: (*_GENERATIONS, role).index(role)):
        name, digest = descent[role]
        settings, link = "–", "run"
        if role in made:
            manifest = made[role].manifest
            settings = (
                f"seed {manifest.settings.get('seed', '–')}, thousandfold {manifest.versions['thousandfold']}"
            )
            if commit := manifest.git.get("commit"):
                settings += f", commit {str(commit)[:10]}"
            link = _link(run, manifest.tracking.get("run_id"), "run")
        lines.append(f"| {role} | {one_cell(name)} | `{digest[:12]}` | {settings} | {link} |")
    chain = _link(run, artifact.manifest.tracking.get("chain_run_id"), "The whole chain")
    return "\n".join([*lines, "", f"{chain}."])


def _link(run: StageRun, run_id: str | None, text: str) -> str:
    """Return a link to a run's page; the text alone where there is none."""
    page = run.page_of(run_id or "")
    return f"[{text}]({page})" if page else text if run_id is None else f"{text} `{run_id}`"


def one_cell(text: str) -> str:
    """Return a user's text so that it stays within its place in a table."""
    return " ".join(html.escape(text).replace("|", "/").replace("`", "'").split())
