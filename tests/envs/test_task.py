from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import mujoco
import numpy as np
import pytest

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import BoxPositions, CellPositions
from thousandfold.envs.registry import compile_task, get_task, task_names
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.task import (
    EarlyEnd,
    EpisodeDistribution,
    GoalTask,
    Reset,
    SuccessRegion,
    TaskError,
    Term,
)
from thousandfold.envs.task_names import environment_id


def pendulum_spec(*, ctrllimited: bool = True, joint: str = "hinge", actuated: bool = True) -> mujoco.MjSpec:
    """A rod of 1 m on a hinge, hanging from the origin, with a sensor and a site at its tip."""
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.01
    body = spec.worldbody.add_body(name="rod", pos=[0, 0, 0])
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, size=[0.02, 0, 0], fromto=[0, 0, 0, 0, 0, -1])
    body.add_site(name="tip", pos=[0, 0, -1])
    body.add_joint(name=joint, type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0, 1, 0])
    if actuated:
        motor = spec.add_actuator(
            name="motor",
            target=joint,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            ctrllimited=ctrllimited,
            ctrlrange=[-1, 3],
        )
        motor.set_to_motor()
    spec.add_sensor(
        name="angle", type=mujoco.mjtSensor.mjSENS_JOINTPOS, objtype=mujoco.mjtObj.mjOBJ_JOINT, objname=joint
    )
    return spec


HANGING = EpisodeDistribution(
    starts=Reset(joints=("hinge",), position=BoxPositions((-0.5,), (0.5,))),
    goals=BoxPositions((-1.0, -1.0), (1.0, 1.0)),
)
TWO_NUMBERS = dataclasses.replace(
    HANGING, starts=Reset(joints=("hinge",), position=BoxPositions((0.0, 0.0), (1.0, 1.0)))
)
BROKEN = "<mujoco><sensor><gyro site='nowhere'/></sensor></mujoco>"
TIP = Term("site_xpos", "tip", columns=(0, 2), unit="m")
PENDULUM = GoalTask(
    name="pendulum",
    description="a rod",
    build_spec=pendulum_spec,
    observation=(Term("qpos", unit="rad"), Term("qvel", unit="rad/s")),
    achieved_goal=(TIP,),
    success=(SuccessRegion(0.1),),
    distributions={"training": HANGING, "evaluation": HANGING},
    control_dt_s=0.02,
)


def compiled(**changes: Any) -> CompiledTask:
    return CompiledTask(dataclasses.replace(PENDULUM, **changes))


def observed(*terms: Term, angle: float = 0.3, velocity: float = -0.2) -> np.ndarray:
    simulator = CpuSimulator(compiled(observation=terms), 1)
    simulator.set_state(np.array([[angle]]), np.array([[velocity]]))
    return simulator.observation[0]


def test_dimensions_follow_from_the_terms() -> None:
    task = compiled()
    assert (task.observation_dim, task.goal_dim, task.action_dim, task.frame_skip) == (2, 2, 1, 2)
    assert task.fields == ("qpos", "qvel", "site_xpos")
    assert task.needs_derived_fields
    assert not compile_task("point_u_maze").needs_derived_fields


def test_terms_read_what_mujoco_has() -> None:
    data_terms = (
        Term("qpos", "hinge"),
        Term("qpos", "hinge", transform="cos"),
        Term("qpos", "hinge", transform="sin"),
        Term("site_xpos", "tip"),
        Term("site_xpos", "tip", columns=(2, 0)),
        Term("site_xpos", "tip", transform="difference", minus=Term("xpos", "rod")),
        Term("sensordata", "angle"),
        Term("xquat", "rod"),
    )
    # The tip is 1 m below the hinge, turned about +y.
    tip = [-np.sin(0.3), 0.0, -np.cos(0.3)]
    quaternion = [np.cos(0.15), 0.0, np.sin(0.15), 0.0]
    expected = [0.3, np.cos(0.3), np.sin(0.3), *tip, tip[2], tip[0], *tip, 0.3, *quaternion]
    assert observed(*data_terms) == pytest.approx(expected, abs=1e-6)


def test_torch_reads_the_same_terms() -> None:
    torch = pytest.importorskip("torch")
    terms = (
        Term("qpos", transform="cos"),
        Term("site_xpos", "tip", columns=(2, 0)),
        Term("site_xpos", "tip", transform="difference", minus=Term("xpos", "rod")),
    )
    task = compiled(observation=terms, early_end=(EarlyEnd(TIP, -0.5, 0.5),))
    rng = np.random.default_rng(0)
    widths = {"qpos": 1, "site_xpos": 3, "xpos": 6}
    fields = {name: rng.normal(size=(5, width)).astype(np.float32) for name, width in widths.items()}
    tensors = {name: torch.from_numpy(array) for name, array in fields.items()}
    array, tensor = np.zeros((5, 6), np.float32), torch.zeros(5, 6)
    task.read_observation(fields, array)
    task.read_observation(tensors, tensor, xp=torch)
    assert tensor.numpy() == pytest.approx(array, abs=1e-6)
    ended = task.ended_early(fields)
    assert 0 < ended.sum() < 5
    assert task.ended_early(tensors, xp=torch).tolist() == ended.tolist()
    action = rng.uniform(-2, 2, (5, 1)).astype(np.float32)
    control = task.control(torch.from_numpy(action), xp=torch)
    assert control.numpy() == pytest.approx(task.control(action))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": (Term("qposs"),)}, "unknown field 'qposs'; did you mean 'qpos'. valid: qpos, qvel"),
        ({"observation": (Term("qpos", "elbow"),)}, "no joint named 'elbow'"),
        ({"observation": (Term("ctrl", "elbow"),)}, "no actuator named 'elbow'"),
        ({"observation": (Term("site_xpos", "toe"),)}, "no site named 'toe'"),
        ({"observation": (Term("sensordata", "gyro"),)}, "no sensor named 'gyro'"),
        ({"observation": (Term("xpos", "arm"),)}, "no body named 'arm'"),
        (
            {"observation": (Term("site_xpos", "tip", columns=(3,)),)},
            "site_xpos of 'tip' has no number 3: it has 3, from 0 to 2",
        ),
        ({"observation": ()}, "empty list of terms"),
        (
            {"observation": (Term("qpos", transform=cast(Any, "exp")),)},
            "unknown transform 'exp'; valid: identity, cos",
        ),
        ({"observation": (Term("qpos", transform="difference"),)}, "exactly when it is a difference"),
        ({"observation": (Term("qpos", minus=Term("qvel")),)}, "exactly when it is a difference"),
        (
            {"observation": (Term("qpos", transform="difference", minus=Term("xpos")),)},
            "a difference of 1 and 6 numbers",
        ),
        (
            {"observation": (Term("qpos", transform="difference", minus=Term("qvel", transform="cos")),)},
            "subtracts has no transform",
        ),
        ({"control_dt_s": 0.025}, "control_dt_s 0.025 is not a multiple"),
        ({"control_dt_s": 0.001}, "control_dt_s 0.001 is not a multiple"),
        ({"success": ()}, "no success region"),
        ({"success": (SuccessRegion(0.0),)}, "the success radius must be above 0, not 0.0"),
        ({"success": (SuccessRegion(0.1, stop=3),)}, r"slice \[0, 3\] does not fit an achieved_goal of 2"),
        ({"achieved_goal": (Term("qpos"),)}, "training: goals have 2 numbers, but the achieved_goal has 1"),
        (
            {"build_spec": lambda: pendulum_spec(ctrllimited=False)},
            "'motor' has the ctrlrange -1 to 3, but the model switches it off",
        ),
        ({"build_spec": lambda: pendulum_spec(actuated=False)}, "the model has no actuator"),
        ({"build_spec": lambda: pendulum_spec(joint="axle")}, "no joint named 'hinge'"),
        (
            {"episode_steps": 0},
            "episode_steps must be a whole number, at least 1 and at most 1,000,000, not 0",
        ),
        ({"distributions": {"training": HANGING}}, "no 'evaluation' episode distribution"),
        (
            {"distributions": dict.fromkeys(("training", "evaluation"), TWO_NUMBERS)},
            "starts draw 2 numbers for 1 joints",
        ),
        (
            {"build_spec": lambda: mujoco.MjSpec.from_string(BROKEN)},
            "MuJoCo refuses the model",
        ),
    ],
)
def test_tasks_that_cannot_be_built_say_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        compiled(**changes)


def test_early_end_is_reported_per_world() -> None:
    task = compiled(early_end=(EarlyEnd(Term("qpos"), -1.0, 1.0), EarlyEnd(Term("qvel"), -5.0, 5.0)))
    simulator = CpuSimulator(task, 4)
    simulator.set_state(np.array([[0.0], [1.4], [-1.4], [0.0]]), np.array([[0.0], [0.0], [0.0], [9.0]]))
    result = simulator.step(np.zeros((4, 1)))
    assert result.terminated.tolist() == [False, True, True, True]
    assert not result.unstable.any()


def test_every_success_region_must_hold() -> None:
    task = compiled(success=(SuccessRegion(0.1, 0, 1), SuccessRegion(0.5, 1, 2)))
    achieved = np.zeros((4, 2), np.float32)
    desired = np.array([[0.05, 0.4], [0.2, 0.4], [0.05, 0.6], [0.0, 0.0]], np.float32)
    assert task.is_success(achieved, desired).tolist() == [True, False, False, True]
    assert task.goal_distance(achieved, desired) == pytest.approx([0.05, 0.2, 0.05, 0.0])


def test_resets_draw_positions_and_noise() -> None:
    noisy = EpisodeDistribution(
        starts=dataclasses.replace(HANGING.starts, qpos_noise=0.1, qvel_noise=0.5), goals=HANGING.goals
    )
    task = compiled(distributions={"training": HANGING, "evaluation": noisy})
    rng = np.random.default_rng(0)
    qpos, qvel, goal = task.sample_start("training", rng, 500)
    assert (qpos.shape, qvel.shape, goal.shape) == ((500, 1), (500, 1), (500, 2))
    assert 0.45 < np.abs(qpos).max() <= 0.5
    assert not qvel.any()
    qpos, qvel, _ = task.sample_start("evaluation", rng, 500)
    assert 0.5 < np.abs(qpos).max() <= 0.6
    assert qvel.std() == pytest.approx(0.5, rel=0.15)


def test_cell_positions_cover_every_cell_within_the_jitter() -> None:
    centers = ((0.0, 0.0), (4.0, 0.0), (0.0, 4.0))
    drawn = CellPositions(centers, 0.5).sample(np.random.default_rng(0), 300)
    offsets = np.abs(drawn[:, None] - np.array(centers)).max(-1)
    assert offsets.min(1).max() <= 0.5
    assert (np.bincount(offsets.argmin(1), minlength=3) > 50).all()


def test_description_names_every_number() -> None:
    task = compiled(observation=(Term("qpos", "hinge", transform="cos", unit="1"), Term("site_xpos", "tip")))
    assert task.describe("observation") == [
        {"name": "cos(qpos:hinge)[0]", "unit": "1"},
        *({"name": f"site_xpos:tip[{i}]", "unit": "m"} for i in range(3)),
    ]
    assert task.control.actuators == ["motor"]


def test_what_is_achieved_is_found_in_the_observation_by_its_numbers() -> None:
    angle, tip = Term("qpos", "hinge"), Term("site_xpos", "tip")
    achieved = (dataclasses.replace(tip, columns=(2, 0)),)
    for observation, place in (
        ((angle, tip), [3, 1]),
        ((angle, dataclasses.replace(tip, columns=(1, 2))), None),
        ((angle,), None),
    ):
        task = compiled(observation=observation, achieved_goal=achieved)
        assert task.achieved_in_observation() == place


def test_actions_map_to_the_control_range() -> None:
    control = compiled().control(np.array([[-1.0], [0.0], [1.0], [7.0]], np.float32))
    assert control.ravel().tolist() == [-1.0, 1.0, 3.0, 3.0]


@pytest.mark.parametrize("name", [name for name in task_names() if name.startswith("point_")])
def test_point_tasks_compile_and_start_apart_from_walls(name: str) -> None:
    task = compile_task(name)
    simulator = CpuSimulator(task, 64)
    result = simulator.step(np.zeros((64, task.action_dim)))
    assert not result.unstable.any()
    assert np.abs(simulator.observation[:, 2:]).max() < 1e-6


def test_unknown_task_offers_the_nearest() -> None:
    with pytest.raises(TaskError, match="did you mean 'point_u_maze'"):
        get_task("point_umaze")
    with pytest.raises(TaskError, match="valid: point_u_maze, "):
        get_task("zzz")
    assert environment_id("point_u_maze") == "thousandfold/PointUMaze-v0"


def test_unstable_simulator_stays_quiet(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither MuJoCo's warning nor its MUJOCO_LOG.TXT, and its configuration is as it was before."""
    monkeypatch.chdir(tmp_path)
    simulator = CpuSimulator(compile_task("point_u_maze"), 64, num_threads=4)
    for _ in range(3):
        simulator.set_state(np.ones((64, 2)), np.full((64, 2), np.nan))
        assert simulator.step(np.zeros((64, 2))).unstable.all()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    configuration = mujoco.MjLogConfig.get()
    assert configuration.logto_console and configuration.logto_file


def test_unstable_simulator_tolerates_a_python_warning_handler() -> None:
    """Stepping releases the interpreter: a handler that needs it neither hangs nor crashes the threads."""
    heard: list[str] = []
    before: Callable[[str], None] | None = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(heard.append)
    try:
        simulator = CpuSimulator(compile_task("point_u_maze"), 64, num_threads=4)
        simulator.set_state(np.ones((64, 2)), np.full((64, 2), np.nan))
        assert simulator.step(np.zeros((64, 2))).unstable.all()
    finally:
        mujoco.set_mju_user_warning(before)
    assert len(heard) == 64


def test_a_changed_task_has_other_episodes_on_the_same_model() -> None:
    near = EpisodeDistribution(starts=Reset(), goals=BoxPositions((0.0, -1.0), (0.0, -1.0)))
    task = compiled(distributions={"training": HANGING, "evaluation": HANGING, "near": near})
    changed = task.changed(episode_steps=7, evaluation="near")
    assert changed.model is task.model
    assert changed.spec.changes == {"episode_steps": 7, "evaluation": "near"}
    simulator = CpuSimulator(changed, 2, distribution="evaluation")
    assert simulator.desired_goal.tolist() == [[0.0, -1.0]] * 2
    steps = [simulator.step(np.zeros((2, 1), np.float32)).truncated.all() for _ in range(7)]
    assert steps == [False] * 6 + [True]
    assert task.spec.episode_steps == 200  # the one it came from is as it was


def test_changes_add_up() -> None:
    task = compile_task("point_u_maze").changed(episode_steps=7).changed(evaluation="training_from_start")
    assert task.spec.changes == {"episode_steps": 7, "evaluation": "training_from_start"}


def test_a_task_changed_in_nothing_is_itself() -> None:
    task = compile_task("point_u_maze").spec
    assert task.changed(episode_steps=100, evaluation="evaluation") is task
    assert compile_task("point_u_maze", {"episode_steps": 100}) is compile_task("point_u_maze")
    with pytest.raises(TaskError, match="no episode distribution 'nowhere'"):
        task.changed(evaluation="nowhere")
    with pytest.raises(TaskError, match="no episode distribution 3"):
        compile_task("point_u_maze", {"evaluation": 3})
    with pytest.raises(TaskError, match=r"does not know \(gravity\); it knows episode_steps and"):
        compile_task("point_u_maze", {"episode_steps": 3, "gravity": 1})
    with pytest.raises(TaskError, match="at least 1 and at most 1,000,000"):
        task.changed(episode_steps=0)


@pytest.mark.parametrize("name", ["arm_grasp", "point_u_maze"])
def test_no_goals_have_no_distances(name: str) -> None:
    task = compile_task(name)
    none = np.zeros((0, task.goal_dim))
    assert task.goal_distance(none, none).shape == task.is_success(none, none).shape == (0,)


def test_the_distance_of_several_points_is_that_of_their_mean() -> None:
    task = compile_task("arm_grasp")  # two fingertips and the gap between them
    goal = np.zeros((2, 7))
    achieved = np.array([[1, 0, 0, -1, 0, 0, 9], [0, 3, 0, 0, 5, 8, 9]])
    assert task.goal_distance(achieved, goal) == pytest.approx([0.0, np.hypot(4, 4)])
