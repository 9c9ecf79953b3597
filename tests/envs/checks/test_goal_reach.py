"""Which goals the joints' ranges allow, against what a plane arm of two links can reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.envs.user_tasks.user_pages import ARM, MOVER, STATEFUL_ARM, changed, walled_page, with_line, write
from thousandfold.envs.checks.goal_reach import GoalReach
from thousandfold.envs.checks.obstacles import MazeReach
from thousandfold.envs.registry import compile_task


def reach(folder: Path, page: str, model: str = ARM) -> GoalReach:
    return GoalReach(compile_task(str(write(folder, page, model))))


def listed(*goals: tuple[float, float, float]) -> str:
    return with_line("goal", f"goal: {{list: {[list(goal) for goal in goals]}}}")


# Both links are 0.2 m long; the elbow bends to one side alone, by at most 120 degrees.
@pytest.mark.parametrize(
    ("goal", "missed_by"),
    [
        ((0.4, 0.0, 0.0), None),
        ((0.0, 0.0, 0.4), None),
        ((0.2, 0.0, -0.2), None),
        ((0.0, 0.0, -0.2), None),  # 120 degrees: the tip comes to 0.2 m
        ((0.6, 0.0, 0.0), 0.2),
        ((0.3, 0.3, 0.0), 0.3),  # out of the plane, where 0.3 m in it can be reached
        ((0.0, 0.0, 0.0), 0.2),  # too near
        ((-0.4, 0.0, 0.0), 0.4),  # the shoulder turns by 90 degrees: the upper link points to x >= 0
    ],
)
def test_an_arm_of_two_links(
    tmp_path: Path, goal: tuple[float, float, float], missed_by: float | None
) -> None:
    report = reach(tmp_path, listed(goal)).judge("evaluation", 2)
    if missed_by is None:
        assert report.out_of_reach == 0 and report.farthest == 0
    else:
        assert report.out_of_reach == 2
        if goal[0] >= 0:
            assert report.farthest == pytest.approx(missed_by, abs=0.005)


def test_the_share_that_is_out_of_reach(tmp_path: Path) -> None:
    report = reach(tmp_path, listed((0.4, 0, 0), (0.9, 0, 0))).judge("training", 60)
    assert 15 <= report.out_of_reach <= 45
    assert report.goals == 60


def test_a_free_joint_goes_anywhere(tmp_path: Path) -> None:
    model = changed(ARM, '<body name="upper">', '<body name="upper" pos="0 0 1"><freejoint name="root"/>')
    model = changed(model, '<joint name="shoulder" axis="0 1 0" range="-90 90" damping="1"/>', "")
    model = changed(model, '<position name="lift" joint="shoulder" kp="10" ctrlrange="-1 1"/>', "")
    model = changed(model, '<keyframe><key name="home" qpos="0.25 0.5"/></keyframe>', "")
    page = changed(listed((50.0, -30.0, 2.0)), "{keyframe: home}", "{qpos_noise: 0.1}")
    assert reach(tmp_path, page, model).judge("evaluation", 3).out_of_reach == 0


CUBE = '<body name="cube" pos="1 0 0"><freejoint/><geom size=".1"/></body>'
CART = """<body name="cart" pos="1 0 0"><joint name="x" type="slide" axis="1 0 0"{range}/><geom size=".1"/>
  {pole}</body>"""
POLE = """<body name="pole"><joint name="hinge" axis="0 1 0"/><geom size=".1" pos="0 0 1"/>
  <site name="top" pos="0 0 1"/></body>"""
HOME = '  <keyframe><key name="home" qpos="0.25 0.5"/></keyframe>\n'


@pytest.mark.parametrize(
    ("body", "actuator", "term", "driven"),
    [
        ("", "", "site_xpos, object: fingertip", True),
        (CUBE, "", "xpos, object: cube", False),
        (CUBE, "", "site_xpos, object: fingertip", True),  # the cube is no matter of the goal
        (CUBE, '<adhesion body="cube"/>', "xpos, object: cube", False),  # adhesion pulls at contacts alone
        (changed(CUBE, "<geom", '<site name="jet"/><geom'), '<motor site="jet" gear="1 0 0 0 0 0"/>',
         "xpos, object: cube", True),
        (CART.format(range="", pole=""), "", "xpos, object: cart", False),
        (CART.format(range=' range="-1 1" limited="true"', pole=""), "", "xpos, object: cart", True),
        (CART.format(range="", pole=""), '<motor joint="x"/>', "xpos, object: cart", True),
        (CART.format(range="", pole=POLE), '<motor joint="x"/>', "site_xpos, object: top", True),
        (CART.format(range="", pole=POLE), '<motor joint="hinge"/>', "site_xpos, object: top", False),
    ],
)  # fmt: skip
def test_what_is_driven(tmp_path: Path, body: str, actuator: str, term: str, driven: bool) -> None:
    model = changed(ARM, "  </worldbody>", f"  {body}</worldbody>")
    own = actuator.replace("/>", ' ctrlrange="0 1"/>')
    model = changed(changed(model, "  </actuator>", f"{own}</actuator>"), HOME, "")
    page = changed(listed((0.4, 0, 0)), "{keyframe: home}", "{qpos_noise: 0.01}")
    page = changed(
        page, "achieved_goal: {field: site_xpos, object: fingertip", f"achieved_goal: {{field: {term}"
    )
    assert reach(tmp_path, page, model).is_driven == driven


FLOOR = '<geom name="floor" type="plane" size="1 1 1" pos="0 0 -.1"{}/>'


@pytest.mark.parametrize(
    ("floor", "goal", "page", "below"),
    [
        # The tip is 0.1 m from the centre of its link, and the radius is 0.05 m.
        ("", (0.2, 0.0, -0.24), {}, False),
        ("", (0.2, 0.0, -0.26), {}, True),
        ("", (0.2, 0.0, -0.26), {"radius: 0.05": "radius: 0.1"}, False),
        ("", (0.2, 0.0, -0.26), {"radius: 0.05": "radius: 0.05, slice: [0, 2]"}, False),
        ("", (0.2, 0.0, -0.26), {"site_xpos, object: fingertip, unit": "xpos, object: lower, unit"}, True),
        ("", (0.2, 0.0, 0.3), {}, False),
        (' euler="180 0 0"', (0.2, 0.0, -0.26), {}, False),  # the ceiling of what is below
        (' contype="0" conaffinity="0"', (0.2, 0.0, -0.26), {}, False),
        (' contype="0" conaffinity="2"', (0.2, 0.0, -0.26), {}, False),
    ],
)
def test_floors(
    tmp_path: Path, floor: str, goal: tuple[float, float, float], page: dict[str, str], below: bool
) -> None:
    text = listed(goal)
    for old, new in page.items():
        text = changed(text, old, new)
    model = changed(ARM, "<worldbody>", f"<worldbody>{FLOOR.format(floor)}")
    report = reach(tmp_path, text, model).judge("evaluation", 2)
    assert report.below_floor == (2 if below else 0)
    without = changed(model, "<option ", '<option><flag contact="disable"/></option><option ')
    assert reach(tmp_path, text, without).judge("evaluation", 2).below_floor == 0


def test_goals_beside_a_body_that_is_moved_from_outside(tmp_path: Path) -> None:
    """It stands where the keyframe puts it: 1 m from there, where the model has it, nothing is in reach."""
    text = with_line(
        "achieved_goal",
        "achieved_goal: {field: site_xpos, object: fingertip, minus: {field: xpos, object: marker}}",
    )
    text = changed(
        text, "low: [0.2, 0, -0.3], high: [0.3, 0, -0.1]", "low: [-0.1, -0.2, -0.3], high: [0, -0.2, -0.3]"
    )
    report = reach(tmp_path, text, STATEFUL_ARM).judge("evaluation", 4)
    assert report.out_of_reach == 0
    without = changed(STATEFUL_ARM, ' mpos="0.3 0.2 0.1"', "")
    assert reach(tmp_path, text, without).judge("evaluation", 4).out_of_reach == 4


def test_a_free_joint_below_the_floor(tmp_path: Path) -> None:
    model = changed(ARM, "<worldbody>", f"<worldbody>{FLOOR.format('')}{CUBE}")
    model = changed(model, HOME, "")
    for z, below in ((-0.14, 0), (-0.2, 2)):
        page = changed(listed((0.4, 0, z)), "{keyframe: home}", "{qpos_noise: 0.01}")
        page = changed(
            page,
            "achieved_goal: {field: site_xpos, object: fingertip",
            "achieved_goal: {field: qpos, columns: [0, 1, 2]",
        )
        assert reach(tmp_path, page, model).judge("evaluation", 2).below_floor == below


def test_every_region_counts(tmp_path: Path) -> None:
    page = changed(
        listed((0.4, 0.2, 0.0)),
        "{radius: 0.05}",
        "[{radius: 0.05, slice: [0, 1]}, {radius: 0.05, slice: [1, 2]}]",
    )
    report = reach(tmp_path, page).judge("evaluation", 1)
    assert report.out_of_reach == 1, "x alone can be reached"
    near = changed(page, "{radius: 0.05, slice: [1, 2]}", "{radius: 0.25, slice: [1, 2]}")
    assert reach(tmp_path, near).judge("evaluation", 1).out_of_reach == 0


# The elbow reaches (0.2, 0, -0.2) at 90 degrees alone, within a radius of 0.05 from about 75 to 105.
@pytest.mark.parametrize(
    ("end", "missed"),
    [
        ("{field: qpos, object: elbow}, low: -0.1, high: 1.0", 3),
        ("{field: qpos, object: elbow}, low: -0.1, high: 2.0", 0),
        ("{field: xpos, object: lower, columns: [2]}, low: -0.1, high: 1.0", 0),
        ("{field: site_xpos, object: fingertip, columns: [2]}, low: -0.1, high: 1.0", 3),
        ("{field: qvel, object: elbow}, low: 1, high: 2", 0),  # velocities are not looked at
    ],
)
def test_what_ends_an_episode_early_does_not_count_as_reached(tmp_path: Path, end: str, missed: int) -> None:
    page = listed((0.2, 0.0, -0.2)) + f"early_end: {{term: {end}}}\n"
    report = reach(tmp_path, page).judge("evaluation", 3)
    assert report.out_of_reach == missed
    assert (report.farthest > 0.05) == bool(missed)


CLOSED, OPEN, UNFENCED = "##### #R#G# #####", "##### #R#G# #...# #####", "R#G"


@pytest.mark.parametrize(
    ("layout", "goal", "radius", "walled"),
    [
        (CLOSED, (1, 1), 0.2, False),
        (CLOSED, (1, 3), 0.2, True),  # no path
        (CLOSED, (1, 2), 0.2, True),  # in the wall
        (CLOSED, (1, 1.6), 0.2, False),  # 0.1 m into the wall
        (CLOSED, (1, 1.8), 0.2, True),
        (CLOSED, (9, 9), 0.2, True),  # outside, and there is no way out
        (CLOSED, (1, 3), 2.0, False),  # within the radius from the start's side
        (OPEN, (1, 3), 0.2, False),
        (OPEN, (1, 2), 0.2, True),
        (UNFENCED, (0, 2), 0.2, False),  # around the wall
        (UNFENCED, (0, 1), 0.2, True),
        (UNFENCED, (-50, 70), 0.2, False),
    ],
)
def test_walls(tmp_path: Path, layout: str, goal: tuple[float, float], radius: float, walled: bool) -> None:
    page = walled_page(str([list(goal)]), layout, radius)
    report = reach(tmp_path, page, MOVER).judge("evaluation", 2)
    assert (report.walled_off, report.out_of_reach) == (2 if walled else 0, 0)


def test_a_maze_without_walls_keeps_nothing_out_of_reach(tmp_path: Path) -> None:
    page = changed(walled_page("[[1, 3]]"), ", wall_height: 0.5", "")
    assert reach(tmp_path, page, MOVER).judge("evaluation", 2).walled_off == 0


@pytest.mark.parametrize("name", ["point_u_maze", "point_hardest_maze", "ant_u4_maze", "ant_push"])
def test_no_goal_of_the_built_in_mazes_is_walled_off(name: str) -> None:
    task = compile_task(name)
    found = MazeReach(task)
    assert found.can_judge
    qpos, _, goals = task.sample_start("training", np.random.default_rng(0), 50)
    assert not any(found.walled_off(start[:2], goal) for start, goal in zip(qpos, goals, strict=True))


@pytest.mark.parametrize(
    ("term", "sensor", "judged"),
    [
        ("{field: qvel}", "", False),
        ("{field: qpos}", "", True),
        ("{field: sensordata}", '<framepos objtype="site" objname="fingertip"/>', True),
        ("{field: sensordata}", '<framelinvel objtype="site" objname="fingertip"/>', False),
    ],
)
def test_what_can_be_judged(tmp_path: Path, term: str, sensor: str, judged: bool) -> None:
    model = changed(ARM, "  <keyframe>", f"  <sensor>{sensor}</sensor>\n  <keyframe>")
    size = 3 if sensor else 2
    page = changed(listed((0.4, 0, 0)), "[[0.4, 0, 0]]", f"[{[0.4, *[0.0] * (size - 1)]}]")
    page = changed(
        page, "achieved_goal: {field: site_xpos, object: fingertip, unit: m}", f"achieved_goal: {term}"
    )
    found = reach(tmp_path, page, model)
    assert found.can_judge == judged
    if judged:
        assert found.judge("evaluation", 1).out_of_reach == 0


def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    task = compile_task(
        str(write(tmp_path, with_line("goal", "goal: {box: {low: [0, 0, 0], high: [0.6, 0, 0.6]}}")))
    )
    reports = [GoalReach(task, seed).judge("evaluation", 20) for seed in (3, 3)]
    assert reports[0] == reports[1]
    assert np.isfinite(reports[0].farthest)
