"""Whether a teacher uses its depth: what each block adds, and what happens without the last ones.

    python -m benchmarks.depth_used --workspace runs/thousand-0

Blocks are bypassed, so that the stream passes them unchanged. Success is closed loop over the same fresh
episodes for every number of blocks kept, with its 95 % interval; for each block, the size of what it adds to
the stream, and how far the mean action moves when this block alone is bypassed.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import PICTURES, Cell, StudyParser, run_once, with_interval
from thousandfold.ground.picture_style import PALETTE, house_figure
from thousandfold.models.block_stack import LAYERS_PER_BLOCK, BlockStack
from thousandfold.models.goal_actor import GoalActor
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.networks import load_actor, torch_policy

_STATES = 512


def blocks_of(actor: GoalActor) -> BlockStack:
    """Return the actor's stack of blocks."""
    return cast(BlockStack, actor.trunk.body)


@torch.no_grad()
def bypass(actor: GoalActor, blocks: slice) -> GoalActor:
    """Return a copy in which the stream passes some blocks unchanged: their last Swish is made to give 0."""
    changed = copy.deepcopy(actor)
    stack = blocks_of(changed)
    last = torch.arange(stack.num_blocks)[blocks] * LAYERS_PER_BLOCK + LAYERS_PER_BLOCK - 1
    stack.norm_weight[last] = 0.0
    stack.norm_bias[last] = 0.0
    return changed


@torch.no_grad()
def contributions(actor: GoalActor, observation: Tensor, goal: Tensor) -> dict[str, list[float]]:
    """Return per block ‖branch‖ / ‖stream‖, and the change of tanh(mean) without this block alone."""
    stack = blocks_of(actor)
    states = stack.stream(actor.trunk.stem(torch.cat([observation, goal], dim=-1)))
    added = [
        float(((after - before).norm(dim=1) / before.norm(dim=1)).mean())
        for before, after in itertools.pairwise(states)
    ]
    whole = actor(observation, goal).mean.tanh()
    moved = []
    for index in range(stack.num_blocks):
        without = bypass(actor, slice(index, index + 1))
        moved.append(float((without(observation, goal).mean.tanh() - whole).abs().mean()))
    return {"branch_over_stream": added, "action_change": moved}


def study(workspace: Path, teacher: str | None, episodes: int, parts: int) -> Cell:
    """Return what the teacher of a workspace does without its last blocks, and what each block adds."""
    space = Workspace(workspace)
    artifact = space.find(teacher, "teacher") if teacher else space.newest("teacher")
    trained = load_actor(artifact)
    actor, task = trained.actor.actor, trained.task
    if task.observation_dim != task.model.nq + task.model.nv:
        raise SystemExit(f"{task.name}: blocks are studied on states whose observation is qpos and qvel")
    stack = blocks_of(actor)
    generator = np.random.default_rng(0)
    qpos, qvel, goal = task.sample_start("training", generator, _STATES)
    states = torch.from_numpy(np.concatenate([qpos, qvel], 1)).float()
    result: Cell = {
        "teacher": artifact.name,
        "task": task.name,
        "depth": trained.shape.depth,
        "settings": artifact.manifest.settings,
        "gain": [] if stack.gain is None else stack.gain.tolist(),
        "kept": [],
    }
    for part in range(parts + 1):
        kept = round(stack.num_blocks * part / parts)
        policy = torch_policy(bypass(actor, slice(kept, None)), "cpu")
        outcome = run_episodes(task, policy, episodes=episodes, seed=7).summary()
        result["kept"].append({"blocks": kept} | outcome)
    return result | contributions(actor, states, torch.from_numpy(np.asarray(goal)).float())


def show(result: Cell) -> str:
    """Return a line a number of blocks kept."""
    blocks = result["depth"] // LAYERS_PER_BLOCK
    return "\n".join(
        f"first {kept['blocks']} of {blocks} blocks: "
        f"success {with_interval(kept['success'], kept['success_interval'])}"
        for kept in result["kept"]
    )


def draw(result: Cell, path: Path) -> None:
    """Draw success against the blocks kept, and what every block contributes."""
    kept = [entry["blocks"] for entry in result["kept"]]
    success = [entry["success"] for entry in result["kept"]]
    bounds = np.array([entry["success_interval"] for entry in result["kept"]]).T
    low, high = np.maximum(success - bounds[0], 0), np.maximum(bounds[1] - success, 0)
    panels = {
        "branch_over_stream": "added to the stream\n(‖branch‖ / ‖stream‖)",
        "action_change": "change of the action\nwithout the block",
    }
    facts = (
        result["task"],
        result["teacher"],
        f"depth {result['depth']}, width {result['settings']['width']}",
        f"seed {result['settings']['seed']}",
        f"{result['kept'][0]['episodes']} episodes a point, bars: 95 % intervals",
    )
    with house_figure(path, 8.0, 6.8, "What the blocks of a deep teacher do", facts) as figure:
        top, *below = figure.subplots(3, 1)
        top.errorbar(kept, success, yerr=[low, high], color=PALETTE[0], marker="o", capsize=3)
        top.set(ylim=(-0.05, 1.05), xlabel="blocks kept, from the first", ylabel="success")
        top.set_title("Success with the last blocks bypassed")
        for axes, (name, label) in zip(below, panels.items(), strict=True):
            values = result[name]
            axes.bar(range(1, len(values) + 1), values, width=1.0, color=PALETTE[4])
            axes.set(xlabel="block", ylabel=label, xlim=(0.5, len(values) + 0.5))


def main(arguments: Sequence[str] | None = None) -> None:
    """Study one teacher, and draw what was found."""
    parser = StudyParser(__doc__, "depth_used")
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--teacher", help="name or path [the newest]")
    parser.number("--episodes", 256)
    parser.number("--parts", 8, "points from no block to all")
    parser.add_argument("--picture", type=Path, default=PICTURES / "depth_used.png")
    options = parser.parse(arguments, needs="workspace")
    torch.set_num_threads(1)
    result = run_once(
        options, lambda: study(options.workspace, options.teacher, options.episodes, options.parts), show
    )
    if not options.table:
        draw(result, options.picture)


if __name__ == "__main__":
    main()
