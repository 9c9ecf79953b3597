"""Actions that build on what was sent last: targets, filters, rates and ends, the same in every simulator."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.envs.any_simulator import EVERY_SIMULATOR, MakeSimulator, mask, numpy
from tests.envs.user_tasks.user_pages import ARM, PAGE, STATEFUL_ARM, changed, write
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

torch = pytest.importorskip("torch", reason="torch comes with the extra `train`")

DT = 0.05


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compiled(action: str, model: str = ARM, page: str = PAGE) -> CompiledTask:
    return compile_task(str(write(Path.cwd(), f"{page}action: {action}\n", model)))


def sent(action: str, actions: list[list[float]], start: list[float], model: str = ARM) -> np.ndarray:
    """Return what is sent for actions one after the other, (steps, nu), the same from NumPy and torch."""
    control = compiled(action, model).control
    last, last_in_torch, found = np.array([start]), torch.tensor([start], dtype=torch.float64), []
    for each in actions:
        action_row = np.array([each], np.float32)
        last = control(action_row, last)
        last_in_torch = control(torch.from_numpy(action_row), last_in_torch, xp=torch)
        np.testing.assert_allclose(last_in_torch.numpy(), last, atol=1e-7)
        found.append(last[0])
    return np.array(found)


def test_a_delta_adds_to_what_was_sent_last_up_to_its_ends() -> None:
    found = sent('{actuators: "*", kind: delta, max_rate: 2}', [[1, -0.5], [3, -1], [0, -1]], [0.85, -0.4])
    np.testing.assert_allclose(found, [[0.95, -0.45], [1.0, -0.5], [1.0, -0.5]], atol=1e-6)


def test_an_offset_is_about_the_keyframe_that_episodes_start_in() -> None:
    found = sent('{actuators: "*", kind: offset, scale: 0.3}', [[1, -1], [0, 0], [0, 9]], [0, 0])
    np.testing.assert_allclose(found, [[0.55, 0.2], [0.25, 0.5], [0.25, 0.8]], atol=1e-6)


def test_an_offset_is_about_what_the_page_says_and_never_leaves_the_ends() -> None:
    entries = "[{actuator: bend, kind: offset, about: 0.9, scale: 0.4}, {actuator: lift}]"
    np.testing.assert_allclose(sent(entries, [[1, 0.5], [-1, 0]], [0, 0]), [[0.5, 1.0], [0, 0.5]], atol=1e-6)


def test_without_a_keyframe_an_offset_is_about_the_initial_position() -> None:
    page = changed(PAGE, "reset: {keyframe: home}\n", "")
    model = changed(ARM, '<joint name="shoulder"', '<joint ref="30" name="shoulder"')
    base = compiled('{actuators: "*", kind: offset, scale: 0.1}', model, page).control.base
    np.testing.assert_allclose(base, [math.radians(30), 0], atol=1e-6)


def test_a_filter_goes_its_exact_share_of_the_way() -> None:
    found = sent('{actuators: "*", smoothing_s: 0.1}', [[1, 1]] * 3, [0, 0])
    share = 1 - np.exp(-DT * np.arange(1, 4) / 0.1)
    np.testing.assert_allclose(found, np.outer(share, [1.0, 1.0]), atol=1e-6)


def test_a_largest_rate_holds_for_any_kind() -> None:
    entries = "[{actuator: lift, kind: switch, max_rate: 4}, {actuator: bend, max_rate: 1}]"
    np.testing.assert_allclose(
        sent(entries, [[1, 1], [1, 1], [-1, -1]], [-1, 0.2]),
        [[-0.8, 0.25], [-0.6, 0.3], [-0.8, 0.25]],
        atol=1e-6,
    )


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_a_target_swings_with_the_time_since_its_episode_began(make: MakeSimulator) -> None:
    entries = (
        "[{actuator: lift, kind: offset, scale: 0.2, swing: {amplitude: 0.3, period_s: 0.4, phase: 0.25}}, "
        "{actuator: bend, kind: offset, scale: 0.2, max_rate: 2, swing: {amplitude: -0.1, period_s: 0.7}}]"
    )
    task = compiled(entries, page=changed(PAGE, "achieved_goal", "  - {field: ctrl}\nachieved_goal"))
    names = [each["name"] for each in task.describe("observation")]
    assert names[5:] == [
        "ctrl:lift[0]", "ctrl:bend[0]", "clock:0.4[0]", "clock:0.4[1]", "clock:0.7[0]", "clock:0.7[1]"
    ]  # fmt: skip
    assert task.swing_clocks() == [7, 8, 9, 10]
    simulator, rng = make(task), np.random.default_rng(0)
    begun, bend = np.zeros(4), numpy(simulator.observation)[:, 6].copy()
    for step in range(30):
        action = rng.uniform(-1, 1, (4, 2)).astype(np.float32)
        simulator.step(action)
        time_s = (step - begun) * DT
        lift = 0.25 + 0.2 * action[:, 0] + 0.3 * np.sin(2 * np.pi * (time_s / 0.4 + 0.25))
        target = 0.5 + 0.2 * action[:, 1] - 0.1 * np.sin(2 * np.pi * time_s / 0.7)
        bend = np.clip(bend + np.clip(target - bend, -2 * DT, 2 * DT), -0.5, 1.0)
        sent_now = numpy(simulator.observation)[:, 5:7]
        np.testing.assert_allclose(sent_now, np.stack([lift.clip(-1, 1), bend], 1), atol=1e-5)
        if step == 10:
            simulator.reset(mask(simulator, 1, 2))
            begun[[1, 2]], bend = step + 1, numpy(simulator.observation)[:, 6].copy()


def test_the_quadruped_of_the_examples_steps_as_the_docs_say() -> None:
    root = Path(__file__).parents[2]
    (shown,) = re.findall(
        r"```yaml\n(action:.*?)```", (root / "docs/user_tasks.md").read_text("utf-8"), re.DOTALL
    )
    page = root / "examples/quadruped/quadruped_point.yaml"
    assert yaml.safe_load(page.read_text("utf-8"))["action"] == yaml.safe_load(shown)["action"]
    control = compile_task(str(page)).control
    quarter = np.array([[0.0, 1.0]], np.float32)
    moved = control(np.zeros((1, 12)), control.base[None], clocks=quarter)[0] - control.base
    legs = {
        name: moved[control.actuators.index(name)] for name in ("FL_thigh", "FL_calf", "FR_thigh", "FR_calf")
    }
    assert list(legs.values()) == pytest.approx([0.1, -0.2, -0.1, 0.2], abs=1e-6)


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_a_swing_begins_anew_where_worlds_are_put_into_a_state(make: MakeSimulator) -> None:
    entries = '{actuators: "*", kind: offset, scale: 0.2, swing: {amplitude: 0.3, period_s: 0.4}}'
    task = compiled(entries, page=changed(PAGE, "achieved_goal", "  - {field: ctrl}\nachieved_goal"))
    simulator, idle = make(task), np.zeros((4, 2), np.float32)
    for _ in range(3):
        simulator.step(idle)
    assert np.abs(numpy(simulator.observation)[:, 5:7] - task.control.base).min() > 0.1
    simulator.set_state(np.tile([0.25, 0.5], (4, 1)), np.zeros((4, 2)))
    np.testing.assert_allclose(numpy(simulator.observation)[:, 7:9], [[1.0, 0.0]] * 4, atol=1e-6)
    simulator.step(idle)
    np.testing.assert_allclose(numpy(simulator.observation)[:, 5:7], [task.control.base] * 4, atol=1e-6)


def test_the_clocks_have_to_be_given() -> None:
    control = compiled(
        '{actuators: "*", kind: offset, scale: 1, swing: {amplitude: 0.1, period_s: 1}}'
    ).control
    with pytest.raises(ValueError, match="the clocks that targets swing with must be given"):
        control(np.zeros((1, 2)))
    late = control.clocks(np.array([[50_000.3]]))
    np.testing.assert_allclose(late, control.clocks(np.array([[0.3]])), atol=1e-5)


def test_a_clock_that_is_observed_already_is_not_observed_twice() -> None:
    swing = "swing: {amplitude: 0.3, period_s: 0.4}"
    page = changed(PAGE, "achieved_goal", "  - {clock: 0.4, history: 2}\nachieved_goal")
    task = compiled(f'{{actuators: "*", kind: offset, scale: 0.2, {swing}}}', page=page)
    seen = compiled("range", page=page + "student_observation: [{field: qpos}]\n").changed(clock_s=0.4)
    assert seen.observation_dim == 9 and seen.student_view.clock_columns() == [2, 3]
    for each in (task, task.changed(clock_s=0.4)):
        names = [element["name"] for element in each.describe("observation")]
        assert names.count("clock:0.4[0]") == 1 and names[each.swing_clocks()[1]] == "clock:0.4[1]"
    assert task.changed(clock_s=0.4).clock_columns() == task.swing_clocks()


def test_names_go_before_patterns_and_later_patterns_before_earlier_ones() -> None:
    model = changed(ARM, "</actuator>", '<motor name="wrist" joint="elbow" ctrlrange="-3 3"/></actuator>')
    entries = (
        '[{actuators: "*", max_rate: 1}, {actuators: [b*, w*], max_rate: 2}, {actuator: wrist, hold: 0}]'
    )
    control = compiled(entries, model).control
    assert control.actions == ["lift", "bend"]
    assert [command.max_rate for command in control.commands] == [1, 2, None]
    assert control(np.ones((1, 2)), np.zeros((1, 3)))[0] == pytest.approx([DT, 2 * DT, 0])


@pytest.mark.parametrize(
    ("observed", "last"),
    [
        ("", ["ctrl:lift[0]", "ctrl:bend[0]"]),
        ("  - {field: ctrl, object: bend}\n", ["ctrl:bend[0]", "ctrl:lift[0]"]),
        ("  - {field: ctrl}\n", ["ctrl:lift[0]", "ctrl:bend[0]"]),
        ("  - {field: ctrl, columns: [1]}\n", ["ctrl:bend[0]", "ctrl:lift[0]"]),
    ],
)
def test_an_observation_tells_what_was_sent_last(observed: str, last: list[str]) -> None:
    page = changed(PAGE, "achieved_goal", f"{observed}achieved_goal")
    task = compiled('{actuators: "*", kind: delta, max_rate: 1}', page=page)
    names = [each["name"] for each in task.describe("observation")]
    assert names[5:] == last and task.observation_dim == 7
    assert [names[place] for place in task.last_controls()] == ["ctrl:lift[0]", "ctrl:bend[0]"]
    if not observed:
        assert [each["unit"] for each in task.describe("observation")][5:] == ["rad", "rad"]
    assert compiled("range", page=PAGE).observation_dim == 5


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_what_is_sent_never_moves_faster_and_starts_where_the_joints_are(make: MakeSimulator) -> None:
    page = changed(PAGE, "{keyframe: home}", "{keyframe: home, qpos_noise: 0.2}")
    entries = (
        '[{actuators: "*", kind: delta, max_rate: 1.5}, '
        "{actuator: bend, kind: offset, scale: 0.9, max_rate: 2, smoothing_s: 0.1}]"
    )
    task = compiled(entries, page=page)
    simulator, rng = make(task, seed=3), np.random.default_rng(0)
    joints, last = numpy(simulator.observation)[:, :2], numpy(simulator.observation)[:, 5:]
    np.testing.assert_allclose(last, joints, atol=1e-6)
    assert np.ptp(last, axis=0).min() > 0.05
    for step in range(200):
        action = rng.choice([-1.0, 1.0], (4, 2)).astype(np.float32)
        expected = task.control(action, last)
        simulator.step(action)
        sent_now = numpy(simulator.observation)[:, 5:]
        np.testing.assert_allclose(sent_now, expected, atol=1e-5)
        assert (np.abs(sent_now - last) <= np.array([1.5, 2.0]) * DT + 1e-5).all()
        if step == 100:
            simulator.reset(mask(simulator, 1, 2))
            restarted = numpy(simulator.observation)
            np.testing.assert_allclose(restarted[[1, 2], 5:], restarted[[1, 2], :2], atol=1e-6)
            np.testing.assert_allclose(restarted[[0, 3], 5:], sent_now[[0, 3]], atol=1e-6)
            sent_now = restarted[:, 5:]
        last = sent_now.copy()
    simulator.set_state(np.tile([0.1, 0.3], (4, 1)), np.zeros((4, 2)))
    np.testing.assert_allclose(numpy(simulator.observation)[:, 5:], [[0.1, 0.3]] * 4, atol=1e-6)


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_the_filter_of_a_servo_has_settled_where_its_joint_starts(make: MakeSimulator) -> None:
    """Nothing pulls at the arm, so that it stands still until the policy moves it."""
    model = changed(ARM, '<option timestep="0.01"/>', '<option timestep="0.01" gravity="0 0 0"/>')
    model = changed(model, 'joint="elbow" kp="10"', 'joint="elbow" kp="10" timeconst="0.1"')
    page = changed(PAGE, "{keyframe: home}", "{keyframe: home, qpos_noise: 0.2}")
    page = changed(page, "achieved_goal", "  - {field: act}\nachieved_goal")
    simulator = make(compiled('{actuators: "*", kind: delta, max_rate: 1.5}', model, page), seed=3)
    begun = numpy(simulator.observation)
    assert np.ptp(begun[:, 1]) > 0.05
    np.testing.assert_allclose(begun[:, 5], begun[:, 1], atol=1e-6)
    for _ in range(5):
        simulator.step(np.zeros((4, 2), np.float32))
    np.testing.assert_allclose(numpy(simulator.observation)[:, :2], begun[:, :2], atol=1e-5)
    moved = numpy(simulator.observation)
    simulator.step(np.ones((4, 2), np.float32))
    assert (numpy(simulator.observation)[:, 5] < moved[:, 5] + 1.5 * DT * 0.6).all(), "at the filter's pace"
    stepped = numpy(simulator.observation)
    simulator.reset(mask(simulator, 1))
    np.testing.assert_allclose(numpy(simulator.observation)[[0, 2, 3], 5], stepped[[0, 2, 3], 5], atol=1e-6)
    simulator.set_state(np.tile([0.1, 0.3], (4, 1)), np.zeros((4, 2)))
    np.testing.assert_allclose(numpy(simulator.observation)[:, 5], 0.3, atol=1e-6)


@pytest.mark.parametrize("make", EVERY_SIMULATOR)
def test_a_saved_simulator_remembers_what_was_sent(make: MakeSimulator) -> None:
    task = compiled('{actuators: "*", kind: delta, max_rate: 1.5}')
    simulator, other = make(task), make(task, seed=9)
    action = np.full((4, 2), 0.7, np.float32)
    for _ in range(3):
        simulator.step(action)
    other.load_state_dict(simulator.state_dict())
    for each in (simulator, other):
        each.step(action)
    np.testing.assert_array_equal(numpy(simulator.observation), numpy(other.observation))


def test_a_name_among_patterns_goes_before_patterns_too() -> None:
    control = compiled('[{actuators: [bend], max_rate: 2}, {actuators: "*", max_rate: 1}]').control
    assert [command.max_rate for command in control.commands] == [1, 2]


def test_names_with_brackets_are_names() -> None:
    model = changed(ARM, 'name="lift"', 'name="lift[0]"')
    control = compiled('[{actuators: ["lift[0]", bend], kind: delta, max_rate: 1}]', model).control
    assert control.actions == ["lift[0]", "bend"]


def test_a_servo_that_integrates_is_told_a_velocity_and_starts_from_the_keyframes() -> None:
    """Its force has the form of a position servo's, but its control is no position."""
    task = compiled('{actuators: "*", kind: delta, max_rate: 1}', STATEFUL_ARM)
    simulator = CpuSimulator(task, 2, num_threads=1)
    np.testing.assert_allclose(simulator.observation[:, 5:], [[0.0, 0.5]] * 2, atol=1e-6)
    with pytest.raises(ValueError, match="position_target needs position servos, and actuator 'lift'"):
        compiled("position_target", STATEFUL_ARM)


@pytest.mark.parametrize("sections", [("training", "evaluation"), ("training",)])
def test_an_offset_is_about_the_keyframe_of_all_episodes(sections: tuple[str, ...]) -> None:
    own = "".join(f"{name}: {{reset: {{keyframe: home}}}}\n" for name in sections)
    page = changed(PAGE, "reset: {keyframe: home}\n", own)
    entries = '{actuators: "*", kind: offset, scale: 0.1}'
    if len(sections) == 2:
        np.testing.assert_allclose(compiled(entries, page=page).control.base, [0.25, 0.5], atol=1e-6)
    else:
        with pytest.raises(ValueError, match="training and evaluation start in different keyframes"):
            compiled(entries, page=page)


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_an_action_that_is_no_number_sends_none(xp: Any) -> None:
    control = compiled('[{actuators: "*", max_rate: 1, smoothing_s: 0.1}]').control
    found = control(xp.asarray([[math.nan, 0.5]]), xp.zeros((1, 2)), xp=xp)
    assert math.isnan(float(found[0, 0])) and math.isfinite(float(found[0, 1]))


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ('- {actuator: bend, max_rate: 1}\n  - {actuators: "l*", kind: delta}', 15),
        ("- {actuator: bend, max_rate: 1}\n  - {actuator: lift}\n  - {actuator: bend}", 16),
        ('- {actuators: "l*"}\n  - {actuators: "*"}', 14),
        ('- {actuators: "*"}\n  - {actuators: [bend, "x*"]}', 15),
    ],
    ids=["pattern", "commanded twice", "nothing left", "unknown pattern"],
)
def test_a_mistake_is_told_where_it_stands(entries: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"robot.yaml, line {line}, action\[{line - 14}\]"):
        compiled(f"\n  {entries}")


MOTOR = changed(ARM, '<position name="lift" joint="shoulder" kp="10"', '<motor name="lift" joint="shoulder"')


@pytest.mark.parametrize(
    ("action", "model", "said"),
    [
        ("[{actuator: lift, kind: delta}, {actuator: bend}]", ARM, "'lift' needs a max_rate, as every delta"),
        ("[{actuator: lift, kind: offset}, {actuator: bend}]", ARM, "'lift' needs a scale, as every offset"),
        (
            "[{actuator: lift, scale: 1}, {actuator: bend}]",
            ARM,
            "is given scale, which is for kind: offset alone",
        ),
        (
            "[{actuator: lift, kind: offset, about: 5, scale: 1}, {actuator: bend}]",
            ARM,
            "'lift' is to move about 5, which is not between -1 and 1",
        ),
        (
            "[{actuator: lift, kind: delta, max_rate: 1, low: 1, high: 0}, {actuator: bend}]",
            ARM,
            "'lift' has a low of 1 above its high of 0",
        ),
        ("{actuators: 'lfit*', max_rate: 1}", ARM, "no actuator is called 'lfit*'; "),
        ("[{actuators: lift, max_rate: 1}]", ARM, "actuator 'bend' has no command"),
        (
            "{actuators: '*', kind: delta, max_rate: 1, smoothing_s: 0.1}",
            ARM,
            "'lift' has a smoothing_s",
        ),
        ("{actuators: '*', kind: delta, max_rate: 1e308}", ARM, "too large or too small for a number of 32"),
        ("{actuators: '*', max_rate: 1e-300}", ARM, "too large or too small for a number of 32 bits"),
        ("{actuators: '*', smoothing_s: 1e300}", ARM, "too large or too small for a number of 32 bits"),
        (
            "{actuators: '*', kind: delta, max_rate: 1}",
            changed(ARM, 'kp="10" ctrlrange="-1 1"', 'kp="10" ctrlrange="-1 1" ctrllimited="false"'),
            "the model switches it off",
        ),
        (
            "{actuators: '*', swing: {amplitude: 0.1, period_s: 0.4}}",
            ARM,
            "given swing, which is for kind: off",
        ),
        (
            "{actuators: '*', kind: offset, scale: 1, swing: {amplitude: 0.1, period_s: 0.09}}",
            ARM,
            "'lift' swings in at least two control steps, 0.1 s, and at most 3600 s, not in 0.09 s",
        ),
        (
            "{actuators: '*', kind: offset, scale: 1, swing: {amplitude: 1e300, period_s: 1}}",
            ARM,
            "too large or too small for a number of 32 bits",
        ),
        ("{actuators: '*', kind: offset, scale: 1, swing: {amplitude: 1}}", ARM, "period_s"),
        ("{actuators: '*', kind: offset, scale: 1, swing: {amplitude: .nan, period_s: 1}}", ARM, "amplitude"),
        ("[{max_rate: 1}]", ARM, "name one actuator, or several in actuators"),
        ("{actuators: '*', max_rate: -1}", ARM, "must be greater than 0"),
        ("[{actuators: '*', hold: 0, max_rate: 1}]", ARM, "an actuator that is held has no kind"),
    ],
)
def test_mistakes(action: str, model: str, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        compiled(action, model)
    assert said in (message := str(raised.value))
    assert "robot.yaml, line 13, action" in message and "\n" not in message


def test_an_offset_of_a_motor_is_about_its_control_in_the_keyframe() -> None:
    model = changed(MOTOR, 'qpos="0.25 0.5"', 'qpos="0.25 0.5" ctrl="0.4 0"')
    base = compiled('{actuators: "*", kind: offset, scale: 0.1}', model).control.base
    np.testing.assert_allclose(base, [0.4, 0.5], atol=1e-6)
    page = changed(PAGE, "reset: {keyframe: home}\n", "")
    with pytest.raises(ValueError, match="'lift' is no position servo of a joint: give `about`"):
        compiled('{actuators: "*", kind: offset, scale: 0.1}', model, page)
