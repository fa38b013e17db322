"""Which values a training config may have, by key."""

from __future__ import annotations

import math
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from seg2any.system.errors import UserError

# The objects that are made of a value check it themselves; here is what nothing else would notice.
CHOICES = {
    "model.use_lora_bias": (False,),
    "mixed_precision": ("auto", "no", "fp16", "bf16"),
    "project.report_to": (None, "tensorboard", "wandb"),
    "data.on_error": ("skip", "fail"),
    "data.aspect": ("stretch", "bucket"),
    "trainer.optimizer": ("adamw", "adamw8bit"),
    "trainer.base_quantization": ("none", "8bit", "nf4"),
    "trainer.sampler": ("length", "published"),
    "trainer.cache_text": ("none", "classes", "all"),
}
AT_LEAST_ONE = (
    *("resolution", "model.rank", "model.lora_alpha", "model.num_inference_steps"),
    "eval.num_images_per_prompt",
    *("trainer.train_batch_size", "trainer.gradient_accumulation_steps", "trainer.num_train_epochs"),
    *("trainer.max_train_steps", "trainer.checkpointing_steps", "trainer.checkpoints_total_limit"),
    *("trainer.validation_steps", "trainer.validation_loss_steps", "trainer.num_validation_samples"),
    *("trainer.log_steps", "trainer.cache_batch_size", "trainer.max_skipped_steps", "scheduler.lr_num_cycles"),
)
AT_LEAST_ZERO = (
    *("seed", "dataloader_num_workers", "scheduler.lr_warmup_steps", "trainer.num_validation_images"),
    *("optimizer.adam_weight_decay", "trainer.guidance_scale", "eval.guidance_scale", "scheduler.lr_power"),
    "model.logit_std",
)
POSITIVE = ("trainer.learning_rate", "optimizer.adam_epsilon", "optimizer.max_grad_norm")
FINITE = ("model.logit_mean", "model.mode_scale")
PROBABILITIES = ("trainer.caption_dropout", "trainer.cond_dropout")
DECAYS = ("optimizer.adam_beta1", "optimizer.adam_beta2", "trainer.ema_decay", "model.lora_dropout")
SEEDS = ("seed",)  # what torch's generators take
BOUNDS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (AT_LEAST_ONE, lambda value: value >= 1, "it must be at least 1"),
    (AT_LEAST_ZERO, lambda value: 0 <= value < math.inf, "it must be at least 0"),
    (FINITE, math.isfinite, "it must be finite"),
    (SEEDS, lambda value: value < 2**63, "it must be less than 2^63"),
    (POSITIVE, lambda value: 0 < value < math.inf, "it must be positive"),
    (PROBABILITIES, lambda value: 0 <= value <= 1, "it must lie in [0, 1]"),
    (DECAYS, lambda value: 0 <= value < 1, "it must be at least 0 and less than 1"),
)


def check_values(config: DictConfig) -> None:
    """Raise UserError on the first impossible value; `config` has the keys of `seg2any.training.config.Config`."""

    def wrong(key: str, rule: str):
        return UserError(f"{key}: {OmegaConf.select(config, key)!r} is not possible; {rule}")

    for key, choices in CHOICES.items():
        if OmegaConf.select(config, key) not in choices:
            raise wrong(key, f"choose one of {', '.join('null' if c is None else str(c) for c in choices)}")
    for keys, is_possible, rule in BOUNDS:
        for key in keys:
            value = OmegaConf.select(config, key)
            if value is not None and not is_possible(value):  # the keys that may be null have their own meaning for it
                raise wrong(key, rule)
