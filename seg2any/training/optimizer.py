"""AdamW for the adapters, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seg2any.system.errors import UserError
from seg2any.training.config import Config

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(config: Config, parameters: list[nn.Parameter], processes: int) -> torch.optim.Optimizer:
    """AdamW over `parameters`, in 8 bit if asked for; `processes` counts for `scale_lr`. Raises UserError."""
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
    if trainer.optimizer == "adamw8bit":
        return _adamw_8bit(parameters, settings)
    return torch.optim.AdamW(parameters, fused=parameters[0].device.type in ("cpu", "cuda"), **settings)


def _adamw_8bit(parameters: list[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "trainer.optimizer: adamw8bit needs bitsandbytes; pip install bitsandbytes, or use adamw"
        ) from None
    return AdamW8bit(parameters, **settings)


class OptimizerState:
    """The moments of every parameter by its name: the same under DDP and ZeRO, for any number of processes.

    parameters   by name, as the optimizer was given them
    is_sharded   ZeRO gave every process a part of the moments, so every process must ask for the state at once
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], is_sharded: bool):
        self.optimizer, self.parameters, self.is_sharded = optimizer, parameters, is_sharded

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Empty before the first step."""
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
        if self.is_sharded:
            self._load_shards(state)
            return
        for name, moments in state.items():
            p = self.parameters[name]
            self.optimizer.state[p] = {key: _moved(value, p.device) for key, value in moments.items()}

    def _load_shards(self, state: dict[str, dict[str, Any]]) -> None:
        """Also of the weights: ZeRO steps a copy of its own, which still holds the initial ones."""
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
        """ZeRO replaces the parameters by this process's part of them, flat."""
        (group,) = self.optimizer.param_groups
        (shard,) = group["params"]
        return shard


def _moved(value: Any, device: torch.device) -> Any:
    return value.clone().to(device) if isinstance(value, Tensor) else value
