"""A grid of students from one dataset: distilled side by side, timed one after another, drawn."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.ground.files import write_json_atomic
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console, figure
from thousandfold.pipeline.jobs import Job, cpu_sets, finished, run_jobs
from thousandfold.pipeline.resume import resumable_stage
from thousandfold.pipeline.runtime import StageContext, StageWork, cpu_share, describe_host
from thousandfold.pipeline.session import CommonOptions
from thousandfold.pipeline.settings import StageSettings, dump_settings, resolve_settings, split_overrides
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.frontier.cells import (
    EPISODES_FOLDER,
    TEACHER_FOLDER,
    Cell,
    FrontierPlan,
    FrontierSettings,
    cell_workspace,
    grid,
    require_work,
    teacher_workspace,
)
from thousandfold.stages.frontier.picture import PICTURE_FILE, draw_frontier
from thousandfold.stages.frontier.table import (
    FRONTIER_FILE,
    collect,
    has_latency,
    quality,
    show,
    why_not_in_c,
)
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.policy_file.c_policy import c_compiler
from thousandfold.stages.stage_settings import settings_classes

SECTIONS = ("frontier", "distill", "export_onnx", "benchmark")
# The table has the latency of the file, back to back and at the control rate; `benchmark` has the rest.
_TIMED_OF_A_CELL: dict[str, Any] = {"rates_hz": (), "busy_processes": 0, "cold_starts": 0, "compare": False}
_OF_THE_GRID = {"student_depth": "--depths", "student_width": "--widths"}


def resolve_plan(common: CommonOptions, flags: dict[str, Any]) -> FrontierPlan:
    """Return what a frontier is to be made by.

    Args:
        common: options of the command line; --set takes the stage too, as in ``distill.updates=3000``.
        flags: ``depths``, ``widths`` and ``jobs``; None where one was not given.

    Raises:
        SettingsError: an unknown key, a value out of bounds, or a cell that no student can have.
    """
    classes = _classes()
    overrides = split_overrides(common.overrides, SECTIONS)
    for override in overrides["distill"]:
        if flag := _OF_THE_GRID.get(override.partition("=")[0].strip().replace("-", "_")):
            raise SettingsError(f"--set distill.{override}: the grid says so; give {flag}.")

    def resolved(section: str, given: Mapping[str, Any] | None = None) -> StageSettings:
        own = replace(common, overrides=overrides[section])
        return own.resolve(classes[section], section, dict(given or {}))

    frontier = resolved("frontier", flags)
    in_c = dump_settings(frontier)["runtime"] == "c"
    if in_c and c_compiler() is None:
        raise SettingsError("runtime c: there is no C compiler here (cc, gcc or clang): install one.")
    given = {"benchmark": _TIMED_OF_A_CELL | {"compare": in_c}}
    stages = {section: dump_settings(resolved(section, given.get(section))) for section in SECTIONS[1:]}
    if in_c and not stages["benchmark"]["compare"]:
        raise SettingsError("runtime c: benchmark.compare times the C code; leave compare=false out.")
    plan = FrontierPlan.model_validate(dump_settings(frontier) | stages)
    for cell in grid(plan):
        cell_settings(plan, cell)
    return plan


def _classes() -> dict[str, type[StageSettings]]:
    classes = settings_classes()
    return {"frontier": FrontierSettings, **{section: classes[section] for section in SECTIONS[1:]}}


def cell_settings(plan: FrontierPlan, cell: Cell) -> Any:
    """Return the settings that a cell is distilled with. Raises SettingsError where it can have none."""
    own = {"student_depth": cell.depth, "student_width": cell.width}
    own["threads"] = plan.distill["threads"] or cpu_share(plan.jobs or usable_cpus())
    return resolve_settings(_classes()["distill"], "distill", values=plan.distill | own)


def run(
    plan: FrontierPlan,
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    resumed: Artifact | None = None,
) -> Artifact:
    """Distil and measure every cell that is not done and return the frontier's artifact.

    `resumed` is a frontier to go on with, unfinished or with students that failed.

    Raises:
        StoppedByUser: Ctrl-C; what is done is kept.
        SettingsError: nothing is left to do for the frontier to go on with.
        UserError: the dataset is another teacher's, the teacher does not reproduce its recorded success,
            no cell succeeded, or another process is making the frontier.
    """
    with resumable_stage(
        context,
        "frontier",
        "frontier",
        task=teacher.manifest.task,
        settings=plan,
        parents={"teacher": teacher, "dataset": dataset},
        resumed=resumed,
        place="",
        saves="The students that are done are",
        saved=lambda _: True,
        require=require_work,
    ) as work:
        return _Frontier(plan, context, work, teacher, dataset).make()


class _Frontier:
    """A frontier under way, in the workspace of `context`; `work` is its artifact and its tracking run."""

    def __init__(
        self, plan: FrontierPlan, context: StageContext, work: StageWork, teacher: Artifact, dataset: Artifact
    ) -> None:
        self._plan, self._context, self._work = plan, context, work
        self._teacher, self._dataset = teacher, dataset
        self._artifact, self._cells = work.artifact, grid(plan)
        self._failed: dict[str, str] = {}

    def make(self) -> Artifact:
        """Make what is missing."""
        from thousandfold.stages.random_baseline import warn_of_chance

        warn_of_chance(self._context.console, self._teacher)
        self._distil()
        done = [cell for cell in self._cells if cell.name not in self._failed]
        if not done:
            reasons = list(dict.fromkeys(self._failed[cell.name] for cell in self._cells))
            more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
            raise UserError(f"None of the {len(self._cells)} students could be made: {reasons[0]}{more}")
        self._time(done)
        if all(cell.name in self._failed for cell in done):
            raise UserError(f"None of the students could be timed: {self._failed[done[0].name]}")
        return self._finish()

    def _distil(self) -> None:
        """Run the processes of all cells that are not done, the most expensive first, and the teacher's."""
        cells = [cell for cell in self._cells if finished(self._workspace(cell), "policy") is None]
        jobs = [self._job(cell) for cell in sorted(cells, key=lambda cell: cell.cost, reverse=True)]
        most = self._rehearse(cells) if cells else 1
        if finished(teacher_workspace(self._artifact), "policy") is None:
            jobs.insert(0, self._job(None))
        total = len(self._cells) + 1
        sets = cpu_sets(self._plan.jobs)[: max(1, len(jobs))]
        console = self._context.console
        if len(sets) > most and cells:
            console.warn(f"the free memory holds {most} of {len(sets)} jobs at a time.")
            sets = sets[:most]
        console.say(
            f"Frontier {self._artifact.name}: {len(self._cells)} students of {self._teacher.name}, "
            f"{total - len(jobs)} of {total} jobs done before, {len(sets)} at a time."
        )
        started = time.perf_counter()
        with console.progress("distil", total, unit="jobs", completed=total - len(jobs)) as bar:

            def ended(job: Job, error: str | None) -> None:
                if error is not None:
                    self._failed[job.name] = error
                    console.warn(f"{job.name} failed: {error}")
                else:
                    elapsed_s = time.perf_counter() - started
                    console.say(f"{job.name}: {self._outcome(job)}, after {elapsed_s:.0f} s")
                bar.advance()

            run_jobs(jobs, sets, ended)

    def _rehearse(self, cells: Sequence[Cell]) -> int:
        """Check the dataset and run the teacher's episodes once, on every CPU, and warn of large students.

        Returns how many students the free memory holds at a time, one at least.
        """
        from thousandfold.stages.distill import distill
        from thousandfold.stages.train_teacher.memory_estimate import free_bytes, student_bytes

        settings = cell_settings(self._plan, cells[0]).model_copy(update={"threads": 0})
        caching = replace(self._context, episode_cache=self._artifact.file(EPISODES_FOLDER))
        trained = distill.rehearse(settings, caching, self._teacher, self._dataset)
        large = [cell.name for cell in cells if _is_larger(cell_settings(self._plan, cell).shape, trained)]
        if large:
            self._context.console.warn(
                f"students with more parameters than their teacher: {', '.join(large)}."
            )
        largest = max(
            student_bytes(cell_settings(self._plan, cell), trained, self._dataset) for cell in cells
        )
        return max(1, free_bytes("cpu") // largest)

    def _job(self, cell: Cell | None) -> Job:
        """Return the job of a cell; None: of the teacher."""
        workspace = teacher_workspace(self._artifact) if cell is None else self._workspace(cell)
        work = {
            "workspace": str(workspace.root),
            "cache": str(self._context.workspace.cache),
            "teacher": str(self._teacher.path),
            "dataset": str(self._dataset.path),
            "episode_cache": str(self._artifact.file(EPISODES_FOLDER)),
            "distill": None if cell is None else dump_settings(cell_settings(self._plan, cell)),
            # The teacher is timed once, not beside each of its students.
            "export_onnx": self._plan.export_onnx | {"include_teacher": False},
        }
        name = TEACHER_FOLDER if cell is None else cell.name
        return Job(name, workspace.root, "thousandfold.stages.frontier.worker:run_job", work)

    def _outcome(self, job: Job) -> str:
        student = finished(Workspace(job.folder), "student")
        if student is None:
            return "exported"
        results = student.manifest.results
        return f"success {figure(results['success'])}, retention {figure(results['retention'])}"

    def _time(self, cells: Sequence[Cell]) -> None:
        """Time every policy that was not timed, one after another, with no process of ours beside it."""
        from thousandfold.stages.benchmark import benchmark

        settings = benchmark.BenchmarkSettings(**self._plan.benchmark)
        places = [self._workspace(cell) for cell in cells] + [teacher_workspace(self._artifact)]
        with self._context.console.progress("time", len(places), unit="policies") as bar:
            for place in places:
                policy = finished(place, "policy")
                if policy is not None and not has_latency(place, self._plan.runtime):
                    benchmark.run(settings, StageContext(place, Console(silent=True), NullTracker()), policy)
                bar.advance()
        for cell in cells:
            if not has_latency(place := self._workspace(cell), self._plan.runtime):
                self._failed[cell.name] = f"no latency as C: {why_not_in_c(place)}"
                self._context.console.warn(f"{cell.name} failed: {self._failed[cell.name]}")

    def _finish(self) -> Artifact:
        """Write table and picture, complete the artifact and record it."""
        artifact, context = self._artifact, self._context
        table = collect(artifact, self._cells, self._failed, self._plan.runtime) | {"host": describe_host()}
        write_json_atomic(artifact.file(FRONTIER_FILE), table)
        draw_frontier(artifact.file(PICTURE_FILE), table)
        shutil.rmtree(artifact.file(EPISODES_FOLDER), ignore_errors=True)
        results = _summary(table)
        artifact.complete(results)
        self._record(table, results)
        show(table, context.console)
        context.console.say(
            f"Frontier {artifact.name}: {artifact.file(PICTURE_FILE)}. Choose from it with "
            "`pipeline frontier --select --min-retention 0.98 --max-p99-us 50`."
        )
        return artifact

    def _record(self, table: dict[str, Any], results: dict[str, Any]) -> None:
        """Send the frontier to the tracking store, with a run of its own for every student below it."""
        run, tracker = self._work.run, self._context.tracker
        run.log_metrics(grouped(results, "frontier"), step=0)
        self._work.log_files(FRONTIER_FILE, PICTURE_FILE, "manifest.json")
        for row in table["rows"]:
            cell = Cell(row["depth"], row["width"])
            tags = {"task": table["task"], "artifact": row["student"]}
            with tracker.stage(
                "frontier-student", name=row["name"], chain_run_id=run.run_id, tags=tags
            ) as student:
                student.log_settings(dump_settings(cell_settings(self._plan, cell)))
                student.log_metrics(grouped(row, "student"), step=0)
                student.log_file(self._artifact.file(row["student"]) / "learning_curve.png")

    def _workspace(self, cell: Cell) -> Workspace:
        return cell_workspace(self._artifact, cell)


def _is_larger(shape: Any, trained: Any) -> bool:
    """Return whether a student of this shape has more parameters than its teacher; allocates none of them."""
    import torch

    from thousandfold.models.deployable_policy import NormalizedActor
    from thousandfold.models.goal_actor import GoalActor
    from thousandfold.models.residual_mlp import parameter_count

    task = trained.task.student_view
    with torch.device("meta"):
        actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, shape)
        student = NormalizedActor.around(actor, task.observation_dim, task.goal_dim)
    return parameter_count(student) > parameter_count(trained.actor)


def _summary(table: dict[str, Any]) -> dict[str, Any]:
    """Return the frontier's results: how many students there are, and the ends of the front."""
    rows = table["rows"]
    best, fastest = max(rows, key=quality), min(rows, key=lambda row: row["p99_us"])
    return {
        "students": len(rows),
        "failed": len(table["failed"]),
        "on_front": sum(row["on_front"] for row in rows),
        "best": best["name"],
        "best_retention": best["retention"],
        "best_success": best["success"],
        "fastest": fastest["name"],
        "fastest_p99_us": fastest["p99_us"],
        "teacher_success": table["teacher"]["success"],
        "teacher_p99_us": table["teacher"]["p99_us"],
    }
