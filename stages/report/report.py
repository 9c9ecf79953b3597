"""One page of HTML for a whole chain: what was trained, what was kept, how fast it is, where it comes from.

The page needs nothing but itself: pictures and videos are inside, charts are SVG, and there is no script.
"""

from __future__ import annotations

from pathlib import Path

import pydantic

from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.ground.files import write_atomic
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import figure
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import StageSettings
from thousandfold.stages.random_baseline import no_better_than_random
from thousandfold.stages.report.chain import Chain, collect_chain
from thousandfold.stages.report.latency import BENCHMARK_FILE, latency_section, policy_timing
from thousandfold.stages.report.lineage import SettingsClasses, lineage_section, settings_section
from thousandfold.stages.report.page import Headline, Page, ReportFiles, render
from thousandfold.stages.report.sections import (
    Sources,
    data_section,
    failures_section,
    learning_section,
    network_size,
    retention_section,
    rollouts_section,
    trained_section,
)

REPORT_FILE = "report.html"


class ReportSettings(StageSettings):
    """Settings of `pipeline report`."""

    max_file_mib: float = pydantic.Field(
        default=8.0, gt=0, le=1024, description="largest picture or video that goes into the page, in MiB"
    )


def run(
    settings: ReportSettings,
    context: StageContext,
    source: Artifact,
    classes: SettingsClasses,
    output: Path | None = None,
) -> Artifact:
    """Write the report of the chain that an artifact belongs to, and return the report's artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        source: a policy, a student or a teacher; see `collect_chain`.
        classes: settings of each kind of artifact, to tell what is not at its default.
        output: a file that gets a copy of the page; None: there is none but the artifact's.

    Raises:
        DamagedFileError: a manifest of the chain was changed, or unsealed ones say what no stage wrote.
        UserError: the copy cannot be written.
    """
    _require_writable(output)
    chain = collect_chain(context.workspace, source)
    parents = {artifact.kind: artifact for artifact in chain.main.values()}
    task = source.manifest.task
    with context.stage("report", "report", task=task, settings=settings, parents=parents) as work:
        files = ReportFiles(round(settings.max_file_mib * 2**20))
        try:
            page = make_page(Sources(chain, files), classes)
            content = render(page).encode()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            unsealed = [each.name for each in chain.artifacts() if each.manifest.seal is None]
            if not unsealed:
                raise
            raise DamagedFileError(
                f"No report can be made of what the manifests say ({type(error).__name__}: {error}). Those "
                f"of {', '.join(unsealed)} are unsealed, and may have been changed: restore them, or make "
                "these artifacts again."
            ) from error
        artifact = work.artifact
        write_atomic(artifact.file(REPORT_FILE), content)
        artifact.complete({"bytes": len(content), "sections": len(page.sections), "notes": list(page.notes)})
        work.run.log_metrics({"bytes": len(content), "left_out": len(page.notes)}, step=0)
        work.log_files("manifest.json")
        context.tracker.log_chain_file(work.run.chain_run_id, artifact.file(REPORT_FILE))
        if output is not None:
            write_atomic(output, content)
        for note in page.notes:
            context.console.warn(note)
        place = output or artifact.file(REPORT_FILE)
        context.console.say(f"Report {artifact.name}: {len(content) / 2**20:.1f} MiB in {place}")
    return artifact


def _require_writable(output: Path | None) -> None:
    """Raise UserError where the copy has no place, before anything is made."""
    if output is None:
        return
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file in it, such as {output / REPORT_FILE}.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}; make it first.")


def make_page(sources: Sources, classes: SettingsClasses) -> Page:
    """Return the page of a chain."""
    chain = sources.chain
    task = chain.end.manifest.task
    sections = [
        trained_section(sources),
        learning_section(sources),
        data_section(sources),
        retention_section(sources),
        rollouts_section(sources),
        failures_section(sources),
        latency_section(sources),
        lineage_section(chain),
        settings_section(chain, classes),
    ]
    headlines = [_success(chain), _retention(chain), _latency(sources)]
    end = chain.end
    footer = f"Made from {end.kind} {end.name}, hash {str(end.manifest.hash)[:16]}."
    notes = [*chain.problems, *_damage_of_policy(chain), *_chance(chain), *sources.files.notes]
    notes = list(dict.fromkeys(notes))
    return Page(task, _verdict(sources), headlines, sections, footer, notes)


def _damage_of_policy(chain: Chain) -> list[str]:
    """Return a line for each file of the policy that is not what was exported; the page shows none."""
    policy = chain.get("policy")
    return [] if policy is None else [f"{path.name} of {policy.name} {why}." for path, why in policy.damage()]


def _chance(chain: Chain) -> list[str]:
    """Return one line on the artifacts of the chain that are no better than random actions."""
    found = [chain.get(kind) for kind in ("teacher", "dataset", "student", "policy")]
    said = [
        f"{artifact.kind} {artifact.name} {words}"
        for artifact in found
        if artifact is not None and (words := no_better_than_random(artifact.manifest.results))
    ]
    return [f"Nothing was learned here: {'; '.join(said)}."] if said else []


def _verdict(sources: Sources) -> str:
    """Return one sentence on what came of the chain, of what was measured and nothing else."""
    chain = sources.chain
    parts = []
    teacher, student = chain.get("teacher"), chain.get("student")
    if teacher is not None:
        size = network_size(teacher)
        layers = f"teacher of {size[0]:,} layers" if size else "teacher"
        # Beside the student's: retention is a share of that, not of another evaluation.
        success = student.manifest.results.get("teacher_success") if student is not None else None
        success = teacher.manifest.results.get("success") if success is None else success
        parts.append(f"A {layers} reaches {_percent(success)} of its goals")
    if student is not None:
        size = network_size(student)
        layers = f"student of {size[0]:,} layers" if size else "student"
        retention = student.manifest.results.get("retention")
        kept = "has nothing to retain" if retention is None else f"keeps {_percent(retention)} of that"
        parts.append(f"{'its' if parts else 'A'} {layers} {kept}")
    timing = _policy_timing(sources)
    if timing is not None:
        parts.append(f"the exported file answers in {timing['p50_us']:.3g}\N{NO-BREAK SPACE}µs")
    if not parts:
        return "Nothing of this chain could be read."
    return f"{parts[0]}." if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}."


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _success(chain: Chain) -> Headline:
    """Return the success of what was made last: the file, else the student, else the teacher."""
    names = {"policy": "of the ONNX file", "student": "of the student", "teacher": "of the teacher"}
    for kind, whose in names.items():
        artifact = chain.get(kind)
        results = artifact.manifest.results if artifact else {}
        if results.get("success") is not None:
            note = f"{whose}, {figure(results.get('episodes'))} fresh episodes"
            return Headline("Success", figure(float(results["success"])), _interval(results, "success"), note)
    return Headline("Success", None, "", "not measured")


def _retention(chain: Chain) -> Headline:
    student = chain.get("student")
    if student is None:
        return Headline("Retention", None, "", "no student: `pipeline distill`")
    results = student.manifest.results
    if results.get("retention") is None:
        return Headline("Retention", None, "", "undefined: the teacher has no success to retain")
    note = f"of the teacher’s success, {figure(results.get('episodes'))} paired episodes"
    return Headline("Retention", figure(float(results["retention"])), _interval(results, "retention"), note)


def _interval(results: dict[str, object], name: str) -> str:
    interval = results.get(f"{name}_interval")
    return figure(list(interval)) if isinstance(interval, list | tuple) else ""


def _latency(sources: Sources) -> Headline:
    timing = _policy_timing(sources)
    if timing is None:
        return Headline("Latency", None, "", "not measured: `pipeline benchmark`")
    report = sources.files.read_json(sources.chain.main["benchmark"], BENCHMARK_FILE)
    speedup = report.get("speedup")
    beside = f"{speedup:.3g} times as fast as the teacher, " if speedup else ""
    return Headline("Latency", f"{timing['p50_us']:.1f}", "µs p50", f"{beside}p99 {timing['p99_us']:.1f} µs")


def _policy_timing(sources: Sources) -> dict[str, float] | None:
    benchmark = sources.chain.get("benchmark")
    report = sources.files.read_json(benchmark, BENCHMARK_FILE) if benchmark else None
    timing = policy_timing(report) if isinstance(report, dict) else None
    return dict(timing) if timing else None
