"""What makes a run what it is: a resumed run must share it with the run that wrote the checkpoint."""

from __future__ import annotations

import warnings
from typing import Any

from seg2any.data.catalog import data_set_name
from seg2any.system.errors import UserError
from seg2any.training.config import Config

WEIGHTS = "model.pretrained_model_name_or_path's weights"
# Of validation images; of speed; a model may move, what is in its files may not change.
FREE = {"model.num_inference_steps", "model.attention_backend", "model.pretrained_model_name_or_path"}
TRAINER = (
    *("optimizer", "learning_rate", "scale_lr", "train_batch_size", "gradient_accumulation_steps", "guidance_scale"),
    *("caption_dropout", "cond_dropout", "ema_decay", "base_quantization", "sampler"),
)


class Identity:
    """What must not change in the middle of a run. Loading compares instead of overwriting."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError for the first difference. Warns if the checkpoint is older than fingerprints of weights."""
        if WEIGHTS in self.values and WEIGHTS not in state:
            warnings.warn(f"the checkpoint does not say {WEIGHTS}, so they are not compared", stacklevel=2)
            state = {**state, WEIGHTS: self.values[WEIGHTS]}
        for key in sorted((self.values.keys() | state.keys()) - FREE):
            before, now = state.get(key), self.values.get(key)
            if before != now:
                raise UserError(
                    f"{key}: {before!r} in the checkpoint, {now!r} now; resume with the old value, or start a new run "
                    "from its adapters with model.lora_ckpt_path"
                )


def run_identity(config: Config, fingerprint: str, weights: str, precision: str, processes: int) -> dict[str, Any]:
    """By config key.

    fingerprint  of the training data: a folder may move, what is in it may not change
    weights      of the base model, likewise (`weights_fingerprint`)
    precision    what mixed_precision means here: `auto` may mean another one on another machine
    """
    flat = config.to_dict()
    values = {f"trainer.{key}": flat["trainer"][key] for key in TRAINER}
    for section in ("model", "optimizer", "scheduler"):
        values |= {f"{section}.{key}": value for key, value in flat[section].items()}
    values |= {key: flat[key] for key in ("resolution", "cond_scale_factor", "seed")}
    values |= {f"data.{key}": flat["data"][key] for key in ("on_error", "aspect")}
    values |= {
        "data.train": data_set_name(config.data.train.type, config.data.train.target),
        "data.train's content": fingerprint,
        WEIGHTS: weights,
        "mixed_precision": precision,
        "number of processes": processes,
    }
    if config.scheduler.lr_scheduler not in ("constant", "constant_with_warmup", "piecewise_constant"):
        # The schedule's shape depends on how long the run is to be.
        values |= {f"trainer.{key}": flat["trainer"][key] for key in ("max_train_steps", "num_train_epochs")}
    return {key: value for key, value in values.items() if key not in FREE}
