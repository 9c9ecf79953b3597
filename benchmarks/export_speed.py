"""How long the export of a network takes, phase by phase, and how fast its variants run beside each other.

    python -m benchmarks.export_speed

Networks of the ant's sizes in the form of the thousand-layer preset, with random weights and as many states
as `pipeline export-onnx` compares on. Phases: `convert` builds the graph, `write` describes it, computes the
golden rows, saves the file and opens it, `gate` compares it with torch, `finish` saves and opens what leaves.
Neither the rollout before the export nor the episodes after it are in these seconds: they depend on the task.

`session_s` is a file read, checked and opened once more. Latencies are medians of single calls on one thread;
the float32 file and its variants take turns. A variant's action error comes from weights that nobody trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch

from benchmarks.turns import facts
from thousandfold.envs.registry import compile_task
from thousandfold.ground.files import atomic_file, write_json_atomic
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.stages.benchmark.loops import TimedCall, back_to_back
from thousandfold.stages.export_onnx.export import Export
from thousandfold.stages.export_onnx.gate import GateStates, largest_action_error
from thousandfold.stages.export_onnx.variants import Variant
from thousandfold.stages.networks import NETWORK_FILE, load_actor, save_network
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/export_speed.json"
TASK = "ant_u_maze"
CELLS = ((4, 64), (4, 256), (64, 256), (1024, 64), (1024, 256))
OPSET, GATE_STATES, MAX_ACTION_ERROR = 20, 4096, 1e-5
LIMIT_S = 15.0
"""what the export of 1024 layers of 64 units may take"""

Result = TypeVar("Result")


def make_network(workspace: Workspace, depth: int, width: int, num_states: int) -> Export:
    """Return the export of a student whose branches are as large as those of a trained one may be.

    It is compared on states that are standard normal.
    """
    torch.manual_seed(0)
    task = compile_task(TASK)
    shape = NetworkShape(depth, width, residual_scale="learned_from_zero", final_norm=True)
    actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, shape)
    with torch.no_grad():
        actor.trunk.get_parameter("body.gain").fill_(1.0 / math.sqrt(shape.num_blocks))
    tensors = dict(NormalizedActor(actor, task.observation_dim, task.goal_dim).state_dict())
    source = workspace.create("student", task=TASK, settings={})
    save_network(source.file(NETWORK_FILE), tensors, kind="student", task=task, shape=shape)
    source.complete({})
    rng, sizes = np.random.default_rng(0), (task.observation_dim, task.goal_dim)
    observation, goal = (rng.standard_normal((num_states, size)).astype(np.float32) for size in sizes)
    return Export(source, load_actor(source), GateStates(observation, goal, {"random": num_states}), OPSET)


def timed(phases: dict[str, float], name: str, work: Callable[[], Result]) -> Result:
    """Return what `work` returns, and note its seconds under a name."""
    began = time.perf_counter()
    result = work()
    phases[name] = time.perf_counter() - began
    return result


def export(path: Path, network: Export) -> dict[str, Any]:
    """Export a network as the stage does; return seconds by phase, and what the gate found."""
    phases: dict[str, float] = {}
    made = dataclasses.replace(network)
    with atomic_file(path) as temporary:
        timed(phases, "convert", lambda: made.graph)
        timed(phases, "write", lambda: made.draft(temporary))
        timed(phases, "gate", lambda: made.compare_actions(MAX_ACTION_ERROR))
        timed(phases, "finish", lambda: made.finish(None, made.error.allowed))
    figures = made.figures(path)
    del figures["parameters"]
    return {"phases_s": phases, "export_s": sum(phases.values()), **figures}


def time_variants(folder: Path, network: Export, policy: OnnxPolicy, seconds: float) -> dict[str, Any]:
    """Return size, action error and median latency of the float32 file and of each variant, by precision."""
    policies = {"float32": policy}
    for precision in get_args(Variant):
        made = dataclasses.replace(network, precision=precision)
        policies[precision] = made.draft(folder / f"{precision}.onnx")
    rows = list(zip(network.states.observation[:1024], network.states.goal[:1024], strict=True))
    calls = {name: TimedCall(opened.step, rows) for name, opened in policies.items()}
    samples = back_to_back(calls, seconds / 4, seconds)
    return {
        name: {
            "bytes": opened.path.stat().st_size,
            "max_action_error": largest_action_error(opened, network.module, network.states),
            "p50_us": float(np.median(samples[name])),
        }
        for name, opened in policies.items()
    }


def measure(folder: Path, depth: int, width: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything measured of one size."""
    network = make_network(Workspace(folder), depth, width, options.states)
    runs = [export(folder / "policy.onnx", network) for _ in range(options.rounds)]
    opened: dict[str, float] = {}
    policy = timed(opened, "session_s", lambda: OnnxPolicy(folder / "policy.onnx", task=TASK))
    return {
        "depth": depth,
        "width": width,
        **{name: value for name, value in runs[0].items() if name not in ("phases_s", "export_s")},
        "export_s": statistics.median(run["export_s"] for run in runs),
        "exports": [{"export_s": run["export_s"], **run["phases_s"]} for run in runs],
        **opened,
        "precisions": time_variants(folder, network, policy, options.seconds),
    }


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked options; leave with a message where one makes no sense."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.export_speed", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--rounds", type=int, default=3, help="exports of each size, default %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of calls of each file")
    parser.add_argument("--states", type=int, default=GATE_STATES, help="compared, default %(default)s")
    parser.add_argument(
        "--sizes", nargs="+", default=[f"{depth}x{width}" for depth, width in CELLS], metavar="DEPTHxWIDTH"
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.states < 1 or options.seconds <= 0:
        parser.error("--rounds and --states must be at least 1, --seconds more than 0")
    try:
        options.sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
        for depth, width in options.sizes:
            NetworkShape(depth, width)
    except ValueError as error:
        parser.error(f"--sizes: {error}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure every size, print a table and write the figures."""
    options = parse_options(arguments)
    host = facts()
    cells = []
    for depth, width in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            cells.append(measure(Path(folder), depth, width, options))
    result = {**host, "task": TASK, "opset": OPSET, "states": options.states, "limit_s": LIMIT_S}
    write_json_atomic(options.output, result | {"networks": cells})
    columns = ["network", "export", "convert", "write", "gate", "finish", "session", "MB", "off torch"]
    rows = []
    for cell in cells:
        first = min(cell["exports"], key=lambda run: abs(run["export_s"] - cell["export_s"]))
        seconds = [round(first[phase], 3) for phase in ("export_s", "convert", "write", "gate", "finish")]
        size, error = round(cell["bytes"] / 1e6, 2), f"{cell['max_action_error']:.1e}"
        rows.append(
            [f"{cell['depth']} x {cell['width']}", *seconds, round(cell["session_s"], 3), size, error]
        )
    console = Console()
    console.table("Seconds of an export", columns, rows)
    medians = [
        [f"{cell['depth']} x {cell['width']}", *(part["p50_us"] for part in cell["precisions"].values())]
        for cell in cells
    ]
    console.table(
        "Median call on one thread, microseconds", ["network", "float32", "float16", "int8"], medians
    )


if __name__ == "__main__":
    main()
