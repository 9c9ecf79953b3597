"""The simulators, and the one that most tests of them share."""

from __future__ import annotations

import pytest

from tests.envs.any_simulator import EVERY_SIMULATOR, MakeSimulator
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.simulator import Simulator


@pytest.fixture(scope="module", params=EVERY_SIMULATOR)
def make(request: pytest.FixtureRequest) -> MakeSimulator:
    return request.param


@pytest.fixture(scope="module")
def task() -> CompiledTask:
    """The task of `simulator`; a module with another overrides it."""
    return compile_task("point_u_maze")


@pytest.fixture(scope="module")
def simulator(make: MakeSimulator, task: CompiledTask) -> Simulator:
    """A simulator that tests share; each starts by resetting or setting its state."""
    return make(task, seed=3)
