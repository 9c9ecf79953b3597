"""A teacher that nobody trained, and its dataset, once for the tests of a file."""

from __future__ import annotations

import pytest

from tests.stages.tiny_runs import make_context
from tests.stages.untrained_teacher import SETTINGS, make_teacher
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.dataset.generate_dataset import run


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    return make_context(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def teacher(context: StageContext) -> Artifact:
    return make_teacher(context)


@pytest.fixture(scope="module")
def dataset(context: StageContext, teacher: Artifact) -> Artifact:
    return run(SETTINGS, context, teacher)
