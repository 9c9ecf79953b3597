"""`pipeline benchmark`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from thousandfold.pipeline.completion import complete_artifacts
from thousandfold.pipeline.session import CommonOptions, Session, stage_command

if TYPE_CHECKING:
    from thousandfold.stages.policy_file.source import PolicyPlace


@click.command()
@click.option(
    "--policy",
    metavar="NAME|FILE",
    shell_complete=complete_artifacts("policy"),
    help="Name of a policy, or path of a policy file [default: the newest policy].",
)
@click.option(
    "--rate", "rate_hz", type=float, metavar="HZ", help="Control steps per second [default: the policy's]."
)
@stage_command
def benchmark(session: Session, common: CommonOptions, policy: str | None, **flags: Any) -> None:
    """Measure the policy's latency on one thread, back to back and at its control rate."""
    from thousandfold.stages.benchmark import benchmark as stage

    settings = common.resolve(stage.BenchmarkSettings, "benchmark", flags)
    if not session.starts(common, "benchmark", settings):
        return
    place = take_policy(session, policy)
    session.report(stage.run(settings, session.context, place))


def take_policy(session: Session, reference: str | None) -> PolicyPlace:
    """Return where the policy named lies, a file or an artifact, or the newest; say which."""
    from thousandfold.stages.policy_file.source import find_policy

    place = find_policy(session.workspace, reference)
    if place.artifact is not None and place.artifact.name == place.name:
        session.take("policy", reference)
    else:
        session.console.say(f"Taking policy file {place.path}.")
    return place
