"""`pipeline tasks` and `pipeline tasks check`."""

from __future__ import annotations

import click

from thousandfold.pipeline.command_help import PlainGroup
from thousandfold.pipeline.completion import complete_tasks
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.listing import show_rows
from thousandfold.pipeline.session import Session, default_preset, json_option
from thousandfold.pipeline.settings import MOST_EPISODES, preset_info


@click.group(cls=PlainGroup, invoke_without_command=True)
@json_option
@click.pass_context
def tasks(context: click.Context) -> None:
    """List the built-in tasks with their sizes; `tasks check` checks one, built in or your own."""
    session: Session = context.obj
    if context.invoked_subcommand is None:
        with session.open(mujoco=True):
            show_tasks(session.console)


@tasks.command()
@click.argument("task", shell_complete=complete_tasks)
@click.option(
    "--episodes",
    default=64,
    show_default=True,
    type=click.IntRange(1, MOST_EPISODES),
    help="Episodes of a random policy.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of all randomness.")
@click.option(
    "--output", metavar="PNG", help="File for the picture [default: ROBOT_check.png beside ROBOT.yaml]."
)
@json_option
@click.pass_obj
def check(session: Session, task: str, episodes: int, seed: int, output: str | None) -> None:
    """Check TASK, a YAML file or a name: its layout, its physics and its goals. Draw a picture."""
    with session.open(mujoco=True):
        from thousandfold.stages.tasks.check import check_task  # inside: it imports MuJoCo

        check_task(session.console, task, episodes=episodes, seed=seed, output=output)


def show_tasks(console: Console) -> None:
    """Print every task with its sizes, its Gymnasium id and the minutes that it took to learn it."""
    from thousandfold.envs.registry import compile_task, get_task, task_names
    from thousandfold.envs.task_names import environment_id

    rows, processors = [], set[str]()
    for name in task_names():
        task, compiled = get_task(name), compile_task(name)
        measured = preset_info(default_preset("cpu", name)[0]).measured
        processors |= {measured.processor} if measured else set()
        rows.append(
            {
                "task": name,
                "observation": compiled.observation_dim,
                "goal": compiled.goal_dim,
                "action": compiled.action_dim,
                "control dt (s)": task.control_dt_s,
                "steps": task.episode_steps,
                "Gymnasium id": environment_id(name),
                "minutes to 0.8": measured and measured.minutes.get(name),
                "description": task.description,
            }
        )
    show_rows(console, "Tasks", rows, spare=("Gymnasium id", "control dt (s)", "steps"))
    console.say(
        "minutes to 0.8: of success, with the default preset of a CPU, at the median of seeds, on "
        f"{' or '.join(sorted(processors))}; a dash where it was not measured or not reached."
    )
