"""Compare a resumed run with the run of its checkpoint, and name the first difference."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from seg2any.data.catalog import data_set_name
from seg2any.system.errors import UserError
from seg2any.training.config import Config
from seg2any.training.elastic import SAMPLES_OF_A_STEP, Shares
from seg2any.training.strategy import Strategy
from seg2any.training.tasks.table import TASKS

# Keys that tasks fingerprint: a folder may move, but its content may not change.
CONTENT = "data.train's content"
WEIGHTS = "model.pretrained_model_name_or_path's weights"
# A resumed run may change how validation images are drawn, how attention is computed, and where the model lies.
FREE = {
    *("model.num_inference_steps", "model.attention_backend"),
    *("model.pretrained_model_name_or_path", "model.base_parts"),
}
TRAINER = (
    *("optimizer", "learning_rate", "scale_lr", "guidance_scale"),
    *("caption_dropout", "cond_dropout", "ema_decay", "base_quantization", "sampler"),
)
# Keys that older checkpoints lack, with the value that their runs used.
ADDED = {"model.cond2image_attention_weight": 1.0, "task": "generation"}
# Schedules whose shape does not depend on the length of the run.
OPEN_ENDED = ("constant", "constant_with_warmup", "piecewise_constant")


class Identity:
    """The values that must not change in the middle of a run.

    Loading compares them instead of overwriting them.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.values = dict(values)

    def state_dict(self) -> dict[str, Any]:
        """Return the values by config key."""
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise UserError for the first difference.

        Warn if the checkpoint has no fingerprint of the weights.
        """
        if WEIGHTS in self.values and WEIGHTS not in state:
            warnings.warn(f"the checkpoint has no fingerprint of {WEIGHTS}, so it is not compared", stacklevel=2)
            state = {**state, WEIGHTS: self.values[WEIGHTS]}
        state = {**{key: value for key, value in ADDED.items() if key in self.values}, **state}
        for key in sorted((self.values.keys() | state.keys()) - FREE - SAMPLES_OF_A_STEP):
            before, now = state.get(key), self.values.get(key)
            if before != now:
                raise UserError(
                    f"{key}: {before!r} in the checkpoint, {now!r} now; resume with the old value, or start a new run "
                    "from its adapters with model.lora_ckpt_path"
                )


def run_identity(config: Config, task: Mapping[str, object], strategy: Strategy, shares: Shares) -> dict[str, Any]:
    """Collect by config key what config, task (`Task.identity`), strategy and `shares` of a step fix for a run.

    Of mixed_precision it is the resolved value, since `auto` may mean another one on another machine.
    """
    flat = config.to_dict()
    values = {f"trainer.{key}": flat["trainer"][key] for key in TRAINER}
    for section in ("model", "optimizer", "scheduler", *TASKS[config.task].sections):
        values |= {f"{section}.{key}": value for key, value in flat[section].items()}
    values |= {key: flat[key] for key in ("task", "resolution", "cond_scale_factor", "seed")}
    values |= {f"data.{key}": flat["data"][key] for key in ("on_error", "aspect")}
    values |= {
        "data.train": data_set_name(config.data.train.type, config.data.train.target),
        **task,
        "mixed_precision": strategy.precision,
        **shares.to_dict(),
    }
    if config.scheduler.lr_scheduler not in OPEN_ENDED:
        values |= {f"trainer.{key}": flat["trainer"][key] for key in ("max_train_steps", "num_train_epochs")}
    return {key: value for key, value in values.items() if key not in FREE}
