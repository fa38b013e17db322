"""Build the network of a run: the frozen base, perhaps quantised, with adapters to train."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import PipelineQuantizationConfig
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.checkpoint import checkpoint

from seg2any.adapters.files import COND, DEFAULT, AdapterCard, add_adapters, load_adapters, trainable_parameters
from seg2any.attention.settings import ConditionSettings, check_blocks
from seg2any.bases.flux1.source import Source, find_source
from seg2any.bases.flux1.weightless import weightless_pipeline
from seg2any.data.catalog import data_set_name
from seg2any.generate import memory
from seg2any.generate.memory_modes import IN_TRAINING
from seg2any.generate.model import explained
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.device import best_device
from seg2any.system.errors import UserError
from seg2any.training.config import Config
from seg2any.training.strategy import Strategy

MODES = {quantization: mode for mode, quantization in IN_TRAINING.items()}  # trainer.base_quantization -> memory mode


@contextlib.contextmanager
def finding_model(config: Config) -> Iterator[Source]:
    """Yield where the base model lies, and turn errors about a missing model into a UserError.

    Raises UserError for another model than FLUX.1.
    """
    name = config.model.pretrained_model_name_or_path
    try:
        source = find_source(name, config.model.base_parts)
    except UserError as error:
        raise UserError(f"model.pretrained_model_name_or_path: {error}") from None
    with explained(name, config.model.base_parts, ("model.pretrained_model_name_or_path:", "model.base_parts:")):
        yield source


def base_fingerprint(config: Config) -> str:
    """Return `Source.fingerprint` of the base model; download what is not local."""
    with finding_model(config) as source:
        given = {"transformer": None} if source.file else {}  # nothing to download
        folder = source.folder or Path(Seg2AnyPipeline.download(source.pipeline, **given))
        return source.fingerprint(folder, Seg2AnyPipeline.NETWORKS)


def load_pipeline(config: Config, strategy: Strategy) -> Seg2AnyPipeline:
    """Load FLUX frozen, its transformer in the strategy's dtype, and place it."""
    dtype = strategy.dtype
    # bf16 moves latents by a third of what sampling their posterior does; fp16 overflows in FLUX's VAE.
    vae = torch.float32 if dtype == torch.float16 else dtype
    encoders = torch.float32 if strategy.device.type == "cpu" else dtype  # CPUs encode text faster in fp32
    dtypes = {"vae": vae, "transformer": dtype, "default": encoders}
    with finding_model(config):
        pipeline = Seg2AnyPipeline.from_pretrained(
            config.model.pretrained_model_name_or_path,
            base_parts=config.model.base_parts,
            dtype=dtypes,
            quantization_config=quantization_config(config.trainer.base_quantization, dtype),
        )
    for module in (pipeline.vae, *pipeline.base.text_encoders, pipeline.transformer):
        module.requires_grad_(False)
    strategy.place(pipeline)
    pipeline.vae.to(memory_format=torch.channels_last)  # a convolution's fastest layout
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weightless(config: Config) -> Seg2AnyPipeline:
    """Build the run's networks with their adapters on the meta device. Raises as `attach_adapters` does."""
    with finding_model(config):
        pipeline = weightless_pipeline(config.model.pretrained_model_name_or_path, config.model.base_parts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")  # only sizes matter here
        attach_adapters(pipeline.transformer, config)
    return pipeline


def quantization_config(kind: str, dtype: torch.dtype) -> PipelineQuantizationConfig | None:
    """Translate trainer.base_quantization for `from_pretrained`.

    Matrix products are computed in `dtype`.

    Raises UserError if bitsandbytes or its device is missing.
    """
    if kind == "none":
        return None
    memory.check_bitsandbytes(f"trainer.base_quantization: {kind}", best_device(), "none")
    return memory.quantization_config(MODES[kind], dtype)


def attach_adapters(transformer: nn.Module, config: Config, saved: Path | None = None) -> None:
    """Add `default` and, with condition tokens, `cond`; or load both to start from.

    They are trained in fp32.

    saved  folder of the checkpoint to resume; its adapters have the same sizes as model.lora_ckpt_path, which may be
           gone by now

    Raises UserError for adapters that do not suit the config.
    """
    model = config.model
    if model.lora_ckpt_path:
        load_adapters(transformer, saved or model.lora_ckpt_path, dtype=torch.float32)
        _warn_of_other_sizes(transformer, config)
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
        _check_rank(transformer, model.rank)
    trainable_parameters(transformer)
    transformer.train()  # switches LoRA dropout on; FLUX has none of its own
    for adapter, key in ((DEFAULT, "default_lora_layers"), (COND, "cond_lora_layers")):
        _check_layers(transformer, adapter, key, getattr(config.compatibility, key))


def _warn_of_other_sizes(transformer: nn.Module, config: Config) -> None:
    """Warn if the adapters to start from have another rank or scale than the config says: theirs is trained."""
    loaded, model = transformer.peft_config[DEFAULT], config.model
    scale = lora_alpha(config) / model.rank
    if loaded.r != model.rank or not math.isclose(loaded.lora_alpha / loaded.r, scale, rel_tol=1e-3):
        warnings.warn(
            f"model.rank: is {model.rank} with alpha {lora_alpha(config)}, but {model.lora_ckpt_path} has rank "
            f"{loaded.r} with alpha {loaded.lora_alpha:g}, and that is what is trained; set both keys to it",
            stacklevel=2,
        )


def _set_dropout(transformer: nn.Module, share: float) -> None:
    """Replace the dropout in the files of loaded adapters by that of this run's config."""
    for name in {DEFAULT, COND} & transformer.peft_config.keys():
        transformer.peft_config[name].lora_dropout = share
        for layer in transformer.modules():
            if isinstance(layer, LoraLayer) and name in layer.lora_dropout:
                layer.lora_dropout[name] = nn.Dropout(share)


def check_block_range(settings: ConditionSettings, n_blocks: int) -> None:
    """Raise UserError if attribute isolation reaches none of `n_blocks` blocks; warn if it reaches past the last."""
    first, last = settings.hard_attn_block_range
    if settings.attention_mask_method == "hard" and first >= n_blocks:
        raise UserError(
            f"model.hard_attn_block_range: [{first}, {last}] is past the {n_blocks} blocks of this transformer (0 to "
            f"{n_blocks - 1}, double blocks first); give other blocks, or set model.attention_mask_method to base"
        )
    check_blocks(settings, n_blocks)


def _check_rank(transformer: nn.Module, rank: int) -> None:
    """Raise UserError if no adapted layer is as wide as the rank."""
    most = max(narrowest_sides(transformer).values())
    if rank > most:
        raise UserError(f"model.rank: {rank} is more than the width of every layer; give at most {most}")


def narrowest_sides(transformer: nn.Module) -> dict[str, int]:
    """Map each adapted layer to the smaller of its numbers of inputs and outputs: no rank beyond it adds anything."""
    layers = {name: layer for name, layer in transformer.named_modules() if isinstance(layer, LoraLayer)}
    return {name: min(layer.in_features, layer.out_features) for name, layer in layers.items()}


def _check_layers(transformer: nn.Module, adapter: str, key: str, wanted: str | None) -> None:
    """Accept the published keys that choose layers as long as they choose the published layers."""
    if wanted is None or wanted == "all-linear-in-dit-blocks":
        return
    try:
        pattern = re.compile(wanted.removeprefix("regular_expression:"))
    except re.error as error:
        raise UserError(f"model.{key}: {wanted!r} is no regular expression ({error}); leave the key out") from None
    linear = {name for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    adapted = {name for name in linear if adapter in transformer.get_submodule(name).lora_A}
    if adapted and {name for name in linear if pattern.fullmatch(name)} != adapted:
        raise UserError(f"model.{key}: only the published layers can be trained; leave the key out")


def adapter_card(config: Config, step: int) -> AdapterCard:
    """Describe the adapters of this run after `step` steps."""
    model, given = config.model, config.model.pretrained_model_name_or_path
    return AdapterCard(
        base_model=Path(given).absolute().name if Path(given).is_dir() else given,  # cards are passed on: no folders
        condition=model.condition,
        resolution=config.resolution,
        rank=model.rank,
        alpha=float(lora_alpha(config)),
        dataset=data_set_name(config.data.train.type, config.data.train.target) or "",
        step=step,
        overlap=config.data.train.params.get("overlap", "share"),
    )


def lora_alpha(config: Config) -> int:
    """Return alpha of both adapters; the default is the rank, which scales them by 1."""
    return config.model.rank if config.model.lora_alpha is None else config.model.lora_alpha


def parameter_counts(transformer: nn.Module) -> dict[str, int]:
    """Count frozen parameters and those of each adapter."""
    counts = {"frozen": 0, DEFAULT: 0, COND: 0}
    for name, parameter in transformer.named_parameters():
        owner = next((a for a in (DEFAULT, COND) if "lora_" in name and f".{a}." in name), "frozen")
        counts[owner] += parameter.numel()
    return counts


def apply_memory_options(transformer: nn.Module, config: Config) -> None:
    """Switch on tf32, gradient checkpointing and compiling as configured.

    Raises UserError for compiling on a CPU.
    """
    torch.backends.cuda.matmul.allow_tf32 = config.trainer.allow_tf32
    if config.trainer.gradient_checkpointing:
        draws = config.model.lora_dropout > 0  # else there is no generator to restore for a second forward pass
        transformer.enable_gradient_checkpointing(
            functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=draws)
        )
    if config.trainer.compile:
        if transformer.device.type == "cpu":
            raise UserError("trainer.compile: compiling takes longer than it saves on a CPU; set it to false")
        transformer.compile_repeated_blocks(dynamic=True)
