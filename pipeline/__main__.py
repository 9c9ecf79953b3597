"""Entry point of the `pipeline` command."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_OWN_PACKAGES = ("pipeline", "stages", "models", "envs", "replay")


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
    """Check that the packages about to be imported are ours, then run the command line."""
    for name, place in shadowed_packages():
        print(f"Error: the package {name!r} comes from {place}: run from another folder.", file=sys.stderr)
        sys.exit(2)
    from pipeline.cli import cli

    cli(prog_name="pipeline")


if __name__ == "__main__":
    main()
