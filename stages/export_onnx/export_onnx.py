"""Export a student, or a teacher, as one ONNX file that is kept only if it does what the network does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from thousandfold.ground.errors import MissingArtifactError, UserError
from thousandfold.ground.files import atomic_file
from thousandfold.models.deployable_policy import DeployablePolicy
from thousandfold.models.onnx_graph import to_onnx
from thousandfold.pipeline.artifact_task import keep_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext, StageWork, resolve_device
from thousandfold.pipeline.settings import MOST_EPISODES, StageSettings
from thousandfold.stages.episodes import Episodes
from thousandfold.stages.export_onnx.gate import (
    ActionError,
    GateStates,
    add_dataset_states,
    compare_actions,
    compare_closed_loop,
    roll_out,
)
from thousandfold.stages.export_onnx.variants import VARIANT_FILES, Exported, Variant, try_variant
from thousandfold.stages.export_onnx.writing import PolicyDraft, describe, golden_rows
from thousandfold.stages.networks import TrainedActor, load_actor
from thousandfold.stages.policy_file.golden import LARGEST_FLOAT32_TOLERANCE, TOLERANCE
from thousandfold.stages.policy_file.metadata import Evaluation, PolicyMetadata
from thousandfold.stages.policy_file.onnx_bytes import ModelBytes, split_model
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, TEACHER_FILE, OnnxPolicy
from thousandfold.stages.policy_file.registration import register_policy
from thousandfold.stages.random_baseline import random_record, warn_of_chance


class ExportOnnxSettings(StageSettings):
    """Settings of `pipeline export-onnx`."""

    opset: int = pydantic.Field(default=20, ge=18, le=21, description="ONNX operator set of the file")
    gate_states: int = pydantic.Field(
        default=2048,
        ge=1,
        le=10**6,
        description="states to compare on: of the closed loop, and as many of the dataset",
    )
    max_action_error: float = pydantic.Field(
        default=1e-5,
        gt=0,
        le=LARGEST_FLOAT32_TOLERANCE,
        description="largest difference of an action up to depth 16; grows as its root",
    )
    closed_loop_episodes: int = pydantic.Field(
        default=256, ge=1, le=MOST_EPISODES, description="episodes that both runtimes act in"
    )
    max_success_difference: float = pydantic.Field(
        default=0.02,
        ge=0,
        le=1,
        description="largest difference of the success over those episodes, where chance does not explain it",
    )
    include_teacher: bool = pydantic.Field(
        True, description="write the teacher beside its student, to be timed"
    )
    variants: tuple[Variant, ...] = pydantic.Field(
        default=(),
        description="try them too (float16,int8): each is kept if it is faster here and acts as well",
    )
    licence: str = pydantic.Field(
        default="",
        max_length=2000,
        description="licence of the file: an SPDX expression or free text; empty: none is stated",
    )

    @pydantic.field_validator("variants", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Take `float16,int8` for both, and nothing for none."""
        if isinstance(value, str):
            return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        return () if value is None else value


def run(
    settings: ExportOnnxSettings,
    context: StageContext,
    source: Artifact,
    teacher: Artifact | None = None,
    dataset: Artifact | None = None,
) -> Artifact:
    """Export a policy, check it against torch, and return its artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        source: the student to export, or a teacher; an exported teacher is never the newest policy.
        teacher: the student's teacher; None looks for the one that the student's manifest names.
        dataset: more states to compare on; None looks for the one that the student was distilled from.

    Raises:
        UserError: the file does not do what the network does, or the artifacts do not belong together.
    """
    trained = load_actor(source)
    beside = source.kind == "student" and settings.include_teacher
    found = {
        "teacher": _parent(source, "teacher", teacher, context) if beside else None,
        "dataset": _parent(source, "dataset", dataset, context),
    }
    parents = {role: artifact for role, artifact in found.items() if artifact} | {source.kind: source}
    with context.stage(
        "policy",
        "export-onnx",
        task=trained.task.name,
        settings=settings,
        parents=parents,
        selectable=source.kind == "student" and source.manifest.selectable,
    ) as work:
        keep_task(trained.task, work.artifact, context.console)
        if trained.on_another_model:
            context.console.warn(
                f"{source.name} was trained on another model of task {trained.task.name!r}, by an earlier "
                "version or another MuJoCo: what the file says of its success is of the model here."
            )
        results = _write_files(settings, context, work.artifact, source, trained, found)
        policy = _finish(results | random_record(source.manifest.results), parents, work, context)
        warn_of_chance(context.console, policy, source)
        return policy


def _write_files(
    settings: ExportOnnxSettings,
    context: StageContext,
    artifact: Artifact,
    source: Artifact,
    trained: TrainedActor,
    found: Mapping[str, Artifact | None],
) -> dict[str, Any]:
    """Write policy, variants and teacher into the artifact; return what the manifest records of them."""
    console, teacher = context.console, found["teacher"]
    console.say(f"Exporting {source.name}: depth {trained.shape.depth}, width {trained.shape.width}.")
    reference, states = _roll_out(trained, found["dataset"], settings)
    path = artifact.file(POLICY_FILE)
    results = _export_policy(path, source, trained, reference, states, settings)
    if abs(results["success"] - results["torch_success"]) > settings.max_success_difference:
        console.warn(
            f"The file reached {results['success']:.3f} of the goals, torch {results['torch_success']:.3f}: "
            f"{results['episodes']} episodes are too few to tell that from chance, and the actions agree. "
            "Compare over more with --set closed_loop_episodes=."
        )
    if settings.variants:
        exported = _exported(path, source, trained, states, results, settings)
        results["variants"] = _try_variants(exported, settings.variants, context)
    if teacher is not None:
        console.say(f"Beside it, to be timed: {teacher.name}.")
        results["teacher"] = _export_teacher(artifact.file(TEACHER_FILE), teacher, states, settings)
    return results


def _parent(source: Artifact, role: str, given: Artifact | None, context: StageContext) -> Artifact | None:
    """Return the artifact that `source` was made from in a role; None where it is unknown or gone.

    Raises DamagedFileError where it is damaged, and UserError where `given` is another.
    """
    recorded = source.manifest.parents.get(role)
    if given is None and recorded is not None:
        try:
            given = context.workspace.open(recorded.name, role)
        except MissingArtifactError as error:
            context.console.say(f"Without the {role} of {source.name}: {error}")
            return None
    if given is None:
        return None
    if given.manifest.task != source.manifest.task:
        raise UserError(
            f"{given.name} is a {given.kind} for task {given.manifest.task!r}, {source.name} is for "
            f"{source.manifest.task!r}: choose a {role} of the same task."
        )
    if role == "teacher" and recorded is not None and recorded.hash != given.manifest.hash:
        raise UserError(
            f"{source.name} was distilled from {recorded.name}: {given.name} is another teacher, "
            "or was changed since."
        )
    return given


def _roll_out(
    trained: TrainedActor, dataset: Artifact | None, settings: ExportOnnxSettings
) -> tuple[Episodes, GateStates]:
    """Return torch's closed-loop outcome, and states to compare on."""
    seed, num_states = settings.seed, settings.gate_states
    reference, states = roll_out(
        trained,
        episodes=settings.closed_loop_episodes,
        num_states=num_states,
        seed=seed,
        device=resolve_device(settings.device),
    )
    if dataset is not None:
        states = add_dataset_states(states, dataset, trained.task, num_states=num_states, seed=seed)
    return reference, states


def _export_policy(
    path: Path,
    source: Artifact,
    trained: TrainedActor,
    reference: Episodes,
    states: GateStates,
    settings: ExportOnnxSettings,
) -> dict[str, Any]:
    """Write the policy once it has passed both gates; return what the manifest records."""
    module = trained.deployable(states.limits())
    with atomic_file(path) as temporary:
        draft = _draft(temporary, source, trained, module, states, settings)
        error = _compare_actions(draft.policy, trained, module, states, settings)
        outcome = compare_closed_loop(
            draft.policy,
            trained.task,
            reference,
            seed=settings.seed,
            max_difference=settings.max_success_difference,
        )
        summary = outcome.summary()
        # The figures go into the file that they were measured with; its graph stays as it is.
        evaluation = Evaluation.model_validate(summary | {"runtime": "onnxruntime"})
        draft.finish(evaluation, max(TOLERANCE, error.allowed))
    return summary | {
        "torch_success": float(reference.success.mean()),
        "same_outcome": float((outcome.success == reference.success).mean()),
        "gate_states": dict(states.counts),
        "opset": settings.opset,
        **_figures(path, error, draft.metadata),
    }


def _exported(
    path: Path,
    source: Artifact,
    trained: TrainedActor,
    states: GateStates,
    results: dict[str, Any],
    settings: ExportOnnxSettings,
) -> Exported:
    """Return what variants of the policy are made from and compared with."""
    return Exported(
        policy=OnnxPolicy(path),
        success=results["success"],
        episodes=results["episodes"],
        source=source,
        trained=trained,
        module=trained.deployable(states.limits()),
        states=states,
        opset=settings.opset,
        licence=settings.licence,
        seed=settings.seed,
    )


def _try_variants(
    exported: Exported, variants: tuple[Variant, ...], context: StageContext
) -> dict[str, dict[str, Any]]:
    """Try each variant, say how it came out, and return what the manifest records, by variant."""
    records = {}
    for variant in variants:
        trial = try_variant(variant, exported.policy.path.with_name(VARIANT_FILES[variant]), exported)
        context.console.say(trial.sentence())
        records[variant] = trial.record()
    return records


def _export_teacher(
    path: Path, teacher: Artifact, states: GateStates, settings: ExportOnnxSettings
) -> dict[str, Any]:
    """Write the teacher beside its student. It is there to be timed: its success is the one on record."""
    trained = load_actor(teacher)
    module, evaluation = trained.deployable(states.limits()), None
    if not trained.on_another_model:  # the file names the model at hand, the record is of the other
        with contextlib.suppress(pydantic.ValidationError):  # a record without an evaluation
            evaluation = Evaluation.model_validate(teacher.manifest.results | {"runtime": "torch"})
    with atomic_file(path) as temporary:
        draft = _draft(temporary, teacher, trained, module, states, settings)
        error = _compare_actions(draft.policy, trained, module, states, settings)
        draft.finish(evaluation, max(TOLERANCE, error.allowed))
    return {"name": teacher.name, **_figures(path, error, draft.metadata)}


def _draft(
    path: Path,
    source: Artifact,
    trained: TrainedActor,
    module: DeployablePolicy,
    states: GateStates,
    settings: ExportOnnxSettings,
) -> PolicyDraft:
    """Convert a network and write it, with its evaluation still open."""
    graph = _convert(module, settings.opset)
    metadata = describe(source, trained, states, graph, opset=settings.opset, licence=settings.licence)
    return PolicyDraft.write(path, graph, metadata, golden_rows(module, states))


def _convert(module: DeployablePolicy, opset: int) -> ModelBytes:
    """Return the graph, or raise UserError when it fits into no file."""
    try:
        return split_model(to_onnx(module, opset).SerializeToString())
    except ValueError as error:
        raise UserError(str(error)) from error


def _compare_actions(
    policy: OnnxPolicy,
    trained: TrainedActor,
    module: DeployablePolicy,
    states: GateStates,
    settings: ExportOnnxSettings,
) -> ActionError:
    depth, allowed = trained.shape.depth, settings.max_action_error
    return compare_actions(policy, module, states, depth=depth, max_action_error=allowed)


def _figures(path: Path, error: ActionError, metadata: PolicyMetadata) -> dict[str, Any]:
    """Return what the manifest records of every file."""
    return {
        "max_action_error": error.largest,
        "allowed_action_error": error.allowed,
        "bytes": path.stat().st_size,
        "parameters": metadata.network.parameters,
    }


def _finish(
    results: dict[str, Any], parents: dict[str, Artifact], work: StageWork, context: StageContext
) -> Artifact:
    """Complete the artifact, record it and say what was found."""
    artifact = work.artifact
    artifact.complete(results)
    numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
    work.run.log_metrics(numbers, step=0)
    work.log_files(POLICY_FILE, TEACHER_FILE, *VARIANT_FILES.values(), "manifest.json")
    register_policy(work, OnnxPolicy(artifact.file(POLICY_FILE)), parents)
    low, high = results["success_interval"]
    context.console.say(
        f"Policy {artifact.name}: {results['bytes'] / 1e6:.2f} MB, off torch by at most "
        f"{results['max_action_error']:.1e} in {sum(results['gate_states'].values()):,} states (allowed "
        f"{results['allowed_action_error']:.1e}); success {results['success']:.3f} [{low:.3f}, {high:.3f}], "
        f"torch {results['torch_success']:.3f}, over the same {results['episodes']} episodes."
    )
    return artifact
