"""A signal while the tracking store of a new workspace is made; then the same command must work, tracked."""

from __future__ import annotations

import argparse
import signal
import sqlite3
import time

from tests.drills.drilling import Drill, stage_command


def main() -> None:
    """Stop the first command of a workspace while it makes the store."""

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--signals", default="KILL,INT,TERM")

    drill = Drill(__doc__, 8, options)
    command = stage_command("train-teacher", "--set", "env_steps=800")
    probe = drill.root / "first-store-probe"
    probe.mkdir(exist_ok=True)
    running = drill.launch(command, probe)
    running.wait_for(lambda: list(probe.glob("mlflow/*")))
    begun = time.monotonic() - running.begun
    running.wait_for(lambda: list(probe.glob("runs/teacher-*")))
    ready = time.monotonic() - running.begun
    running.wait()
    for name in drill.options.signals.split(","):
        for trial in range(drill.trials):
            workspace = drill.root / f"first-store-{name}-{trial}"
            workspace.mkdir()
            moment = drill.random.uniform(begun, ready)
            running = drill.launch(command, workspace)
            time.sleep(moment)
            running.kill(getattr(signal, f"SIG{name}"))
            stopped = running.wait()
            again = drill.call(command, workspace)
            problems = []
            if stopped.traceback:
                problems.append(f"traceback: {stopped.said}")
            if again.code != 0 or again.traceback:
                problems.append(f"the same command again ended with {again.code}: {again.said}")
            else:
                with sqlite3.connect(workspace / "mlflow" / "mlflow.db") as store:
                    (finished,) = store.execute(
                        "select count(*) from runs where status='FINISHED'"
                    ).fetchone()
                if not finished:
                    problems.append("the store has no finished run")
            drill.verdict(
                f"SIG{name} after {moment:.2f} s, store made from {begun:.2f} to {ready:.2f} s", problems
            )
    drill.finish()


main()
