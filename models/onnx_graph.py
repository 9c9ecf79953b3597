"""A deployable policy as one ONNX graph: dynamic batch, all weights inside, no traces of its making."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import cast

import torch

from models.deployable_policy import DeployablePolicy
from models.residual_mlp import unroll_blocks

# A protobuf message, and so an ONNX file that holds its own weights, ends at 2 GiB.
MAX_WEIGHT_BYTES = 2**31 - 2**24


def to_onnx(
    module: DeployablePolicy, observation_dim: int, goal_dim: int, opset: int
) -> torch.onnx.ONNXProgram:
    """Return the graph of a policy: inputs ``observation`` and ``goal``, outputs ``action`` and ``control``.

    Args:
        module: the policy, on the CPU.
        observation_dim, goal_dim: sizes of its inputs.
        opset: ONNX operator set.

    Raises:
        ValueError: the weights do not fit into one ONNX file.
    """
    weight_bytes = sum(weight.nbytes for weight in module.parameters())
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise ValueError(
            f"The network has {weight_bytes / 2**30:.1f} GiB of weights; one ONNX file holds less than 2."
        )
    # The exporter reads one module a layer; the stack's own backward pass is nothing to it.
    module = cast(DeployablePolicy, unroll_blocks(copy.deepcopy(module)))
    batch = torch.export.Dim("batch")
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, observation_dim), torch.zeros(2, goal_dim)),
            dynamo=True,
            input_names=["observation", "goal"],
            output_names=["action", "control"],
            dynamic_shapes=({0: batch}, {0: batch}),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None  # only the older exporter returns nothing
    _remove_notes(program)
    return program


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep away from the user what the exporter logs and warns of: it is all about itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _remove_notes(program: torch.onnx.ONNXProgram) -> None:
    """Remove the exporter's notes: every node's stack trace, with the paths of this machine."""
    graph = program.model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        values += node.outputs
    for part in (program.model, graph, *graph.all_nodes(), *values):
        part.metadata_props.clear()
        part.doc_string = None
