"""Entry point of the `pipeline` command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

from thousandfold.pipeline.output import guard_output
from thousandfold.pipeline.stopping import stop_signals


def main() -> None:
    """Run the command line.

    A signal before a command has begun ends the process without a traceback: there is nothing to save yet.
    Once a command has ended, none disturbs the end of the process.
    """
    if "_PIPELINE_COMPLETE" not in os.environ:  # click writes bytes to the shell
        guard_output()
    for number in stop_signals():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _exit_at_once)
    from thousandfold.pipeline.cli import cli

    try:
        cli(prog_name="pipeline")
    finally:
        for number in stop_signals():
            signal.signal(number, signal.SIG_IGN)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"Stopped.\n")
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
