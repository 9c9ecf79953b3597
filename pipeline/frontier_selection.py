"""Choosing a student from a frontier: the smallest that retains enough and answers fast enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.artifacts import Artifact
from pipeline.core.errors import UserError
from pipeline.core.runtime import StageContext
from pipeline.frontier_table import read_table

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


def select(frontier: Artifact, bounds: Bounds, context: StageContext) -> dict[str, Artifact]:
    """Make the smallest student that keeps to the bounds the newest student, and export it.

    Args:
        frontier: a completed one.
        bounds: what the student must keep to.
        context: workspace, console and tracking.

    Returns:
        The ``student`` and its ``policy``.

    Raises:
        UserError: no student keeps to the bounds.
        DamagedFileError: a file of the frontier differs from its recorded hash.
    """
    from stages import export_onnx

    table = read_table(frontier)
    row = smallest(table["rows"], bounds)
    context.console.say(
        f"Choosing {row['name']} of {frontier.name}: {row['parameters']:,} parameters, retention "
        f"{row['retention']:.3f} [{', '.join(f'{end:.3f}' for end in row['retention_interval'])}], "
        f"p99 {row['p99_us']:.3g} µs."
    )
    student = _register(frontier, row, context)
    settings = export_onnx.ExportOnnxSettings(**frontier.manifest.settings["export_onnx"])
    return {"student": student, "policy": export_onnx.run(settings, context, student)}


def _register(frontier: Artifact, row: Row, context: StageContext) -> Artifact:
    """Copy a student into the workspace, as its newest, and into the registry of models."""
    from stages.network_file import NETWORK_FILE

    chain = frontier.manifest.tracking.get("chain_run_id")
    source = Artifact.load(frontier.file(row["student"]))
    tags = {"task": frontier.manifest.task, "frontier": frontier.name, "cell": row["name"]}
    with context.tracker.stage("frontier-select", name=source.name, chain_run_id=chain, tags=tags) as run:
        student = context.workspace.adopt(
            source,
            results={"frontier": frontier.name},
            tracking={"run_id": run.run_id, "chain_run_id": chain, "own_chain": False},
        )
        run.log_metrics({k: float(v) for k, v in row.items() if isinstance(v, int | float)}, step=0)
        run.register_model(
            f"student-{student.manifest.task}", student.file(NETWORK_FILE), {"artifact": student.name, **tags}
        )
    return student
