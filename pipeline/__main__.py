"""Entry point of the `pipeline` command."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from pipeline.output import guard_output
from pipeline.stopping import stop_signals

_OWN_PACKAGES = ("pipeline", "stages", "models", "envs", "replay", "ground")


def shadowed_packages() -> list[tuple[str, str]]:
    """Return (package, path) of each package that some other folder would provide instead of ours."""
    home = Path(__file__).resolve().parent.parent
    found = []
    for name in _OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
        if not places or Path(str(places[0])).resolve() != home / name:
            found.append((name, str(places[0]) if places else "nowhere"))
    return found


def main() -> None:
    """Check that the packages about to be imported are ours, then run the command line.

    A signal before a command has begun ends the process without a traceback: there is nothing to save yet.
    Once a command has ended, none disturbs the end of the process.
    """
    guard_output()
    for number in stop_signals():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _exit_at_once)
    for name, place in shadowed_packages():
        print(f"Error: the package {name!r} comes from {place}: run from another folder.", file=sys.stderr)
        sys.exit(2)
    from pipeline.cli import cli

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
