"""The stages of a chain, the kind of artifact that each makes, and their settings."""

from __future__ import annotations

from thousandfold.pipeline.settings import StageSettings

KIND_OF_SECTION = {
    "train_teacher": "teacher",
    "generate_dataset": "dataset",
    "distill": "student",
    "export_onnx": "policy",
    "benchmark": "benchmark",
    "render": "rendering",
    "report": "report",
}
SECTIONS = tuple(KIND_OF_SECTION)


def settings_classes() -> dict[str, type[StageSettings]]:
    """Return the settings of each stage by its section; the stages are imported here."""
    from thousandfold.stages.benchmark import benchmark
    from thousandfold.stages.closed_loop import render
    from thousandfold.stages.dataset import generate_dataset
    from thousandfold.stages.distill import distill
    from thousandfold.stages.export_onnx import export_onnx
    from thousandfold.stages.report import report
    from thousandfold.stages.train_teacher import train_teacher

    return {
        "train_teacher": train_teacher.TrainTeacherSettings,
        "generate_dataset": generate_dataset.GenerateDatasetSettings,
        "distill": distill.DistillSettings,
        "export_onnx": export_onnx.ExportOnnxSettings,
        "benchmark": benchmark.BenchmarkSettings,
        "render": render.RenderSettings,
        "report": report.ReportSettings,
    }


def settings_by_kind() -> dict[str, type[StageSettings]]:
    """Return the settings of each kind of artifact that a chain makes."""
    return {KIND_OF_SECTION[section]: cls for section, cls in settings_classes().items()}
