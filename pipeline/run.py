"""The whole chain as one run: teacher, dataset, student, policy, benchmark."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from pipeline.core.artifacts import Artifact
from pipeline.core.console import figure
from pipeline.core.runtime import StageContext
from pipeline.core.settings import StageSettings, split_overrides
from pipeline.session import CommonOptions

SECTIONS = ("train_teacher", "generate_dataset", "distill", "export_onnx", "benchmark")


@dataclass
class _Timed:
    """An artifact and the seconds that its stage took."""

    artifact: Artifact
    seconds: float


def resolve_chain(common: CommonOptions) -> dict[str, StageSettings]:
    """Return the settings of every stage of the chain, by section.

    Raises:
        SettingsError: an unknown stage, key or value.
    """
    from stages import benchmark, distill, export_onnx, generate_dataset, train_teacher

    classes: dict[str, type[StageSettings]] = {
        "train_teacher": train_teacher.TrainTeacherSettings,
        "generate_dataset": generate_dataset.GenerateDatasetSettings,
        "distill": distill.DistillSettings,
        "export_onnx": export_onnx.ExportOnnxSettings,
        "benchmark": benchmark.BenchmarkSettings,
    }
    overrides = split_overrides(common.overrides, classes)
    return {
        section: replace(common, overrides=overrides[section]).resolve(cls, section)
        for section, cls in classes.items()
    }


def run_chain(settings: dict[str, Any], context: StageContext) -> dict[str, Artifact]:
    """Run every stage under one parent run in the tracking store; return the artifacts by section."""
    from stages import benchmark, distill, export_onnx, generate_dataset, train_teacher

    task = settings["train_teacher"].task
    chain = context.tracker.open_chain(f"chain on {task}", {"task": task})
    context = replace(context, chain_run_id=chain)
    made: dict[str, _Timed] = {}
    succeeded = False

    def stage(section: str, module: Any, *sources: Artifact) -> Artifact:
        context.console.say(f"\n[{len(made) + 1}/{len(SECTIONS)}] {section.replace('_', '-')}")
        started = time.perf_counter()
        artifact = module.run(settings[section], context, *sources)
        made[section] = _Timed(artifact, time.perf_counter() - started)
        return artifact

    try:
        teacher = stage("train_teacher", train_teacher)
        dataset = stage("generate_dataset", generate_dataset, teacher)
        student = stage("distill", distill, teacher, dataset)
        policy = stage("export_onnx", export_onnx, student, teacher, dataset)
        stage("benchmark", benchmark, policy)
        succeeded = True
    finally:
        context.tracker.close_chain(chain, ok=succeeded)
    _summarise(made, context)
    return {section: timed.artifact for section, timed in made.items()}


def _summarise(made: dict[str, _Timed], context: StageContext) -> None:
    """Print what each stage made, what it reached and how long it took."""
    teacher, dataset, student, policy, latency = (made[name].artifact.manifest.results for name in SECTIONS)
    reached = {
        "train_teacher": f"success {figure(teacher['success'])}",
        "generate_dataset": f"{figure(dataset['rows'])} transitions",
        "distill": f"success {figure(student['success'])}, retention {figure(student['retention'])}",
        "export_onnx": f"success {figure(policy['success'])}",
        "benchmark": f"p50 {latency['student']['p50_us']:.0f} µs, p99 {latency['student']['p99_us']:.0f} µs",
    }
    rows = [
        (
            section.replace("_", "-"),
            made[section].artifact.name,
            reached[section],
            f"{made[section].seconds:.0f}",
        )
        for section in SECTIONS
    ]
    context.console.say("")
    context.console.table("Chain", ("stage", "artifact", "reached", "seconds"), rows)
    context.console.say(f"Policy file: {made['export_onnx'].artifact.file('policy.onnx')}")
    context.console.say("Look at every run with: pipeline ui")
