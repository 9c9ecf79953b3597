"""The state of networks and optimisers as flat tensors by name, as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose name starts with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def host_copy(tensor: Tensor) -> Tensor:
    """Return a copy in the host's memory: what is to be kept takes no room on the training device."""
    return tensor.detach().to("cpu", copy=True)


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of an optimiser's moments on the host as ``<number of the parameter>.<name>``."""
    return {
        f"{index}.{name}": host_copy(value)
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def load_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Restore what `moments_of` returned, in the tensors that are there: a captured update goes on."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    if optimizer.state:
        _copy_moments(optimizer, moments)
    else:
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})


@torch.no_grad()
def _copy_moments(optimizer: torch.optim.Optimizer, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Copy moments, by parameter and name, over those that an optimiser has; where there are none, zeros."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for name, own in optimizer.state[parameter].items():
            own.copy_(moments[index][name]) if index in moments else own.zero_()
