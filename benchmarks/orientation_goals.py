"""How orientations are best told to the networks: six numbers beside a quaternion, in short trainings.

    python -m benchmarks.orientation_goals --seeds 0 1 2
    python -m benchmarks.orientation_goals --table        print what is recorded; run nothing

A body on a ball joint, which three motors turn against damping, is to take any orientation from any other. A
cell is a teacher of the preset `cpu`, which observes the body's orientation and its rates, and is commanded
an orientation in the same representation. Success is the same for all: the angle between is below 0.3 rad,
of quaternions too. Quaternions are drawn with w ≥ 0, as people command them. Where a body turns on beyond
half a turn its own has w < 0, and MuJoCo leaves it so; "w >= 0" turns its sign as it is read. "near" draws
starts and goals within 1 rad of the identity, where no quaternion comes near the other of its two signs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from benchmarks.harness import Cell, StudyParser, markdown_table, run_study
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.orientations import (
    ORIENTATION_COLUMNS,
    Orientations,
    from_quaternions,
    rotation_angle,
)
from thousandfold.envs.task import EpisodeDistribution, GoalTask, Reset, SuccessRegion, Term
from thousandfold.pipeline.checkpoint import CheckpointFolder
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
    "quaternion, w >= 0": Term("xquat", "hand"),
}
MODEL = """<mujoco>
  <option timestep="0.01" integrator="implicitfast" gravity="0 0 0"/>
  <worldbody>
    <body name="hand"><joint name="ball" type="ball" damping="0.5" armature="0.02"/>
      <geom type="box" size=".1 .07 .05"/></body>
  </worldbody>
  <actuator>
    <motor joint="ball" gear="1.2 0 0" ctrlrange="-1 1"/>
    <motor joint="ball" gear="0 1.2 0" ctrlrange="-1 1"/>
    <motor joint="ball" gear="0 0 1.2" ctrlrange="-1 1"/>
  </actuator>
</mujoco>"""
WITHIN = {"any": np.pi, "near": 1.0}


@dataclass(frozen=True)
class Quaternions:
    """Quaternions with w ≥ 0 of orientations up to `within` radians from the identity, all as likely."""

    within: float

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` of them, shape (count, 4)."""
        columns = Orientations(within=self.within).sample(rng, count).reshape(count, 2, 3)
        found = np.empty((count, 4))
        for quaternion, (x, y) in zip(found, columns, strict=True):
            mujoco.mju_mat2Quat(quaternion, np.stack([x, y, np.cross(x, y)], 1).ravel())
        return np.where(found[:, :1] < 0, -found, found)


class TurningTask(CompiledTask):
    """The task in one representation, judged by the angle in each.

    Attributes:
        one_sign: quaternions are read with w ≥ 0.
    """

    one_sign: bool = False

    def read_observation(self, fields: Mapping[str, Any], out: Any, xp: Any = np) -> None:
        """Write the observation, whose last numbers are the orientation."""
        super().read_observation(fields, out, xp)
        self._turn_sign(out[:, -self.goal_dim :])

    def read_achieved_goal(self, fields: Mapping[str, Any], out: Any, xp: Any = np) -> None:
        """Write the achieved goal."""
        super().read_achieved_goal(fields, out, xp)
        self._turn_sign(out)

    def _turn_sign(self, quaternions: np.ndarray) -> None:
        if self.one_sign:
            quaternions *= np.where(quaternions[:, :1] < 0, -1, 1)

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


def make_task(representation: str, within: float) -> CompiledTask:
    """Return the task with goals in one of the representations."""
    starts = Reset(tuple(f"ball[{index}]" for index in range(4)), Quaternions(within))
    six = representation == "six numbers"
    episodes = EpisodeDistribution(starts, Orientations(within=within) if six else Quaternions(within))
    term = TERMS[representation]
    task = TurningTask(
        GoalTask(
            name="turning",
            description="a body takes an orientation",
            build_spec=partial(mujoco.MjSpec.from_string, MODEL),
            observation=(Term("qvel"), term),
            achieved_goal=(term,),
            success=(SuccessRegion(RADIUS),),
            distributions={"training": episodes, "evaluation": episodes},
            episode_steps=60,
        )
    )
    task.one_sign = representation == "quaternion, w >= 0"
    return task


def run_cell(representation: str, where: str, seed: int, env_steps: int, episodes: int) -> Cell:
    """Train a teacher, and return its success along the way and over fresh episodes at the end."""
    flags = {"task": "point_u_maze", "seed": seed, "env_steps": env_steps, "threads": 1}
    settings = resolve_settings(TrainTeacherSettings, "train_teacher", preset="cpu", flags=flags)
    set_up_torch(1)
    task = make_task(representation, WITHIN[where])
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
    with tempfile.TemporaryDirectory() as place:
        training.save(folder := CheckpointFolder(Path(place)))
        policy = torch_policy(training.learner.load_weights(training.choose(folder)))
    found = run_episodes(task, policy, episodes=episodes, seed=10_000 + seed).summary()
    kept = ("success", "success_interval", "time_at_goal", "final_distance", "episodes")
    return {
        "representation": representation,
        "orientations": where,
        "seed": seed,
        "env_steps": env_steps,
        "curve": curve,
    } | {name: found[name] for name in kept}


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a teacher."""
    heads = [
        "orientations",
        "representation",
        "seed",
        "steps",
        "success",
        "time at goal, of 1000",
        "angle at the end, rad",
    ]
    rows = [
        [
            cell["orientations"],
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
    parser.several("--orientations", tuple(WITHIN), choices=tuple(WITHIN))
    parser.several("--representations", tuple(TERMS), choices=tuple(TERMS))
    parser.number("--env-steps", 60_000, "of a training", least=1)
    parser.number("--episodes", 512, "at the end", least=1)
    options = parser.parse(arguments)
    cells = (
        (
            f"{where}, {representation}, seed {seed}, {options.env_steps} steps",
            partial(run_cell, representation, where, seed, options.env_steps, options.episodes),
        )
        for seed in options.seeds
        for where in options.orientations
        for representation in options.representations
    )
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
