"""How fast a robot's joints move at most, after every physics step and not only at the control rate.

    python -m benchmarks.joint_speed --teacher .../runs/teacher-20261201-130800
    python -m benchmarks.joint_speed --table          print what is recorded; run nothing

A cell is a teacher, on the task that it was trained for. Its joints are moved by actions drawn uniformly, by
actions of -1 or 1 that are drawn anew after one, five and twenty control steps, and by the teacher: its mean
actions, and actions drawn as in training. `sent` is the fastest change of what the actuators are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import mujoco
import numpy as np
import torch

from benchmarks.harness import Cell, StudyParser, markdown_table, run_study
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.start_states import STATE
from thousandfold.models.goal_actor import sample_action
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.stages.episodes import Policy
from thousandfold.stages.networks import load_actor, torch_policy


def drawn_actions(action_dim: int, every: int | None, rng: np.random.Generator) -> Policy:
    """Return a policy that draws actions uniformly, or -1 and 1 anew after `every` control steps."""
    steps, held = 0, np.zeros((0, action_dim), np.float32)

    def policy(observation: np.ndarray, _: np.ndarray) -> np.ndarray:
        nonlocal steps, held
        shape = len(observation), action_dim
        if every is None:
            return rng.uniform(-1, 1, shape).astype(np.float32)
        if steps % every == 0:
            held = rng.choice(np.array([-1, 1], np.float32), shape)
        steps += 1
        return held

    return policy


def largest(task: CompiledTask, policy: Policy, worlds: int, seed: int) -> Cell:
    """Return the largest speeds of hinges and slides in an episode of every world, and of what is sent.

    Every control step is taken by the simulator, and once more here, physics step by physics step. A world
    counts until its episode ends.

    Raises:
        RuntimeError: both came to different states, as where episodes have pushes.
    """
    simulator = CpuSimulator(
        task, worlds, seed=np.random.SeedSequence(seed), distribution="evaluation", num_threads=1
    )
    models = [simulator.world_model(world) for world in range(worlds)]
    again, after = mujoco.MjData(task.model), mujoco.MjData(task.model)
    kinds = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    dofs = [
        int(task.model.jnt_dofadr[place]) for place in np.flatnonzero(np.isin(task.model.jnt_type, kinds))
    ]
    joint, sent, running = 0.0, 0.0, np.ones(worlds, bool)
    for _ in range(task.spec.episode_steps):
        states = simulator.state_dict()["state"]
        result = simulator.step(policy(simulator.observation, simulator.desired_goal))
        running &= ~result.unstable
        after_all = simulator.state_dict()["state"]
        for world in np.flatnonzero(running):
            model, state, reached = models[world], states[world], after_all[world]
            mujoco.mj_setState(model, again, state, STATE)
            mujoco.mj_setState(model, after, reached, STATE)
            sent = max(sent, float(np.abs(after.ctrl - again.ctrl).max()) / task.spec.control_dt_s)
            again.ctrl[:] = after.ctrl
            for _ in range(task.frame_skip):
                mujoco.mj_step(model, again)
                joint = max(joint, float(np.abs(again.qvel[dofs]).max()))
            if not np.allclose(again.qpos, after.qpos, atol=1e-6):
                raise RuntimeError(f"the same controls led elsewhere: has {task.name} pushes?")
        running &= ~result.terminated
    return {"joint": joint, "sent": sent}


def run_cell(teacher: Artifact, worlds: int, seed: int) -> Cell:
    """Move the joints in every way and return the cell's record."""
    trained, task = load_actor(teacher), load_actor(teacher).task
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    @torch.no_grad()
    def sampled(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        gaussian = trained.actor(torch.as_tensor(observation), torch.as_tensor(goal))
        return sample_action(gaussian, torch.randn(gaussian.mean.shape, generator=generator))[0].numpy()

    policies = {
        "uniform": drawn_actions(task.action_dim, None, rng),
        **{f"±1 for {steps}": drawn_actions(task.action_dim, steps, rng) for steps in (1, 5, 20)},
        "teacher": torch_policy(trained.actor),
        "teacher, sampled": sampled,
    }
    return {
        "task": teacher.manifest.task,
        "teacher_hash": teacher.manifest.hash,
        "teacher_success": teacher.manifest.results["success"],
        "episodes": worlds,
        "largest": {name: largest(task, policy, worlds, seed) for name, policy in policies.items()},
    }


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row for each way of moving of each cell."""
    rows = [
        [name, actions, f"{found['joint']:.2f}", f"{found['sent']:.2f}"]
        for name, cell in cells.items()
        for actions, found in cell["largest"].items()
    ]
    return markdown_table(["teacher", "actions", "joint", "sent"], rows, "Largest speeds, a second")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "joint_speed")
    parser.several("--teacher", type=Path, metavar="FOLDER", help="of a teacher's artifact")
    parser.number("--seed", 0, "of the episodes and of the draws")
    parser.number("--episodes", 256)
    options = parser.parse(arguments, needs="teacher")
    set_up_torch(1)
    cells = []
    for folder in options.teacher:
        teacher = Artifact.load(folder)
        task, seed = teacher.manifest.task, teacher.manifest.settings["seed"]
        name = f"{task}, seed {seed}, {str(teacher.manifest.hash)[:8]}"
        cells.append((name, partial(run_cell, teacher, options.episodes, options.seed)))
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
