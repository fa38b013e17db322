"""What is trained: its parameters, and their running average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seg2any.system.errors import UserError


class Trainable:
    """The parameters of a model that are trained, in their own precision."""

    def __init__(self, model: nn.Module):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state.keys() != self.parameters.keys():
            raise UserError("checkpoint: its adapters have other layers than this run; use the config it was made with")
        for name, parameter in self.parameters.items():
            if parameter.shape != state[name].shape:
                raise UserError(f"checkpoint: {name} is {list(state[name].shape)} there, {list(parameter.shape)} here")
            parameter.data.copy_(state[name])


class Average:
    """Exponential moving average of parameters, in fp32: a <- d a + (1 - d) p, with d growing to `decay`.

    With decay 0 it is the parameters themselves and costs nothing.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.values = [p.detach().float().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step."""
        if not self.decay:
            return
        self.updates += 1
        decay = min(self.decay, self.updates / (10 + self.updates))  # early weights are forgotten sooner
        torch._foreach_lerp_(self.values, [p.detach().float() for p in self.parameters], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average inside this context, its own weights before and after."""
        if not self.decay:
            yield
            return
        own = [p.detach().clone() for p in self.parameters]
        try:
            self._write(self.values)
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for value, loaded in zip(self.values, state["values"], strict=True):
            value.copy_(loaded)
