"""Find the files of a base model: a pipeline's folder or hub id, or one file with the transformer beside a folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.model_loading_utils import load_model_dict_into_meta
from diffusers.quantizers import DiffusersAutoQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from seg2any.bases.flux1.recognise import WANTED, read_json, refuse_other_models
from seg2any.bases.flux1.single_file import PARTS_FLAG, OtherFile, TransformerFile
from seg2any.system.errors import UserError
from seg2any.system.hub import split_revision
from seg2any.system.tensor_file import READABLE
from seg2any.system.weights import weights_fingerprint


@dataclass(frozen=True)
class Source:
    """Where a base model lies.

    pipeline  folder or hub id
    file      whose transformer is used instead of the pipeline's; None: the pipeline's
    config    of the file's transformer
    """

    pipeline: str
    file: TransformerFile | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """Return the folder of the pipeline; None for a hub id."""
        return Path(self.pipeline) if Path(self.pipeline).is_dir() else None

    def fingerprint(self, folder: Path, networks: tuple[str, ...]) -> str:
        """Return `weights_fingerprint` of networks in `folder`, with the file for the transformer's weights."""
        return weights_fingerprint(folder, networks, {"transformer": self.file.path} if self.file else {})

    def transformer_config(self) -> Mapping[str, Any]:
        """Return the config of the transformer; a hub's may be fetched."""
        name, revision = split_revision(self.pipeline)
        return self.config or FluxTransformer2DModel.load_config(name, subfolder="transformer", **revision)


def find_source(name: str, base_parts: str | None = None) -> Source:
    """Find out what was given as the base model.

    name        folder, hub id, or a .safetensors, .sft or .gguf file with FLUX's transformer
    base_parts  folder or hub id of the pipeline whose other parts go with a file; None: the folder of the file

    Raises UserError for another model and for missing parts. Reads small files and headers only.
    """
    path = Path(name)
    if not path.is_file():
        if path.suffix in READABLE and not path.exists():
            raise UserError(f"{name}: no such file; give a file with FLUX's transformer, a pipeline folder or a hub id")
        if base_parts is not None:
            raise UserError(f"{PARTS_FLAG} {base_parts}: goes with a single file, and {name} is none; leave it out")
        refuse_other_models(name)
        return Source(name)
    file = _opened(path)
    pipeline = base_parts or _parts_beside(file)
    refuse_other_models(pipeline, {})
    config = file.config(read_json(Path(pipeline) / "transformer" / "config.json"))
    refuse_other_models(pipeline, config)
    return Source(pipeline, file, config)


def load_transformer(
    source: Source, dtype: torch.dtype, quantization: QuantizationConfigMixin | None, device: str
) -> FluxTransformer2DModel:
    """Load the transformer of a file onto a device, weight by weight; quantised, onto the quantiser's device.

    diffusers' own loader of single files would take the file for one that is quantised already. Raises UserError for
    weights that are missing or do not fit.
    """
    with torch.device("meta"):
        network = FluxTransformer2DModel.from_config(dict(source.config))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    source.file.check(shapes)
    if source.file.others:
        warnings.warn(
            f"{source.file.path}: its {' and '.join(source.file.others)} are not read; those of {source.pipeline} are",
            stacklevel=4,
        )
    quantizer, places = None, {"": device}
    if quantization is not None:
        quantizer = DiffusersAutoQuantizer.from_config(quantization, pre_quantized=False)
        places = quantizer.update_device_map(None)
        quantizer.validate_environment(torch_dtype=dtype, device_map=places)
        quantizer.preprocess_model(network, device_map=places, keep_in_fp32_modules=[])
    weights = source.file.weights(shapes)
    load_model_dict_into_meta(network, weights, dtype=dtype, hf_quantizer=quantizer, device_map=places)
    if quantizer is not None:
        quantizer.postprocess_model(network)
        network.hf_quantizer = quantizer
    return network.eval()


def _opened(path: Path) -> TransformerFile:
    """Open a file; in a part of a pipeline's folder, say that the folder should be given. Raises UserError."""
    around = next((folder for folder in path.absolute().parents[:2] if (folder / "model_index.json").is_file()), None)
    try:
        return TransformerFile(path)
    except OtherFile as error:
        wanted = WANTED if around is None else f"give {around}, the folder of the pipeline around it"
        raise UserError(f"{error}; {wanted}") from None


def _parts_beside(file: TransformerFile) -> str:
    folder = file.path.absolute().parent
    if (folder / "model_index.json").is_file():
        return str(folder)
    if (folder.parent / "model_index.json").is_file():
        raise UserError(f"{file.path}: is in a part of a pipeline; give {folder.parent}, its folder")
    raise UserError(
        f"{file.path}: holds FLUX's transformer; the VAE, text encoders, tokenizers and scheduler come from the folder "
        f"of a FLUX pipeline: put the file beside its model_index.json, or give the folder by {PARTS_FLAG}"
    )
