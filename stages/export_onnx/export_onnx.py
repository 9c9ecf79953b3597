"""Export a student, or a teacher, as one ONNX file that is kept only if it does what the network does."""

from __future__ import annotations

import contextlib
from typing import Any

import pydantic

from thousandfold.ground.errors import MissingArtifactError, UserError
from thousandfold.ground.files import atomic_file
from thousandfold.pipeline.artifact_task import keep_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.pictures import artifact_facts
from thousandfold.pipeline.runtime import StageContext, resolve_device
from thousandfold.pipeline.settings import MOST_EPISODES, StageSettings
from thousandfold.stages import robustness
from thousandfold.stages.episodes import Episodes
from thousandfold.stages.export_onnx.export import Export
from thousandfold.stages.export_onnx.gate import (
    GateStates,
    add_dataset_states,
    compare_closed_loop,
    roll_out,
)
from thousandfold.stages.export_onnx.variants import VARIANT_FILES, Variant, try_variant
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.networks import TrainedActor, load_actor
from thousandfold.stages.policy_file.golden import LARGEST_FLOAT32_TOLERANCE
from thousandfold.stages.policy_file.metadata import Evaluation, RobustnessLevel
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
        description="states to compare torch and ONNX Runtime on: so many of the closed loop, and as many "
        "of the dataset",
    )
    max_action_error: float = pydantic.Field(
        default=1e-5,
        gt=0,
        le=LARGEST_FLOAT32_TOLERANCE,
        description="largest allowed difference of an action up to depth 16; it grows as the root of the "
        "depth",
    )
    closed_loop_episodes: int = pydantic.Field(
        default=256, ge=1, le=MOST_EPISODES, description="episodes in which both runtimes act"
    )
    max_success_difference: float = pydantic.Field(
        default=0.02,
        ge=0,
        le=1,
        description="largest allowed difference of success over those episodes, unless chance explains it",
    )
    robustness_episodes: int = pydantic.Field(
        default=0,
        ge=0,
        le=MOST_EPISODES,
        description="episodes of each level of a robustness card inside the file; 0: no card",
    )
    include_teacher: bool = pydantic.Field(
        True, description="also write the teacher beside its student, so that benchmark can time it"
    )
    variants: tuple[Variant, ...] = pydantic.Field(
        default=(),
        description="smaller variants to try (float16,int8): each is kept if it is faster here and does "
        "as well",
    )
    licence: str = pydantic.Field(
        default="",
        max_length=2000,
        description="licence of the file: an SPDX expression or free text; empty: no statement",
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
        settings, context: of the stage.
        source: the student to export, or a teacher; an exported teacher is never the newest policy.
        teacher: the student's teacher; None looks for the one that the student's manifest names.
        dataset: more states to compare on; None looks for the one that the student was distilled from.

    Raises:
        UserError: the file does not do what the network does, or the artifacts do not belong together.
    """
    console, seed = context.console, settings.seed
    trained, device = load_actor(source), resolve_device(settings.device, console)
    if source.kind == "student" and settings.include_teacher:
        teacher = _parent(source, "teacher", teacher, context)
    else:
        teacher = None
    dataset = _parent(source, "dataset", dataset, context)
    found = {"teacher": teacher, "dataset": dataset, source.kind: source}
    parents = {role: artifact for role, artifact in found.items() if artifact is not None}
    with context.stage(
        "policy",
        "export-onnx",
        task=trained.task.name,
        settings=settings,
        parents=parents,
        selectable=source.kind == "student" and source.manifest.selectable,
    ) as work:
        artifact = work.artifact
        keep_task(trained.task, artifact, console)
        work.note_device(device)
        if trained.on_another_model:
            console.warn(
                f"{source.name} was trained on another model of task {trained.task.name!r}, by an earlier "
                "version or another MuJoCo: what the file says of its success is of the model here."
            )
        console.say(f"Exporting {source.name}: depth {trained.shape.depth}, width {trained.shape.width}.")

        # What torch reaches in closed loop, and the states to compare on.
        def look(trained: TrainedActor) -> tuple[Episodes, GateStates]:
            reference, states = roll_out(
                trained,
                episodes=settings.closed_loop_episodes,
                num_states=settings.gate_states,
                seed=seed,
                device=device,
            )
            if dataset is not None:
                states = add_dataset_states(
                    states, dataset, trained.task, num_states=settings.gate_states, seed=seed
                )
            return reference, states

        reference, states = look(trained)

        # The file. It is kept if it passes both gates, with the figures of the second inside.
        path = artifact.file(POLICY_FILE)
        export = Export(source, trained, states, settings.opset, settings.licence)
        with atomic_file(path) as temporary:
            policy = export.draft(temporary)
            export.compare_actions(settings.max_action_error)
            outcome = compare_closed_loop(
                policy, trained.task, reference, seed=seed, max_difference=settings.max_success_difference
            )
            summary = outcome.summary()
            levels = None
            if settings.robustness_episodes:
                card = robustness.measure_robustness(
                    policy, trained.task, settings.robustness_episodes, seed, console
                )
                if card is not None:
                    levels = [RobustnessLevel.model_validate(level.record()) for level in card]
                    robustness.keep(artifact, card, artifact_facts(artifact, of=source))
                    summary["robustness"] = robustness.first_failures(card)
            evaluation = Evaluation.model_validate(summary | {"runtime": "onnxruntime"})
            export.finish(evaluation, export.error.allowed, levels)
        results = summary | {
            "depth": trained.shape.depth,
            "width": trained.shape.width,
            "torch_success": float(reference.success.mean()),
            "same_outcome": float((outcome.success == reference.success).mean()),
            "gate_states": dict(states.counts),
            "opset": settings.opset,
            **export.figures(path),
        }
        if abs(results["success"] - results["torch_success"]) > settings.max_success_difference:
            console.warn(
                f"The file reached {results['success']:.3f} of the goals, torch "
                f"{results['torch_success']:.3f}: {results['episodes']} episodes are too few to tell that "
                "from chance, and the actions agree. Compare over more with --set closed_loop_episodes=."
            )

        # Its variants. A refused one fails nothing.
        if settings.variants:
            results["variants"] = {}
        for variant in settings.variants:
            trial = try_variant(variant, artifact.file(VARIANT_FILES[variant]), export, seed)
            console.say(trial.sentence())
            results["variants"][variant] = trial.record()

        # The teacher beside it. It is there to be timed: its success is the one on record.
        if teacher is not None:
            console.say(f"Beside it, to be timed: {teacher.name}.")
            path, evaluation = artifact.file(TEACHER_FILE), None
            teachers = load_actor(teacher)
            if trained.task.is_student_view:  # the states are what the student sees
                states = look(teachers)[1]
            export = Export(teacher, teachers, states, settings.opset, settings.licence)
            if (
                not export.trained.on_another_model
            ):  # the file names the model at hand, the record is of the other
                with contextlib.suppress(pydantic.ValidationError):  # a record without an evaluation
                    evaluation = Evaluation.model_validate(teacher.manifest.results | {"runtime": "torch"})
            with atomic_file(path) as temporary:
                export.draft(temporary)
                export.compare_actions(settings.max_action_error)
                export.finish(evaluation, export.error.allowed)
            results["teacher"] = {"name": teacher.name, **export.figures(path)}

        # The record of it all, in the workspace and in MLflow.
        results |= random_record(source.manifest.results)
        artifact.complete(results)
        work.log_headline({"policy_success": results["success"]})
        work.run.log_metrics(grouped(results, "export"), step=0)
        work.log_files(POLICY_FILE, TEACHER_FILE, *VARIANT_FILES.values(), *robustness.FILES, "manifest.json")
        register_policy(work, OnnxPolicy(artifact.file(POLICY_FILE)), parents)
        low, high = results["success_interval"]
        console.say(
            f"Policy {artifact.name}: {results['bytes'] / 1e6:.2f} MB, off torch by at most "
            f"{results['max_action_error']:.1e} in {sum(states.counts.values()):,} states (allowed "
            f"{results['allowed_action_error']:.1e}); success {results['success']:.3f} "
            f"[{low:.3f}, {high:.3f}], torch {results['torch_success']:.3f}, over the same "
            f"{results['episodes']} episodes."
        )
        warn_of_chance(console, artifact, source)
        return artifact


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
