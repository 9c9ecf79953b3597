"""What the commands share: options, settings, the stage's context, and which artifact to take."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from thousandfold.ground.errors import MissingArtifactError, SettingsError, UserError
from thousandfold.pipeline.artifacts import NEWEST, Artifact, Workspace
from thousandfold.pipeline.completion import complete_artifacts, complete_presets, complete_settings
from thousandfold.pipeline.console import Console, error_boundary
from thousandfold.pipeline.cuda import cuda_problem, has_driver_files
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import (
    StageSettings,
    dump_settings,
    is_preset_file,
    load_preset,
    merge_settings,
    preset_info,
    preset_names,
    resolve_settings,
    settings_to_yaml,
)
from thousandfold.pipeline.stopping import interruptible
from thousandfold.pipeline.tracking import NullTracker, open_tracker

Settings = TypeVar("Settings", bound=StageSettings)
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class CommonOptions:
    """Options that every stage command takes; None where one was not given."""

    preset: str | None
    overrides: tuple[str, ...]
    """``key=value`` pairs of --set."""
    seed: int | None
    device: str | None
    dry_run: bool
    config: str | None = None
    """A YAML file of settings by stage."""

    def resolve(self, cls: type[Settings], section: str, flags: Mapping[str, Any] | None = None) -> Settings:
        """Return the stage's settings: defaults < preset < --config < flags < --set.

        Where no preset is named, it is the default one of the task that the settings name.
        """
        given = {"seed": self.seed, "device": self.device, **(flags or {})}
        values = load_preset(self.config).get(section) if self.config else None
        said: dict[str, Any] = {"values": values, "overrides": self.overrides, "flags": given}
        preset = self.preset or default_preset(self.device)[0]
        if self.preset is None and "task" in cls.model_fields:
            task = merge_settings(section, preset=preset, **said).get(
                "task", cls.model_fields["task"].default
            )
            if isinstance(task, str):
                with contextlib.suppress(UserError):  # what is wrong with the task is told with the rest
                    preset = default_preset(self.device, task)[0]
        return resolve_settings(cls, section, preset=preset, **said)

    def resolve_resumed(
        self,
        stored: Settings,
        section: str,
        flags: Mapping[str, Any],
        *,
        name: str,
        changeable: Collection[str],
    ) -> Settings:
        """Return a run's own settings with those changes that are asked for.

        Args:
            stored: the settings that the run was started with.
            section: its stage.
            flags: the command's own; None where one was not given.
            name: of the artifact, for the message.
            changeable: settings that may have another value now.

        Raises:
            SettingsError: a preset or a file is named, or something is to change that the run depends on.
        """
        for option, value in {"preset": self.preset, "config": self.config}.items():
            if value is not None:
                raise SettingsError(f"--resume keeps the settings of the run: leave --{option} out.")
        given = {"seed": self.seed, "device": self.device, **flags}
        values = dump_settings(stored)
        settings = resolve_settings(
            type(stored), section, values=values, overrides=self.overrides, flags=given
        )
        before, after = dump_settings(stored), dump_settings(settings)
        fixed = [key for key in after if after[key] != before[key] and key not in changeable]
        if fixed:
            differing = ", ".join(f"{key} {before[key]}, not {after[key]}" for key in fixed)
            raise SettingsError(
                f"{name} was started with {differing}: leave that out to continue it, or start another "
                "without --resume."
            )
        return settings

    def refuse_with_resume(self, flags: Mapping[str, Any] | None = None) -> None:
        """Raise SettingsError where settings are given to a run that goes on with its own."""
        given = {"preset": self.preset, "config": self.config, "seed": self.seed, "device": self.device}
        given |= flags or {}
        named = [f"--{flag}" for flag, value in given.items() if value is not None]
        named += ["--set"] if self.overrides else []
        if named:
            raise SettingsError(f"--resume keeps the settings of the run: leave {', '.join(named)} out.")


def default_preset(device: str | None, task: str | None = None) -> tuple[str, str]:
    """Return the preset that is taken where none is named, and why.

    Args:
        device: the --device option.
        task: what a teacher is trained for, by name or file; None for any other stage.
    """
    where, of_mazes = "on the CPU", "cpu/mazes"
    if _has_cuda(device):
        where, of_mazes = "with a CUDA device", "quickstart"  # no preset has run there yet
    if task is not None:
        from thousandfold.envs.registry import get_task  # MuJoCo is not imported for a look at help

        found = get_task(task)
        for name in preset_names():
            if where == "on the CPU" and name.startswith("cpu/") and task in preset_info(name).default_for:
                return name, f"the default {where} for {task}"
        if found.maze is not None:
            return of_mazes, f"the default {where} for a task with walls"
    return "cpu", f"the default {where}"


def _has_cuda(device: str | None) -> bool:
    if device == "cpu" or not has_driver_files():  # then torch need not be imported to know
        return False
    return importlib.util.find_spec("torch") is not None and cuda_problem() is None


class ConfigFile(click.ParamType):
    """A YAML file, as `--config` takes it."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what is named like no YAML file, and would be taken for a preset."""
        if not is_preset_file(value):
            self.fail(f"{value} is no YAML file: its name ends in .yaml or .yml.", param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave it to the shell."""
        return [CompletionItem(incomplete, type="file")]


def json_option(command: Command) -> Command:
    """Add --json, which the session remembers: it arrives as no argument."""

    def remember(context: click.Context, _: click.Parameter, as_json: bool) -> None:
        session = context.find_object(Session)
        if session is not None:
            session.as_json |= as_json

    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print the result as JSON on the last line.",
    )(command)


def resume_option(metavar: str, help_text: str) -> Callable[[Command], Command]:
    """Add --resume, which arrives as a name, or as `newest` where it is given without one."""
    return click.option(
        "--resume",
        is_flag=False,
        flag_value=NEWEST,
        metavar=f"[{metavar}]",
        shell_complete=complete_artifacts(metavar.lower()),
        help=help_text,
    )


def named(resume: str) -> str | None:
    """Return the name that --resume was given; None: none, so that the newest is meant."""
    return None if resume == NEWEST else resume


def stage_command(command: Any = None, *, several_ranks: bool = False) -> Any:
    """Add the options of every stage command; they arrive as one `CommonOptions` named `common`.

    Args:
        command: None: a decorator is returned.
        several_ranks: as `Session.open` takes it.
    """
    if command is None:
        return partial(stage_command, several_ranks=several_ranks)

    @click.pass_context
    def gathered(
        context: click.Context,
        preset: str | None,
        config: str | None,
        overrides: tuple[str, ...],
        seed: int | None,
        device: str | None,
        dry_run: bool,
        **rest: Any,
    ) -> Any:
        session = context.find_object(Session) or Session(None)
        common = CommonOptions(preset, overrides, seed, device, dry_run, config)
        with session.open(mujoco=True, several_ranks=several_ranks):
            return command(session=session, common=common, **rest)

    options = (
        click.option(
            "--preset",
            metavar="NAME|FILE",
            shell_complete=complete_presets,
            help="Preset of settings; `pipeline presets` lists them [default: cpu; for tasks with walls "
            "cpu/mazes, or quickstart with CUDA].",
        ),
        click.option(
            "--config",
            metavar="FILE",
            type=ConfigFile(),
            help="YAML file with a section for each stage; overrides the preset. `pipeline run --dry-run` "
            "prints one.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            shell_complete=complete_settings,
            help="Set one setting; `pipeline settings STAGE` lists them. May be given several times.",
        ),
        click.option("--seed", type=int, help="Seed of all randomness."),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            help="Device of networks and simulation; auto: CUDA if there is one.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the resolved settings and stop."),
        json_option,
    )
    gathered.__doc__, gathered.__name__ = command.__doc__, command.__name__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # pyright: ignore
    wrapped: Any = gathered
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def one_of_three(verb: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options that name a policy, a student or a teacher."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for kind, otherwise in (("teacher", ""), ("student", ""), ("policy", " [default: the newest]")):
            help_text = f"{verb} a {kind}{otherwise}."
            command = click.option(
                f"--{kind}", metavar=kind.upper(), shell_complete=complete_artifacts(kind), help=help_text
            )(command)
        return command

    return decorate


class Session:
    """One invocation of the command line: the workspace, the console, and a context made when needed."""

    def __init__(self, workspace: str | None, as_json: bool = False) -> None:
        self._option, self.as_json = workspace, as_json
        self.console = Console(as_json)

    @cached_property
    def workspace(self) -> Workspace:
        """The workspace of the option, the environment or the current folder."""
        return Workspace.resolve(self._option)

    @cached_property
    def ranks(self) -> Ranks:
        """The processes that torchrun started with this one, or this one alone."""
        return Ranks.from_environment()

    @contextlib.contextmanager
    def open(self, *, mujoco: bool = False, several_ranks: bool = False) -> Iterator[None]:
        """Turn errors into one line and an exit code, and print the result at the end.

        Args:
            mujoco: the command imports MuJoCo, which what MUJOCO_GL says can prevent.
            several_ranks: torchrun may start several processes of it.
        """
        with error_boundary():
            ranks = self.ranks
        if ranks.size > 1:
            # Torch is not loaded yet. Else it prints call stacks when the machine of rank 0 goes down.
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        self.console = Console(self.as_json, silent=not ranks.leads)
        with error_boundary(speaks=ranks.speaks):
            if ranks.size > 1 and not several_ranks:
                command = click.get_current_context().command_path.partition(" ")[2]
                raise one_process_alone(command, ranks)
            runs = self.workspace.runs
        with interruptible(ranks), error_boundary(runs, ranks.speaks), self.console:
            if mujoco:
                from thousandfold.envs.pictures.opengl import check_import

                check_import()
            yield

    @cached_property
    def context(self) -> StageContext:
        """The context of a stage; made once, when a stage is about to run."""
        if not self.ranks.leads:
            return StageContext(self.workspace, self.console, NullTracker(), ranks=self.ranks)
        self.workspace.ensure_writable()
        tracker = open_tracker(self.workspace.root, self.console.warn, self.console.say)
        return StageContext(self.workspace, self.console, tracker, ranks=self.ranks)

    def announce(self, common: CommonOptions, task: str | None = None) -> None:
        """Say which preset is used and why; `task` is that of a training."""
        preset, why = (common.preset, "as asked") if common.preset else default_preset(common.device, task)
        over = f", under {common.config}" if common.config else ""
        self.console.say(f"Preset {preset} ({why}){over}; workspace {self.workspace.root}.")

    def announce_training(self, common: CommonOptions, task: str) -> None:
        """Say which preset is used, why, how long the task took with it, and what was published of it.

        What was published is told of the preset's own experiment alone.
        """
        self.announce(common, task)
        preset = preset_info(common.preset or default_preset(common.device, task)[0])
        if preset.measured is not None and task in preset.measured.minutes:
            minutes, where = preset.measured.minutes[task], preset.measured.processor
            self.console.say(
                f"With this preset {task} took {minutes:g} minutes to 0.8 of success, at the median of "
                f"seeds, on {where} ({preset.measured.source})."
            )
        if preset.published is not None and load_preset(preset.name)["train_teacher"].get("task") == task:
            self.console.say(f"Published, on other physics: {preset.published}.")

    def starts(self, common: CommonOptions, section: str, settings: StageSettings) -> bool:
        """Announce a stage and return True; on a dry run print its settings instead and return False."""
        if common.dry_run:
            self.show_settings({section: settings})
        else:
            self.announce(common)
        return not common.dry_run

    def go_on(
        self,
        common: CommonOptions,
        section: str,
        flags: Mapping[str, Any],
        found: tuple[Any, ...],
        run: Callable[..., Artifact],
        changeable: Collection[str],
    ) -> None:
        """Run a stage on the artifact that it resumes; on a dry run print its settings instead.

        Args:
            common, flags: what the command was given.
            section: of the stage.
            found: the artifact's settings, the artifact and its parents, as `find_resumable` returns them.
            run: the stage's: takes settings, context, the parents and the artifact.
            changeable: settings that the artifact may go on with in another value.
        """
        stored, artifact, *parents = found
        settings = common.resolve_resumed(stored, section, flags, name=artifact.name, changeable=changeable)
        if common.dry_run:
            self.show_settings({section: settings})
        else:
            self.report(run(settings, self.context, *parents, artifact))

    def show_settings(self, settings: Mapping[str, StageSettings]) -> None:
        """Print resolved settings as YAML, for --dry-run; several stages get a heading each."""
        for section, values in settings.items():
            text = settings_to_yaml(values).rstrip()
            if len(settings) > 1:
                text = f"{section}:\n" + "\n".join(f"  {line}" for line in text.splitlines())
            self.console.say(text)
        self.console.result({name: values.model_dump(mode="json") for name, values in settings.items()})

    def take(self, kind: str, reference: str | None, of: Artifact | None = None) -> Artifact:
        """Return the artifact named, or the newest completed one of its kind (made from `of`); say which."""
        from thousandfold.pipeline.artifact_task import warn_of_changed_task  # inside: it imports MuJoCo

        if reference not in (None, NEWEST):
            artifact, why = self.workspace.open(reference, kind), "as asked"
        else:
            artifact, why = self.workspace.newest(kind, of), "the newest completed"
        if artifact.manifest.seal is None:
            why += "; unsealed, made by an earlier version"
        self.console.say(f"Taking {kind} {artifact.name} ({why}).")
        warn_of_changed_task(artifact, self.console)
        return artifact

    def take_one_of(self, references: Mapping[str, str | None]) -> Artifact:
        """Return the one artifact that is named, or the newest of the first kind that has one."""
        named = {kind: reference for kind, reference in references.items() if reference is not None}
        if len(named) > 1:
            raise UserError(f"Give one of {', '.join(f'--{kind}' for kind in named)}, not several.")
        *before, last = named or references
        for kind in before:
            with contextlib.suppress(MissingArtifactError):
                return self.take(kind, None)
        return self.take(last, references[last])

    def report(self, artifact: Artifact) -> None:
        """Remember the artifact as the command's result."""
        self.console.result(describe(artifact))


def one_process_alone(command: str, ranks: Ranks) -> UserError:
    """Return what is said where torchrun started several processes of a command that is one process."""
    return UserError(
        f"{command} is one process, and torchrun started {ranks.size}: call it without torchrun. "
        "Several ranks can run train-teacher and generate-dataset."
    )


def describe(artifact: Artifact) -> dict[str, Any]:
    """Return what a script needs to know of an artifact."""
    return {
        "kind": artifact.kind,
        "artifact": artifact.name,
        "path": str(artifact.path),
        "hash": artifact.manifest.hash,
        "task": artifact.manifest.task,
        "task_changes": artifact.manifest.task_changes,
        "files": {name: str(artifact.file(name)) for name in artifact.manifest.files},
        "results": artifact.manifest.results,
        "tracking": artifact.manifest.tracking,
    }
