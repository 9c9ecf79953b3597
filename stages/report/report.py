"""One page of HTML for a whole chain: what was trained, what was kept, how fast it is, where it comes from.

The page needs nothing but itself: pictures and videos are inside, charts are SVG, one script plays episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.ground.files import write_atomic
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import figure
from thousandfold.pipeline.pictures import network_size
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
    retention_section,
    robustness_section,
    rollouts_section,
    trained_section,
)

REPORT_FILE = "report.html"


class ReportSettings(StageSettings):
    """Settings of `pipeline report`."""

    max_file_mib: float = pydantic.Field(
        default=8.0, gt=0, le=1024, description="largest picture or video that the page includes, in MiB"
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
        source: a policy, a student or a teacher; see `collect_chain`.
        classes: settings of each kind of artifact, to tell what is not at its default.
        output: a file that gets a copy of the page; None: there is none but the artifact's.

    Raises:
        DamagedFileError: a manifest of the chain was changed, or unsealed ones say what no stage wrote.
        UserError: the copy cannot be written.
    """
    if output is not None and output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file in it, such as {output / REPORT_FILE}.")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}; make it first.")
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
                f"The manifests cannot be turned into a report ({type(error).__name__}: {error}). Those "
                f"of {', '.join(unsealed)} are unsealed, and may have been changed: restore them, or make "
                "these artifacts again."
            ) from error
        artifact = work.artifact
        write_atomic(artifact.file(REPORT_FILE), content)
        artifact.complete({"bytes": len(content), "sections": len(page.sections), "notes": list(page.notes)})
        work.run.log_metrics({"report/bytes": len(content), "report/left_out": len(page.notes)}, step=0)
        work.log_files("manifest.json")
        context.tracker.log_chain_file(work.run.chain_run_id, artifact.file(REPORT_FILE))
        if output is not None:
            write_atomic(output, content)
        for note in page.notes:
            context.console.warn(note)
        place = output or artifact.file(REPORT_FILE)
        context.console.say(f"Report {artifact.name}: {len(content) / 2**20:.1f} MiB in {place}")
    return artifact


def make_page(sources: Sources, classes: SettingsClasses) -> Page:
    """Return the page of a chain."""
    chain, end = sources.chain, sources.chain.end
    sections = [
        trained_section(sources),
        learning_section(sources),
        data_section(sources),
        retention_section(sources),
        robustness_section(sources),
        rollouts_section(sources),
        failures_section(sources),
        latency_section(sources),
        lineage_section(chain),
        settings_section(chain, classes),
    ]
    benchmark = chain.get("benchmark")
    report = sources.files.read_json(benchmark, BENCHMARK_FILE) if benchmark else None
    report = report if isinstance(report, dict) else {}
    timing = policy_timing(report)
    notes = chain.problems
    if (policy := chain.get("policy")) is not None:
        notes += [f"{path.name} of {policy.name} {why}." for path, why in policy.damage()]
    by_chance = [
        f"{kind} {artifact.name} {words}"
        for kind in ("teacher", "dataset", "student", "policy")
        if (artifact := chain.get(kind)) and (words := no_better_than_random(artifact.manifest.results))
    ]
    if by_chance:
        notes.append(f"Nothing was learned here: {'; '.join(by_chance)}.")
    notes = list(dict.fromkeys([*notes, *sources.files.notes]))
    footer = f"Made from {end.kind} {end.name}, hash {str(end.manifest.hash)[:16]}."
    headlines = _headlines(chain, timing, report.get("speedup"))
    return Page(end.manifest.task, _verdict(chain, timing), headlines, sections, footer, notes)


def _verdict(chain: Chain, timing: Mapping[str, float] | None) -> str:
    """Return one sentence on what came of the chain, of what was measured and nothing else."""

    def layers(artifact: Artifact) -> str:
        size = network_size(artifact)
        return f"{artifact.kind} of {size[0]:,} layers" if size else artifact.kind

    def percent(share: float | None) -> str:
        return "an unknown share" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"

    parts = []
    teacher, student = chain.get("teacher"), chain.get("student")
    results = student.manifest.results if student is not None else {}
    if teacher is not None:
        # The one beside the student's: retention is a share of that, not of another evaluation.
        success = results.get("teacher_success")
        success = teacher.manifest.results.get("success") if success is None else success
        parts.append(f"A {layers(teacher)} reaches {percent(success)} of its goals")
    if student is not None:
        retention = results.get("retention")
        kept = "has nothing to retain" if retention is None else f"keeps {percent(retention)} of that"
        parts.append(f"{'its' if parts else 'A'} {layers(student)} {kept}")
    if timing is not None:
        parts.append(f"the exported file answers in {timing['p50_us']:.3g}\N{NO-BREAK SPACE}µs")
    if not parts:
        return "Nothing of this chain could be read."
    return f"{parts[0]}." if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}."


def _headlines(chain: Chain, timing: Mapping[str, float] | None, speedup: float | None) -> list[Headline]:
    """Return success, retention and latency."""

    def share(label: str, results: Mapping[str, Any], note: str) -> Headline:
        name = label.lower()
        interval = results.get(f"{name}_interval")
        unit = figure(list(interval)) if isinstance(interval, list | tuple) else ""
        return Headline(label, figure(float(results[name])), unit, note)

    success = Headline("Success", None, "", "not measured")
    for kind, whose in (("teacher", "teacher"), ("student", "student"), ("policy", "ONNX file")):
        artifact = chain.get(kind)  # the last one counts
        if artifact is not None and artifact.manifest.results.get("success") is not None:
            results = artifact.manifest.results
            success = share(
                "Success", results, f"of the {whose}, {figure(results.get('episodes'))} fresh episodes"
            )

    if (student := chain.get("student")) is None:
        retention = Headline("Retention", None, "", "no student: `pipeline distill`")
    elif (results := student.manifest.results).get("retention") is None:
        retention = Headline("Retention", None, "", "undefined: the teacher has no success to retain")
    else:
        episodes = figure(results.get("episodes"))
        retention = share("Retention", results, f"of the teacher’s success, {episodes} paired episodes")

    latency = Headline("Latency", None, "", "not measured: `pipeline benchmark`")
    if timing is not None:
        beside = f"{speedup:.3g} times as fast as the teacher, " if speedup else ""
        note = f"{beside}p99 {timing['p99_us']:.1f} µs"
        latency = Headline("Latency", f"{timing['p50_us']:.1f}", "µs p50", note)
    return [success, retention, latency]
