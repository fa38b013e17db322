"""Define `Session`: a loaded model, its adapters and its text cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.text import TextCache, TruncationWarning, UnknownWordsWarning
from seg2any.generate.memory import check_mode, decode_in_parts, place
from seg2any.generate.memory_modes import BITSANDBYTES
from seg2any.generate.model import explained, local_adapter
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.layout import Layout


@dataclass(frozen=True)
class ImageOptions:
    """The options that all images of one call share.

    settings       of the condition; None: those that the loaded adapters were trained with
    height, width  in pixels; None: the layouts'
    step_cache     a name of `seg2any.diffusion.step_cache`
    """

    settings: ConditionSettings | None = None
    num_inference_steps: int = 32
    guidance_scale: float = 3.5
    height: int | None = None
    width: int | None = None
    step_cache: str = "none"


@dataclass(frozen=True)
class Loading:
    """The options for loading a model.

    adapter        folder of default/ and cond/, or its id on the hub; None: the model alone, or the adapters of a
                   model that was saved folded
    fold           merge the adapter into the weights
    memory         a mode of `seg2any.generate.memory_modes`
    vae_tiling     decode images one by one and large ones in tiles, as all modes but `full` do anyway
    compile        compile the transformer's blocks
    base_parts     folder or hub id of the other parts of a model in one file; None: the file's folder
    """

    adapter: Path | None = None
    fold: bool = False
    memory: str = "full"
    vae_tiling: bool = False
    compile: bool = False
    base_parts: str | None = None


class Session:
    """A pipeline, ready on its device, and the embeddings of the captions that it has read."""

    def __init__(self, pipeline: Seg2AnyPipeline):
        self.pipeline = pipeline
        self.texts = TextCache(pipeline.base)

    @classmethod
    def open(cls, model: str, dtype: torch.dtype, device: torch.device, loading: Loading | None = None) -> Session:
        """Load a FLUX folder, hub id or file with its adapters. Raises UserError if that is impossible."""
        return cls(load_pipeline(model, dtype, device, loading or Loading()))

    @property
    def settings(self) -> ConditionSettings:
        """The settings that the loaded adapters were trained with."""
        return self.pipeline.settings

    def show_progress(self, shown: bool) -> None:
        """Show or hide the bar of denoising steps."""
        self.pipeline.set_progress_bar_config(desc="steps", leave=False, unit="step", disable=not shown)

    def images(self, layouts: Sequence[Layout], sampling: ImageOptions, **more: Any) -> Any:
        """Make images as `Seg2AnyPipeline.__call__` does; captions are encoded once in a session.

        more  further arguments of the pipeline, such as `seeds` and `output_type`
        """
        given = {**vars(sampling), "settings": sampling.settings or self.settings}
        return self.pipeline(layouts, known_texts=self.texts, **given, **more).images

    def images_quietly(self, layouts: Sequence[Layout], sampling: ImageOptions, **more: Any) -> Any:
        """Make images without the warnings about cut and unknown captions, which were shown before."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            warnings.simplefilter("ignore", UnknownWordsWarning)
            return self.images(layouts, sampling, **more)


def load_pipeline(model: str, dtype: torch.dtype, device: torch.device, loading: Loading) -> Seg2AnyPipeline:
    """Load weights and adapters for `device`. Raises UserError."""
    transformers.logging.disable_progress_bar()  # the bar of the pipeline's parts is enough
    check_mode(loading.memory, device, "--memory")
    # the other modes come last, because they move the complete model
    placed = {"memory": loading.memory, "device": device} if loading.memory in ("full", *BITSANDBYTES) else {}
    with explained(model, loading.base_parts):
        pipeline = Seg2AnyPipeline.from_pretrained(model, base_parts=loading.base_parts, dtype=dtype, **placed)
    if loading.adapter is not None:
        pipeline.load_adapters(str(local_adapter(loading.adapter)))
    if loading.fold:
        pipeline.fold()
    if not placed:
        place(pipeline, loading.memory, device)
    if loading.vae_tiling:
        decode_in_parts(pipeline)
    if loading.compile:
        pipeline.compile()
    return pipeline
