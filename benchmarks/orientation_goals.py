"""How orientations are best told to the networks: six numbers beside a quaternion, in short trainings.

    python -m benchmarks.orientation_goals --seeds 0 1 2
    python -m benchmarks.orientation_goals --table        print what is recorded; run nothing

A wrist of three hinges with position servos is to take orientations that its joints can take, in any of
which the hand may begin. A cell is a teacher of the preset `cpu`, which observes its hand's orientation and
is commanded one in one of the representations. Success is the same for both: the angle between is below
0.3 rad, of quaternions too, after so many control steps; q and -q are one orientation to it, and two goals to
the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import mujoco
import numpy as np

from benchmarks.harness import Cell, StudyParser, markdown_table, run_study
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import BoxPositions
from thousandfold.envs.orientations import ORIENTATION_COLUMNS, from_quaternions, rotation_angle
from thousandfold.envs.reachable_goals import ReachableGoals
from thousandfold.envs.task import EpisodeDistribution, GoalTask, Reset, SuccessRegion, Term
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.networks import torch_policy
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

RADIUS = 0.3
TERMS = {
    "six numbers": Term("xmat", "hand", ORIENTATION_COLUMNS),
    "quaternion": Term("xquat", "hand"),
}
MODEL = """<mujoco>
  <option timestep="0.01" integrator="implicitfast" gravity="0 0 0"/>
  <worldbody>
    <body name="hand">
      <joint name="yaw" axis="0 0 1" range="-170 170" armature="0.05"/>
      <joint name="pitch" axis="0 1 0" range="-85 85" armature="0.05"/>
      <joint name="roll" axis="1 0 0" range="-170 170" armature="0.05"/>
      <geom type="box" size=".1 .03 .01"/>
    </body>
  </worldbody>
  <actuator>
    <position joint="yaw" kp="5" dampratio="1" inheritrange="1"/>
    <position joint="pitch" kp="5" dampratio="1" inheritrange="1"/>
    <position joint="roll" kp="5" dampratio="1" inheritrange="1"/>
  </actuator>
</mujoco>"""


class WristTask(CompiledTask):
    """The task in one representation, judged by the angle in each."""

    def goal_distance(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return the angle between goals, in radians; both (n, goal_dim), or one of them (goal_dim,)."""
        if self.goal_dim == 4:
            achieved_goal, desired_goal = (
                from_quaternions(np.where(np.any(goals, -1, keepdims=True), goals, [1, 0, 0, 0]))
                for goals in map(np.atleast_2d, (achieved_goal, desired_goal))
            )
        return rotation_angle(achieved_goal, desired_goal)

    def is_success(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return where the angle is small enough. Arguments as of `goal_distance`."""
        return self.goal_distance(achieved_goal, desired_goal) < RADIUS


def make_task(representation: str) -> CompiledTask:
    """Return the wrist's task with goals in one of the representations."""
    half = tuple(np.radians([170.0, 85.0, 170.0]).tolist())
    starts = Reset(("yaw", "pitch", "roll"), BoxPositions(tuple(-each for each in half), half))
    episodes = EpisodeDistribution(starts, ReachableGoals(margin=0.0))
    term = TERMS[representation]
    return WristTask(
        GoalTask(
            name="wrist",
            description="a hand takes an orientation",
            build_spec=partial(mujoco.MjSpec.from_string, MODEL),
            observation=(Term("qvel"), term),
            achieved_goal=(term,),
            success=(SuccessRegion(RADIUS),),
            distributions={"training": episodes, "evaluation": episodes},
            episode_steps=60,
        )
    )


def run_cell(representation: str, seed: int, env_steps: int, episodes: int) -> Cell:
    """Train a teacher, and return its success along the way and over fresh episodes at the end."""
    flags = {"task": "point_u_maze", "seed": seed, "env_steps": env_steps, "threads": 1}
    settings = resolve_settings(TrainTeacherSettings, "train_teacher", preset="cpu", flags=flags)
    set_up_torch(1)
    task = make_task(representation)
    training = TeacherTraining(settings, task, "cpu")
    curve = []
    while not training.finished:
        training.collect()
        for batch in training.relabel():
            training.update(batch)
        if training.progress.unrolls % settings.evaluate_every == 0 or training.finished:
            curve.append(
                {"env_steps": training.progress.env_steps, "success": training.evaluate()["success"]}
            )
    policy = torch_policy(training.learner.load_weights(training.choose()))
    found = run_episodes(task, policy, episodes=episodes, seed=10_000 + seed).summary()
    kept = ("success", "success_interval", "time_at_goal", "final_distance", "episodes")
    return {"representation": representation, "seed": seed, "env_steps": env_steps, "curve": curve} | {
        name: found[name] for name in kept
    }


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a teacher."""
    heads = ["representation", "seed", "steps", "success", "time at goal, of 1000", "angle at the end, rad"]
    rows = [
        [
            cell["representation"],
            str(cell["seed"]),
            f"{cell['env_steps']:,}",
            "{:.3f} [{:.3f}, {:.3f}]".format(cell["success"], *cell["success_interval"]),
            f"{cell['time_at_goal']:.0f}",
            f"{cell['final_distance']:.3f}",
        ]
        for cell in cells.values()
    ]
    return markdown_table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "orientation_goals")
    parser.several("--seeds", (0, 1, 2), type=int, help="of the teachers")
    parser.number("--env-steps", 60_000, "of a training", least=1)
    parser.number("--episodes", 512, "at the end", least=1)
    options = parser.parse(arguments)
    cells = (
        (
            f"{representation}, seed {seed}",
            partial(run_cell, representation, seed, options.env_steps, options.episodes),
        )
        for seed in options.seeds
        for representation in TERMS
    )
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
