"""`pipeline evaluate`, `render`, `run-policy` and `play`: a policy in closed loop, counted or watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.completion import complete_artifacts, complete_tasks
from thousandfold.pipeline.session import CommonOptions, Session, json_option, one_of_three, stage_command
from thousandfold.stages.policy_file.command import trusted_option


@click.command("run-policy")
@click.option(
    "--policy",
    metavar="NAME|FILE",
    shell_complete=complete_artifacts("policy"),
    help="Name of a policy, or path of a policy file [default: the newest policy].",
)
@click.option(
    "--task",
    metavar="TASK",
    shell_complete=complete_tasks,
    help="Name of a task, or the YAML file of your own task [default: the policy's].",
)
@click.option(
    "--goal",
    metavar="X,Y,...",
    help="Goal to command in every episode, in its units [default: the task draws one for each].",
)
@click.option("--episodes", type=int, help="Episodes to run [default: 10; with --seconds as many as fit].")
@click.option("--seconds", type=float, help="Stop after so many seconds of real time.")
@click.option(
    "--rate", "rate_hz", type=float, metavar="HZ", help="Control steps per second [default: the policy's]."
)
@click.option("--fast", is_flag=True, help="Run as fast as possible, not in real time.")
@click.option(
    "--viewer",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Show MuJoCo's window; auto: if there is a screen.",
)
@click.option(
    "--distribution",
    default="evaluation",
    show_default=True,
    help="The task's distribution of starts and goals.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of starts and goals.")
@click.option(
    "--any-model",
    is_flag=True,
    help="Run the policy even if the task's compiled model differs from the recorded one.",
)
@trusted_option
@json_option
@click.pass_obj
def run_policy(
    session: Session,
    policy: str | None,
    task: str | None,
    goal: str | None,
    any_model: bool,
    trusted: tuple[Path, ...],
    **flags: Any,
) -> None:
    """Run a policy in MuJoCo in real time, on ONNX Runtime alone.

    It needs no workspace, no torch and no MLflow: the policy file is enough, with --task FILE for a task of
    your own. A missed tick is one whose action was not ready one control period later.
    """
    with session.open(mujoco=True):
        from thousandfold.stages.closed_loop import run_policy as stage
        from thousandfold.stages.policy_file.signature import read_public_key
        from thousandfold.stages.policy_file.source import open_source

        settings = stage.RunPolicySettings(goal=None if goal is None else parse_goal(goal), **flags)
        keys = [read_public_key(path) for path in trusted]
        source = open_source(session.workspace, policy, task, any_model=any_model, trusted=keys)
        session.console.result(stage.run(settings, session.console, source))


def parse_goal(text: str) -> tuple[float, ...]:
    """Return the numbers of ``1,-2.5``; raise SettingsError for what is no number."""
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(float(part))
        except ValueError:
            raise SettingsError(f"--goal {text}: {part.strip()!r} is no number; give X,Y,...") from None
    return tuple(numbers)


@click.command()
@one_of_three("Evaluate")
@click.option("--episodes", type=int, help="Fresh episodes to run.")
@click.option("--distribution", metavar="NAME", help="The task's distribution of starts and goals.")
@click.option(
    "--robustness",
    is_flag=True,
    default=None,
    help="Also measure the success when masses, friction, gains, delays or sensors differ from the model.",
)
@stage_command
def evaluate(
    session: Session,
    common: CommonOptions,
    policy: str | None,
    student: str | None,
    teacher: str | None,
    **flags: Any,
) -> None:
    """Run fresh closed-loop episodes of a policy, a student or a teacher."""
    from thousandfold.stages.closed_loop import evaluate as stage

    settings = common.resolve(stage.EvaluateSettings, "evaluate", flags)
    if not session.starts(common, "evaluate", settings):
        return
    source = session.take_one_of({"policy": policy, "student": student, "teacher": teacher})
    session.report(stage.run(settings, session.context, source))


@click.command()
@one_of_three("Draw")
@click.option("--episodes", type=int, help="Episodes to draw, one after another.")
@click.option("--distribution", metavar="NAME", help="The task's distribution of starts and goals.")
@stage_command
def render(
    session: Session,
    common: CommonOptions,
    policy: str | None,
    student: str | None,
    teacher: str | None,
    **flags: Any,
) -> None:
    """Draw closed-loop episodes, the goal included, as a video and a strip of key frames."""
    from thousandfold.envs.pictures.opengl import check_variable
    from thousandfold.stages.closed_loop import render as stage

    settings = common.resolve(stage.RenderSettings, "render", flags)
    if settings.video:
        check_variable()  # before anything is taken or made
    if not session.starts(common, "render", settings):
        return
    source = session.take_one_of({"policy": policy, "student": student, "teacher": teacher})
    session.report(stage.run(settings, session.context, source))


@click.command()
@one_of_three("Play with")
@click.option(
    "--task",
    metavar="TASK",
    shell_complete=complete_tasks,
    help="With a policy file: the task, by name or YAML file [default: the file's].",
)
@click.option("--goal", metavar="X,Y,...", help="The first goal, in its units [default: the task draws one].")
@click.option(
    "--distribution",
    default="training",
    show_default=True,
    help="The task's distribution of starts and goals.",
)
@click.option(
    "--seconds", type=float, help="Stop after so many seconds [default: when the window is closed]."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of starts and goals.")
@json_option
@click.pass_obj
def play(
    session: Session,
    policy: str | None,
    student: str | None,
    teacher: str | None,
    task: str | None,
    goal: str | None,
    **flags: Any,
) -> None:
    """Play with a policy, a student or a teacher in MuJoCo's window: you place the goals.

    Space draws another goal; the arrow keys, page up and page down move it, and so does the mouse with Ctrl
    and the right button. R goes back to a start, P pauses. --policy also takes the path of a policy file.
    """
    with session.open(mujoco=True):
        from thousandfold.stages.closed_loop import play as stage

        settings = stage.PlaySettings(goal=None if goal is None else parse_goal(goal), **flags)
        if policy is not None and (policy.endswith(".onnx") or Path(policy).expanduser().is_file()):
            if student is not None or teacher is not None:
                raise SettingsError("Give one of --policy, --student, --teacher, not several.")
            from thousandfold.stages.policy_file.source import open_source

            source = open_source(session.workspace, policy, task)
            found = source.task, source.policy, source.name
        elif task is not None:
            raise SettingsError("--task goes with a policy file: artifacts bring their task along.")
        else:
            from thousandfold.stages.policies import load_policy

            artifact = session.take_one_of({"policy": policy, "student": student, "teacher": teacher})
            found = *load_policy(artifact, "auto", session.console), artifact.name
        session.console.result(stage.run(settings, session.console, *found))
