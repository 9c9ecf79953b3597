"""What a page of YAML says varies: which distributions have it, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.envs.user_tasks.user_pages import ARM, MOVER, PAGE, walled_page, write
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.randomization import Factor, Push
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import TaskError

ARMATURE = ARM.replace('damping="1"/>', 'damping="1" armature="0.1"/>')


def compiled(lines: str, model: str = ARM, page: str = PAGE) -> CompiledTask:
    return compile_task(str(write(Path.cwd(), page + lines, model)))


def names(task: CompiledTask, distribution: str) -> list[str]:
    varied = task.varied_model(distribution)
    return [] if varied is None else varied.factor_names


def test_a_page_without_it_has_the_distributions_it_always_had() -> None:
    task = compiled("")
    assert list(task.spec.distributions) == ["training", "evaluation"]
    assert names(task, "training") == []


def test_training_and_evaluation_vary_and_nominal_does_not() -> None:
    task = compiled("randomize: {mass: {low: 0.7, high: 1.3}}\n")
    varies = {name: names(task, name) for name in task.spec.distributions}
    mass = ["mass"]
    assert varies == {"training": mass, "evaluation": mass, "nominal": [], "randomized": mass}
    evaluation = task.spec.distribution("evaluation")
    for name in ("nominal", "randomized"):
        assert task.spec.distribution(name).starts == evaluation.starts
        assert task.spec.distribution(name).goals == evaluation.goals


@pytest.mark.parametrize(
    ("own", "varies"),
    [
        ("evaluation: {randomize: {}}", (["mass"], [], ["mass"])),
        ("training: {randomize: {gain: {low: 0.5, high: 1}}}", (["gain"], ["mass"], ["gain"])),
    ],
)
def test_an_own_section_takes_its_place(own: str, varies: tuple[list[str], ...]) -> None:
    task = compiled(f"randomize: {{mass: {{low: 0.7, high: 1.3}}}}\n{own}\n")
    assert tuple(names(task, each) for each in ("training", "evaluation", "randomized")) == varies


def test_every_factor_can_be_written() -> None:
    task = compiled(
        """
randomize:
  mass: [{low: 0.7, high: 1.3}, {low: 1, high: 2, bodies: lower, relative: false}]
  inertia: {low: 0.7, high: 1.3, each: true}
  center_of_mass: {low: -0.01, high: 0.01, bodies: [upper, low*]}
  friction: {low: 0.5, high: 1.5, distribution: log_uniform}
  damping: {distribution: normal, mean: 1, std: 0.1}
  armature: {low: 0.5, high: 2, joints: elbow}
  gain: {low: 0.7, high: 1.3, actuators: [lift]}
  strength: {low: 0.7, high: 1}
  gravity_tilt: {low: 0, high: 0.1}
  size: {low: 0.9, high: 1.1, geoms: "*"}
  joint_zero: {low: -0.02, high: 0.02}
""",
        ARMATURE.replace('kp="10"', 'kp="10" forcerange="-5 5"'),
    )
    varies = task.spec.distribution("training").varies
    assert varies[:2] == (
        Factor("mass", 0.7, 1.3), Factor("mass", 1, 2, objects=("lower",), relative=False),
    )  # fmt: skip
    assert [each.name for each in varies[2:]] == [
        "inertia", "center_of_mass", "friction", "damping", "armature", "gain", "strength", "gravity_tilt",
        "size", "joint_zero",
    ]  # fmt: skip


def test_pushes() -> None:
    page = walled_page("[[1, 0]]")
    task = compiled("randomize: {push: {every_s: [0.5, 1], speed: 0.5, body: mover}}\n", MOVER, page)
    assert task.spec.distribution("training").varies == (Push((0.5, 1.0), (0.5, 0.5), "mover"),)


MISTAKES = {
    "masss: {low: 1, high: 2}": "masss: unknown key; did you mean 'mass'?",
    "mass: {lo: 1, high: 2}": "mass.lo: unknown key; did you mean 'low'?",
    "mass: {low: 1}": "mass: uniform draws need a low and a high",
    "mass: {low: -0.1, high: 2}": "mass.low: mass is drawn from -0.1 to 2, and must be above 0",
    "mass: {low: 2, high: 1}": "mass: low is above high: 2 and 1",
    "mass: {low: 0, high: 1, distribution: log_uniform}": "mass.low: mass is drawn from 0 to 1: log_uniform",
    "mass: {distribution: normal, mean: 1, std: 1}": "mass.low: mass is drawn from -2 to 4 (3 std",
    "mass: {mean: 1, std: 1, low: 1, high: 2}": "mass: mean and std are those of `distribution: normal`",
    "mass: {low: 1, high: 2, bodies: [upper, lowr]}": "mass.bodies[1]: no body is called 'lowr'; did you",
    "mass: [{low: 1, high: 2}, {low: 1, high: 2}]": "mass[0]: later entries override all of it",
    "friction: {low: -1, high: 2}": "friction.low: friction is drawn from -1 to 2, and must be above 0",
    "friction: {low: 1, high: 2, bodies: upper}": "friction.bodies: unknown key; ",
    "center_of_mass: {low: 0, high: 1, relative: true}": "center_of_mass.relative: unknown key; ",
    "armature: {low: 1, high: 2}": "armature.joints: 'shoulder' has no armature to multiply: say `relative",
    "strength: {low: 0.5, high: 1}": "strength.actuators: 'lift' has no largest force: give it a forcerange",
    "size: {low: 0.5, high: 1}": "size: 'geoms' must be given",
    "size: {low: 0, high: 1, geoms: '*'}": "size.low: size is drawn from 0 to 1, and must be above 0",
    "push: {every_s: [1, 2], speed: 1}": "push: no body has a free joint or a slide joint to push it along",
    "push: {every_s: [1, 2], speed: 1, body: lower}": "push.body: 'lower' has no free joint and no slide",
    "push: {every_s: [1, 2], speed: 1, body: lowr}": "push.body: the model has no body named 'lowr'; did you",
    "push: {every_s: 0.01, speed: 1}": "push.every_s: every_s must be two times in seconds",
    "mass": "randomize: must be a mapping of keys to values (mass, inertia",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_with_its_place(mistake: str) -> None:
    lines = f"randomize:\n  {mistake}\n"
    with pytest.raises(TaskError) as raised:
        compiled(lines)
    assert str(raised.value).startswith(
        ("robot.yaml, line 14, randomize.", "robot.yaml, line 13, randomize:")
    )
    assert MISTAKES[mistake] in str(raised.value) and "\n" not in str(raised.value)


def test_a_mistake_in_a_section_has_its_place_there() -> None:
    with pytest.raises(TaskError, match=r"line 15, evaluation\.randomize\.mass\.bodies: no body is"):
        compiled("evaluation:\n  randomize:\n    mass: {low: 1, high: 2, bodies: upr}\n")


@pytest.mark.parametrize("name", ["arm_reach", "reacher"])
def test_built_in_tasks_can_vary_and_do_not_by_themselves(name: str) -> None:
    task = compile_task(name)
    assert [names(task, each) for each in ("training", "evaluation", "nominal")] == [[], [], []]
    assert names(task, "randomized")[0] == "mass" and len(names(task, "randomized")) == 3
