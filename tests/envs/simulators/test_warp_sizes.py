"""Room for contacts and constraints: twice what a warm-up sees, which goes on where worlds fall."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch comes with the extra `train`")
pytest.importorskip("mujoco_warp", reason="MuJoCo Warp comes with the extra `train`")

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import BoxPositions
from thousandfold.envs.simulators.warp_simulator import WarpSimulator
from thousandfold.envs.simulators.warp_sizes import WarpSizes, warm_up_sizes
from thousandfold.envs.task import (
    EarlyEnd,
    EpisodeDistribution,
    GoalTask,
    Reset,
    SuccessRegion,
    TaskError,
    Term,
)


def make_task(bodies: str, solver: str = "Newton") -> CompiledTask:
    """Return a task whose episodes end where body ``a`` is below 0.5 m, all of them at once."""
    text = f"""
    <mujoco>
      <option timestep="0.01" integrator="implicitfast" solver="{solver}"/>
      <default><geom condim="6"/></default>
      <worldbody>
        <geom type="plane" size="5 5 1"/>
        {bodies}
      </worldbody>
      <actuator><motor joint="a" ctrllimited="true" ctrlrange="-1 1" gear="1 0 0 0 0 0"/></actuator>
    </mujoco>
    """
    episodes = EpisodeDistribution(Reset(), BoxPositions((0, 0, 0), (1, 1, 1)))
    return CompiledTask(
        GoalTask(
            name="falling",
            description="what falls",
            build_spec=lambda: mujoco.MjSpec.from_string(text),
            observation=(Term("qpos"), Term("qvel")),
            achieved_goal=(Term("xpos", "a"),),
            success=(SuccessRegion(0.1),),
            distributions={"training": episodes, "evaluation": episodes},
            early_end=(EarlyEnd(Term("xpos", "a", columns=(2,)), 0.5, math.inf),),
        )
    )


BOXES = "".join(
    f'<body name="{name}" pos="{x} 0 0.8"><freejoint name="{name}"/>'
    '<geom type="box" size="0.1 0.1 0.1"/></body>'
    for x, name in enumerate("abc")
)


def test_sizes_hold_what_lies_where_it_fell() -> None:
    """Three boxes of four contacts, each a pyramid of 10 rows; none of them at the start."""
    task = make_task(BOXES)
    sizes = warm_up_sizes(task)
    assert sizes == WarpSizes(nconmax=48, njmax=2 * 3 * 4 * 10)
    simulator = WarpSimulator(task, 3)
    assert simulator.sizes == sizes
    for _ in range(20):
        simulator.step(np.zeros((3, 1), np.float32))
    assert simulator.unstable_count == 0
    height = simulator.achieved_goal[:, 2]
    assert height.tolist() == pytest.approx([0.1] * 3, abs=0.01)


def test_pairs_that_may_touch_find_room_too() -> None:
    """Twelve balls in one place are 66 pairs, which the narrow phase alone would tell apart from contacts."""
    balls = "".join(
        f'<body name="{name}" pos="0 0 1"><joint name="{name}" type="slide" axis="1 0 0" damping="100"/>'
        '<geom type="sphere" size="0.1" margin="0.1" gap="0.1" contype="2" conaffinity="2"/></body>'
        for name in "abcdefghijkl"
    )
    assert warm_up_sizes(make_task(balls)).nconmax >= 2 * 66


def test_few_worlds_find_room_as_eight_do() -> None:
    sizes = WarpSizes(nconmax=10, njmax=5)
    assert [sizes.naconmax(worlds) for worlds in (1, 8, 100)] == [80, 80, 1000]


def test_sizes_can_be_given() -> None:
    sizes = WarpSizes(nconmax=10, njmax=5)
    assert sizes.overridden(None, 7) == WarpSizes(10, 7)
    assert sizes.overridden(3, None) == WarpSizes(3, 5)
    with pytest.raises(ValueError, match="nconmax must be at least 1, not 0"):
        WarpSizes(0, 5)
    with pytest.raises(ValueError, match="njmax must be at least 1, not 0"):
        WarpSizes(5, 0)


def test_contacts_that_exceed_the_shared_room_cost_every_world_its_episode() -> None:
    """Which of them lost contacts is not known; 8 worlds share 96 places and lay 12 contacts each, 9 more."""
    task = make_task(BOXES)
    for worlds, overflowed in ((8, 0), (9, 9)):
        simulator = WarpSimulator(task, worlds, nconmax=1 if worlds == 9 else 12, njmax=240)
        for _ in range(20):
            simulator.step(np.zeros((worlds, 1), np.float32))
        assert (simulator.overflow_count, simulator.diverged_count) == (overflowed, 0)


def test_model_that_warp_does_not_run_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match="Task 'falling': MuJoCo Warp does not run the model: mjSOL_PGS"):
        WarpSimulator(make_task(BOXES, solver="PGS"), 1)
