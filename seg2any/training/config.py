"""Describe a training run: typed dataclasses <- yaml files <- --a.b=c, with published keys.

A key that does not exist, a wrong type and an impossible value are one-line errors. The files under config/ hold only
what differs from the defaults below. `train.py --help` prints every key with its default and the comment beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seg2any.attention.settings import CONFIG_ROOT_NAMES, NAMES, ConditionSettings
from seg2any.generate.memory_modes import IN_TRAINING, NOT_IN_TRAINING
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.training.config_check import (
    check_keys,
    check_repeated,
    check_sections,
    check_values,
    expand_paths,
    read_sources,
    refuse_references,
    types_first,
)
from seg2any.training.sections import MaskAlignment

COMMENT = re.compile(r"^    (\w+): .*?(?:  # (.*))?$", re.M)  # a key of a dataclass, and the comment beside it


@dataclass
class Project:
    """Output folder and experiment tracker."""

    tracker_project_name: str = "seg2any"
    output_dir: str = "runs/seg2any"
    logging_dir: str = "logs"  # of the tracker, inside output_dir
    gen_image_dir: str = "gen_imgs"  # of validation images, inside output_dir
    report_to: str | None = None  # tensorboard or wandb; log.jsonl is always written


@dataclass
class DataSection:
    """One data set, by `type` or else by `target`."""

    type: str | None = None  # a name of seg2any.data.catalog
    target: str | None = None  # the published form of `type`: dotted path of a data set class
    params: dict[str, Any] = field(default_factory=dict)  # arguments of that data set


@dataclass
class Data:
    """The data sets of training and validation."""

    train: DataSection = field(default_factory=DataSection)
    val: DataSection = field(default_factory=DataSection)
    on_error: str = "skip"  # unreadable or unlabelled samples are listed and left out; fail: they end the run
    aspect: str = "stretch"  # to a square, as published; bucket: sizes of equal area near the image's own proportions


@dataclass
class Model:
    """The base model, its condition settings, the adapters, and how noise levels are drawn."""

    pretrained_model_name_or_path: str = "black-forest-labs/FLUX.1-dev"  # folder, hub id, or file of the transformer
    base_parts: str | None = None  # of a base in one file: folder or hub id of the other parts; null: the file's folder
    condition: ConditionSettings = field(default_factory=ConditionSettings)  # see MOVED
    rank: int = 64
    lora_alpha: int | None = None  # null: the rank
    lora_dropout: float = 0.0
    gaussian_init_lora: bool = False
    lora_ckpt_path: str | None = None  # start from these adapters; a new run, not a resume
    num_inference_steps: int = 32  # of validation images
    weighting_scheme: str = "none"  # none, logit_normal, mode, sigma_sqrt, cosmap
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29


@dataclass
class Optimizer:
    """AdamW's numbers, and the norm to which gradients are clipped."""

    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0


@dataclass
class Scheduler:
    """Learning-rate schedule."""

    lr_scheduler: str = "constant"  # any name of diffusers.optimization
    lr_warmup_steps: int = 0  # in optimizer steps
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    lr_step_rules: str | None = None  # for piecewise_constant: 1:1000,0.1:2000,0.01 are factors, each up to its step


@dataclass
class TrainerOptions:
    """Steps, batches, memory, validation, checkpoints and caches."""

    guidance_scale: float = 1.0  # the guidance embedding during training
    train_batch_size: int = 4  # per process
    optimizer: str = "adamw"  # adamw8bit: state in 8 bit, by bitsandbytes
    learning_rate: float = 1e-4
    scale_lr: bool = False  # learning rate x processes x batch x accumulation
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    compile: bool = False  # torch.compile of the blocks
    shard_base: bool = False  # each process keeps only a part of the frozen transformer (FSDP2, with DDP)
    base_quantization: str = "none"  # of the frozen transformer: 8bit or nf4, by bitsandbytes
    allow_tf32: bool = False
    caption_dropout: float = 0.0  # share of samples that lose their global caption
    cond_dropout: float = 0.0  # share of samples that lose their contour tokens
    ema_decay: float = 0.0  # 0: off. The average is what checkpoints publish and validation measures
    num_train_epochs: int = 1  # used only if max_train_steps is null
    max_train_steps: int | None = 20000
    max_skipped_steps: int = 20  # stop after this many steps in a row with a non-finite loss or gradient
    checkpointing_steps: int = 1000
    checkpoints_total_limit: int | None = None
    num_validation_images: int = 4
    validation_steps: int = 2000  # interval of validation images
    validation_loss_steps: int = 500  # interval of the loss at fixed noise
    num_validation_samples: int = 64  # samples behind that loss
    log_steps: int = 10
    sampler: str = "length"  # published: groups of equal length class, their tails filled with repetitions
    cache_text: str = "classes"  # text embeddings to keep: none, classes (of closed sets), all
    cache_latents: bool = False  # keep the VAE's encodings of images and contours
    cache: str = "plan"  # plan: samples are encoded before their first step; all: all of data.train before step 1
    cache_dir: str | None = None  # keep caches here for later runs; null: only in memory
    cache_batch_size: int = 32


@dataclass
class XSam:
    """The network that tasks xsam and xsam_segmentor train, and how."""

    model: str | None = None  # folder with config.json, for xsam a tokenizer, too; training starts from weights in it
    segmentor: str | None = None  # what task xsam_segmentor saved: the segmentor of xsam starts with it
    mix: dict[str, int] = field(  # how often an epoch asks an image in each way; vgd..: visual prompts; ..conv: chat
        default_factory=lambda: {"genseg": 1, "refseg": 1, "reaseg": 1, "gcgseg": 1, "vgdseg": 1, "imgconv": 1}
    )
    language: float = 1.0  # weight of the language model's loss beside that of the masks
    points: int = 12544  # at which masks are compared, drawn for each mask
    encoder_rate: float = 0.1  # learning rate of the image encoders, as a factor of trainer.learning_rate
    jitter: list[float] = field(default_factory=list)  # of xsam_segmentor: bounds of a drawn scale, published 0.1 and 2


@dataclass
class Coloring:
    """The paintings of task coloring, and the numbers that its loss compares."""

    loss: str = "instances"  # of gen2seg, on decoded pixels; paintings: latents of paintings, without the VAE's decoder
    photo: str = "condition"  # the photo is the condition stream; image: it takes the place of the noise, as published
    color_range: str = "own"  # own: of each image; fixed: -1 to 1, as photos; published_training: of a whole batch
    crop: int | None = None  # train on windows of this side in pixels, a multiple of a token's; null: on whole photos
    partly_labelled: bool | None = None  # background pixels may be unlabelled instances; null: true for sacap_1m
    legend_share: float = 0.0  # share of samples whose colours are named in words
    legend_entries: int = 4  # phrases of a legend at most
    legends_per_photo: int = 0  # 0: a new legend each time; else one of as many, whose paintings are kept in memory


@dataclass
class Eval:
    """Image generation by `seg2any.evaluation.generate_image`."""

    guidance_scale: float = 3.5
    num_images_per_prompt: int = 1


@dataclass
class Compatibility:
    """Published keys that change nothing here, accepted so that published files load."""

    default_lora_layers: str | None = None  # for compatibility: null, or the published layers, the only ones trained
    cond_lora_layers: str | None = None  # likewise
    use_lora_bias: bool = False  # for compatibility: only false
    offload: bool = False  # for compatibility: encoders always leave the device once the caches are complete

    def __post_init__(self):
        if self.use_lora_bias:
            raise UserError("model.use_lora_bias: adapters have no bias; set it to False, or leave it out")


@dataclass
class Config:
    """One training run. `load` makes it; `save` writes it beside the run, complete."""

    task: str = "generation"  # what is trained: a name of seg2any.training.tasks.table
    project: Project = field(default_factory=Project)
    resolution: int = 512  # images and masks are stretched to a square of this side
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    xsam: XSam = field(default_factory=XSam)
    coloring: Coloring = field(default_factory=Coloring)
    eval: Eval = field(default_factory=Eval)
    mask_alignment: MaskAlignment = field(default_factory=MaskAlignment)
    compatibility: Compatibility = field(default_factory=Compatibility)  # see MOVED
    dataloader_num_workers: int = 0
    seed: int = 42
    mixed_precision: str = "bf16"  # no, fp16, bf16; auto: bf16 where the device computes in it, else no
    resume_from_checkpoint: str | None = None  # latest, or any path to a checkpoint
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return every key under its published name and in its published section."""
        flat = OmegaConf.to_container(OmegaConf.structured(self))
        condition, compatibility = flat["model"].pop("condition"), flat.pop("compatibility")
        for (section, key), holder in MOVED.items():
            place = flat[section] if section else flat
            value = (condition if holder is ConditionSettings else compatibility)[key]
            place[key] = list(value) if isinstance(value, tuple) else value
        return flat

    def to_yaml(self) -> str:
        """Format every key as yaml that `load` reads again."""
        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict()))

    def save(self, path: str | Path) -> None:
        """Write `to_yaml`, complete or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_yaml(), encoding="utf-8")


# Published section ("" is the top level) and key -> the dataclass that holds the key here.
MOVED = {("" if name in CONFIG_ROOT_NAMES else "model", name): ConditionSettings for name in NAMES} | {
    ("model", "default_lora_layers"): Compatibility,
    ("model", "cond_lora_layers"): Compatibility,
    ("model", "use_lora_bias"): Compatibility,
    ("trainer", "offload"): Compatibility,
}

# Keys without a section, as flags may be called.
ROOT_KEYS = (*Config().to_dict(), "memory")


def load(arguments: Sequence[str]) -> Config:
    """Read `CONFIG.yaml ... --a.b=c ...` (also `--a.b c`; a bare `--flag` is true); later wins.

    Another data set does not inherit the parameters of the one before it. Raises UserError.
    """
    merged = OmegaConf.structured(Config)
    OmegaConf.set_readonly(merged.model.condition, False)  # frozen dataclasses start read-only
    for source, values in types_first(read_sources(list(arguments))):
        try:
            if values is not None:
                refuse_references(values, source)
            content = OmegaConf.to_container(values, resolve=True) if values is not None else {}
            if not isinstance(content, dict):
                raise UserError(f"{source}: a config must be a mapping of keys to values")
            _translate_memory(content, source)
            check_keys(content, _published_types(Config), source)
            _move(content)
            if content.get("mixed_precision") is False:  # yaml reads an unquoted `no` as false
                content["mixed_precision"] = "no"
            _drop_params_of_another_set(merged.data, content.get("data", {}))
            merged.merge_with(content)  # in place: OmegaConf.merge copies the whole config for every flag
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    check_values(merged)
    check_repeated(merged)
    expand_paths(merged)
    config = OmegaConf.to_object(merged)  # ConditionSettings, Compatibility and sections of tasks check themselves
    check_sections(config)
    return config


def _drop_params_of_another_set(before: Data, content: dict[str, Any]) -> None:
    """Forget the parameters of the data sets `before` for which `content` names others."""
    from seg2any.data.catalog import data_set_name  # late: it needs numpy

    for side in {"train", "val"} & content.keys():
        old, new = before[side], content[side]
        name = data_set_name(old.type, old.target)
        if name not in (None, data_set_name(new.get("type", old.type), new.get("target", old.target))):
            old.params = {}


def _move(content: dict[str, Any]) -> None:
    """Move keys from their published sections into the dataclasses that hold them here."""
    for (section, key), holder in MOVED.items():
        place = content.get(section, {}) if section else content
        if key in place:
            value = place.pop(key)
            if holder is ConditionSettings:
                content.setdefault("model", {}).setdefault("condition", {})[key] = value
            else:
                content.setdefault("compatibility", {})[key] = value


def _translate_memory(content: dict[str, Any], source: str) -> None:
    """Translate `memory`, a flag of infer.py, to trainer.base_quantization.

    Raises UserError if it cannot train.
    """
    if "memory" not in content:
        return
    mode = content.pop("memory")
    if mode in NOT_IN_TRAINING:
        raise UserError(f"{source}: memory {mode} cannot train: {NOT_IN_TRAINING[mode]}; use full, int8 or nf4")
    if mode not in IN_TRAINING:
        raise UserError(f"{source}: memory {mode!r} does not exist; use one of {', '.join(IN_TRAINING)}")
    content.setdefault("trainer", {})["base_quantization"] = IN_TRAINING[mode]


@functools.cache
def _published_types(schema: type, section: str = "") -> dict[str, Any]:
    """Map every published key to its type, and every section to such a mapping."""
    types = {}
    for name, hint in get_type_hints(schema).items():
        if hint not in MOVED.values():
            types[name] = _published_types(hint, name) if dataclasses.is_dataclass(hint) else hint
    return types | {key: get_type_hints(holder)[key] for (place, key), holder in MOVED.items() if place == section}


def explained_defaults() -> str:
    """Write a config file with every key at its default, and its meaning as a comment."""
    return "\n".join(_explained(Config(), ""))


def _explained(options: object, section: str) -> Iterator[str]:
    indent = "  " if section else ""
    for one in dataclasses.fields(options):
        value = getattr(options, one.name)
        if type(value) in MOVED.values():
            continue
        if dataclasses.is_dataclass(value):
            yield f"{indent}{one.name}:"
            yield from (f"{indent}{line}" for line in _explained(value, one.name))
        else:
            yield _line(indent, one.name, options)
    for (place, key), holder in MOVED.items():
        if place == section:
            yield _line(indent, key, holder())


def _line(indent: str, key: str, options: object) -> str:
    """Format one key; its meaning is the field's metadata, else the comment beside it."""
    value = getattr(options, key)
    about = next(one.metadata for one in dataclasses.fields(options) if one.name == key)
    meaning = about.get("help") or dict(COMMENT.findall(inspect.getsource(type(options))))[key]
    if about.get("choices"):
        meaning += f" ({', '.join(about['choices'])})"
    return f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}" + (meaning and f"  # {meaning}")
