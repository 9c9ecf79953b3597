"""A workspace for each test, and what the tests of a teacher's training share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.tiny_runs import make_context
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    """The context of a fresh workspace; a module whose tests share one overrides it."""
    return make_context(tmp_path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainTeacherSettings], Artifact]:
    """Return what gives the teacher of settings, trained once without interruption."""
    made: dict[str, Artifact] = {}

    def get(settings: TrainTeacherSettings) -> Artifact:
        key = settings.model_dump_json()
        if key not in made:
            made[key] = train_teacher.run(settings, make_context(tmp_path_factory.mktemp("unbroken")))
        return made[key]

    return get
