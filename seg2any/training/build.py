"""From a config to the objects of a run. Nothing here trains."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import SchedulerType, get_scheduler
from huggingface_hub.errors import HFValidationError
from peft.tuners.lora import LoraLayer
from torch import nn

from seg2any.adapters.files import COND, DEFAULT, AdapterCard, add_adapters, load_adapters, trainable_parameters
from seg2any.attention.settings import ConditionSettings
from seg2any.data.catalog import data_set_name
from seg2any.diffusion.flow import TimestepWeighting
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.errors import UserError
from seg2any.system.weights import weights_fingerprint
from seg2any.training.config import Config
from seg2any.training.objective import Objective
from seg2any.training.parallel import weight_dtype
from seg2any.training.quantize import follow_autocast, quantization_config
from seg2any.training.shards import is_sharded

SCHEDULES = tuple(kind.value for kind in SchedulerType)
RULES = "1:1000,0.1:2000,0.01 for a tenth of the rate from step 1000 on, and a hundredth from step 2000 on"
PIECEWISE = SchedulerType.PIECEWISE_CONSTANT.value


def objective(config: Config, settings: ConditionSettings) -> Objective:
    """How a step makes its loss: what it is told, which noise levels it draws, what it drops.

    Raises UserError if no loss would ever reach the adapter of contour tokens: DDP would wait for its gradient.
    """
    model, trainer = config.model, config.trainer
    if settings.is_plain and settings.is_use_cond_token:
        raise UserError(
            "model.attention_mask_method: none has no contour tokens to train; set model.is_use_cond_token to false"
        )
    weighting = TimestepWeighting(model.weighting_scheme, model.logit_mean, model.logit_std, model.mode_scale)
    return Objective(settings, weighting, trainer.caption_dropout, trainer.cond_dropout)


@contextlib.contextmanager
def finding_model(config: Config) -> Iterator[str]:
    """The base model's name. What the libraries say about one that is not there becomes a UserError."""
    name = config.model.pretrained_model_name_or_path
    try:
        yield name
    except (OSError, HFValidationError) as error:
        raise UserError(f"model.pretrained_model_name_or_path: {name}: {str(error).strip().splitlines()[0]}") from None


def base_fingerprint(config: Config) -> str:
    """`weights_fingerprint` of the base model, which is downloaded if it is none of this machine's."""
    with finding_model(config) as name:
        return weights_fingerprint(Path(name if Path(name).is_dir() else Seg2AnyPipeline.download(name)))


def load_pipeline(config: Config, accelerator: Accelerator) -> Seg2AnyPipeline:
    """The frozen FLUX on the device, its transformer in the weight dtype, everything with requires_grad off."""
    dtype = weight_dtype(config, accelerator.device)
    # bf16 moves latents by a third of what sampling their posterior does; fp16 overflows in FLUX's VAE.
    vae = torch.float32 if dtype == torch.float16 else dtype
    encoders = torch.float32 if accelerator.device.type == "cpu" else dtype  # CPUs encode text faster in fp32
    dtypes = {"vae": vae, "transformer": dtype, "default": encoders}
    with finding_model(config) as name:
        pipeline = Seg2AnyPipeline.from_pretrained(
            name, dtype=dtypes, quantization_config=quantization_config(config.trainer.base_quantization, dtype)
        )
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer):
        module.requires_grad_(False)
    if is_sharded(config, accelerator):  # the transformer waits until it is in parts
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            module.to(accelerator.device)
    else:
        pipeline.to(accelerator.device)
    follow_autocast(pipeline.transformer)
    pipeline.vae.to(memory_format=torch.channels_last)  # a convolution's fastest layout
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def attach_adapters(transformer: nn.Module, config: Config, saved: Path | None = None) -> None:
    """Add `default` and, with condition tokens, `cond`; or load them to start from. Trainable and in fp32.

    `saved`: a checkpoint's folder, whose adapters have the sizes of those that the run had started from.
    """
    model = config.model
    if model.lora_ckpt_path:
        load_adapters(transformer, saved or model.lora_ckpt_path, dtype=torch.float32)
        _set_dropout(transformer, model.lora_dropout)
        if model.condition.is_use_cond_token != (COND in transformer.peft_config):
            found = "has no" if model.condition.is_use_cond_token else "has a"
            raise UserError(
                f"model.lora_ckpt_path: {model.lora_ckpt_path} {found} cond/; change model.is_use_cond_token"
            )
    else:
        start = "gaussian" if model.gaussian_init_lora else True
        has_cond = model.condition.is_use_cond_token
        add_adapters(transformer, model.rank, lora_alpha(config), model.lora_dropout, has_cond, start)
    trainable_parameters(transformer)
    transformer.train()  # for LoRA dropout: FLUX has none of its own
    for adapter, key in ((DEFAULT, "default_lora_layers"), (COND, "cond_lora_layers")):
        _check_layers(transformer, adapter, key, getattr(model, key))


def _set_dropout(transformer: nn.Module, share: float) -> None:
    """Loaded adapters come with the dropout that their file speaks of; this run's is that of its config."""
    for name in {DEFAULT, COND} & transformer.peft_config.keys():
        transformer.peft_config[name].lora_dropout = share
        for layer in transformer.modules():
            if isinstance(layer, LoraLayer) and name in layer.lora_dropout:
                layer.lora_dropout[name] = nn.Dropout(share)


def _check_layers(transformer: nn.Module, adapter: str, key: str, wanted: str | None) -> None:
    """The published keys that choose layers are accepted if they choose the published layers."""
    if wanted is None or wanted == "all-linear-in-dit-blocks":
        return
    pattern = re.compile(wanted.removeprefix("regular_expression:"))
    linear = {name for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    adapted = {name for name in linear if adapter in transformer.get_submodule(name).lora_A}
    if adapted and {name for name in linear if pattern.fullmatch(name)} != adapted:
        raise UserError(f"model.{key}: other layers than the published ones are not supported; leave the key out")


def adapter_card(config: Config, step: int) -> AdapterCard:
    """What the adapters of this run tell about themselves."""
    model = config.model
    return AdapterCard(
        base_model=model.pretrained_model_name_or_path,
        condition=model.condition,
        resolution=config.resolution,
        rank=model.rank,
        alpha=float(lora_alpha(config)),
        dataset=data_set_name(config.data.train.type, config.data.train.target) or "",
        step=step,
    )


def lora_alpha(config: Config) -> int:
    """Of both adapters; by default the rank, which scales them by 1."""
    return config.model.rank if config.model.lora_alpha is None else config.model.lora_alpha


def parameter_counts(transformer: nn.Module) -> dict[str, int]:
    """Numbers of frozen parameters and of each adapter's."""
    counts = {"frozen": 0, DEFAULT: 0, COND: 0}
    for name, parameter in transformer.named_parameters():
        owner = next((a for a in (DEFAULT, COND) if "lora_" in name and f".{a}." in name), "frozen")
        counts[owner] += parameter.numel()
    return counts


def n_blocks(transformer: nn.Module) -> int:
    """Count double and single blocks."""
    return len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)


def number_of_steps(config: Config, batches_per_epoch: int) -> int:
    """Optimizer steps of the run; `batches_per_epoch` of one process."""
    if config.trainer.max_train_steps is not None:
        return config.trainer.max_train_steps
    return config.trainer.num_train_epochs * max(1, batches_per_epoch // config.trainer.gradient_accumulation_steps)


def make_schedule(config: Config, optimizer: torch.optim.Optimizer, last_step: int):
    """The learning rate of every optimizer step up to `last_step`. Raises UserError for what diffusers refuses."""
    schedule = config.scheduler
    if schedule.lr_scheduler not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise UserError(f"scheduler.lr_scheduler: '{schedule.lr_scheduler}' is not possible; choose one of {known}")
    if (schedule.lr_scheduler == PIECEWISE) != (schedule.lr_step_rules is not None):
        raise UserError(f"scheduler.lr_step_rules: goes with lr_scheduler {PIECEWISE} only, which needs it: {RULES}")
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
        hint = f"; rules are such as {RULES}" if schedule.lr_scheduler == PIECEWISE else ""
        raise UserError(f"scheduler.lr_scheduler: {schedule.lr_scheduler}: {error}{hint}") from None


def apply_memory_options(transformer: nn.Module, config: Config) -> None:
    """What the config says about tf32, checkpointing and compiling. Raises UserError."""
    torch.backends.cuda.matmul.allow_tf32 = config.trainer.allow_tf32
    if config.trainer.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.trainer.compile:
        if transformer.device.type == "cpu":
            raise UserError("trainer.compile: on a CPU compiling takes longer than it saves; set it to false")
        transformer.compile_repeated_blocks(dynamic=True)
