"""A study: every arm trained on every task with every seed, and what that says of the study's claims.

A study's folder:

    study-20260131-120000/
        manifest.json
        study.yaml                  the page, as it was
        study.json                  curves, scores and verdicts
        study.png  study.html
        cells/reacher-D4-20/runs/   a workspace a training
        cells/reacher-D4-20/log.txt what its process said
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.ground.files import write_atomic, write_json_atomic
from thousandfold.pipeline.artifacts import MANIFEST_NAME, Artifact, Workspace
from thousandfold.pipeline.console import Console, figure
from thousandfold.pipeline.jobs import (
    Job,
    begun,
    cpu_sets,
    finished,
    remove_unfinished,
    run_jobs,
    submit_jobs,
)
from thousandfold.pipeline.resume import (
    CHECKPOINT_FOLDER,
    ResumableWork,
    find_unfinished,
    resumable_stage,
    stored_settings,
)
from thousandfold.pipeline.runtime import StageContext, describe_host
from thousandfold.pipeline.settings import dump_settings
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.episodes import HISTORY_FILE
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.study.claims import METRICS, Finding, Training, Verdict, judge, read_claim
from thousandfold.stages.study.page import Cell, StudyPlan, cell_settings, cells, task_label
from thousandfold.stages.study.results import PICTURE_FILE, describe, draw_study, score_table, study_page
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

CELLS_FOLDER, SUBMITTED_FOLDER = "cells", "submitted"
PAGE_FILE, RESULTS_FILE, HTML_FILE = "study.yaml", "study.json", "study.html"
_DRAW_EVERY_S = 30.0
_CURVE = ("env_steps", "elapsed_s", "updates", *METRICS, "final_distance")
_FINAL = (*METRICS, "success_interval", "episodes", "final_distance", "updates", "elapsed_s")


@dataclass(frozen=True)
class Launch:
    """Where trainings run.

    Attributes:
        jobs: processes at a time on this machine; 0: one a CPU.
        cluster: ``slurm``, or ``local``, as submitit names them; None: this machine, without submitit.
        parameters: of submitit's executor.
    """

    jobs: int = 0
    cluster: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def run(
    plan: StudyPlan,
    context: StageContext,
    launch: Launch,
    page: bytes | None = None,
    resumed: Artifact | None = None,
) -> Artifact:
    """Train what is not done and return the study's artifact.

    Args:
        plan: what is trained and claimed.
        launch: where.
        page: the file's content, for a new study.
        resumed: a study to go on with, unfinished or with trainings that failed.

    Raises:
        StoppedByUser: Ctrl-C; what is done is kept, and so is what trainings under way have saved.
        SettingsError: nothing is left to do, or there is no such cluster.
        UserError: every training failed, or another process is making the study.
    """
    with resumable_stage(
        context,
        "study",
        "study",
        task=", ".join(task_label(task) for task in plan.tasks),
        settings=plan,
        resumed=resumed,
        place="",
        saves="The trainings that are done are",
        saved=lambda _: True,
    ) as work:
        if page is not None:
            write_atomic(work.artifact.file(PAGE_FILE), page)
        return _Study(plan, context, work).make(launch)


class _Study:
    """A study under way."""

    def __init__(self, plan: StudyPlan, context: StageContext, work: ResumableWork) -> None:
        self._plan, self._context, self._work, self._artifact = plan, context, work, work.artifact
        self._cells, self._failed = cells(plan), dict[str, str]()
        self._drawn_at = -float("inf")

    def make(self, launch: Launch) -> Artifact:
        """Train what is not done; tell what came of it, of a part of the trainings too."""
        console = self._context.console
        waiting = [cell for cell in self._cells if self._teacher(cell) is None]
        done = len(self._cells) - len(waiting)
        sets = cpu_sets(launch.jobs)[: max(1, len(waiting))]
        console.say(
            f"Study {self._artifact.name}: {len(self._cells)} trainings, {done} done before, "
            + (f"{len(sets)} at a time." if launch.cluster is None else f"submitted to {launch.cluster}.")
        )
        jobs = [self._job(cell) for cell in waiting]
        by_name = {cell.name: cell for cell in waiting}
        with console.progress("train", len(self._cells), unit="trainings", completed=done) as bar:

            def ended(job: Job, error: str | None) -> None:
                if error is not None:
                    self._failed[job.name] = error
                    console.warn(f"{job.name} failed: {error}")
                else:
                    self._note(by_name[job.name])
                self._tell()
                bar.advance()

            if launch.cluster is None:
                run_jobs(jobs, sets, ended)
            else:
                folder = self._artifact.file(SUBMITTED_FOLDER)
                submit_jobs(jobs, launch.cluster, folder, launch.parameters, ended)
        findings = self._tell(last=True)
        if self._failed:
            name, reason = next(iter(self._failed.items()))
            raise UserError(
                f"{len(self._failed)} of {len(self._cells)} trainings failed, {name}: {reason} "
                f"What is done is in {self._artifact.file(HTML_FILE)}. Try the others again with: "
                f"{self._context.resume_command('study', self._artifact)}"
            )
        shutil.rmtree(self._artifact.file(SUBMITTED_FOLDER), ignore_errors=True)
        verdicts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in get_args(Verdict)}
        results = {name.replace(" ", "_"): count for name, count in verdicts.items()}
        self._artifact.complete(results | {"trainings": len(self._cells)})
        self._work.run.log_metrics({f"claims/{name}": n for name, n in results.items()}, step=0)
        self._work.log_files(PAGE_FILE, RESULTS_FILE, PICTURE_FILE, HTML_FILE, MANIFEST_NAME)
        for finding in findings:
            console.say(f"{finding.verdict}: {finding.claim.text}{describe(finding)}")
        console.say(f"Study {self._artifact.name}: {self._artifact.file(HTML_FILE)}")
        return self._artifact

    def _workspace(self, cell: Cell) -> Workspace:
        return Workspace(self._artifact.file(CELLS_FOLDER) / cell.name)

    def _teacher(self, cell: Cell) -> Artifact | None:
        return finished(self._workspace(cell), "teacher")

    def _job(self, cell: Cell) -> Job:
        root = self._workspace(cell).root
        work = {"workspace": str(root), "settings": dump_settings(cell_settings(self._plan, cell))}
        return Job(cell.name, root, f"{__name__}:train_cell", work)

    def _note(self, cell: Cell) -> None:
        """Say what a training that has just ended reached, and send it to the tracking store."""
        teacher = self._teacher(cell)
        assert teacher is not None
        results, run = teacher.manifest.results, self._work.run
        self._context.console.say(
            f"{cell.name}: success {figure(results['success'])}, time at goal "
            f"{figure(results['time_at_goal'])}, after {results['elapsed_s']:.0f} s"
        )
        tags = {"task": teacher.manifest.task, "arm": cell.arm, "artifact": teacher.name}
        with self._context.tracker.stage(
            "study-training", name=cell.name, chain_run_id=run.run_id, tags=tags
        ) as tracked:
            tracked.log_settings(teacher.manifest.settings)
            for entry in read_history(teacher):
                tracked.log_metrics(grouped(entry, "train"), step=int(entry["env_steps"]))
            tracked.log_metrics(
                {f"teacher_{name}": results[name] for name in METRICS}, step=results["env_steps"]
            )

    def _tell(self, *, last: bool = False) -> list[Finding]:
        """Write what is known, page and picture only now and then; return what it says of the claims."""
        records = [record for cell in self._cells if (record := self._record(cell)) is not None]
        trainings = [
            Training(record["arm"], record["task"], record["seed"], record["curve"], record["final"])
            for record in records
        ]
        labels = [task_label(task) for task in self._plan.tasks]
        claims = [read_claim(text, self._plan.arms, labels) for text in self._plan.claims]
        findings = [judge(claim, trainings) for claim in claims]
        if not records:
            return findings
        content = {
            "question": self._plan.question,
            "trainings": records,
            "scores": score_table(trainings),
            "findings": [
                {"claim": found.claim.text} | {k: v for k, v in asdict(found).items() if k != "claim"}
                for found in findings
            ],
            "failed": self._failed,
            "host": describe_host(),
        }
        write_json_atomic(self._artifact.file(RESULTS_FILE), content)
        if not last and time.monotonic() - self._drawn_at < _DRAW_EVERY_S:
            return findings
        self._drawn_at = time.monotonic()
        title = self._plan.question or "Success of every arm"
        draw_study(self._artifact.file(PICTURE_FILE), trainings, title, (self._artifact.name,))
        page = study_page(self._artifact, self._plan, trainings, findings, len(self._cells), self._failed)
        write_atomic(self._artifact.file(HTML_FILE), page.encode())
        return findings

    def _record(self, cell: Cell) -> dict[str, Any] | None:
        """Return what is kept of a training; None where it is not done."""
        teacher = self._teacher(cell)
        if teacher is None:
            return None
        history, results = read_history(teacher), teacher.manifest.results
        return {
            "task": task_label(cell.task),
            "arm": cell.arm,
            "seed": cell.seed,
            "curve": {name: [entry[name] for entry in history] for name in _CURVE},
            "final": {name: results[name] for name in _FINAL},
        }


def read_history(teacher: Artifact) -> list[dict[str, float]]:
    """Return a completed teacher's evaluations after its curriculum; of one that ended in it the final one.

    Raises DamagedFileError where they were changed since.
    """
    teacher.verify()
    path = teacher.file(HISTORY_FILE)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        last = (told.get("evaluated") or [{"env_steps": 0, "curriculum": False}])[-1]
        if last["curriculum"]:
            return [{name: teacher.manifest.results[name] for name in _CURVE}]
        return [entry for entry in told["history"] if entry["env_steps"] > last["env_steps"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(
            f"{path} is damaged: remove {teacher.path} and go on with the study."
        ) from error


def train_cell(work: Mapping[str, Any]) -> None:
    """Train one cell; a training that was stopped goes on from its checkpoint.

    Args:
        work: the folder ``workspace`` of the cell, and the ``settings`` of its training.

    Raises:
        UserError: as of `train_teacher.run`.
    """
    workspace, settings = Workspace(Path(work["workspace"])), TrainTeacherSettings.stored(work["settings"])
    if finished(workspace, "teacher") is not None:
        return
    unfinished = begun(workspace, "teacher")
    remove_unfinished(workspace, but=unfinished)
    context = StageContext(workspace, Console(), NullTracker())
    teacher = train_teacher.run(settings, context, unfinished)
    shutil.rmtree(teacher.file(CHECKPOINT_FOLDER))  # its replay memory: a study has many


def find_resumable(workspace: Workspace, reference: str | None) -> tuple[StudyPlan, Artifact]:
    """Return the plan of the study to go on with, and the study.

    Args:
        workspace: where to look.
        reference: its name or path; None: the newest unfinished one.

    Raises:
        SettingsError: there is none, or it is completed.
        DamagedFileError: its manifest holds a plan that this version does not read.
    """
    artifact = find_unfinished(workspace, "study", reference, saved=lambda _: True, trace="")
    return stored_settings(artifact, StudyPlan), artifact
