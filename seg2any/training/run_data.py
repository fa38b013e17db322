"""The data sets of a run: opened, and cached as far as the config says; then networks that nothing needs are gone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.text import TextKey, encode_keys
from seg2any.data.catalog import data_set_name, open_data_set
from seg2any.data.dataset import ClosedSet, DataSet, SampleError
from seg2any.diffusion.prepare import prompt_for
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from seg2any.training.config import Config
from seg2any.training.encoded import EncodedSample
from seg2any.training.loading import Loading
from seg2any.training.source import Source, is_usable


@dataclass(frozen=True, eq=False)
class RawData:
    """The data sets of a run as they are on the disk."""

    train: DataSet
    val: DataSet | None


@dataclass(frozen=True, eq=False)
class RunData:
    """What to train on; encoded samples to validate on; layouts to draw, with the embeddings of their captions."""

    train: Source
    val: list[EncodedSample] | None
    shown: list[Layout]
    shown_texts: dict[TextKey, Tensor]


def open_data(config: Config) -> RawData:
    """The configured data sets; the published class paths are understood."""
    train, val = (data_set_name(section.type, section.target) for section in (config.data.train, config.data.val))
    if train is None:
        raise UserError("data.train.type: no data set chosen; for example --data.train.type=shapes")
    return RawData(
        train=open_data_set(train, config.data.train.params, config.data.on_error),
        val=open_data_set(val, config.data.val.params, config.data.on_error) if val else None,
    )


def load_data(
    raw: RawData, config: Config, pipeline: Seg2AnyPipeline, settings: ConditionSettings, process: Process
) -> RunData:
    """Count tokens, fill the configured caches, encode what validation needs.

    Afterwards the pipeline has lost T5 and CLIP if all embeddings are cached, T5 if only class names are ever read, and
    its VAE is on the CPU if latents are cached: only validation images still need it.
    """
    loading = Loading(config, pipeline, settings, process)
    train = loading.source(raw.train)
    val, shown = None, []
    if raw.val is not None:
        val = loading.samples(raw.val, min(config.trainer.num_validation_samples, len(raw.val)))
        wanted = config.trainer.num_validation_images
        if wanted > len(raw.val):
            warnings.warn(f"trainer.num_validation_images: {wanted}, but data.val has {len(raw.val)}", stacklevel=2)
        shown = _first_layouts(raw.val, wanted, config.data.on_error == "skip")
    prompts = [prompt_for(layout.caption, layout.captions, settings) for layout in shown]
    shown_texts = dict(encode_keys(list({key for prompt in prompts for key in prompt}), pipeline))
    _let_go(pipeline, raw.train, config)
    return RunData(train, val, shown, shown_texts)


def _first_layouts(data: DataSet, count: int, skips: bool) -> list[Layout]:
    """Of the first samples that can be read."""
    found: list[Layout] = []
    for index in range(len(data)):
        if len(found) == count:
            break
        try:
            found.append(data[index].layout)
        except SampleError as error:
            is_usable(error, skips, "validation images")
    return found


def _let_go(pipeline: Seg2AnyPipeline, train: DataSet, config: Config) -> None:
    cached = config.trainer.cache_text
    if cached == "all" or (cached == "classes" and isinstance(train, ClosedSet)):
        pipeline.text_encoder_2 = None
    if cached == "all":
        pipeline.text_encoder = None
    if config.trainer.cache_latents:
        pipeline.vae.to("cpu")
    clear_device_cache(garbage_collection=True)
