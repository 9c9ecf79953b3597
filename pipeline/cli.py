"""The command line: commands parse, call a stage, and print. Stages are imported when they run."""

from __future__ import annotations

from typing import Any

import click

from pipeline.core.console import printable
from pipeline.core.errors import SettingsError
from pipeline.core.runtime import as_user_error
from pipeline.core.settings import MOST_EPISODES
from pipeline.dataset_commands import dataset
from pipeline.frontier_commands import frontier
from pipeline.policy_commands import policy
from pipeline.report_command import report
from pipeline.run_policy_command import run_policy
from pipeline.session import CommonOptions, Session, describe, json_option, one_of_three, stage_command


class OrderedGroup(click.Group):
    """Lists commands in the order of the chain, not of the alphabet; its errors steer no terminal."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of its arguments, which click repeats as they are, is made printable."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = printable(error.message)  # pyright: ignore[reportAttributeAccessIssue]
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands as they were added."""
        return list(self.commands)


@click.group(cls=OrderedGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--workspace", metavar="DIR", help="Folder of artifacts and tracking [THOUSANDFOLD_WORKSPACE, or .]."
)
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON on the last line.")
@click.version_option(package_name="thousandfold", prog_name="pipeline")
@click.pass_context
def cli(context: click.Context, workspace: str | None, as_json: bool) -> None:
    """Thousandfold: train a very deep goal-reaching teacher, distil it, and deploy it as one ONNX file.

    train-teacher → generate-dataset → distill → export-onnx → benchmark, each on the newest artifact
    before it; `run` does all of them.
    """
    context.obj = Session(workspace, as_json)
    context.obj.check_ranks(context.invoked_subcommand)


@cli.command()
@click.option(
    "--task",
    metavar="TASK",
    help="Task to learn: a name of `pipeline tasks`, or the YAML file of your own [the preset's].",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    metavar="[CHAIN]",
    help="Go on with a chain that was cut off: the newest, or the one named.",
)
@click.option(
    "--min-success",
    type=float,
    metavar="SHARE",
    help="Stop after a teacher that reaches a smaller share of its goals, with exit code 1.",
)
@stage_command
def run(
    session: Session,
    common: CommonOptions,
    task: str | None,
    resume: str | None,
    min_success: float | None,
) -> None:
    """Run every stage, from teacher to benchmark and report, in one chain run.

    --set takes the stage too: --set train_teacher.depth=32.
    """
    from pipeline.run import resolve_chain, resume_chain, start_chain

    if min_success is not None and not 0 <= min_success <= 1:  # NaN is not
        raise SettingsError(f"--min-success must be between 0 and 1 (got {min_success:g}).")
    if resume is not None:
        common.refuse_with_resume({"dry-run": common.dry_run or None, "task": task})
        reference = None if resume == "newest" else resume
        _report_chain(session, resume_chain(session.context, reference, min_success))
        return
    settings = resolve_chain(common, task)
    if common.dry_run:
        session.show_settings(settings)
        return
    session.announce_training(common, settings["train_teacher"].model_dump()["task"])
    _report_chain(session, start_chain(settings, session.context, min_success))


@cli.command("train-teacher")
@click.option(
    "--task",
    metavar="TASK",
    help="Task to learn: a name of `pipeline tasks`, or the YAML file of your own.",
)
@click.option("--depth", type=int, help="Layers of every network, a multiple of 4.")
@click.option("--width", type=int, help="Units of a layer.")
@click.option(
    "--global-negatives",
    is_flag=True,
    default=None,
    help="Contrast with the goals of all ranks, not with this rank's alone.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    metavar="[TEACHER]",
    help="Go on with an unfinished teacher: the newest, or the one named. Name a completed one, with --set "
    "env_steps=MORE, to train it on as another.",
)
@stage_command
def train_teacher(session: Session, common: CommonOptions, resume: str | None, **flags: Any) -> None:
    """Train a contrastive teacher without rewards or demonstrations."""
    from stages import train_teacher as stage

    if resume is not None:
        stored, artifact = stage.find_resumable(session.workspace, None if resume == "newest" else resume)
        settings = common.resolve_resumed(
            stored, "train_teacher", flags, name=artifact.name, changeable=stage.CHANGEABLE_ON_RESUME
        )
    else:
        settings, artifact = common.resolve(stage.TrainTeacherSettings, "train_teacher", flags), None
    if common.dry_run:
        session.show_settings({"train_teacher": settings})
        return
    settings.shares(session.ranks)  # before anything is made
    if artifact is None:
        session.announce_training(common, settings.task)
    session.report(stage.run(settings, session.context, artifact))


@cli.command("generate-dataset")
@click.option("--teacher", metavar="TEACHER", help="Name or path [the newest].")
@click.option("--episodes", type=int, help="Episodes to record.")
@click.option(
    "--noise-levels",
    metavar="LEVEL,...",
    help="Standard deviations of the noise on actions, each for as many episodes; 0 for clean ones.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    metavar="[DATASET]",
    help="Go on with an unfinished dataset: the newest, or the one named.",
)
@stage_command
def generate_dataset(
    session: Session, common: CommonOptions, teacher: str | None, resume: str | None, **flags: Any
) -> None:
    """Record the teacher's episodes, with its mean and log-std in every row, as a Minari dataset."""
    from stages import generate_dataset as stage

    if resume is not None:
        stored, dataset, source = stage.find_resumable(
            session.workspace, None if resume == "newest" else resume, teacher
        )
        settings = common.resolve_resumed(
            stored, "generate_dataset", flags, name=dataset.name, changeable=stage.CHANGEABLE_ON_RESUME
        )
        if common.dry_run:
            session.show_settings({"generate_dataset": settings})
            return
        session.report(stage.run(settings, session.context, source, dataset))
        return
    settings = common.resolve(stage.GenerateDatasetSettings, "generate_dataset", flags)
    if not session.starts(common, "generate_dataset", settings):
        return
    source = session.take("teacher", teacher)
    session.report(stage.run(settings, session.context, source))


@cli.command()
@click.option("--teacher", metavar="TEACHER", help="Name or path [the newest].")
@click.option(
    "--dataset", metavar="DATASET", help="Name or path [the teacher's newest, made first if there is none]."
)
@click.option("--student-depth", type=int, help="Layers of the student.")
@click.option("--student-width", type=int, help="Units of a layer.")
@click.option("--student-kind", type=click.Choice(["auto", "residual", "plain"]), help="Form of the student.")
@click.option("--objective", type=click.Choice(["kl", "mse", "critic"]), help="What the student minimises.")
@click.option("--dagger-rounds", type=int, help="Rounds in which the student acts and the teacher labels.")
@click.option(
    "--skip-damaged-shards", is_flag=True, default=None, help="Go on without the dataset's damaged shards."
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    metavar="[STUDENT]",
    help="Go on with an unfinished student: the newest, or the one named. Name a completed one, with --set "
    "updates=MORE, to train it on as another.",
)
@stage_command
def distill(
    session: Session,
    common: CommonOptions,
    teacher: str | None,
    dataset: str | None,
    resume: str | None,
    **flags: Any,
) -> None:
    """Distil a teacher into a student of a few layers."""
    from stages import distill as stage

    if resume is not None:
        stored, student, source, data = stage.find_resumable(
            session.workspace, None if resume == "newest" else resume, teacher, dataset
        )
        settings = common.resolve_resumed(
            stored, "distill", flags, name=student.name, changeable=stage.changeable(student)
        )
        if common.dry_run:
            session.show_settings({"distill": settings})
            return
        session.report(stage.run(settings, session.context, source, data, student))
        return
    settings = common.resolve(stage.DistillSettings, "distill", flags)
    if not session.starts(common, "distill", settings):
        return
    source = session.take("teacher", teacher)
    data = session.take_dataset(common, source, dataset)
    session.report(stage.run(settings, session.context, source, data))


@cli.command("export-onnx")
@click.option("--student", metavar="STUDENT", help="Name or path [the newest].")
@click.option("--teacher", metavar="TEACHER", help="Export a teacher instead.")
@stage_command
def export_onnx(session: Session, common: CommonOptions, student: str | None, teacher: str | None) -> None:
    """Write the policy as one ONNX file, checked against torch before it counts as done."""
    from stages import export_onnx as stage

    settings = common.resolve(stage.ExportOnnxSettings, "export_onnx")
    if not session.starts(common, "export_onnx", settings):
        return
    if teacher is not None:
        source = session.take_one_of({"student": student, "teacher": teacher})
    else:
        source = session.take("student", student)
    session.report(stage.run(settings, session.context, source))


@cli.command()
@click.option("--policy", metavar="NAME|FILE", help="An artifact, or a policy file anywhere [the newest].")
@stage_command
def benchmark(session: Session, common: CommonOptions, policy: str | None) -> None:
    """Measure the policy's latency on one thread, back to back and at its control rate."""
    from stages import benchmark as stage

    settings = common.resolve(stage.BenchmarkSettings, "benchmark")
    if not session.starts(common, "benchmark", settings):
        return
    place = session.take_policy(policy)
    session.report(stage.run(settings, session.context, place))


@cli.command()
@one_of_three("Evaluate")
@click.option("--episodes", type=int, help="Fresh episodes to run.")
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
    from stages import evaluate as stage

    settings = common.resolve(stage.EvaluateSettings, "evaluate", flags)
    if not session.starts(common, "evaluate", settings):
        return
    source = session.take_one_of({"policy": policy, "student": student, "teacher": teacher})
    session.report(stage.run(settings, session.context, source))


@cli.command()
@one_of_three("Draw")
@click.option("--episodes", type=int, help="Episodes to draw, one after another.")
@click.option("--distribution", metavar="NAME", help="The task's episode distribution to draw from.")
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
    from envs.opengl import NoOpenGLError, check_variable

    as_user_error(check_variable, NoOpenGLError)  # before MuJoCo is imported, which it would break
    from stages import render as stage

    settings = common.resolve(stage.RenderSettings, "render", flags)
    if not session.starts(common, "render", settings):
        return
    source = session.take_one_of({"policy": policy, "student": student, "teacher": teacher})
    session.report(stage.run(settings, session.context, source))


cli.add_command(run_policy)
cli.add_command(policy)
cli.add_command(report)
cli.add_command(dataset)
cli.add_command(frontier)


@cli.group(invoke_without_command=True)
@json_option
@click.pass_context
def tasks(context: click.Context) -> None:
    """List the tasks with their sizes; `tasks check` looks at one, built in or your own."""
    session: Session = context.obj
    if context.invoked_subcommand is None:
        from pipeline import listing

        with session.open():
            listing.show_tasks(session.console)


@tasks.command()
@click.argument("task")
@click.option(
    "--episodes",
    default=64,
    show_default=True,
    type=click.IntRange(1, MOST_EPISODES),
    help="Episodes of a random policy.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of all randomness.")
@click.option("--output", metavar="PNG", help="Where to put the picture [ROBOT_check.png beside ROBOT.yaml].")
@json_option
@click.pass_obj
def check(session: Session, task: str, episodes: int, seed: int, output: str | None) -> None:
    """Check TASK, a YAML file or a name: its layout, its physics, its goals, and a picture."""
    with session.open():
        from pipeline.tasks_check import check_task  # inside: it imports MuJoCo

        check_task(session.console, task, episodes=episodes, seed=seed, output=output)


@cli.command()
@json_option
@click.pass_obj
def presets(session: Session) -> None:
    """List the presets."""
    from pipeline import listing

    with session.open():
        listing.show_presets(session.console)


@cli.command()
@json_option
@click.pass_obj
def runs(session: Session) -> None:
    """List the artifacts of the workspace, newest first."""
    from pipeline import listing

    with session.open():
        listing.show_runs(session.console, session.workspace)


@cli.command()
@click.argument("artifact", required=False)
@json_option
@click.pass_obj
def info(session: Session, artifact: str | None) -> None:
    """Show an artifact's results, settings and parents; without one, the versions in use."""
    from pipeline import listing

    with session.open():
        listing.show_info(session.console, session.workspace, artifact)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port.")
@click.pass_obj
def ui(session: Session, host: str, port: int) -> None:
    """Open the tracking store in MLflow's web page."""
    import sys

    from pipeline.ui import serve

    with session.open():
        sys.exit(serve(session.workspace, host, port, session.console))


def _report_chain(session: Session, artifacts: dict[str, Any]) -> None:
    session.console.result({stage: describe(artifact) for stage, artifact in artifacts.items()})
