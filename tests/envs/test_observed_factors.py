"""A teacher may observe what was drawn for its episode: in every distribution, on every simulator."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.envs.any_simulator import (
    WORLDS,
    MakeSimulator,
    assert_same,
    make_cpu,
    mask,
    numpy,
    still,
)
from tests.envs.user_tasks.user_pages import ARM, PAGE, changed, write
from tests.envs.varied_tasks import EVERY, MODEL, varied_task
from thousandfold.envs.checks.sense_judgement import judge_senses
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import GoalEnv, GoalVectorEnv
from thousandfold.envs.randomization import Factor, Push, Variation
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.envs.task import EarlyEnd, GoalTask, TaskError, Term

OBSERVED = Term("factors", "*")
FEW = (Factor("mass", 0.7, 1.3), Factor("joint_zero", -0.1, 0.1), Push((0.1, 0.2), (0.5, 1.0)))


def machine(
    varies: Sequence[Variation] = EVERY, evaluation: Sequence[Variation] = (), model: str = MODEL
) -> GoalTask:
    """Return the machine's task with all factors at the end of its observation."""
    task = varied_task(varies, model=model).spec
    own = replace(task.distribution("evaluation"), varies=tuple(evaluation))
    return replace(
        task,
        observation=(*task.observation, OBSERVED),
        distributions={**task.distributions, "evaluation": own},
    )


@pytest.fixture(scope="module")
def task() -> CompiledTask:
    return CompiledTask(machine(FEW))


def told(simulator: Simulator, count: int = 3) -> np.ndarray:
    return numpy(simulator.observation)[:, -count:]


def elements(task: CompiledTask) -> list[tuple[str, str]]:
    described = [(each["name"], each["unit"]) for each in task.describe("observation")]
    return [each for each in described if each[0].startswith("factors:")]


def test_they_are_what_was_drawn_until_the_next_reset(simulator: Simulator) -> None:
    simulator.reset()
    drawn = numpy(simulator.factors).astype(np.float32)
    assert np.array_equal(told(simulator), drawn) and len(np.unique(drawn)) == drawn.size
    simulator.step(still(simulator))
    assert np.array_equal(told(simulator), drawn)
    simulator.set_state(np.tile(simulator.task.model.qpos0, (WORLDS, 1)), np.zeros((WORLDS, 8)))
    assert np.array_equal(told(simulator), drawn)
    simulator.reset(mask(simulator, 1, 3))
    assert (told(simulator) != drawn).all(1).tolist() == [False, True, False, True]
    assert np.array_equal(told(simulator), numpy(simulator.factors).astype(np.float32))


def test_other_worlds_tell_of_the_factors_of_training(make: MakeSimulator, task: CompiledTask) -> None:
    assert (told(make(task, distribution="nominal")) == [1, 0, 0]).all()
    randomized = make(task, distribution="randomized", seed=2)
    assert np.array_equal(told(randomized), numpy(randomized.factors).astype(np.float32))
    held = make(task.with_factors({"mass": 0.5, "gain": 1.2}), distribution="nominal")
    assert np.array_equal(told(held), np.tile(np.float32([0.5, 0, 0]), (WORLDS, 1)))
    assert held.factor_names == ("mass", "gain")


def test_a_saved_state_brings_them_back(make: MakeSimulator) -> None:
    task = CompiledTask(machine(FEW, evaluation=[Factor("mass", 0.5, 2.0, each=True)]))
    simulator = make(task, seed=3, distribution="evaluation")
    simulator.reset(mask(simulator, 0))
    state, before = simulator.state_dict(), told(simulator)
    means = numpy(simulator.factors).mean(1)
    assert np.allclose(before[:, 0], means, rtol=1e-6) and len(np.unique(means)) == WORLDS
    other = make(task, seed=99, distribution="evaluation")
    other.load_state_dict(state)
    for each in (simulator, other):
        each.step(still(each))
    assert np.array_equal(told(other), before)
    assert_same(simulator, numpy(other.observation), numpy(simulator.observation))  # the box lies
    other.reset(mask(other, 2))
    simulator.reset(mask(simulator, 2))
    assert np.array_equal(told(other), told(simulator)) and (told(other)[2] != before[2]).any()


def test_every_factor_has_a_name_a_unit_and_a_number_in_the_model() -> None:
    task = CompiledTask(machine())
    units = dict(elements(task))
    assert list(units)[:3] == [
        "factors:mass[0]", "factors:inertia[0]", "factors:center_of_mass:box:x[0]",
    ]  # fmt: skip
    assert units["factors:mass[0]"] == "1" and units["factors:center_of_mass:box:x[0]"] == "m"
    assert units["factors:gravity_tilt:y[0]"] == units["factors:joint_zero:elbow[0]"] == "rad"
    nominal = dict(zip(units, told(make_cpu(task, 1, distribution="nominal"), len(units))[0], strict=True))
    added = ("center_of_mass", "gravity_tilt", "joint_zero")
    for name, number in nominal.items():
        usual = 0.0 if name.startswith(tuple(f"factors:{each}" for each in added)) else 1.0
        assert number == pytest.approx(0.9 if name == "factors:friction[0]" else usual)
    groups = task.groups_of_a_unit("observation")
    assert len(set(groups[-len(units) :])) == len(units) == len(set(groups)) - len(set(groups[: -len(units)]))
    assert task.earlier_names("observation")[-len(units) :] == list(units)


@pytest.mark.parametrize(
    ("training", "evaluation", "unit", "number"),
    [
        (Factor("mass", 1, 2, objects=("box",), relative=False), [], "kg", 8.0),
        (Factor("friction", 0.5, 1, objects=("box",), relative=False), [], "", 0.6),
        (Factor("gain", 30, 50, objects=("servo",), relative=False), [], "", 40.0),
        (Factor("damping", 0, 1, objects=("elbow",), relative=False), [], "N m s/rad", 0.2),
        (Factor("armature", 0, 1, objects=("elbow",), relative=False), [], "kg m^2", 0.01),
        (Factor("armature", 0, 1, relative=False), [Factor("armature", 2, 2)], "kg m^2", 0.02),
        (Factor("gain", 0.5, 2, objects=("servo",)), [Factor("gain", 20, 20, relative=False)], "1", 0.5),
        (Factor("mass", 0.5, 2, objects=("box",)), [Factor("mass", 3, 3, objects=("arm",))], "1", 1.0),
        (Factor("mass", 0.5, 2, objects=("box",)), [Factor("mass", 3, 3)], "1", 3.0),
        (Factor("damping", 0.5, 2), [Factor("damping", 3, 3, objects=("elbow",))], "1", 2.0),
    ],
)
def test_numbers_are_those_of_the_objects_that_training_draws_them_for(
    training: Factor, evaluation: list[Factor], unit: str, number: float
) -> None:
    task = CompiledTask(machine([training], evaluation))
    assert [each for _, each in elements(task)] == [unit]
    simulator = make_cpu(task, 2, distribution="evaluation")
    assert told(simulator, 1) == pytest.approx(number)


def test_a_share_of_what_the_model_does_not_have_is_refused() -> None:
    pair = '<contact><pair geom1="floor" geom2="box" friction="1 1 0 0 0"/></contact></mujoco>'
    slippery = MODEL.replace('friction="0.6"', 'friction="0"').replace("</mujoco>", pair)
    training, evaluation = (
        Factor("friction", 1, 1, objects=("box",), relative=each) for each in (True, False)
    )
    with pytest.raises(TaskError, match="friction is 0 in the model, and cannot be observed as a share"):
        CompiledTask(machine([training], [evaluation], slippery))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"achieved_goal": (OBSERVED,)}, "read by terms of an observation alone"),
        ({"early_end": (EarlyEnd(OBSERVED, 0, 1),)}, "read by terms of an observation alone"),
        (
            {"observation": (Term("ctrl", transform="difference", minus=OBSERVED),)},
            "read by terms of an observation alone",
        ),
        ({"observation": (Term("factors", "*", transform="cos"),)}, "alone, as they were drawn"),
        ({"observation": (Term("factors", "mas"),)}, "no factor 'mas'; did you mean 'mass'?"),
    ],
)
def test_what_cannot_read_them_is_refused(changes: dict, reason: str) -> None:
    with pytest.raises(TaskError, match=reason) as raised:
        CompiledTask(replace(machine(FEW), **changes))
    assert "\n" not in str(raised.value)


def test_environments_show_them_and_are_copied_with_them(task: CompiledTask) -> None:
    env = GoalEnv(task=task)
    one, _ = env.reset(seed=4)
    again, _ = copy.deepcopy(env).reset(seed=4)
    assert np.array_equal(one["observation"], again["observation"])
    assert 0.7 <= one["observation"][-3] <= 1.3
    several = GoalVectorEnv(3, task=task)
    seen = several.reset(seed=4)[0]["observation"][:, -3:]
    for _ in range(task.spec.episode_steps):
        after = several.step(np.zeros((3, 2), np.float32))[0]["observation"][:, -3:]
    assert len(np.unique(seen)) == 9 and (after != seen).all()


# -- on a page ------------------------------------------------------------------------------------

RANDOMIZE = """randomize:
  mass: [{low: 0.7, high: 1.3}, {low: 1, high: 2, bodies: lower}]
  friction: {low: 0.5, high: 1.5}
  joint_zero: {low: -0.1, high: 0.1}
"""


def page(term: str, more: str = RANDOMIZE) -> str:
    return changed(PAGE, "  - field: site_xpos\n", f"  - {term}\n  - field: site_xpos\n") + more


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compiled(text: str) -> CompiledTask:
    return compile_task(str(write(Path.cwd(), text, ARM)))


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ('"*"', ["mass:upper", "mass:lower", "friction", "joint_zero:shoulder", "joint_zero:elbow"]),
        ("mass", ["mass:upper", "mass:lower"]),
        ("mass:lower", ["mass:lower"]),
        ("joint_zero:*", ["joint_zero:shoulder", "joint_zero:elbow"]),
        ("friction, noise: 0.1, history: 1", ["friction"]),
    ],
)
def test_a_page_says_which(pattern: str, names: list[str]) -> None:
    task = compiled(page(f"{{factors: {pattern}}}"))
    assert [name for name, _ in elements(task)] == [f"factors:{name}[0]" for name in names]
    assert task.describe("observation")[2]["name"] == f"factors:{names[0]}[0]"  # in its place


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (page('{factors: "*"}', ""), "line 7, observation[1].factors: training draws no factors: say in `r"),
        (page("{factors: weight}"), "line 7, observation[1].factors: training draws no factor 'weight'; v"),
        (page("{factors: frict}"), "did you mean 'friction'?"),
        (page('{factors: "*", object: lower}'), "observation[1]: object goes with a field, not with factors"),
        (page('{field: qvel, factors: "*"}'), "orientation, up, clock or factors in its place"),
        (page("{field: factors}"), 'observation[1]: factors are read with `factors: "*"`, without a field'),
        (page("{factors: }"), "observation[1].factors: is empty"),
        (
            page('{field: qvel, minus: {factors: "*"}}'),
            "minus.factors: unknown key; terms of observation and student_observation alone read factors.",
        ),
        (
            changed(PAGE, "achieved_goal: {field: site_xpos, object: fingertip, unit: m}",
                    'achieved_goal: {factors: "*"}') + RANDOMIZE,
            "achieved_goal.factors: unknown key; terms of observation and",
        ),
        (
            PAGE + RANDOMIZE + "early_end: {term: {factors: mass}, low: 0, high: 1}\n",
            "early_end.term.factors: unknown key; terms of observation and",
        ),
        (
            page('{factors: "*"}', "randomize: {mass: {low: 0, high: 1}}\n"),
            "line 14, randomize.mass.low: mass is drawn from 0 to 1",
        ),
    ],
)  # fmt: skip
def test_a_mistake_on_a_page_is_one_line(text: str, said: str) -> None:
    with pytest.raises(TaskError) as raised:
        compiled(text)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.usefixtures("own_folder")
def test_students_are_warned_of_what_no_robot_knows() -> None:
    factors = page('{factors: "*"}')
    (line,) = judge_senses(compiled(factors))
    assert line.startswith("robot.yaml, line 7, observation[1]: factors:* is what the simulator draws")
    assert judge_senses(compiled(factors + "student_observation: {field: qpos}\n")) == []
    (line,) = judge_senses(compiled(factors + "student_observation: [{field: qpos}, {factors: mass}]\n"))
    assert line == (
        "robot.yaml, line 18, student_observation[1]: factors:mass is what no sensor gives a student: the "
        "simulator draws it."
    )
    alone = compiled(PAGE + RANDOMIZE + "student_observation: [{field: qpos}, {factors: mass}]\n")
    simulator = make_cpu(alone, 2, with_student=True)
    assert np.array_equal(simulator.student_observation[:, 2:], simulator.factors[:, :2].astype(np.float32))
