"""Parameters one after the other in one tensor: what is done to all of them is one operation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from thousandfold.models.tensor_state import host_copy

# Each parameter begins at a multiple of so many bytes, as if it had memory of its own.
_ALIGNMENT = 64


class FlatParameters:
    """Parameters that lie in one tensor from now on, and their gradients in another.

    What lies between two of them is 0, and so is its gradient.

    Attributes:
        parameters: as given.
        values: of all parameters, one-dimensional.

    Args:
        parameters: of one type, on one device.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        multiple = _ALIGNMENT // self.parameters[0].element_size()
        self._rooms = [-(-each.numel() // multiple) * multiple for each in self.parameters]
        self.values = self.parameters[0].detach().new_zeros(sum(self._rooms))
        for parameter, place in zip(self.parameters, self.split(self.values), strict=True):
            parameter.data = place.copy_(parameter.detach())

    @cached_property
    def gradient(self) -> Tensor:
        """Of all parameters, one-dimensional; parameters that are not learned have none."""
        return torch.zeros_like(self.values)

    @cached_property
    def _places(self) -> list[Tensor]:
        return self.split(self.gradient)

    def set_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Copy the gradient of each parameter to where ``parameter.grad`` lies from now on."""
        torch._foreach_copy_(self._places, list(gradients))  # pyright: ignore[reportPrivateImportUsage]
        for parameter, place in zip(self.parameters, self._places, strict=True):
            parameter.grad = place

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return each parameter's part, in its shape, of numbers that lie as `values` do."""
        parts = zip(flat.split(self._rooms), self.parameters, strict=True)
        return [part[: parameter.numel()].view_as(parameter) for part, parameter in parts]

    def range_of(self, parameters: Iterable[Tensor]) -> slice:
        """Return where in `values` some of the parameters lie, which follow one another."""
        wanted = {id(each) for each in parameters}
        numbers = [number for number, each in enumerate(self.parameters) if id(each) in wanted]
        stops = [0, *itertools.accumulate(self._rooms)]
        return slice(stops[numbers[0]], stops[numbers[-1] + 1])


class FlatAdam:
    """Adam for flat parameters: torch's fused kernel on one tensor, without looking through parameters.

    Attributes:
        rate: the learning rate, a scalar tensor, so that it can change where it lies.

    Args:
        parameters: what a step changes, by their gradient.
        rate: the learning rate.
    """

    def __init__(self, parameters: FlatParameters, rate: float) -> None:
        self._parameters, values = parameters, parameters.values
        self.rate = torch.tensor(rate, device=values.device)
        self._steps = torch.zeros((), device=values.device)
        self._moments = {name: torch.zeros_like(values) for name in ("exp_avg", "exp_avg_sq")}

    @torch.no_grad()
    def step(self, divisor: Tensor | None = None) -> None:
        """Take a step; the gradient is divided by `divisor`, a scalar, on the way."""
        self._steps += 1
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            [self._parameters.values],
            [self._parameters.gradient],
            [self._moments["exp_avg"]],
            [self._moments["exp_avg_sq"]],
            [],
            [self._steps],
            lr=self.rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the moments on the host as ``<number of the parameter>.<name>``."""
        state: dict[str, Tensor] = {}
        for name, moment in self._moments.items():
            for number, part in enumerate(self._parameters.split(moment)):
                state[f"{number}.step"] = host_copy(self._steps)
                state[f"{number}.{name}"] = host_copy(part)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in the tensors that are there; what is missing becomes 0."""
        self._steps.copy_(state.get("0.step", torch.zeros(())))
        for name, moment in self._moments.items():
            for number, place in enumerate(self._parameters.split(moment)):
                place.copy_(state.get(f"{number}.{name}", torch.zeros(())))
