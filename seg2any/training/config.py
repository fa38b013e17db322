"""What a training run is: typed dataclasses <- yaml files <- --a.b=c. Key names are those of the published configs.

A key that does not exist, a wrong type and an impossible value are one-line errors. The files under config/ hold only
what differs from the defaults below.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seg2any.attention.settings import CONFIG_ROOT_NAMES, NAMES, ConditionSettings
from seg2any.generate.memory_modes import IN_TRAINING, NOT_IN_TRAINING
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.training.config_values import check_values


@dataclass
class Project:
    """Where a run writes, and who is told."""

    tracker_project_name: str = "seg2any"
    output_dir: str = "runs/seg2any"
    logging_dir: str = "logs"  # trackers, inside output_dir
    gen_image_dir: str = "gen_imgs"  # validation images, inside output_dir
    report_to: str | None = None  # tensorboard, wandb; the plain log.jsonl is always written


@dataclass
class DataSet:
    """One data set, by `type` or else by `target`."""

    type: str | None = None  # a name of seg2any.data.catalog
    target: str | None = None  # the published way to say `type`: dotted path of a data set class
    params: dict[str, Any] = field(default_factory=dict)  # arguments of that data set


@dataclass
class Data:
    """What is trained on, and what validation sees."""

    train: DataSet = field(default_factory=DataSet)
    val: DataSet = field(default_factory=DataSet)
    on_error: str = "skip"  # unreadable or unlabelled samples are listed and left out; fail: they end the run
    aspect: str = "stretch"  # to a square, as published; bucket: sizes of equal area near the image's own proportions


@dataclass
class Model:
    """The base, who attends to whom, the adapters, and how noise levels are drawn."""

    pretrained_model_name_or_path: str = "black-forest-labs/FLUX.1-dev"
    condition: ConditionSettings = field(
        default_factory=ConditionSettings
    )  # in files, its keys stand in `model` itself
    rank: int = 64
    lora_alpha: int | None = None  # None: the rank
    lora_dropout: float = 0.0
    default_lora_layers: str | None = None  # null, or the published value: only the published layers are trained
    cond_lora_layers: str | None = None
    use_lora_bias: bool = False
    gaussian_init_lora: bool = False
    lora_ckpt_path: str | None = None  # start from these adapters; a new run, not a resume
    num_inference_steps: int = 32  # of validation images
    weighting_scheme: str = "none"  # none, logit_normal, mode, sigma_sqrt, cosmap
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29


@dataclass
class Optimizer:
    """AdamW's numbers."""

    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0


@dataclass
class Scheduler:
    """How the learning rate goes on."""

    lr_scheduler: str = "constant"  # any name of diffusers.optimization
    lr_warmup_steps: int = 0  # in optimizer steps
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    lr_step_rules: str | None = None  # of piecewise_constant: 1:1000,0.1:2000,0.01 are factors, each up to its step


@dataclass
class Trainer:
    """Steps, memory, and what is kept."""

    guidance_scale: float = 1.0  # the guidance embedding during training
    train_batch_size: int = 4  # per process
    optimizer: str = "adamw"  # adamw8bit: its state in 8 bit, by bitsandbytes
    learning_rate: float = 1e-4
    scale_lr: bool = False  # learning rate x processes x batch x accumulation
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    offload: bool = False  # published key; here the encoders always leave the device once the cache is built
    compile: bool = False  # torch.compile of the blocks
    shard_base: bool = False  # each process keeps a part of the frozen transformer only (FSDP2, with DDP)
    base_quantization: str = "none"  # of the frozen transformer: 8bit or nf4, by bitsandbytes
    allow_tf32: bool = False
    caption_dropout: float = 0.0  # share of samples that lose their global caption
    cond_dropout: float = 0.0  # share of samples that lose their contour tokens
    ema_decay: float = 0.0  # 0: off. The average is what checkpoints publish and validation sees
    num_train_epochs: int = 1  # counts only while max_train_steps is null
    max_train_steps: int | None = 20000
    max_skipped_steps: int = 20  # stop after so many non-finite losses or gradients in a row
    checkpointing_steps: int = 1000
    checkpoints_total_limit: int | None = None
    num_validation_images: int = 4
    validation_steps: int = 2000  # images
    validation_loss_steps: int = 500  # loss at fixed noise
    num_validation_samples: int = 64  # samples behind that loss
    log_steps: int = 10
    sampler: str = "length"  # published: groups of equal length class, their tails filled with repetitions
    cache_text: str = "classes"  # which T5 embeddings are kept: none, classes (of closed sets), all
    cache_latents: bool = False  # keep what the VAE says about images and contours
    cache_dir: str | None = None  # caches are kept here and reused; null: only in memory
    cache_batch_size: int = 32


@dataclass
class Eval:
    """How `seg2any.evaluation.generate_image` makes images."""

    guidance_scale: float = 3.5
    num_images_per_prompt: int = 1


@dataclass
class Config:
    """One training run. `load` makes it; `save` writes it beside the run, complete."""

    project: Project = field(default_factory=Project)
    resolution: int = 512  # images and masks are stretched to a square of this side
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    trainer: Trainer = field(default_factory=Trainer)
    eval: Eval = field(default_factory=Eval)
    dataloader_num_workers: int = 0
    seed: int = 42
    mixed_precision: str = "bf16"  # no, fp16, bf16; auto: bf16 where the device computes in it, else no
    resume_from_checkpoint: str | None = None  # latest, or any path to a checkpoint
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return every key under its published name and in its published place."""
        flat = OmegaConf.to_container(OmegaConf.structured(self))
        nested = flat["model"].pop("condition")
        condition = {name: list(value) if isinstance(value, tuple) else value for name, value in nested.items()}
        flat |= {name: condition.pop(name) for name in CONFIG_ROOT_NAMES}
        flat["model"] |= condition
        return flat

    def to_yaml(self) -> str:
        """Write every key, for `load` to read again."""
        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict()))

    def save(self, path: str | Path) -> None:
        """Write `to_yaml`, complete or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_yaml(), encoding="utf-8")


EXAMPLES = {
    list: "a list such as [19,37]",
    tuple: "a list such as [19,37]",
    dict: "names with values such as {split: val}",
}


def load(arguments: Sequence[str]) -> Config:
    """`CONFIG.yaml ... --a.b=c ...` (also `--a.b c`; a bare `--flag` is true); later wins. Raises UserError."""
    merged = OmegaConf.structured(Config)
    OmegaConf.set_readonly(merged.model.condition, False)  # frozen dataclasses start read-only
    for source, values in _sources(list(arguments)):
        try:
            content = OmegaConf.to_container(values, resolve=True) if values is not None else {}
            if not isinstance(content, dict):
                raise UserError(f"{source}: a config is a mapping of keys to values")
            _translate_memory(content, source)
            _check_keys(content, Config, source)
            _nest_condition(content)
            if content.get("mixed_precision") is False:  # yaml reads an unquoted `no` as false
                content["mixed_precision"] = "no"
            merged = OmegaConf.merge(merged, content)
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    check_values(merged)
    return OmegaConf.to_object(merged)  # ConditionSettings checks itself


def _nest_condition(content: dict) -> None:
    """Move the published keys of `ConditionSettings` from the top and from `model` into `model.condition`."""
    model = content.get("model", {})
    found = {name: content.pop(name) for name in CONFIG_ROOT_NAMES if name in content}
    found |= {name: model.pop(name) for name in NAMES if name in model}
    if found:
        content.setdefault("model", {})["condition"] = found


def _translate_memory(content: dict, source: str) -> None:
    """`memory`, the flag of infer.py, is another word for trainer.base_quantization, where a mode can train."""
    if "memory" not in content:
        return
    mode = content.pop("memory")
    if mode in NOT_IN_TRAINING:
        raise UserError(f"{source}: memory {mode} cannot train: {NOT_IN_TRAINING[mode]}; use full, int8 or nf4")
    if mode not in IN_TRAINING:
        raise UserError(f"{source}: memory is {mode!r}; use one of {', '.join(IN_TRAINING)}")
    content.setdefault("trainer", {})["base_quantization"] = IN_TRAINING[mode]


def _sources(arguments: list[str]):
    """(name, content) of every yaml file and every command line override, in order."""
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--"):
            yield argument, _read(Path(argument))
            continue
        key, has_value, value = argument[2:].partition("=")
        if not has_value:
            value = arguments.pop(0) if arguments and not arguments[0].startswith("--") else "true"
        yield f"--{key}", _parse(f"--{key}", lambda pair=f"{key}={value}": OmegaConf.from_dotlist([pair]))


def _read(path: Path):
    if not path.is_file():
        raise UserError(f"{path}: no such config file; give a yaml file such as config/seg2any_shapes.yaml")
    return _parse(str(path), lambda: OmegaConf.load(path))


def _parse(source: str, read: Callable[[], Any]):
    try:
        return read()
    except Exception as error:  # yaml's errors have no common user-facing form
        raise UserError(f"{source}: not readable as yaml: {' '.join(str(error).split())}") from None


def _check_keys(content: dict, schema: type, source: str, prefix: str = "") -> None:
    """Raise on the first key of `content` that the dataclass `schema` does not have."""
    hints = _published_hints(schema)
    for key, value in content.items():
        path = f"{prefix}{key}"
        if key not in hints:
            raise UserError(f"{source}: unknown key '{path}'{_nearest(path)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{source}: '{path}' is a section; set its keys, such as '{path}.{_first(hints[key])}'")
            _check_keys(value, hints[key], source, f"{path}.")
        origin = get_origin(hints[key])
        if origin in EXAMPLES and not isinstance(value, list if origin is tuple else origin):
            raise UserError(f"{source}: '{path}' is {value!r}; give {EXAMPLES[origin]}")


def _published_hints(schema: type) -> dict[str, Any]:
    """Return the type of every key of a section, under the names and in the places of published files."""
    hints = get_type_hints(schema)
    condition = get_type_hints(ConditionSettings)
    if schema is Config:
        hints |= {name: condition[name] for name in CONFIG_ROOT_NAMES}
    if hints.get("condition") is ConditionSettings:
        del hints["condition"]
        hints |= {name: hint for name, hint in condition.items() if name not in CONFIG_ROOT_NAMES}
    return hints


def _nearest(path: str) -> str:
    """The existing key that was probably meant: close as a whole, or with the same last name elsewhere."""
    paths = list(_paths(Config))
    if path in paths:
        return ": in a file, write it as a section, such as 'model: {rank: 8}'"
    same_name = [p for p in paths if p.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    close = same_name or difflib.get_close_matches(path, paths, n=1, cutoff=0.5)
    if not close:
        names = {p.rsplit(".", 1)[-1]: p for p in paths}
        close = [names[n] for n in difflib.get_close_matches(path.rsplit(".", 1)[-1], names, n=1, cutoff=0.5)]
    return f"; did you mean '{close[0]}'?" if close else "; see seg2any/training/config.py for all keys"


def _paths(schema: type, prefix: str = ""):
    for name, hint in _published_hints(schema).items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            yield from _paths(hint, f"{prefix}{name}.")


def _first(schema: type) -> str:
    return dataclasses.fields(schema)[0].name
