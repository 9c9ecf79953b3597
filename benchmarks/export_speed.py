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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch

from benchmarks.harness import Cell, StudyParser, markdown_table, run_once
from thousandfold.envs.registry import compile_task
from thousandfold.ground.files import atomic_file
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.stages.benchmark.loops import TimedCall, back_to_back
from thousandfold.stages.export_onnx.export import Export
from thousandfold.stages.export_onnx.gate import GateStates, largest_action_error
from thousandfold.stages.export_onnx.variants import Variant
from thousandfold.stages.networks import NETWORK_FILE, load_actor, save_network
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

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
    tensors = dict(NormalizedActor.around(actor, task.observation_dim, task.goal_dim).state_dict())
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


def size(said: str) -> tuple[int, int]:
    """Return the depth and width of a network from the command line."""
    try:
        depth, width = map(int, said.split("x"))
        NetworkShape(depth, width)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return depth, width


def show(result: Cell) -> str:
    """Return two tables, a row a network: seconds of the phases, and microseconds of a call."""
    exports, calls = [], []
    for cell in result["networks"]:
        name = f"{cell['depth']} x {cell['width']}"
        first = min(cell["exports"], key=lambda run: abs(run["export_s"] - cell["export_s"]))
        seconds = [first[phase] for phase in ("export_s", "convert", "write", "gate", "finish")]
        row = [f"{s:.3f}" for s in (*seconds, cell["session_s"])]
        exports.append([name, *row, f"{cell['bytes'] / 1e6:.2f}", f"{cell['max_action_error']:.1e}"])
        calls.append([name, *(f"{part['p50_us']:.1f}" for part in cell["precisions"].values())])
    columns = ["network", "export", "convert", "write", "gate", "finish", "session", "MB", "off torch"]
    precisions = ["network", "float32", "float16", "int8"]
    return "\n\n".join(
        [
            markdown_table(columns, exports, "Seconds of an export"),
            markdown_table(precisions, calls, "Median call on one thread, microseconds"),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every size and print tables."""
    parser = StudyParser(__doc__, "export_speed")
    parser.rounds(3, least=1)
    parser.number("--seconds", 4.0, "of calls of each file", least=0.01)
    parser.number("--states", GATE_STATES, "compared", least=1)
    parser.several("--sizes", CELLS, type=size, metavar="DEPTHxWIDTH")
    options = parser.parse(arguments)

    def measured() -> Cell:
        cells = []
        for depth, width in options.sizes:
            with tempfile.TemporaryDirectory() as folder:
                cells.append(measure(Path(folder), depth, width, options))
        heads = {"task": TASK, "opset": OPSET, "states": options.states, "limit_s": LIMIT_S}
        return heads | {"networks": cells}

    run_once(options, measured, show)


if __name__ == "__main__":
    main()
