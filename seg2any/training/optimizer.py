"""Hold what an optimizer step changes: parameters, their average, AdamW, the schedule."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.optimization import SchedulerType, get_scheduler
from torch import Tensor, nn

from seg2any.system.errors import UserError
from seg2any.training.config import Config

MOMENTS = ("exp_avg", "exp_avg_sq")
SCHEDULES = tuple(kind.value for kind in SchedulerType)
RULES = "1:1000,0.1:2000,0.01 for a tenth of the rate from step 1000 on, and a hundredth from step 2000 on"
PIECEWISE = SchedulerType.PIECEWISE_CONSTANT.value
WITHOUT_WARMUP = (PIECEWISE, SchedulerType.CONSTANT.value)


class Trainable:
    """The trained parameters by name, in their own precision."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.parameters = dict(parameters)

    def state_dict(self) -> dict[str, Tensor]:
        """Return every parameter on the CPU, by name."""
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the parameters of a checkpoint in place. Raises UserError if names or shapes differ."""
        if state.keys() != self.parameters.keys():
            raise UserError(
                "checkpoint: it trained other layers than this run; resume with the config it was made with"
            )
        for name, parameter in self.parameters.items():
            if parameter.shape != state[name].shape:
                shapes = f"{list(state[name].shape)} in the checkpoint but {list(parameter.shape)} in this run"
                raise UserError(f"checkpoint: {name} is {shapes}; resume with the config it was made with")
            parameter.data.copy_(state[name])


class Average:
    """Moving average of parameters, in fp32: a <- d a + (1 - d) p, with d growing to `decay`.

    With decay 0 the average is the parameters themselves and takes neither memory nor time.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.values = [p.detach().float().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters; call it after each optimizer step."""
        if not self.decay:
            return
        self.updates += 1
        decay = min(self.decay, self.updates / (10 + self.updates))  # forget early weights sooner
        torch._foreach_lerp_(self.values, [p.detach().float() for p in self.parameters], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model inside this context, and its own weights back after it."""
        if not self.decay:
            yield
            return
        own = [p.detach().clone() for p in self.parameters]
        try:
            self._write(self.values)
            yield
        finally:
            self._write(own)

    def replace(self) -> None:
        """Put the average into the model for good."""
        if self.decay:
            self._write(self.values)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates and the averaged values, in the order of the parameters."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the average of a checkpoint."""
        self.updates = state["updates"]
        for value, loaded in zip(self.values, state["values"], strict=True):
            value.copy_(loaded)


def make_optimizer(
    config: Config, parameters: Sequence[nn.Parameter], processes: int, factors: Sequence[float] = ()
) -> torch.optim.Optimizer:
    """Make AdamW over `parameters`, with 8-bit state if trainer.optimizer says so.

    factors  of the learning rate, one for each parameter; 1 without them

    scale_lr needs `processes`.

    Raises UserError if bitsandbytes is missing.
    """
    trainer, adam = config.trainer, config.optimizer
    rate = trainer.learning_rate
    if trainer.scale_lr:
        rate *= processes * trainer.train_batch_size * trainer.gradient_accumulation_steps
    settings = {
        "lr": rate,
        "betas": (adam.adam_beta1, adam.adam_beta2),
        "weight_decay": adam.adam_weight_decay,
        "eps": adam.adam_epsilon,
    }
    groups = _by_rate(parameters, factors or [1.0] * len(parameters), rate)
    if trainer.optimizer == "adamw8bit":
        return _adamw_8bit(groups, settings)
    return torch.optim.AdamW(groups, fused=parameters[0].device.type in ("cpu", "cuda"), **settings)


def _by_rate(parameters: Sequence[nn.Parameter], factors: Sequence[float], rate: float) -> list[dict[str, Any]]:
    """Group parameters by their learning rate, the whole rate first: logs show that of the first group."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter, factor in zip(parameters, factors, strict=True):
        groups.setdefault(factor, []).append(parameter)
    return [{"params": found, "lr": factor * rate} for factor, found in sorted(groups.items(), key=lambda one: -one[0])]


def _adamw_8bit(parameters: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "trainer.optimizer: adamw8bit needs bitsandbytes; pip install bitsandbytes, or use adamw"
        ) from None
    return AdamW8bit(parameters, **settings)


class OptimizerState:
    """AdamW's moments by parameter name, in one form for DDP, ZeRO and any number of processes.

    parameters   by name, in the order in which the optimizer received them
    is_sharded   True under ZeRO, which gives every process a part of the moments: all processes have to call
                 `state_dict` at the same time
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], is_sharded: bool):
        self.optimizer, self.parameters, self.is_sharded = optimizer, parameters, is_sharded

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the moments of every parameter; empty before the first step."""
        if not self.optimizer.state:
            return {}
        if not self.is_sharded:
            return {name: dict(self.optimizer.state[p]) for name, p in self.parameters.items()}
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self.optimizer.state[self._shard]["step"]
        return {
            name: {"step": step, **{key: safe_get_full_optimizer_state(p, key).cpu() for key in MOMENTS}}
            for name, p in self.parameters.items()
        }

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Continue with the moments of a checkpoint."""
        if self.is_sharded:
            self._load_shards(state)
            return
        for name, moments in state.items():
            p = self.parameters[name]
            self.optimizer.state[p] = {key: _moved(value, p.device) for key, value in moments.items()}

    def _load_shards(self, state: dict[str, dict[str, Any]]) -> None:
        """Load moments and weights: ZeRO's own copy of the weights still holds the initial ones."""
        from deepspeed.utils import (
            lazy_init_hp_params_optimizer_state,
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
        )

        for p in self.parameters.values():
            safe_set_full_fp32_param(p, p.detach())
        if not state:
            return
        shard = self._shard
        step = _moved(next(iter(state.values()))["step"], shard.device)
        self.optimizer.state[shard] = {"step": step, **{key: torch.zeros_like(shard) for key in MOMENTS}}
        lazy_init_hp_params_optimizer_state(list(self.parameters.values()), shard, self.optimizer.state)
        for name, p in self.parameters.items():
            for key in MOMENTS:
                safe_set_full_optimizer_state(p, state[name][key].to(p.device), key)

    @property
    def _shard(self) -> Tensor:
        """Return this process's flat part of all parameters, which ZeRO puts in their place."""
        (group,) = self.optimizer.param_groups
        (shard,) = group["params"]
        return shard


def _moved(value: Any, device: torch.device) -> Any:
    return value.clone().to(device) if isinstance(value, Tensor) else value


def number_of_steps(config: Config, steps_per_epoch: int) -> int:
    """Count the optimizer steps of the run."""
    if config.trainer.max_train_steps is not None:
        return config.trainer.max_train_steps
    return config.trainer.num_train_epochs * max(1, steps_per_epoch)


def make_schedule(
    config: Config, optimizer: torch.optim.Optimizer, last_step: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Make the learning-rate schedule up to `last_step`.

    Warns of a warm-up that does not end before. Raises UserError for what diffusers refuses.
    """
    schedule = config.scheduler
    if schedule.lr_warmup_steps >= last_step and schedule.lr_scheduler not in WITHOUT_WARMUP:
        warnings.warn(
            f"scheduler.lr_warmup_steps: the {schedule.lr_warmup_steps:,} steps of the warm-up are not over when the "
            f"run ends at step {last_step:,}, so trainer.learning_rate is never reached; set lr_warmup_steps to fewer",
            stacklevel=2,
        )
    if schedule.lr_scheduler not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise UserError(f"scheduler.lr_scheduler: '{schedule.lr_scheduler}' does not exist; choose one of {known}")
    if (schedule.lr_scheduler == PIECEWISE) != (schedule.lr_step_rules is not None):
        raise UserError(
            f"scheduler.lr_step_rules: set it exactly if lr_scheduler is {PIECEWISE}, for example to {RULES}"
        )
    try:
        return get_scheduler(
            schedule.lr_scheduler,
            optimizer,
            step_rules=schedule.lr_step_rules,
            num_warmup_steps=schedule.lr_warmup_steps,
            num_training_steps=last_step,
            num_cycles=schedule.lr_num_cycles,
            power=schedule.lr_power,
        )
    except ValueError as error:
        hint = f"; write rules such as {RULES}" if schedule.lr_scheduler == PIECEWISE else ""
        raise UserError(f"scheduler.lr_scheduler: {schedule.lr_scheduler}: {error}{hint}") from None
