"""What the distillation benchmarks share: stages that are not run twice, cells that are recorded one by one.

A cell's stages lie in a workspace: a completed artifact of the same parents and settings is taken, so that a
benchmark that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifacts import Artifact, Workspace, installed_versions
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext, describe_host, seed_sequence
from thousandfold.pipeline.settings import dump_settings
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.episodes import Episodes, run_episodes
from thousandfold.stages.networks import load_actor, torch_policy

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_COMPARISON_STREAM = 73

Cell = dict[str, Any]


class CellBook:
    """The recorded cells of a benchmark, in a JSON file that is written anew after each.

    Args:
        path: the file; cells that it holds are not made again.
        facts: written beside the cells.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any] | None = None) -> None:
        self.path, self.facts = path, dict(facts or {})
        recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.cells: dict[str, Cell] = recorded.get("cells", {})

    def cell(self, name: str, make: Callable[[], Cell]) -> Cell:
        """Return a cell, making and recording it where it is missing."""
        if name not in self.cells:
            self.cells[name] = make()
            facts = {"host": describe_host(), "versions": installed_versions(), **self.facts}
            write_json_atomic(self.path, facts | {"cells": self.cells})
        return self.cells[name]


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
    wanted = DistillSettings(**settings)
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


def study_parser(description: str | None, name: str, output: Path) -> argparse.ArgumentParser:
    """Return the options of a study of one teacher's students, whose workspace is called `name`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", help="folder of the teacher's artifact")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs" / name)
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--table", action="store_true", help="print what is recorded; run nothing")
    return parser


def studied_teacher(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Artifact:
    """Return the teacher that a study was given; exit with one line where it was given none."""
    if options.teacher is None:
        parser.error("give --teacher, or --table")
    return Workspace(options.workspace).open(options.teacher, "teacher")


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Return a figure with its interval, for tables."""
    if value is None or interval is None:
        return "undefined"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
