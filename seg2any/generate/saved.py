"""The pipeline that diffusers builds from a saved folder by the folder's own pipeline.py."""

from __future__ import annotations

import functools
from pathlib import Path

from seg2any.bases.flux1.saved import load_saved
from seg2any.generate.pipeline import Seg2AnyPipeline


class SavedPipeline(Seg2AnyPipeline):
    """A Seg2AnyPipeline that loads the adapters of its folder by itself.

    `DiffusionPipeline.from_pretrained` gives it its parts only; the transformer's config says where they come from.
    """

    @functools.wraps(Seg2AnyPipeline.__init__)  # from_pretrained reads the names of the parts from the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not getattr(self.transformer, "peft_config", None):
            self.card = load_saved(self.transformer, Path(self.transformer.config["_name_or_path"]).parent)
