"""Load, save, adapt and fold the modules of FLUX.1 as one diffusers pipeline."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from huggingface_hub import snapshot_download

from seg2any.adapters.card import AdapterCard
from seg2any.adapters.files import load_adapters, save_adapters
from seg2any.adapters.fold import fold, unfold
from seg2any.adapters.lora_file import weights_file
from seg2any.adapters.routing import DEFAULT
from seg2any.bases.flux1.base import Flux1
from seg2any.bases.flux1.hub import upload
from seg2any.bases.flux1.saved import ADAPTERS, INDEX_KEY, load_saved, save_with_adapters, saved_adapters, write_index
from seg2any.bases.flux1.source import find_source, load_transformer
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.bases.flux1.weight_check import CLASSES, check_weights
from seg2any.system.errors import UserError
from seg2any.system.hub import split_revision
from seg2any.system.shipped import input_path, model_name

OF_SNAPSHOTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
OF_UPLOADS = ("commit_message", "create_pr", "private", "token")
OF_DOWNLOADS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "variant")


class Flux1Pipeline(FluxPipeline):
    """A FluxPipeline whose transformer is a `Seg2AnyTransformer2DModel`.

    card  says how the loaded adapters were trained; None without adapters

    Loading, saving, offloading and further LoRAs work as in FluxPipeline. IP-Adapters do not: they replace the
    attention, and with it the regions.
    """

    NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2")  # folders of the weights that decide images

    card: AdapterCard | None = None

    @functools.wraps(FluxPipeline.__init__)  # from_pretrained reads the names of the parts from the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.transformer is not None:
            Seg2AnyTransformer2DModel.adopt(self.transformer)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, base_parts: str | os.PathLike | None = None, **kwargs
    ):
        """Load as in diffusers; from a folder that was saved with adapters also load these and their card.

        A hub id may have a revision: owner/name@revision. A single file of the transformer is read, too; its other
        parts come from `base_parts`, see `seg2any.bases.flux1.source`. Weights of one variant only, such as fp16, are
        found without naming it. Raises UserError for another model and for weights that are missing or do not fit, see
        `seg2any.bases.flux1.weight_check`.
        """
        source = find_source(model_name(pretrained_model_name_or_path), base_parts and model_name(base_parts))
        name, revision = split_revision(source.pipeline)
        folder, kwargs = name, kwargs | revision
        if source.file is not None and "transformer" not in kwargs:
            kwargs["transformer"] = load_transformer(source, *_of_transformer(kwargs))
        if parts := [part for part in cls.NETWORKS if part not in kwargs]:
            given = {key: value for key, value in kwargs.items() if key in OF_DOWNLOADS or key in CLASSES}
            folder = Path(name if Path(name).is_dir() else cls.download(name, **given))
            kwargs["variant"] = check_weights(folder, parts, kwargs.get("variant"))
        pipeline = super().from_pretrained(name, **kwargs)
        if pipeline.transformer is not None and source.file is None:  # adapters of the parts are another transformer's
            pipeline.card = load_saved(pipeline.transformer, folder)
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        """Download as in diffusers, and the adapters of a pipeline that was saved with them."""
        folder = super().download(pretrained_model_name, **kwargs)
        if saved_adapters(folder):
            given = {key: kwargs[key] for key in OF_SNAPSHOTS if key in kwargs}
            snapshot_download(pretrained_model_name, allow_patterns=[f"{ADAPTERS}/*"], **given)
        return folder

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """Split a model_index.json as in diffusers, which would warn of the entry of `save_pretrained`."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != INDEX_KEY}, **kwargs)

    @property
    def base(self) -> Flux1:
        """Return the `Base` that these modules implement."""
        return Flux1(self)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save as in diffusers, with the adapters, their weights and their card, see `seg2any.bases.flux1.saved`.

        Raises UserError for adapters without a card, and for a transformer that is quantised, offloaded or fused.
        """
        save_directory = os.path.expanduser(save_directory)
        if kwargs.pop("push_to_hub", False):
            given = {key: kwargs.pop(key) for key in OF_UPLOADS if key in kwargs}
            repo_id = kwargs.pop("repo_id", Path(save_directory).name)
            self.save_pretrained(save_directory, **kwargs)
            upload(save_directory, repo_id, self.card, **given)
        elif getattr(self.transformer, "peft_config", None):
            save_with_adapters(self, save_directory, self.card, **kwargs)
        else:
            super().save_pretrained(save_directory, **kwargs)
            write_index(save_directory, {})

    def push_to_hub(self, repo_id: str, variant: str | None = None, **kwargs) -> str:
        """Save the pipeline and upload it with a model card; return the address of the commit.

        kwargs  `private`, `token`, `commit_message` and `create_pr` of diffusers

        A model card that the repository has stays as it is.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant)
            return upload(folder, repo_id, self.card, **kwargs)

    def load_adapters(self, path: str | os.PathLike) -> None:
        """Load <path>/default and <path>/cond; their card sets the default settings.

        Raises UserError for missing or broken files, and for adapters of another model.
        """
        self.card = load_adapters(self.transformer, path, self.transformer.dtype)
        self._refresh_hooks()

    def save_adapters(self, path: str | os.PathLike, card: AdapterCard | None = None) -> None:
        """Write the adapters in the format that `load_adapters` reads.

        card  says how they were trained; None: the card that was loaded with them

        Raises UserError without either card.
        """
        card = card or self.card
        if card is None:
            raise UserError(f"{path}: adapters that were not loaded have no card; call save_adapters(path, card)")
        save_adapters(self.transformer, path, card)

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict, *args, **kwargs) -> None:
        """Load a further LoRA beside our adapters, as in diffusers; from a folder of ours, `load_adapters`.

        Raises UserError in memory mode fp8: peft would store the LoRA in 8-bit floats, which no kernel computes.
        """
        given = pretrained_model_name_or_path_or_dict
        if isinstance(given, (str, os.PathLike)) and weights_file(folder := input_path(given), DEFAULT):
            if args or kwargs:
                raise UserError(f"{folder}: holds the adapters {DEFAULT} and cond; leave the other arguments out")
            return self.load_adapters(folder)
        if any(parameter.dtype == torch.float8_e4m3fn for parameter in self.transformer.parameters()):
            raise UserError("memory fp8: peft would round further LoRAs to 8 bits; use memory int8 or nf4")
        super().load_lora_weights(given, *args, **kwargs)
        self._refresh_hooks()

    def save_lora_weights(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Write our adapters by `save_adapters`; layers that are given are saved as in diffusers."""
        if kwargs:
            super().save_lora_weights(save_directory, **kwargs)
        else:
            self.save_adapters(save_directory)

    def unload_lora_weights(self, *args, **kwargs) -> None:
        """Unload all adapters, as in diffusers, and forget the card of ours."""
        super().unload_lora_weights(*args, **kwargs)
        self.card = None

    def fold(self) -> None:
        """Add `default` to the weights, so that text and image tokens need no adapter.

        Images stay the same. Further LoRAs may be loaded before or after. Raises UserError for quantised or offloaded
        weights and if `default` is folded already, see `seg2any.adapters.fold`.
        """
        fold(self.transformer)

    def unfold(self) -> None:
        """Undo `fold`, up to rounding of the weights."""
        unfold(self.transformer)

    def _refresh_hooks(self) -> None:
        """Apply group offloading again, because its list of layers lacks the added adapters."""
        _maybe_remove_and_reapply_group_offloading(self.transformer)


def _of_transformer(options: Mapping[str, Any]) -> tuple[torch.dtype, QuantizationConfigMixin | None, str]:
    """Return dtype, quantisation and device of the transformer among the options of `from_pretrained`."""
    dtype = options.get("dtype", options.get("torch_dtype"))
    if isinstance(dtype, Mapping):
        dtype = dtype.get("transformer", dtype.get("default"))
    quantization = getattr(options.get("quantization_config"), "quant_mapping", None) or {}
    device = "cuda" if options.get("device_map") == "cuda" else "cpu"
    return dtype if isinstance(dtype, torch.dtype) else torch.float32, quantization.get("transformer"), device
