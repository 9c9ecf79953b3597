"""Export a student, or a teacher, as one ONNX file that is kept only if it does what the network does."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pydantic

from models.deployable_policy import DeployablePolicy
from models.onnx_graph import to_onnx
from models.residual_mlp import parameter_count
from pipeline.core.artifacts import Artifact, Parent, atomic_file
from pipeline.core.errors import UserError
from pipeline.core.runtime import StageContext, StageWork, as_user_error, resolve_device
from pipeline.core.settings import StageSettings
from pipeline.core.tracking import NEWEST_ALIAS
from stages.artifact_task import keep_task, task_record
from stages.evaluate import Episodes
from stages.network_file import TrainedActor, load_actor
from stages.onnx_gate import (
    ActionError,
    GateStates,
    add_dataset_states,
    compare_actions,
    compare_closed_loop,
    roll_out,
)
from stages.onnx_policy import (
    METADATA_KEY,
    METADATA_VERSION,
    POLICY_FILE,
    TEACHER_FILE,
    Element,
    Evaluation,
    Inputs,
    Network,
    OnnxPolicy,
    Origin,
    Outputs,
    PolicyMetadata,
)

_EXPORTERS = ("thousandfold", "torch", "onnx", "onnxruntime")


class ExportOnnxSettings(StageSettings):
    """Settings of `pipeline export-onnx`."""

    opset: int = pydantic.Field(default=20, ge=18, le=21, description="ONNX operator set of the file")
    gate_states: int = pydantic.Field(
        default=2048, ge=1, description="states to compare on: of the closed loop, and as many of the dataset"
    )
    max_action_error: float = pydantic.Field(
        default=1e-5,
        gt=0,
        le=1e-2,
        description="largest difference of an action up to depth 16; grows as its root",
    )
    closed_loop_episodes: int = pydantic.Field(
        default=256, ge=1, description="episodes that both runtimes act in"
    )
    max_success_difference: float = pydantic.Field(
        default=0.02, ge=0, le=1, description="largest difference of the success over those episodes"
    )
    include_teacher: bool = pydantic.Field(
        True, description="write the teacher beside its student, to be timed"
    )


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
    teacher = _parent(source, "teacher", teacher, context) if beside else None
    dataset = _parent(source, "dataset", dataset, context)
    found = {"teacher": teacher, "dataset": dataset}
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
        context.console.say(
            f"Exporting {source.name}: depth {trained.shape.depth}, width {trained.shape.width}."
        )
        reference, states = _roll_out(trained, dataset, settings)
        results = _export_policy(
            work.artifact.file(POLICY_FILE), source, trained, reference, states, settings
        )
        if teacher is not None:
            context.console.say(f"Beside it, to be timed: {teacher.name}.")
            results["teacher"] = _export_teacher(work.artifact.file(TEACHER_FILE), teacher, states, settings)
        return _finish(results, source, work, context)


def _parent(source: Artifact, role: str, given: Artifact | None, context: StageContext) -> Artifact | None:
    """Return the artifact that `source` was made from in a role; None where it is unknown or gone."""
    recorded = source.manifest.parents.get(role)
    if given is None and recorded is not None:
        try:
            given = context.workspace.open(recorded.name, role)
        except UserError as error:
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
    graph = _convert(module, settings.opset)
    metadata = describe(source, trained, states)
    with atomic_file(path) as temporary:
        policy = _write(temporary, graph, metadata)
        error = _compare_actions(policy, trained, module, states, settings)
        outcome = compare_closed_loop(
            policy,
            trained.task,
            reference,
            seed=settings.seed,
            max_difference=settings.max_success_difference,
        )
        summary = outcome.summary()
        evaluation = Evaluation.model_validate(summary | {"runtime": "onnxruntime"})
        # The figures go into the file that they were measured with; its graph stays as it is.
        _write(temporary, graph, metadata.model_copy(update={"evaluation": evaluation}))
    return summary | {
        "torch_success": float(reference.success.mean()),
        "same_outcome": float((outcome.success == reference.success).mean()),
        "gate_states": dict(states.counts),
        "opset": settings.opset,
        **_figures(path, error, metadata),
    }


def _export_teacher(
    path: Path, teacher: Artifact, states: GateStates, settings: ExportOnnxSettings
) -> dict[str, Any]:
    """Write the teacher beside its student. It is there to be timed: its success is the one on record."""
    trained = load_actor(teacher)
    module = trained.deployable(states.limits())
    metadata = describe(teacher, trained, states)
    with contextlib.suppress(pydantic.ValidationError):  # a record without an evaluation
        evaluation = Evaluation.model_validate(teacher.manifest.results | {"runtime": "torch"})
        metadata = metadata.model_copy(update={"evaluation": evaluation})
    with atomic_file(path) as temporary:
        policy = _write(temporary, _convert(module, settings.opset), metadata)
        error = _compare_actions(policy, trained, module, states, settings)
    return {"name": teacher.name, **_figures(path, error, metadata)}


def _convert(module: DeployablePolicy, opset: int) -> onnx.ModelProto:
    """Return the graph, or raise UserError when it fits into no file."""
    return as_user_error(lambda: to_onnx(module, opset), ValueError)


def _write(path: Path, graph: onnx.ModelProto, metadata: PolicyMetadata) -> OnnxPolicy:
    """Write a graph with its metadata and read it back."""
    onnx.helper.set_model_props(graph, {METADATA_KEY: metadata.model_dump_json()})
    path.write_bytes(graph.SerializeToString())
    return OnnxPolicy(path, task=metadata.task)


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


def describe(source: Artifact, trained: TrainedActor, states: GateStates) -> PolicyMetadata:
    """Return the metadata of a policy file; its evaluation is still open.

    Args:
        source: the student or teacher.
        trained: its network.
        states: give the ranges of the inputs.
    """
    task, shape, actor = trained.task, trained.shape, trained.actor.actor
    control = task.control
    parents: Mapping[str, Parent] = {**source.manifest.parents, source.kind: source.parent_entry()}
    return PolicyMetadata(
        format_version=METADATA_VERSION,
        role="student" if source.kind == "student" else "teacher",
        task=task.name,
        model_sha256=str(trained.metadata["model_sha256"]),
        **task_record(source),
        control_dt_s=task.task.control_dt_s,
        episode_steps=task.task.episode_steps,
        inputs=Inputs(
            observation=_input_elements(task.describe("observation"), states.observation),
            goal=_input_elements(task.describe("achieved_goal"), states.goal),
        ),
        outputs=Outputs(
            action=tuple(Element(name=name, unit="1", low=-1.0, high=1.0) for name in control.actions),
            control=tuple(
                Element(name=name, unit="actuator", low=float(low), high=float(high))
                for name, low, high in zip(control.actuators, control.low, control.high, strict=True)
            ),
        ),
        network=Network(
            kind=shape.kind,
            depth=shape.depth,
            width=shape.width,
            # The head of the standard deviation stays behind.
            parameters=parameter_count(actor.trunk) + parameter_count(actor.mean_head),
        ),
        parents={role: Origin.model_validate(vars(parent)) for role, parent in parents.items()},
        evaluation=None,
        exporter={name: importlib.metadata.version(name) for name in _EXPORTERS},
    )


def _input_elements(named: list[dict[str, str]], seen: np.ndarray) -> tuple[Element, ...]:
    """Return names and units, with the range of each number over the states (n, size)."""
    ranges = zip(named, seen.min(0), seen.max(0), strict=True)
    return tuple(Element(**entry, low=float(low), high=float(high)) for entry, low, high in ranges)


def _finish(results: dict[str, Any], source: Artifact, work: StageWork, context: StageContext) -> Artifact:
    """Complete the artifact, record it and say what was found."""
    artifact = work.artifact
    artifact.complete(results)
    numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
    work.run.log_metrics(numbers, step=0)
    work.log_files(POLICY_FILE, TEACHER_FILE, "manifest.json")
    work.run.register_model(
        f"policy-{artifact.manifest.task}",
        artifact.file(POLICY_FILE),
        {"artifact": artifact.name, "role": source.kind},
        (NEWEST_ALIAS,) if artifact.manifest.selectable else (),
    )
    low, high = results["success_interval"]
    context.console.say(
        f"Policy {artifact.name}: {results['bytes'] / 1e6:.2f} MB, off torch by at most "
        f"{results['max_action_error']:.1e} in {sum(results['gate_states'].values()):,} states (allowed "
        f"{results['allowed_action_error']:.1e}); success {results['success']:.3f} [{low:.3f}, {high:.3f}], "
        f"torch {results['torch_success']:.3f}, over the same {results['episodes']} episodes."
    )
    return artifact
