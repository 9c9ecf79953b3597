"""The chain as one run, from the teacher to the report of all; a killed one can go on."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydantic

from thousandfold.envs.registry import compile_task, get_task
from thousandfold.ground.errors import (
    BAD_CONTENT,
    DamagedFileError,
    MissingArtifactError,
    SettingsError,
    StoppedByUser,
    TargetMissedError,
    nearest_name,
)
from thousandfold.ground.files import FORMAT_VERSION, read_sealed_json, write_sealed_json
from thousandfold.pipeline.artifact_task import own_task
from thousandfold.pipeline.artifacts import MANIFEST_NAME, Artifact
from thousandfold.pipeline.console import figure, short
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.session import CommonOptions
from thousandfold.pipeline.settings import StageSettings, dump_settings, split_overrides
from thousandfold.pipeline.tracking import NOTE_TAG
from thousandfold.pipeline.tracking_store import UNTRACKED
from thousandfold.stages.networks import settled_critic_goals
from thousandfold.stages.random_baseline import no_better_than_random
from thousandfold.stages.stage_settings import KIND_OF_SECTION, SECTIONS, settings_by_kind, settings_classes


@dataclass
class ChainRecord:
    """What a chain has made so far, in `runs/chain-<time>.json`, sealed as a manifest is.

    Attributes:
        settings: resolved, by section.
        chain_run_id: the parent run in the tracking store.
        teacher, dataset, student: name of the artifact, from the moment its making begins.
        done: names of the completed artifacts by section.
        seconds: how long each of them took.
    """

    settings: dict[str, dict[str, Any]]
    format_version: int = FORMAT_VERSION
    chain_run_id: str | None = None
    teacher: str | None = None
    dataset: str | None = None
    student: str | None = None
    done: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    completed: bool = False
    seal: str | None = None


def resolve_chain(common: CommonOptions, task: str | None = None) -> dict[str, StageSettings]:
    """Return the settings of every stage of the chain, by section.

    `task` is the teacher's, by name or file; None: that of the preset.

    Raises:
        SettingsError: an unknown stage, key or value, or a stage that asks a critic that the teacher has not.
    """
    classes = settings_classes()
    overrides = split_overrides(common.overrides, classes)
    flags = {"train_teacher": {"task": task}}
    found = {
        section: replace(common, overrides=overrides[section]).resolve(cls, section, flags.get(section))
        for section, cls in classes.items()
    }
    values = {section: settings.model_dump() for section, settings in found.items()}
    teacher = values["train_teacher"]
    asks = {
        "generate_dataset.teacher_samples=1": values["generate_dataset"]["teacher_samples"] > 1,
        "distill.objective=mse": values["distill"]["objective"] == "critic",
    }
    for instead in (setting for setting, asked in asks.items() if asked):
        # Told now, and not once the teacher is trained.
        if teacher["critic"] != "contrastive":
            raise SettingsError(
                f"A critic of temporal differences cannot choose or judge actions: set {instead}, or "
                "train_teacher.critic=contrastive."
            )
        own = compile_task(teacher["task"])
        critic_goals = settled_critic_goals(teacher["critic_goals"], own)
        if critic_goals == "relative" and own.achieved_in_observation() is None:
            raise SettingsError(
                f"The observation of {own.name} does not contain the achieved goal, which a critic with "
                f"relative goals needs to judge actions: set {instead}, or "
                "train_teacher.critic_goals=absolute."
            )
    return found


def start_chain(
    settings: dict[str, StageSettings], context: StageContext, min_success: float | None = None
) -> dict[str, Artifact]:
    """Run every stage under one parent run in the tracking store; return the artifacts by section.

    Raises:
        TargetMissedError: the teacher's success is below `min_success`.
    """
    record = ChainRecord({section: dump_settings(values) for section, values in settings.items()})
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    return _Chain(record, settings, context.workspace.runs / f"chain-{stamp}.json", context).run(min_success)


def resume_chain(
    context: StageContext, reference: str | None = None, min_success: float | None = None
) -> dict[str, Artifact]:
    """Go on with a chain that was not completed.

    `reference` is its name, which its record in `runs/` has; None: the newest.

    Raises:
        TargetMissedError: the teacher's success is below `min_success`.
        SettingsError: there is none, or the one named is completed.
        MissingArtifactError: there is no chain of that name.
        DamagedFileError: its record cannot be read, or was changed since it was written.
    """
    runs = context.workspace.runs
    names = [path.stem for path in sorted(runs.glob("chain-*.json"), reverse=True)]
    if reference is not None and reference.removesuffix(".json") not in names:
        nearest = nearest_name(reference, names)
        hint = f"did you mean {nearest}?" if nearest else "start one with `pipeline run`."
        raise MissingArtifactError(f"No chain {reference!r} in {runs}: {hint}")
    for name in names if reference is None else [reference.removesuffix(".json")]:
        record, settings = _read_record(runs / f"{name}.json")
        if not record.completed:
            context.console.say(f"Continuing {name}.")
            if record.seal is None:
                context.console.warn(
                    f"{runs / name}.json is unsealed, made by an earlier version: it is taken as it is."
                )
            return _Chain(record, settings, runs / f"{name}.json", context).run(min_success)
    if reference is not None:
        raise SettingsError(f"Chain {reference} is completed: there is nothing to resume.")
    raise SettingsError(f"No unfinished chain in {runs} to resume: start one with `pipeline run`.")


def _read_record(path: Path) -> tuple[ChainRecord, dict[str, StageSettings]]:
    """Return a chain's record and its settings, a user's task as the teacher's copy of it.

    Raises:
        DamagedFileError: it cannot be read, or was changed since it was written.
        SettingsError: there is no copy yet, and the user's file is gone.
    """
    content = read_sealed_json(path, "a chain record", "restore it, or delete it and run again")
    try:
        record = ChainRecord(**content)
        pydantic.TypeAdapter(ChainRecord).validate_python(content)  # an unsealed one may hold anything
        for section in ("render", "report"):  # chains that began before these were parts of one
            record.settings.setdefault(section, {})
        training, teacher = record.settings["train_teacher"], path.parent / (record.teacher or "")
        if record.teacher and (teacher / MANIFEST_NAME).is_file():
            training["task"] = own_task(Artifact.load(teacher)) or training["task"]
        if Path(training["task"]).is_absolute() and not Path(training["task"]).is_file():
            raise SettingsError(
                f"The chain's task {training['task']} is gone: put it back, or start another chain with "
                "`pipeline run`."
            )
        classes = settings_classes()
        return record, {name: cls.stored(record.settings[name]) for name, cls in classes.items()}
    except BAD_CONTENT as error:
        raise DamagedFileError(
            f"{path} is damaged or not a chain record: restore it, or delete it and run again."
        ) from error


class _Chain:
    """A chain under way, whose record lies at `path`."""

    def __init__(
        self, record: ChainRecord, settings: dict[str, Any], path: Path, context: StageContext
    ) -> None:
        self._record, self._settings, self._path = record, settings, path
        if record.chain_run_id is None:
            teacher, student = settings["train_teacher"], settings["distill"]
            task = get_task(teacher.task).name
            sizes = f"{teacher.depth}×{teacher.width} to {student.student_depth}×{student.student_width}"
            note = _description(settings, task, path.stem)
            tags = {"task": task, "chain": path.stem, NOTE_TAG: note}
            # The sizes first: MLflow's table shows the beginning of a name, and its search knows the task.
            record.chain_run_id = context.tracker.open_chain(f"{sizes}, {task}", tags)
        self._context = replace(context, chain_run_id=record.chain_run_id, chain=path.stem)
        self._save()

    def run(self, min_success: float | None = None) -> dict[str, Artifact]:
        """Run the stages that are not done; return the artifacts of all."""
        from thousandfold.stages.benchmark import benchmark
        from thousandfold.stages.dataset import generate_dataset
        from thousandfold.stages.distill import distill
        from thousandfold.stages.export_onnx import export_onnx
        from thousandfold.stages.report import report
        from thousandfold.stages.train_teacher import train_teacher

        ended_by: BaseException | None = None
        try:
            teacher = self._stage("train_teacher", train_teacher, *self._begun("train_teacher"))
            success = teacher.manifest.results["success"]
            if min_success is not None and success < min_success:
                raise TargetMissedError(
                    f"Teacher {teacher.name} reaches {figure(success)} of its goals, below --min-success "
                    f"{min_success:g}: the chain stops after it. "
                    f"Go on all the same with: {self._context.resume_command()}"
                )
            begun = self._begun("generate_dataset")
            dataset = self._stage("generate_dataset", generate_dataset, teacher, *begun)
            student = self._stage("distill", distill, teacher, dataset, *self._begun("distill"))
            policy = self._stage("export_onnx", export_onnx, student, teacher, dataset)
            latency = self._stage("benchmark", benchmark, policy)
            video = self._render(policy)
            page = self._stage("report", report, policy, settings_by_kind())
            self._record.completed = True
            self._save()
        except BaseException as error:
            ended_by = error
            if isinstance(error, KeyboardInterrupt):
                raise StoppedByUser(f"Stopped. Continue with: {self._context.resume_command()}") from None
            raise
        finally:
            self._context.tracker.close_chain(self._record.chain_run_id, ended_by)
        stages = zip(SECTIONS, (teacher, dataset, student, policy, latency, video, page), strict=True)
        made = {section: artifact for section, artifact in stages if artifact is not None}
        note = _description(self._settings, teacher.manifest.task, self._path.stem)
        _summarise(made, self._record.seconds, self._context, note)
        return made

    def _begun(self, section: str) -> tuple[Artifact | None, Callable[[Artifact], None]]:
        """Return the artifact to go on with, if any, and what remembers the name of a new one."""
        record, kind, known = self._record, KIND_OF_SECTION[section], None
        if (name := getattr(record, kind)) and section not in record.done:
            with contextlib.suppress(MissingArtifactError):  # the user removed it: make another
                known = self._context.workspace.find(name, kind)
        if known is not None and known.is_completed:  # cut off before it was noted as done
            record.done[section] = known.name
            record.seconds[section] = float(known.manifest.results.get("elapsed_s") or 0.0)

        def remember(artifact: Artifact) -> None:
            setattr(record, kind, artifact.name)
            self._save()

        return known, remember

    def _stage(self, section: str, module: Any, *sources: Any) -> Artifact:
        """Run one stage, or take what it made before the chain was cut off."""
        number, command = SECTIONS.index(section) + 1, section.replace("_", "-")
        self._context.console.say(f"\n[{number}/{len(SECTIONS)}] {command}")
        if name := self._record.done.get(section):
            workspace, kind = self._context.workspace, KIND_OF_SECTION[section]
            try:
                artifact = workspace.open(name, kind)
            except MissingArtifactError:
                raise MissingArtifactError(
                    f"The chain's {kind} {name} is not in {workspace.runs}: put it back, or start another "
                    "chain with `pipeline run`."
                ) from None
            self._context.console.say(f"Done before: {artifact.name}.")
            return artifact
        started = time.perf_counter()
        artifact = module.run(self._settings[section], self._context, *sources)
        self._record.done[section] = artifact.name
        self._record.seconds[section] = time.perf_counter() - started
        self._save()
        return artifact

    def _render(self, policy: Artifact) -> Artifact | None:
        """Draw and record episodes of the policy; where no video can be made, say why and record alone."""
        from thousandfold.envs.pictures.opengl import NoOpenGLError
        from thousandfold.stages.closed_loop import render
        from thousandfold.stages.videos import VideoError

        try:
            return self._stage("render", render, policy)
        except (NoOpenGLError, VideoError) as error:
            self._context.console.say(f"No video is made: {error}")
            self._settings["render"] = settings = self._settings["render"].model_copy(update={"video": False})
            return self._stage("render", render, policy) if settings.recorded_goals else None

    def _save(self) -> None:
        self._record.format_version = FORMAT_VERSION
        write_sealed_json(self._path, asdict(self._record))


def _description(settings: dict[str, Any], task: str, chain: str) -> str:
    """Return what MLflow's page says of a chain's run when it begins."""
    teacher, student = settings["train_teacher"], settings["distill"]
    return (
        f"A teacher of {teacher.depth} layers of width {teacher.width} for task {task}, distilled into "
        f"{student.student_depth} layers of width {student.student_width}. Its record is "
        f"`runs/{chain}.json` of the workspace."
    )


def _summarise(
    made: dict[str, Artifact], seconds: dict[str, float], context: StageContext, note: str
) -> None:
    """Print what each stage made, what it reached and how long it took; add it to the run's description."""
    results = {section: artifact.manifest.results for section, artifact in made.items()}
    teacher, dataset, student, policy, latency = (results[name] for name in SECTIONS[:5])
    timing = latency["networks"]["student"]["back_to_back"]
    reached = {
        "train_teacher": f"success {figure(teacher['success'])}",
        "generate_dataset": f"{figure(dataset['rows'])} transitions",
        "distill": f"success {figure(student['success'])}, retention {figure(student['retention'])}",
        "export_onnx": f"success {figure(policy['success'])}",
        "benchmark": f"p50 {short(timing['p50_us'])} µs, p99 {short(timing['p99_us'])} µs",
    }
    if video := results.get("render"):
        reached["render"] = (
            f"{video['reached']} of {video['episodes']} episodes drawn reached their goal"
            if "reached" in video
            else f"{video['recorded_reached']} of {video['recorded_goals']} goals recorded were reached"
        )
    reached["report"] = f"{results['report']['bytes'] / 2**20:.1f} MiB"
    for section in reached:
        if no_better_than_random(made[section].manifest.results):
            reached[section] += " (no better than random)"
    rows = [
        (section.replace("_", "-"), made[section].name, reached[section], f"{seconds[section]:.0f}")
        for section in reached
    ]
    columns = ("stage", "artifact", "reached", "seconds")
    context.console.say("")
    context.console.table("Chain", columns, rows)
    if context.chain_run_id:
        lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
        context.tracker.tag_run(context.chain_run_id, {NOTE_TAG: "\n".join([note, "", *lines])})
    context.console.say(f"Policy file: {made['export_onnx'].file('policy.onnx')}")
    context.console.say(f"Report: {made['report'].file('report.html')}")
    if context.tracker.store_name == UNTRACKED:
        context.console.say("Nothing was recorded in MLflow.")
    else:
        workspace = shlex.quote(str(context.workspace.root))
        context.console.say(f"Every run in MLflow: pipeline --workspace {workspace} ui")
