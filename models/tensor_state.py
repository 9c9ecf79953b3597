"""The state of networks and optimisers as flat tensors by name, as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose name starts with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def host_copy(tensor: Tensor) -> Tensor:
    """Return a copy in the host's memory: what is to be kept takes no room on the training device."""
    return tensor.detach().to("cpu", copy=True)


def copy_of(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return copies of the networks' tensors on the host, by network and name."""
    return {
        f"{name}.{key}": host_copy(value)
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
