"""Read config files and flags.

Refuse unknown keys, wrong types and impossible values, each in one line.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

from omegaconf import DictConfig, OmegaConf

from seg2any.generate.memory_modes import IN_TRAINING
from seg2any.system.errors import UserError, shown
from seg2any.system.limits import limits
from seg2any.system.shipped import input_path, model_name
from seg2any.system.words import probably_meant
from seg2any.system.yaml_text import check_yaml
from seg2any.training.tasks.table import TASKS

EXAMPLES = {
    list: "a list such as [19,37]",
    tuple: "a list such as [19,37]",
    dict: "names with values such as {split: val}",
}
# Values that nothing else checks; the others are checked by the objects that are made of them.
CHOICES = {
    "task": tuple(TASKS),
    "mixed_precision": ("auto", "no", "fp16", "bf16"),
    "project.report_to": (None, "tensorboard", "wandb"),
    "data.on_error": ("skip", "fail"),
    "data.aspect": ("stretch", "bucket"),
    "trainer.optimizer": ("adamw", "adamw8bit"),
    "trainer.base_quantization": tuple(IN_TRAINING.values()),
    "trainer.sampler": ("length", "published"),
    "trainer.cache_text": ("none", "classes", "all"),
    "trainer.cache": ("plan", "all"),
    "coloring.loss": ("instances", "paintings"),
    "coloring.photo": ("condition", "image"),
    "coloring.color_range": ("own", "fixed", "published_training"),
}
AT_LEAST_ONE = (
    *("resolution", "model.rank", "model.lora_alpha", "model.num_inference_steps"),
    "eval.num_images_per_prompt",
    *("trainer.train_batch_size", "trainer.gradient_accumulation_steps", "trainer.num_train_epochs"),
    *("trainer.max_train_steps", "trainer.checkpointing_steps", "trainer.checkpoints_total_limit"),
    *("trainer.validation_steps", "trainer.validation_loss_steps", "trainer.num_validation_samples"),
    "xsam.points",
    *("coloring.legend_entries", "coloring.crop"),
    *("trainer.log_steps", "trainer.cache_batch_size", "trainer.max_skipped_steps", "scheduler.lr_num_cycles"),
)
AT_LEAST_ZERO = (
    *("seed", "dataloader_num_workers", "scheduler.lr_warmup_steps", "trainer.num_validation_images"),
    *("optimizer.adam_weight_decay", "trainer.guidance_scale", "eval.guidance_scale", "scheduler.lr_power"),
    *("model.logit_std", "coloring.legends_per_photo"),
)
POSITIVE = (
    "xsam.encoder_rate",
    "xsam.language",
    "trainer.learning_rate",
    "optimizer.adam_epsilon",
    "optimizer.max_grad_norm",
)
PATHS = ("project.output_dir", "project.logging_dir", "project.gen_image_dir", "trainer.cache_dir")
PATHS_READ = (
    *("model.pretrained_model_name_or_path", "model.base_parts", "model.lora_ckpt_path", "resume_from_checkpoint"),
    *("xsam.model", "xsam.segmentor"),
)
SET_FLAGS = tuple(f"--data.{side}.{key}" for side in ("train", "val") for key in ("type", "target"))
FINITE = ("model.logit_mean", "model.mode_scale")
PROBABILITIES = ("trainer.caption_dropout", "trainer.cond_dropout", "coloring.legend_share")
DECAYS = ("optimizer.adam_beta1", "optimizer.adam_beta2", "trainer.ema_decay", "model.lora_dropout")
SEEDS = ("seed",)  # the range of torch's generators
BOUNDS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (AT_LEAST_ONE, lambda value: value >= 1, "it must be at least 1"),
    (AT_LEAST_ZERO, lambda value: 0 <= value < math.inf, "it must be at least 0"),
    (FINITE, math.isfinite, "it must be finite"),
    (SEEDS, lambda value: value < 2**63, "it must be less than 2^63"),
    (POSITIVE, lambda value: 0 < value < math.inf, "it must be positive"),
    (PROBABILITIES, lambda value: 0 <= value <= 1, "it must lie in [0, 1]"),
    (DECAYS, lambda value: 0 <= value < 1, "it must be at least 0 and less than 1"),
)


REFERENCE = re.compile(r"\$\{([\w.]+)\}")
MOST_REFERENCES = 100


def check_values(config: DictConfig) -> None:
    """Raise UserError for the first impossible value.

    `config` has the keys of `seg2any.training.config.Config`.
    """

    def wrong(key: str, rule: str) -> UserError:
        return UserError(f"{key}: {OmegaConf.select(config, key)!r} is not possible; {rule}")

    for key, choices in CHOICES.items():
        if OmegaConf.select(config, key) not in choices:
            raise wrong(key, f"choose one of {', '.join('null' if c is None else str(c) for c in choices)}")
    for keys, is_possible, rule in BOUNDS:
        for key in keys:
            value = OmegaConf.select(config, key)
            if value is not None and not is_possible(value):  # a key that may be null gives it a meaning of its own
                raise wrong(key, rule)


def check_sections(config: Any) -> None:
    """Refuse sections that another task than the chosen one reads, if they say anything. Raises UserError."""
    own = TASKS[config.task].sections
    for name, row in TASKS.items():
        for section in row.sections:
            given = getattr(config, section)
            if section not in own and given != type(given)():
                raise UserError(f"{section}: only task {name} reads this section, not {config.task}; set --task={name}")


def check_repeated(config: DictConfig) -> None:
    """Refuse sizes among a data set's parameters that contradict the run's.

    Published configs repeat them there. Raises UserError.
    """
    used = {"resolution": config.resolution, "cond_scale_factor": config.model.condition.cond_scale_factor}
    for side, section in (("train", config.data.train), ("val", config.data.val)):
        for name, value in used.items():
            given = section.params.get(name)
            if given is not None and given != value:
                where = f"data.{side}.params.{name}"
                raise UserError(f"{where}: {given} contradicts {name} {value}; remove {where} or make them equal")


def expand_paths(config: DictConfig) -> None:
    """Replace ~ at the beginning of every path by the home folder, and find shipped models and adapters."""
    for keys, expand in ((PATHS, os.path.expanduser), (PATHS_READ, model_name)):
        for key in keys:
            if isinstance(value := OmegaConf.select(config, key), str):
                OmegaConf.update(config, key, expand(value))
    for section in (config.data.train, config.data.val):
        given = OmegaConf.to_container(section.params)
        section.params = {k: os.path.expanduser(v) if isinstance(v, str) else v for k, v in given.items()}


def read_sources(arguments: list[str]) -> Iterator[tuple[str, DictConfig]]:
    """Yield name and content of every yaml file and every command-line override, in order.

    Raises UserError.
    """
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--"):
            yield argument, _read(input_path(argument))
            continue
        key, has_value, value = argument[2:].partition("=")
        if not has_value:
            value = arguments.pop(0) if arguments and not arguments[0].startswith("--") else "true"
        yield f"--{key}", _parse(f"--{key}", lambda pair=f"{key}={value}": OmegaConf.from_dotlist([pair]))


def types_first(sources: Iterable[tuple[str, DictConfig]]) -> list[tuple[str, DictConfig]]:
    """Move the first flag that chooses a data set before the flags to its left, up to a file.

    They may be its parameters.
    """
    ordered: list[tuple[str, DictConfig]] = []
    for source in sources:
        files = [n for n, (name, _) in enumerate(ordered, start=1) if not name.startswith("--")]
        start = max(files, default=0)
        is_first = source[0] in SET_FLAGS and not any(name in SET_FLAGS for name, _ in ordered[start:])
        ordered.insert(start if is_first else len(ordered), source)
    return ordered


def refuse_references(values: DictConfig, source: str) -> None:
    """Raise UserError for references other than `${key}` to a plain value of the same source.

    Others read the environment, which may hold secrets, or grow without end by referring to each other.
    """
    content = OmegaConf.to_container(values, resolve=False)
    found = list(_references(content, ""))
    if len(found) > MOST_REFERENCES:
        raise UserError(f"{source}: has {len(found)} references, more than {MOST_REFERENCES}; write the values")
    for place, text in found:
        match = REFERENCE.fullmatch(text)
        if not match:
            raise UserError(
                f"{source}: '{place}' is {shown(text)}; write the value, or ${{key}} for that of a key here"
            )
        target = content
        for part in match[1].split("."):
            target = target.get(part) if isinstance(target, dict) else None
        if isinstance(target, dict | list) or "${" in str(target):
            raise UserError(f"{source}: '{place}' refers to {match[1]}, which is no plain value; write the value")


def _references(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Yield place and text of every value, and of every key, that holds a reference."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _references(str(key), place)
            yield from _references(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _references(inner, f"{place}[{number}]")
    elif isinstance(value, str) and "${" in value:
        yield place, value


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"{path}: this config file does not exist; give one such as config/seg2any_shapes.yaml")
    if path.stat().st_size > (most := limits().yaml_bytes):
        raise UserError(
            f"{path}: is larger than {most >> 10} KiB, no config; give one such as config/seg2any_shapes.yaml"
        )
    _parse(str(path), lambda: check_yaml(path.read_bytes(), most))  # whose aliases may stand for more than memory holds
    return _parse(str(path), lambda: OmegaConf.load(path))


def _parse(source: str, read: Callable[[], DictConfig]) -> DictConfig:
    try:
        return read()
    except Exception as error:  # yaml's errors have no common user-facing form
        raise UserError(f"{source}: not readable as yaml: {' '.join(str(error).split())}") from None


def check_keys(content: Mapping[str, Any], types: Mapping[str, Any], source: str) -> None:
    """Raise UserError for the first unknown key of `content`, or the first value of wrong form.

    types  maps every key to its type, and every section to such a mapping
    """
    paths = list(_paths(types))
    for path, value, hint in _typed(content, types, ""):
        if hint is None:
            raise UserError(f"{source}: unknown key '{path}'{_nearest(path, paths)}")
        if isinstance(hint, Mapping) and not isinstance(value, dict):
            raise UserError(f"{source}: '{path}' is a section; set its keys, such as '{path}.{next(iter(hint))}'")
        origin = get_origin(hint)
        if origin in EXAMPLES and not isinstance(value, list if origin is tuple else origin):
            raise UserError(f"{source}: '{path}' is {value!r}; give {EXAMPLES[origin]}")


def _typed(content: Mapping[str, Any], types: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, value and type of every key, sections before their keys.

    The type of an unknown key is None.
    """
    for key, value in content.items():
        hint = types.get(key)
        yield f"{prefix}{key}", value, hint
        if isinstance(hint, Mapping):
            yield from _typed(value, hint, f"{prefix}{key}.")


def _paths(types: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, hint in types.items():
        yield f"{prefix}{name}"
        if isinstance(hint, Mapping):
            yield from _paths(hint, f"{prefix}{name}.")


def _nearest(path: str, paths: list[str]) -> str:
    """Suggest the key that was probably meant: a close one, or the same name elsewhere."""
    if path in paths:
        return ": in a file, write it as a section, such as 'model: {rank: 8}'"
    section, _, name = path.rpartition(".")
    same_name = [p for p in paths if p.rsplit(".", 1)[-1] == name]
    own = [p for p in paths if p.rpartition(".")[0] == section]  # last, so that they win over names of other sections
    names = {p.rsplit(".", 1)[-1]: p for p in (*paths, *own)}
    close = same_name[0] if same_name else names.get(probably_meant(name, names))
    return f"; did you mean '{close}'?" if close else "; `train --help` lists all keys"
