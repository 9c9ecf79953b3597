"""Choosing a student from a frontier: the smallest that retains enough and answers fast enough.

The best of several students owes some of its figure to luck: the episodes that it was chosen by flatter it.
What is reported of it comes from fresh ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thousandfold.ground.errors import MissingArtifactError, UserError
from thousandfold.pipeline.artifact_task import load_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import figure
from thousandfold.pipeline.runtime import StageContext, resolve_device, seed_sequence
from thousandfold.stages.frontier.table import in_c, read_table
from thousandfold.stages.metric_groups import grouped

FRESH = "fresh_episodes"
"""Under what a chosen student's results have the outcome of the episodes that it was not chosen by."""

_FRESH_STREAM = 17
_LEAST_EPISODES = 1024
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Bounds:
    """What a student must keep to.

    Attributes:
        min_retention: of the teacher's success.
        max_p99_us: of one call on one thread, in microseconds; None: any.
        confident: whether the lower end of the retention's 95 % interval counts instead of its estimate.
    """

    min_retention: float
    max_p99_us: float | None = None
    confident: bool = False

    def retention(self, row: Row) -> float:
        """Return the retention that counts, 0 where it is undefined."""
        if row["retention"] is None:
            return 0.0
        return float(row["retention_interval"][0] if self.confident else row["retention"])

    def retains(self, row: Row) -> bool:
        """Return whether a student retains enough."""
        return self.retention(row) >= self.min_retention

    def is_fast(self, row: Row) -> bool:
        """Return whether a student answers fast enough."""
        return self.max_p99_us is None or row["p99_us"] <= self.max_p99_us


def smallest(rows: Sequence[Row], bounds: Bounds) -> Row:
    """Return the student with the fewest parameters that keeps to the bounds; of two, the faster one.

    Raises UserError that says which bound no student meets, and by how much.
    """
    fitting = [row for row in rows if bounds.retains(row) and bounds.is_fast(row)]
    if not fitting:
        raise UserError(_shortfall(rows, bounds))
    return min(fitting, key=lambda row: (row["parameters"], row["p99_us"]))


def _shortfall(rows: Sequence[Row], bounds: Bounds) -> str:
    """Say which bound no student meets, or that none meets both, and how far the nearest ones are off."""
    if all(row["retention"] is None for row in rows):
        return "No student has a retention: the teacher never reached a goal. Train the teacher longer."
    retaining = [row for row in rows if bounds.retains(row)]
    fast = [row for row in rows if bounds.is_fast(row)]
    if retaining and fast:
        return (
            f"No student meets both bounds: of those within {bounds.max_p99_us:g} µs, {_best(fast, bounds)}; "
            f"of those that retain {bounds.min_retention:g}, {_fastest(retaining, bounds)}."
        )
    missed = []
    if not retaining:
        end = "at the lower end of its interval" if bounds.confident else "of the teacher's success"
        missed.append(f"No student retains {bounds.min_retention:g} {end}: {_best(rows, bounds)}.")
    if not fast:
        missed.append(f"No student has a p99 of {bounds.max_p99_us:g} µs: {_fastest(rows, bounds)}.")
    return " ".join(missed)


def _best(rows: Sequence[Row], bounds: Bounds) -> str:
    row = max(rows, key=bounds.retention)
    reached = bounds.retention(row)
    return f"the best, {row['name']}, has {reached:.4f}, short by {bounds.min_retention - reached:.4f}"


def _fastest(rows: Sequence[Row], bounds: Bounds) -> str:
    row = min(rows, key=lambda row: row["p99_us"])
    over = row["p99_us"] - (bounds.max_p99_us or 0.0)
    return f"the fastest, {row['name']}, takes {row['p99_us']:.1f} µs, too long by {over:.1f} µs"


def select_student(
    frontier: Artifact, bounds: Bounds, context: StageContext, teacher: Artifact | None = None
) -> dict[str, Artifact]:
    """Make the smallest student that keeps to the bounds the newest student, and export it.

    Returns the ``student`` and its ``policy``. `teacher` is the frontier's; None: it is looked for in the
    workspace.

    Raises:
        UserError: no student keeps to the bounds.
        DamagedFileError: a file of the frontier differs from its recorded hash.
    """
    from thousandfold.stages.export_onnx import export_onnx

    table = read_table(frontier)
    row = smallest(table["rows"], bounds)
    context.console.say(
        f"Choosing {row['name']} of {frontier.name}: {row['parameters']:,} parameters, retention "
        f"{_retained(row)}, p99 {row['p99_us']:.3g} µs{' as C' if in_c(table) else ''}."
    )
    source = Artifact.load(frontier.file(row["student"]))
    teacher = teacher or _teacher_of(frontier, context)
    students = (student.manifest.results for student in context.workspace.artifacts("student"))
    before = [results for results in students if results.get("frontier") == frontier.name]
    fresh = None if teacher is None else _run_fresh(source, teacher, row, bounds, context, len(before))
    student = _register(frontier, source, row, fresh, context)
    settings = export_onnx.ExportOnnxSettings(**frontier.manifest.settings["export_onnx"])
    policy = export_onnx.run(settings, context, student, teacher)
    if in_c(table):
        context.console.say(f"Its C code: pipeline policy to-c {policy.name} --out DIR.")
    return {"student": student, "policy": policy}


def _teacher_of(frontier: Artifact, context: StageContext) -> Artifact | None:
    """Return the frontier's teacher; None, with a warning, where the workspace has it no more."""
    recorded = frontier.manifest.parents["teacher"]
    try:
        teacher = context.workspace.open(recorded.name, "teacher")
        if teacher.manifest.hash == recorded.hash:
            return teacher
        why = f"{teacher.name} is another one now"
    except MissingArtifactError:
        why = f"{recorded.name} is not in {context.workspace.runs}"
    context.console.warn(
        f"no fresh episodes without the teacher ({why}; give --teacher): the retention is that of the "
        "episodes that the student was chosen by, which flatter it."
    )
    return None


def _run_fresh(
    student: Artifact, teacher: Artifact, row: Row, bounds: Bounds, context: StageContext, choice: int
) -> dict[str, Any]:
    """Run paired episodes that nothing was chosen by, say what is retained over them and return it.

    Every choice from a frontier has episodes of its own: who chooses again because of the last ones would be
    choosing by them.
    """
    from thousandfold.stages.distill.retention import EpisodeBudget, run_pairs
    from thousandfold.stages.distill.settings import DistillSettings
    from thousandfold.stages.episodes import EpisodeStream
    from thousandfold.stages.networks import load_actor, torch_policy

    settings = DistillSettings(**student.manifest.settings)
    device, seed = resolve_device(settings.device, context.console), [settings.seed, _FRESH_STREAM, choice]

    def stream(artifact: Artifact) -> EpisodeStream:
        trained = load_actor(artifact)
        policy = torch_policy(trained.actor.to(device), device)
        return EpisodeStream(trained.task, policy, seed=seed_sequence(*seed))

    least, most = (max(_LEAST_EPISODES, n) for n in (settings.final_episodes, settings.max_final_episodes))
    budget = EpisodeBudget(least, most, settings.interval_half_width)
    results = run_pairs(stream(teacher), stream(student), budget).results()
    results["evaluation_seed"] = seed
    context.console.say(
        f"Over {results['episodes']:,} fresh episodes {row['name']} has success {figure(results['success'])} "
        f"beside the teacher's {figure(results['teacher_success'])}: retention {_retained(results)}."
    )
    if not bounds.retains(results):
        context.console.warn(
            f"that is below the {bounds.min_retention:g} asked for: {row['name']} was chosen with some luck. "
            f"Ask for more{'' if bounds.confident else ', or give --confident'}."
        )
    return results


def _retained(row: Row) -> str:
    if row["retention"] is None:
        return "undefined (the teacher never reached a goal)"
    return f"{figure(row['retention'])} {figure(row['retention_interval'])}"


def _register(
    frontier: Artifact, source: Artifact, row: Row, fresh: dict[str, Any] | None, context: StageContext
) -> Artifact:
    """Copy a student into the workspace, as its newest, and into the registry of models."""
    from thousandfold.stages.network_model import register_network

    chain = frontier.manifest.tracking.get("chain_run_id")
    tags = {"task": frontier.manifest.task, "frontier": frontier.name, "cell": row["name"]}
    with context.tracker.stage("frontier-select", name=source.name, chain_run_id=chain, tags=tags) as run:
        student = context.workspace.adopt(
            source,
            results={"frontier": frontier.name, FRESH: fresh},
            tracking={
                "run_id": run.run_id,
                "chain_run_id": chain,
                "own_chain": False,
                "store": context.tracker.store_name,
            },
        )
        run.log_chain_settings({"distill": student.manifest.settings})
        headline = {f"student_{name}": row[name] for name in ("success", "retention")}
        run.log_headline(headline | {"student_parameters": row["parameters"]})
        run.log_metrics(grouped(row, "student"), step=0)
        numbers = {k: float(v) for k, v in (fresh or {}).items() if isinstance(v, int | float)}
        run.log_metrics({f"fresh/{name}": value for name, value in numbers.items()}, step=0)
        register_network(run, student, load_task(student).student_view, tags)
    return student
