"""What the tests of `pipeline distill` share: the corridor, its teacher, a dataset and a student."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from tests.stages.distill.distill_runs import SETTINGS, TASK_NAME, linear_actor, make_dataset, make_teacher
from tests.stages.tiny_runs import make_context
from thousandfold.envs import registry
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import CellPositions
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.task import EpisodeDistribution, Reset
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.dataset import results
from thousandfold.stages.distill import distill
from thousandfold.stages.distill import distill as distill_results


@pytest.fixture(scope="module", autouse=True)
def task() -> Iterator[CompiledTask]:
    """Return the U maze with starts and goals in its first corridor, where a linear policy gets there."""
    maze = get_task("point_u_maze")
    ends = (maze.distributions["evaluation"].starts.position, CellPositions(((1.0, 3.0),), 0.2))
    episodes = EpisodeDistribution(Reset(joints=("x", "y"), position=ends[0]), ends[1])
    corridor = dataclasses.replace(
        maze, name=TASK_NAME, distributions={"training": episodes, "evaluation": episodes}
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        tasks = {**registry._tasks(), TASK_NAME: corridor}
        monkeypatch.setattr(registry, "_tasks", lambda: tasks)
        monkeypatch.setattr(distill_results, "draw_learning_curve", lambda *_, **__: None)
        monkeypatch.setattr(results, "draw_coverage", lambda *_, **__: None)
        yield compile_task(TASK_NAME)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    return make_context(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def teacher(context: StageContext) -> Artifact:
    artifact = make_teacher(context, linear_actor(2.0))
    assert artifact.manifest.results["success"] > 0.9  # else the tests below would say little
    return artifact


@pytest.fixture(scope="module")
def dataset(context: StageContext, teacher: Artifact) -> Artifact:
    return make_dataset(context, teacher)


@pytest.fixture(scope="module")
def student(context: StageContext, teacher: Artifact, dataset: Artifact) -> Artifact:
    return distill.run(SETTINGS, context, teacher, dataset)
