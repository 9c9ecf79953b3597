"""What the distillation benchmarks share: stages that are not run twice, and networks over the same episodes.

A cell's stages lie in a workspace: a completed artifact of the same parents and settings is taken, so that a
benchmark that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, StudyParser
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext, seed_sequence
from thousandfold.pipeline.settings import dump_settings
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.episodes import Episodes, run_episodes
from thousandfold.stages.networks import load_actor, torch_policy

_COMPARISON_STREAM = 73


def make_dataset(workspace: Path, teacher: Artifact, settings: Mapping[str, Any]) -> Artifact:
    """Return the teacher's dataset with these settings, recorded now or before."""
    wanted = GenerateDatasetSettings(**settings)
    context = make_context(workspace)
    found = _completed(context.workspace, "dataset", {"teacher": teacher}, dump_settings(wanted))
    return found or generate_dataset.run(wanted, context, teacher)


def make_student(
    workspace: Path, teacher: Artifact, dataset: Artifact, settings: Mapping[str, Any]
) -> Artifact:
    """Return the student of the dataset with these settings, distilled now or before."""
    own_senses = load_actor(teacher).task.spec.student_observation is not None
    wanted = DistillSettings(**settings).with_rounds(own_senses)
    context = make_context(workspace)
    parents = {"teacher": teacher, "dataset": dataset}
    found = _completed(context.workspace, "student", parents, dump_settings(wanted))
    return found or distill.run(wanted, context, teacher, dataset)


def make_context(workspace: Path) -> StageContext:
    """Return the context of a workspace, untracked."""
    return StageContext(Workspace(workspace), Console(), NullTracker())


def _completed(
    workspace: Workspace, kind: str, parents: Mapping[str, Artifact], settings: Mapping[str, Any]
) -> Artifact | None:
    """Return the completed artifact of these parents and settings; None where there is none."""
    for artifact in workspace.artifacts(kind):
        manifest = artifact.manifest
        hashes = {role: parent.hash for role, parent in manifest.parents.items()}
        same = hashes == {role: parent.manifest.hash for role, parent in parents.items()}
        if manifest.status == "completed" and same and manifest.settings == settings:
            return artifact
    return None


def run_both(one: Artifact, other: Artifact, episodes: int, seed: int) -> tuple[Episodes, Episodes]:
    """Return the outcomes of two networks over the same fresh episodes, none of which a stage has run."""
    found = []
    for artifact in (one, other):
        trained = load_actor(artifact)
        policy, stream = torch_policy(trained.actor), seed_sequence(seed, _COMPARISON_STREAM)
        found.append(run_episodes(trained.task, policy, episodes=episodes, seed=stream))
    return found[0], found[1]


def student_study(description: str | None, name: str, seeds: Iterable[int] = (0, 1, 2)) -> StudyParser:
    """Return the options of a study of one teacher's students."""
    parser = StudyParser(description, name)
    parser.add_argument("--teacher", help="folder of the teacher's artifact")
    parser.seeds(seeds)
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs" / name)
    return parser


def studied_teachers(options: argparse.Namespace) -> list[Artifact]:
    """Return the teacher that a study was given, if any."""
    return [Workspace(options.workspace).open(options.teacher, "teacher")] if options.teacher else []
