"""What `pipeline tasks check` warns of: goals out of reach, and what a random policy finds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.envs.user_tasks.user_pages import ARM, MOVER, PAGE, changed, walled_page, with_line, write
from thousandfold.envs.checks.goal_judgement import judge_goals
from thousandfold.envs.checks.random_rollout import roll_out, rollout_warnings, training_warnings
from thousandfold.envs.checks.task_judgement import judge_task
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

WITH_CUBE = changed(
    changed(
        ARM,
        "  </worldbody>",
        '    <body name="cube" pos="0.2 0 -.9"><freejoint/><geom type="box" size=".1 .1 .1"/></body>\n'
        '    <geom name="floor" type="plane" size="1 1 1" pos="0 0 -1"/>\n  </worldbody>',
    ),
    '  <keyframe><key name="home" qpos="0.25 0.5"/></keyframe>\n',
    "",
)


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cube_page(x: float, z: float = -0.9) -> str:
    """Return the page of an arm that shall push a cube."""
    page = with_line("goal", f"goal: {{list: [[{x}, 0, {z}]]}}")
    page = changed(
        page,
        "achieved_goal: {field: site_xpos, object: fingertip,",
        "achieved_goal: {field: xpos, object: cube,",
    )
    return changed(page, "{keyframe: home}", "{qpos_noise: 0.01}")


class TestWarnings:
    def warnings(self, page: str = PAGE, model: str = ARM) -> str:
        task = compile_task(str(write(Path.cwd(), page, model)))
        return " ".join(rollout_warnings(roll_out(task, 8, 0), task))

    def test_nothing_to_warn_of(self) -> None:
        assert self.warnings() == ""

    def test_physics_that_diverges(self) -> None:
        model = ARM.replace('kp="10"', 'kp="1e7"')
        assert "the physics diverged in 8 of 8 episodes" in self.warnings(model=model)

    def test_episodes_that_end_at_once(self) -> None:
        page = PAGE + "early_end: {term: {field: qpos}, low: 5, high: 6}\n"
        assert "8 of 8 episodes end at their first step" in self.warnings(page)

    def test_episodes_that_end_soon(self) -> None:
        page = PAGE + "early_end: {term: {field: sensordata}, low: 0, high: 0.12}\n"
        model = changed(ARM, "</actuator>", "</actuator><sensor><clock/></sensor>")
        assert self.warnings(page, model) == "half of the episodes end by early_end within 3 of 30 steps."
        assert self.warnings(PAGE + "early_end: {term: {field: qpos}, low: -9, high: 9}\n") == ""

    def test_episodes_of_training_alone(self) -> None:
        page = PAGE + "early_end: {term: {field: qpos}, low: -1, high: 1.2}\n"
        page += "training: {reset: {joints: [elbow], positions: {list: [[2]]}}}\n"
        task = compile_task(str(write(Path.cwd(), page, ARM.replace('damping="1"', 'damping="100"'))))
        (line,) = training_warnings(task, 8, 0)
        assert line.startswith("of training, 8 of 8 episodes end at their first step: robot.yaml, line 13, ")
        assert training_warnings(compile_task(str(write(Path.cwd(), PAGE))), 8, 0) == []

    def test_near_goals_that_are_too_near(self) -> None:
        page = PAGE + "near: {goal: {box: {low: [0.3, 0, -0.25], high: [0.4, 0, -0.15]}}}\n"
        (line,) = training_warnings(compile_task(str(write(Path.cwd(), page))), 32, 0)
        assert line.endswith("% of the episodes of near start within the success region of their goal.")

    def test_episodes_that_start_at_their_goal(self) -> None:
        page = changed(PAGE, "radius: 0.05", "radius: 5")
        assert "100% of the episodes start within the success region" in self.warnings(page)

    def test_a_goal_that_never_changes(self) -> None:
        page = with_line("achieved_goal", "achieved_goal: {field: xpos, object: upper}")
        assert "the achieved goal never changes" in self.warnings(page)

    def test_joints_that_spin(self) -> None:
        model = changed(ARM, 'range="0 120" damping="1"', 'limited="false"')
        model = changed(
            model, '<position name="bend" joint="elbow" kp="10"', '<motor name="bend" joint="elbow"'
        )
        found = self.warnings(model=changed(model, 'ctrlrange="-0.5 1"', 'ctrlrange="-9 9"'))
        assert re.search(r"too fast to be controlled every 0\.05 s: joint 'elbow' turns at up to \d", found)
        assert "shoulder" not in found

    def test_a_slide_that_flies_off(self) -> None:
        page, model = walled_page("[[2, 0]]"), MOVER.replace('ctrlrange="-1 1"', 'ctrlrange="-1e5 1e5"')
        assert re.search(r"joint '[xy]' slides at up to \d", self.warnings(page, model))

    def test_a_machine_of_centimetres_and_large_numbers_are_left_alone(self) -> None:
        """Inputs are standardised."""
        page = with_line("goal", "goal: {ring: {low: 0.04, high: 0.04, z: 0}}")
        page = changed(page, "fingertip, unit", "hand, unit")
        model = changed(ARM, '<body name="lower"', '<site name="hand" pos=".04 0 0"/><body name="lower"')
        assert "span" not in self.warnings(page, model)
        page = changed(PAGE, "  - field: site_xpos", "  - {field: xpos, object: far}\n  - field: site_xpos")
        far = '    <body name="far" pos="900 0 0"><geom size="1"/></body>\n  </worldbody>'
        assert "900" not in self.warnings(page, changed(ARM, "  </worldbody>", far))

    def test_terms_of_unequal_size(self) -> None:
        page = changed(PAGE, "achieved_goal:", "  - {field: site_xpos, object: near}\nachieved_goal:")
        near = '<body name="upper"><site name="near" pos="1e-4 0 0"/>'
        found = self.warnings(page, changed(ARM, '<body name="upper">', near))
        assert re.search(
            r"observation\[1\] spans \d[.\d]*, and robot\.yaml, line 9, observation\[2\] 0\.000.*: "
            "numbers of one unit share a scale",
            found,
        )

    def test_an_observation_that_never_changes(self) -> None:
        page = "\n".join(
            "observation: {field: xpos, object: upper}" if line.startswith("observation") else line
            for line in PAGE.splitlines()
            if not line.startswith(" ")
        )
        assert "the observation never changes: the policy sees nothing" in self.warnings(page)

    def test_goals_partly_out_of_reach(self) -> None:
        page = (
            with_line("goal", "goal: {list: [[0.4, 0, 0], [0.9, 0, 0]]}")
            + "evaluation: {goal: {list: [[0.4, 0, 0]]}}\n"
        )
        found = judge_goals(compile_task(str(write(Path.cwd(), page))), seed=0)
        assert found.out_of_reach is not None and found.out_of_reach["evaluation"] == 0
        assert 0.25 < found.out_of_reach["training"] < 0.75
        assert len(found.warnings) == 1 and "training goals" in found.warnings[0]

    def test_goals_behind_walls(self) -> None:
        page = walled_page("[[1, 3], [2, 3]]")
        found = judge_goals(compile_task(str(write(Path.cwd(), page, MOVER))), seed=0)
        assert found.out_of_reach is not None and found.out_of_reach["evaluation"] == 1
        assert any(
            "48 of 48 evaluation goals lie within walls of the maze" in each for each in found.warnings
        )

    def test_goals_of_velocities_are_not_judged(self) -> None:
        page = with_line("achieved_goal", "achieved_goal: [{field: qvel}, {field: qpos, columns: [0]}]")
        found = judge_goals(compile_task(str(write(Path.cwd(), page))), seed=0)
        assert (found.out_of_reach, found.warnings) == (None, [])
        assert found.not_judged == "the goal is more than a matter of positions"

    def test_where_a_cube_goes_is_not_judged(self) -> None:
        found = judge_goals(compile_task(str(write(Path.cwd(), cube_page(0.4), WITH_CUBE))), seed=0)
        assert (found.out_of_reach, found.warnings) == (None, [])
        assert found.not_judged == "the goal is the place of a body that nothing drives directly"

    def test_a_cube_below_the_floor(self) -> None:
        page = cube_page(0.4, z=-1.2)
        found = judge_goals(compile_task(str(write(Path.cwd(), page, WITH_CUBE))), seed=0)
        assert found.out_of_reach == {"training": 1.0, "evaluation": 1.0}
        assert "48 of 48 evaluation goals lie below a floor" in found.warnings[1]

    @pytest.mark.parametrize(("x", "warned"), [(0.4, False), (0.9, False), (55.0, True)])
    def test_goals_far_from_where_a_random_policy_came(self, x: float, warned: bool) -> None:
        found = self.warnings(cube_page(x), WITH_CUBE)
        assert ("xpos:cube[0] is commanded from 55 to 55, and a random policy achieved" in found) == warned
        assert warned or found == ""

    def test_goals_that_a_fast_joint_comes_to_are_not_far(self) -> None:
        page = changed(walled_page("[[30, 1]]"), ", wall_height: 0.5", "")
        model = MOVER.replace('ctrlrange="-1 1"', 'ctrlrange="-100 100"')
        assert self.warnings(page + "episode_steps: 400\n", model) == ""
        assert "qpos:x[0] is commanded from 30 to 30" in self.warnings(page + "episode_steps: 20\n", model)


FAST = ("point_u_maze", "reacher", "arm_push_easy")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in task_names()]
)
def test_nothing_looks_wrong_in_a_built_in_task(name: str) -> None:
    task = compile_task(name)
    rollout = roll_out(task, 24, 0, steps=60 if name in FAST else None)
    assert [
        *rollout_warnings(rollout, task),
        *judge_task(task, 0),
        *judge_goals(task, 0, goals=8).warnings,
    ] == []


class TestRandomRollout:
    def test_ranges_and_counts(self) -> None:
        task = compile_task(str(write(Path.cwd())))
        rollout = roll_out(task, 8, 0)
        assert rollout.steps == 8 * 30 and rollout.seconds > 0
        assert rollout.observation[0, :2] == pytest.approx([0.25, 0.5], abs=2)
        assert (rollout.observation[0] <= rollout.observation[1]).all()
        # A plane arm of 0.4 m: y is 0, and the tip stays within its length.
        assert rollout.achieved_goal[:, 1] == pytest.approx([0, 0], abs=1e-9)
        assert np.abs(rollout.achieved_goal).max() < 0.42

    def test_steps_of_episodes_that_ended_do_not_count(self) -> None:
        page = PAGE + "early_end: {term: {field: qpos}, low: 5, high: 6}\n"
        assert roll_out(compile_task(str(write(Path.cwd(), page))), 8, 0).steps == 8
        task = compile_task("humanoid")  # each falls at a time of its own
        rollout = roll_out(task, 4, 0)
        simulator, rng = CpuSimulator(task, 4, seed=0, distribution="evaluation"), np.random.default_rng(0)
        ends: dict[int, int] = {}
        for step in range(task.spec.episode_steps):
            outcome = simulator.step(rng.uniform(-1, 1, (4, 17)).astype(np.float32))
            for world in np.flatnonzero(outcome.terminated):
                ends.setdefault(int(world), step + 1)
        assert len(set(ends.values())) > 1 and rollout.steps == sum(ends.values())

    def test_a_goal_as_large_as_the_workspace_is_always_met(self) -> None:
        task = compile_task(str(write(Path.cwd(), changed(PAGE, "radius: 0.05", "radius: 1"))))
        assert roll_out(task, 8, 0).reached.all()

    def test_an_unstable_episode_meets_nothing(self) -> None:
        page, model = changed(PAGE, "radius: 0.05", "radius: 1"), ARM.replace('kp="10"', 'kp="1e7"')
        rollout = roll_out(compile_task(str(write(Path.cwd(), page, model))), 8, 0)
        assert rollout.unstable.all() and not rollout.reached.any()
