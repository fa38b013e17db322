"""What a pipeline can do with a transformer whose adapter may be folded into its weights."""

from __future__ import annotations

import os

from seg2any.adapters.card import AdapterCard
from seg2any.adapters.fold import fold, is_folded, unfold
from seg2any.bases.flux1.folded_files import load_folded, save_adapters_of_folded, without_adapters


class Foldable:
    """For a diffusers pipeline with a `Seg2AnyTransformer2DModel` as `transformer`."""

    card: AdapterCard | None = None  # what the loaded adapters were trained with

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """As in diffusers; a folder that was saved folded brings its adapters and their card."""
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if pipeline.transformer is not None:
            pipeline.card = load_folded(pipeline.transformer, pretrained_model_name_or_path)
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """As in diffusers, without adapters unless `default` is folded: then the folder loads as what was saved."""
        if not getattr(self.transformer, "peft_config", None):
            super().save_pretrained(save_directory, **kwargs)
            return
        plain = type(self)(**{**self.components, "transformer": without_adapters(self.transformer)})
        if is_folded(self.transformer):
            save_adapters_of_folded(self.transformer, save_directory, self.card)
        super(Foldable, plain).save_pretrained(save_directory, **kwargs)

    def fold(self) -> None:
        """Make the loaded adapters free for text and image tokens: `default` becomes part of the weights, same images.

        Further LoRAs may come before or after. Raises UserError for quantised or offloaded weights and if `default` is
        folded already, see `seg2any.adapters.fold`.
        """
        fold(self.transformer)

    def unfold(self) -> None:
        """Undo `fold`, up to a rounding of the weights."""
        unfold(self.transformer)
