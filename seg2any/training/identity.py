"""Which settings make a run what it is: a resumed run must share them with the run that wrote the checkpoint."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from seg2any.config import Config
from seg2any.training.run_data import data_set_name

FREE = {"model.num_inference_steps", "model.attention_backend"}  # of validation images; of speed
TRAINER = (
    *("optimizer", "learning_rate", "scale_lr", "train_batch_size", "gradient_accumulation_steps", "guidance_scale"),
    *("caption_dropout", "cond_dropout", "ema_decay", "base_quantization", "sampler"),
)


def run_identity(config: Config, fingerprint: str, precision: str, processes: int) -> dict[str, Any]:
    """By config key.

    fingerprint  of the training data: a folder may move, what is in it may not change
    precision    what mixed_precision means here: `auto` may mean another one on another machine
    """
    flat = OmegaConf.to_container(OmegaConf.structured(config))
    values = {f"trainer.{key}": flat["trainer"][key] for key in TRAINER}
    for section in ("model", "optimizer", "scheduler"):
        values |= {f"{section}.{key}": value for key, value in flat[section].items()}
    values |= {key: flat[key] for key in ("resolution", "cond_scale_factor", "seed")}
    values |= {f"data.{key}": flat["data"][key] for key in ("on_error", "aspect")}
    values |= {
        "data.train": data_set_name(config.data.train),
        "data.train's content": fingerprint,
        "mixed_precision": precision,
        "number of processes": processes,
    }
    if config.scheduler.lr_scheduler not in ("constant", "constant_with_warmup"):
        # The schedule's shape depends on how long the run is to be.
        values |= {f"trainer.{key}": flat["trainer"][key] for key in ("max_train_steps", "num_train_epochs")}
    return {key: value for key, value in values.items() if key not in FREE}
