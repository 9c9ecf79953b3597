"""Whether what varies changes anything: each factor held at its bounds, beside the nominal worlds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.randomization import Factor, Variation
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.user_tasks.task_yaml import task_place

_WORLDS, _STEPS = 8, 50
_REASONS = {
    "friction": "contacts take the larger friction of the two geoms, and what touches nothing has none",
    "strength": "no actuator came to its largest force",
    "size": "nothing touched the geoms",
    "push": "no push falls within an episode, or its speed is 0",
}


def judge_variations(task: CompiledTask, seed: int) -> list[str]:
    """Return a line for each factor and push of the task's episodes that changes no world.

    Worlds are compared with nominal ones after 50 control steps under the same random actions; those that are
    pushed after as many as the first push may take.
    """
    found, judged = [], set[tuple[Variation, ...]]()
    for name in task.spec.judged:
        varies = task.spec.distribution(name).varies
        if not varies or varies in judged:
            continue
        judged.add(varies)
        plain = _states(task, [], name, seed, _STEPS)
        place = partial(task_place, task.spec.file)
        names = [each.name for each in varies]
        for index, each in enumerate(varies):
            entry = (name, "randomize", each.name, names[:index].count(each.name))
            if isinstance(each, Factor):
                held = [each.held(bound) for bound in dict.fromkeys(each.bounds)]
                changes = any((_states(task, [h], name, seed, _STEPS) != plain).any() for h in held)
            else:
                most = min(task.spec.episode_steps, int(2 * each.every_s[1] / task.spec.control_dt_s) + 2)
                pushed, still = (_states(task, which, name, seed, most) for which in ([each], []))
                changes = bool((pushed != still).any())
            if not changes:
                reason = _REASONS.get(each.name, "nothing that moves depends on it")
                found.append(f"{place(entry)}: {each.name} changes nothing in random actions: {reason}.")
    return found


def _states(
    task: CompiledTask, varies: Sequence[Variation], distribution: str, seed: int, steps: int
) -> np.ndarray:
    """Return the positions and velocities of worlds after some control steps, which vary so."""
    simulator = CpuSimulator(task.with_factors(varies), _WORLDS, seed=seed, distribution=distribution)
    rng = np.random.default_rng(seed)
    for _ in range(min(steps, task.spec.episode_steps)):
        simulator.step(rng.uniform(-1.0, 1.0, (_WORLDS, task.action_dim)).astype(np.float32))
    return np.hstack([[simulator.world_data(world).qpos for world in range(_WORLDS)], simulator.qvel])
