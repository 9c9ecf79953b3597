"""Draw every task and write docs/tasks.md: a picture of each, its sizes and its goals.

    python -m benchmarks.task_gallery
    python -m benchmarks.task_gallery --tasks ant reacher    # their pictures alone; the page is written whole

A picture shows how an evaluation episode starts, with its goal. It is drawn twice as large and reduced.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.scene_rendering import SceneRenderer
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.envs.task_names import environment_id
from thousandfold.ground.files import atomic_file, write_atomic

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/tasks.md"
PICTURES = ROOT / "docs/pictures/tasks"
WIDTH, HEIGHT = 400, 300
SEED = 4
SIX = ROOT / "docs/pictures/six_tasks.png"
SIX_TASKS = ("ant_big_maze", "ant_ball", "humanoid", "arm_binpick_easy", "pusher", "reacher")
_GAP, _COLOURS = 6, 160


@dataclass(frozen=True)
class Family:
    """Tasks that stand together.

    Attributes:
        title: the heading.
        text: what they have in common, one paragraph.
        has: whether a task, by its name, is one of them.
    """

    title: str
    text: str
    has: Callable[[str], bool]


FAMILIES = (
    Family(
        "Point mass",
        "Two motors push a sphere through a maze. The tasks are small enough to learn in minutes on a CPU.",
        lambda name: name.startswith("point_"),
    ),
    Family(
        "Ant",
        "This is Gymnasium's ant. An episode ends when it has fallen.",
        lambda name: name in ("ant", "ant_ball", "ant_push"),
    ),
    Family(
        "Ant in mazes",
        "A cell of the maze is 4 m wide. Evaluation starts at the cell R and commands the far cells.",
        lambda name: name.startswith("ant_") and name.endswith("_maze"),
    ),
    Family(
        "Ant in mazes, stitching",
        "These are the same mazes, with starts everywhere. Training commands cells at most 3 cells away. "
        "Evaluation commands cells that are farther, so no training episode shows the whole path.",
        lambda name: name.startswith("ant_") and name.endswith("_stitch"),
    ),
    Family(
        "Humanoid",
        "This is Gymnasium's humanoid, also in mazes of 2 m cells. An episode ends when it has fallen.",
        lambda name: name.startswith("humanoid"),
    ),
    Family(
        "Panda arm",
        "A Franka Panda stands at a table. Actions are targets of four of its joints and, in tasks with a "
        "gripper, of the gripper.",
        lambda name: name.startswith("arm_"),
    ),
    Family(
        "Other machines",
        "These are Gymnasium's reacher, pusher and half-cheetah.",
        lambda name: name in ("reacher", "pusher", "half_cheetah"),
    ),
)
REST = Family("More", "Tasks of no family.", lambda name: not any(family.has(name) for family in FAMILIES))

HEAD = """# Tasks

This page lists every built-in task for readers who choose one: its name on the command line
(`pipeline train-teacher --task ant`), its sizes and its Gymnasium environment. A picture shows the start of
an evaluation episode. The goal is yellow-green and as large as the region in which it counts as reached.
`pipeline render` draws the episodes of a policy in this way. [worlds.md](worlds.md) explains what a task
consists of.

`python -m benchmarks.task_gallery` writes this page and its pictures.
"""


def draw(name: str, folder: Path = PICTURES) -> Path:
    """Draw the start of an evaluation episode of a task and return the PNG's path."""
    task = compile_task(name)
    qpos, _, goal = task.sample_start("evaluation", np.random.default_rng(SEED), 1)
    with SceneRenderer(task, 2 * WIDTH, 2 * HEIGHT) as renderer:
        picture = Image.fromarray(renderer.draw(qpos[0], goal[0]))
    small = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    path = folder / f"{name}.png"
    with atomic_file(path) as temporary:
        small.save(temporary, optimize=True)
    return path


def draw_six(path: Path = SIX) -> Path:
    """Put the pictures of six tasks side by side, two rows of three, and return the PNG's path."""
    tiles = [Image.open(PICTURES / f"{name}.png").convert("RGB") for name in SIX_TASKS]
    size = (3 * WIDTH + 2 * _GAP, 2 * HEIGHT + _GAP)
    whole = Image.new("RGB", size, "white")
    for index, tile in enumerate(tiles):
        whole.paste(tile, ((index % 3) * (WIDTH + _GAP), (index // 3) * (HEIGHT + _GAP)))
    with atomic_file(path) as temporary:
        whole.quantize(_COLOURS, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)
    return path


def page(names: Sequence[str]) -> str:
    """Return docs/tasks.md for these tasks, in their order within each family."""
    sections = [HEAD]
    for family in (*FAMILIES, REST):
        members = [name for name in names if family.has(name)]
        if members:
            rows = "\n".join(row(name) for name in members)
            sections.append(f"## {family.title}\n{family.text}\n\n| | |\n|---|---|\n{rows}\n")
    return "\n".join(sections)


def row(name: str) -> str:
    """Return a task's line of its family's table: the picture and what there is to know."""
    task = compile_task(name)
    lines = [
        f"**`{name}`** – {task.spec.description}",
        f"state {task.observation_dim}, goal {task.goal_dim}, action {task.action_dim}",
        f"{task.spec.episode_steps} steps of {task.spec.control_dt_s:g} s",
        f"success: {success(task)}",
        f"episodes: {', '.join(f'`{each}`' for each in task.spec.distributions)}",
        f"`{environment_id(name)}`",
    ]
    return f"| ![{name}](pictures/tasks/{name}.png) | {'<br>'.join(lines)} |"


def success(task: CompiledTask) -> str:
    """Return when a goal counts as reached: ``< 0.5 m (easy < 2)``. Several regions are told by name."""
    goal = task.describe("achieved_goal")
    regions = []
    for region in task.spec.success:
        unit = goal[region.start]["unit"]
        what = f"mean of {region.points} points " if region.points > 1 else ""
        if not what and len(task.spec.success) > 1:
            what = f"`{goal[region.start]['name']}` "
        regions.append(f"{what}< {region.radius:g} {unit}".rstrip())
    others = ", ".join(f"{name} < {radius:g}" for name, radius in task.spec.other_radii.items())
    return " and ".join(regions) + (f" ({others})" if others else "")


def main() -> None:
    """Draw the tasks and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=task_names(), help="draw these alone")
    for name in parser.parse_args().tasks or task_names():
        path = draw(name)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KiB")
    draw_six()
    write_atomic(PAGE, page(task_names()))
    print(f"{PAGE.relative_to(ROOT)}: {len(task_names())} tasks")


if __name__ == "__main__":
    main()
