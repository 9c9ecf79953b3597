"""What varies is what was asked for: each factor's effect on the model, and what a simulator then steps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from tests.envs.varied_tasks import MODEL, varied_task
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.randomization import Factor, Push, Variation
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.task import TaskError


def machine(*varies: Variation) -> tuple[CompiledTask, CpuSimulator]:
    task = varied_task(varies)
    return task, CpuSimulator(task, 3, seed=1, num_threads=1)


def mass(model: mujoco.MjModel, by: float) -> None:
    model.body_mass *= by
    model.body_inertia *= by


def gain(model: mujoco.MjModel, by: float) -> None:
    model.actuator_gainprm[:, 0] *= by
    model.actuator_biasprm[:, 1:3] *= by


def strength(model: mujoco.MjModel, by: float) -> None:
    model.actuator_forcerange[0] *= by
    model.actuator_gainprm[1, 0] *= by


def friction(model: mujoco.MjModel, by: float) -> None:
    model.geom_friction[:, 0] *= by


def field(name: str) -> Callable[[mujoco.MjModel, float], None]:
    def scale(model: mujoco.MjModel, by: float) -> None:
        getattr(model, name)[:] *= by

    return scale


def size(model: mujoco.MjModel, by: float) -> None:
    model.geom_size[1] *= by


def joint_zero(model: mujoco.MjModel, by: float) -> None:
    model.qpos0[7:] += by
    model.qpos_spring[7:] += by
    model.jnt_range[1] += by  # the elbow has none


@pytest.mark.parametrize(
    ("factor", "change"),
    [
        (Factor("mass", 0.7, 0.7), mass),
        (Factor("inertia", 0.7, 0.7), field("body_inertia")),
        (Factor("friction", 0.7, 0.7), friction),
        (Factor("damping", 0.7, 0.7), field("dof_damping")),
        (Factor("armature", 0.7, 0.7), field("dof_armature")),
        (Factor("gain", 0.7, 0.7), gain),
        (Factor("strength", 0.7, 0.7), strength),
        (Factor("size", 0.7, 0.7, objects=("box",)), size),
        (Factor("joint_zero", 0.7, 0.7), joint_zero),
    ],
    ids=lambda each: each.name if isinstance(each, Factor) else "",
)
def test_worlds_step_as_a_model_changed_by_hand(factor: Factor, change: Callable[..., None]) -> None:
    task, simulator = machine(factor)
    model = copy.copy(task.model)
    change(model, 0.7)
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    state = simulator.world_data(0)
    data.qpos[:], data.qvel[:], data.ctrl[:] = state.qpos, state.qvel, state.ctrl
    action = np.array([[0.9, -0.7]] * 3, np.float32)
    for _ in range(15):
        simulator.step(action)
        data.ctrl[:] = task.control(action, data.ctrl[None])[0]
        mujoco.mj_step(model, data, task.frame_skip)
    moved = simulator.world_data(0)
    assert np.array_equal(moved.qpos, data.qpos) and np.array_equal(moved.qvel, data.qvel)
    plain = CpuSimulator(task, 3, seed=1, distribution="nominal", num_threads=1)
    for _ in range(15):
        plain.step(action)
    assert not np.array_equal(plain.world_data(0).qpos, data.qpos)


def test_a_free_body_turns_about_its_centre_of_mass() -> None:
    """MuJoCo compiles a free box as one whose centre of mass is fixed: one with an inertial is a measure"""
    _, simulator = machine(Factor("center_of_mass", 0.02, 0.02, objects=("box",)))
    own = simulator.world_model(0)
    inertia = " ".join(f"{each:.17g}" for each in own.body_inertia[1])
    written = MODEL.replace(
        '<freejoint name="root"/>',
        f'<freejoint name="root"/><inertial pos="0.02 0.02 0.02" mass="{own.body_mass[1]:.17g}" '
        f'diaginertia="{inertia}"/>',
    )
    model = mujoco.MjModel.from_xml_string(written)
    data = mujoco.MjData(model)
    qpos = np.array(simulator.world_data(0).qpos)
    qpos[2] = 1.0
    qvel = np.zeros(model.nv)
    qvel[3:6] = 1.0, -2.0, 3.0
    simulator.set_state(np.tile(qpos, (3, 1)), np.tile(qvel, (3, 1)))
    data.qpos[:], data.qvel[:] = qpos, qvel
    for _ in range(10):
        simulator.step(np.zeros((3, 2), np.float32))
        mujoco.mj_step(model, data, 4)
    assert np.allclose(simulator.world_data(0).qpos[:7], data.qpos[:7], atol=1e-9)


def test_a_joint_is_where_its_sensor_says_less_the_offset() -> None:
    """A servo goes to what it is told as its sensor reads it, which is not where the arm then is."""
    _, simulator = machine(
        Factor("joint_zero", 0.3, 0.3, objects=("shoulder",)), Factor("gravity_tilt", 0, 0)
    )
    model = simulator.world_model(0)
    data = mujoco.MjData(model)
    data.qpos[7:] = 0.5, 0.0
    mujoco.mj_forward(model, data)
    tip = data.site("tip").xpos - data.body("arm").xpos
    assert np.arctan2(-tip[0], -tip[2]) == pytest.approx(0.5 - 0.3)
    assert model.jnt_range[1] == pytest.approx(np.radians([-100, 100]) + 0.3)


def test_gravity_leans_by_its_tilt() -> None:
    _, simulator = machine(Factor("gravity_tilt", 0.1, 0.2))
    for world in range(3):
        gravity = simulator.world_model(world).opt.gravity
        lean = simulator.factors[world]
        assert np.linalg.norm(gravity) == pytest.approx(9.81)
        assert np.arccos(-gravity[2] / 9.81) == pytest.approx(np.linalg.norm(lean))
        assert 0.1 <= np.linalg.norm(lean) <= 0.2
        assert gravity[:2] / np.linalg.norm(gravity[:2]) == pytest.approx(lean / np.linalg.norm(lean))
    assert simulator.factor_names == ("gravity_tilt:x", "gravity_tilt:y")


def test_absolute_numbers_take_the_place_of_the_models_own() -> None:
    _, simulator = machine(
        Factor("mass", 2.0, 3.0, objects=("box",), relative=False),
        Factor("friction", 0.1, 0.2, objects=("box",), relative=False),
        Factor("gain", 50.0, 60.0, objects=("servo",), relative=False),
    )
    for world, (mass_kg, sliding, stiffness) in enumerate(simulator.factors):
        model, own = simulator.world_model(world), simulator.task.model
        assert model.body_mass[1] == pytest.approx(mass_kg)
        assert model.body_inertia[1] == pytest.approx(own.body_inertia[1] * mass_kg / own.body_mass[1])
        assert model.geom_friction[1].tolist() == pytest.approx([sliding, *own.geom_friction[1, 1:]])
        assert model.actuator_gainprm[0, 0] == pytest.approx(stiffness)
        assert model.actuator_biasprm[0, 1:3] == pytest.approx([-stiffness, -stiffness / 10])


def test_objects_vary_together_or_each_for_itself() -> None:
    _, simulator = machine(
        Factor("mass", 0.7, 1.3), Factor("damping", 0.5, 2, each=True), Factor("joint_zero", -0.1, 0.1)
    )
    assert simulator.factor_names == (
        "mass", "damping:shoulder", "damping:elbow", "joint_zero:shoulder", "joint_zero:elbow",
    )  # fmt: skip
    ratio = simulator.world_model(1).body_mass[1:] / simulator.task.model.body_mass[1:]
    assert ratio == pytest.approx(simulator.factors[1, 0])
    assert len(np.unique(simulator.factors)) == simulator.factors.size


def test_a_later_factor_goes_before_an_earlier_one() -> None:
    _, simulator = machine(Factor("mass", 1.1, 1.2), Factor("mass", 0.5, 0.6, objects=("low*",)))
    ratio = simulator.world_model(0).body_mass[1:] / simulator.task.model.body_mass[1:]
    names, values = simulator.factor_names, simulator.factors[0]
    assert names == ("mass:*", "mass:lower")
    assert ratio == pytest.approx([values[0], values[0], values[1]])


@pytest.mark.parametrize(
    ("factor", "middle"),
    [
        (Factor("mass", 0.5, 2.0), 1.25),
        (Factor("mass", 0.5, 2.0, distribution="log_uniform"), 1.0),
        (Factor("mass", mean=1.0, std=0.2, distribution="normal"), 1.0),
        (Factor("mass", 0.9, mean=1.0, std=0.2, distribution="normal"), 1.0),
    ],
)
def test_draws_are_of_their_distribution(factor: Factor, middle: float) -> None:
    drawn = factor.sample(np.random.default_rng(0), (20_000,))
    low, high = factor.bounds
    assert np.median(drawn) == pytest.approx(middle, abs=0.02)
    assert low <= drawn.min() < low + 0.05 and high - 0.05 < drawn.max() <= high


def test_pushes_come_in_their_time_and_size() -> None:
    task, simulator = machine(Push((0.1, 0.2), (0.5, 1.0)))
    assert simulator.factor_names == ()
    free = np.zeros((3, task.model.nq))
    free[:, :3], free[:, 3] = (0, 0, 50), 1  # falls freely
    steps: list[list[int]] = [[] for _ in range(3)]
    for step in range(40):
        simulator.set_state(free, np.zeros((3, task.model.nv)))
        simulator.step(np.zeros((3, 2), np.float32))
        speed = np.linalg.norm(simulator.qvel[:, :2], axis=1)
        for world in np.flatnonzero(speed):
            steps[world].append(step)
            assert 0.5 <= speed[world] <= 1.0
    for times in steps:
        assert len(times) >= 3 and ((np.diff([0, *times]) >= 5) & (np.diff([0, *times]) <= 10)).all()
    assert steps[0] != steps[1]


def test_factors_can_be_held() -> None:
    task = varied_task([Factor("mass", 0.7, 1.3, objects=("box",)), Push((0.1, 0.2), (0.5, 1.0))])
    held = task.with_factors({"mass": 0.7, "gain": 1.2, "push": 0.0})
    for distribution in task.spec.distributions:
        plain = CpuSimulator(task, 4, seed=3, distribution="nominal", num_threads=1)
        simulator = CpuSimulator(held, 4, seed=3, distribution=distribution, num_threads=1)
        for _ in range(2):
            assert simulator.factor_names == ("mass:box", "gain")
            assert (simulator.factors == [0.7, 1.2]).all()
            assert np.array_equal(plain.desired_goal, simulator.desired_goal)
            assert np.array_equal(plain.achieved_goal, simulator.achieved_goal)
            plain.reset()
            simulator.reset()
    ratio = simulator.world_model(0).body_mass[1:] / task.model.body_mass[1:]
    assert ratio == pytest.approx([0.7, 1, 1])
    assert task.with_factors({}).varied_model("training") is None


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ({"mas": 1.0}, "there is no factor 'mas'; did you mean 'mass'"),
        ({"mass": 0.0}, "mass is drawn from 0 to 0, and must be above 0"),
        ({"push": 1.0}, "training has no push"),
        ([Factor("size", 0.5, 1.5, objects=("floor",))], "'floor' is a plane"),
        ([Factor("damping", 0.5, 1.5, objects=("root",))], "'root' has no damping to multiply"),
        ([Factor("damping", 0.5, 1.5, objects=("root",), relative=False)], "'root' is a free joint"),
        ([Factor("mass", 0.5, 1.5, objects=("world",))], "'world' has no mass"),
        ([Factor("inertia", 0.5, 1.5, relative=False)], "inertia cannot be absolute"),
        ([Factor("gravity_tilt", 0, 4)], "at most pi"),
        ([Push((0.001, 0.1), (0, 1))], "at least the control step"),
        ([Push((0.1, 0.2), (2, 1))], "speed must be"),
        ([Factor("mass", 1, 2), Factor("mass", 1, 2)], "later entries override all of it"),
    ],
)
def test_what_cannot_vary_is_refused(factors: dict | list, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        varied_task([]).with_factors(factors)


def test_an_episode_shorter_than_a_push_has_none() -> None:
    task = varied_task([Push((0.5, 0.6), (1.0, 1.0))], episode_steps=20)
    simulator = CpuSimulator(task, 2, num_threads=1)
    for _ in range(20):
        simulator.step(np.zeros((2, 2), np.float32))
    assert np.abs(simulator.qvel[:, :2]).max() < 1e-6


def test_many_draws_are_those_of_a_few() -> None:
    """Constants of many worlds are derived on threads, those of a few by themselves."""
    varied = varied_task().varied_model("training")
    assert varied is not None
    many = varied.sample(np.random.default_rng(1), 600)
    fields = {name: many[:, columns] for name, (columns, _) in varied.fields.items()}
    one = copy.copy(varied.model)
    mujoco.mj_setConst(one, mujoco.MjData(one))
    assert np.isfinite(many).all()
    for world in (0, 599):
        for name in ("body_mass", "body_inertia", "body_ipos", "qpos0", "qpos_spring", "dof_armature"):
            getattr(one, name).reshape(-1)[:] = fields[name][world]
        one.geom_size.reshape(-1)[:] = fields["geom_size"][world]
        one.actuator_gainprm.reshape(-1)[:] = fields["actuator_gainprm"][world]
        mujoco.mj_setConst(one, mujoco.MjData(one))
        for name in ("body_invweight0", "dof_invweight0", "dof_M0", "body_subtreemass", "geom_rbound"):
            assert np.array_equal(getattr(one, name).reshape(-1), fields[name][world]), name


def test_a_copy_goes_on_alike() -> None:
    simulator = CpuSimulator(varied_task(), 2, num_threads=1)
    simulator.step(np.ones((2, 2), np.float32))
    other = copy.deepcopy(simulator)
    for _ in range(3):
        for each in (simulator, other):
            each.step(np.ones((2, 2), np.float32))
            each.reset(np.array([True, False]))
        assert np.array_equal(simulator.factors, other.factors)
        assert np.array_equal(simulator.observation, other.observation)
