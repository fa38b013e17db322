"""Recognise what a folder holds that was given as the base model, and refuse all but FLUX.1-dev's kind.

Only its small files are read. For single files see `seg2any.bases.flux1.source`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seg2any.system.errors import UserError, shown
from seg2any.system.hub import is_offline, split_revision
from seg2any.system.json_text import parse_json

LOGGER = logging.getLogger(__name__)
WANTED = "give the folder of a FLUX.1-dev pipeline, which has a model_index.json, or its hub id"
PARTS = {  # of the pipeline -> class in the part's config.json
    "transformer": ("FluxTransformer2DModel", "Seg2AnyTransformer2DModel"),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("T5EncoderModel", "T5ForConditionalGeneration", "T5Model"),
}
PIPELINES = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "Flux1Pipeline", "Seg2AnyPipeline")
OTHERS = {  # beginning of a pipeline's class -> name of the model
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableDiffusion": "Stable Diffusion",
    "FluxFill": "FLUX.1-Fill, which paints into images",
    "FluxKontext": "FLUX.1-Kontext, which edits images",
    "FluxControl": "FLUX.1 with a control image, such as FLUX.1-Depth",
    "FluxPrior": "FLUX.1-Redux, which varies images",
    "Flux2": "FLUX.2",
}


def refuse_other_models(name: str, transformer: dict[str, Any] | None = None) -> None:
    """Raise UserError if `name` is no folder of a FLUX.1-dev pipeline; hub ids pass.

    transformer  config of the transformer that is used instead of the folder's, which need not be there; {}: its sizes
                 are not compared

    Warns about FLUX.1-schnell, which works but makes its images in four steps.
    """
    path = Path(name)
    if not is_local(name):
        if not is_offline():
            LOGGER.info("%s: no folder here, so it is taken from the hub, huggingface.co, or from its cache", name)
        return
    index = read_json(path / "model_index.json")
    if index is None:
        raise UserError(f"{path}: {_without_index(path)}; {WANTED}")
    kind = index.get("_class_name")
    if isinstance(kind, str) and kind not in PIPELINES:
        other = next((text for start, text in OTHERS.items() if kind.startswith(start)), "another model")
        raise UserError(f"{path}: is {other} ({kind}), not FLUX.1-dev (FluxPipeline); {WANTED}")
    _refuse_other_parts(path, index, {} if transformer is None else {"transformer": transformer})


def is_local(name: str) -> bool:
    """Tell a folder from a hub id. Raises UserError for a folder that is missing, and for what is no revision."""
    path = Path(name)
    if path.is_dir():
        return True
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such folder; give a FLUX pipeline folder or a hub id such as owner/name")
    if path.parent.is_dir():  # a mistyped path; on the hub somebody may own that name
        raise UserError(f"{name}: no such folder in {path.parent}, which is one here; correct the name")
    split_revision(name)
    return False


def _refuse_other_parts(path: Path, index: Mapping[str, Any], known: Mapping[str, dict[str, Any]]) -> None:
    """Raise UserError for parts that are missing, are of another class or do not fit together.

    known  configs of parts that come from elsewhere
    """
    configs: dict[str, dict[str, Any] | None] = dict(known)
    for part, classes in PARTS.items():
        if part in known:
            continue
        if index and index.get(part, [None]) == [None, None]:
            raise UserError(f"{path}: model_index.json names no {part}; {WANTED}")
        configs[part] = read_json(path / part / "config.json")
        if configs[part] is None:  # loading the part reports the file
            continue
        kind = _kind(configs[part])
        if kind is not None and kind not in classes:
            raise UserError(f"{path / part}: is a {kind}, not a {classes[0]}; {WANTED}")
    if configs["transformer"] and all(config is not None for config in configs.values()):
        _refuse_other_widths(path, **configs)
    if schnell := _is_schnell(configs["transformer"], read_json(path / "scheduler" / "scheduler_config.json")):
        warnings.warn(f"{path}: {schnell}", stacklevel=3)


def _refuse_other_widths(
    path: Path, transformer: dict[str, Any], vae: dict[str, Any], text_encoder: dict[str, Any], text_encoder_2: dict
) -> None:
    takes, channels = transformer.get("in_channels", 64), vae.get("latent_channels", 16)
    if not isinstance(takes, int) or not isinstance(channels, int):
        raise UserError(f"{path}: in_channels or latent_channels is no whole number; {WANTED}")
    gives = 4 * channels
    if takes != gives:
        kind = {6 * gives: "FLUX.1-Fill", 2 * gives: "FLUX.1-Depth or FLUX.1-Canny"}.get(takes, "another model")
        raise UserError(
            f"{path}: is {kind}: its transformer takes {takes} channels per token, the VAE's latents have {gives}; "
            f"{WANTED}"
        )
    for part, config, key, needed in (
        ("text_encoder_2", text_encoder_2, "d_model", transformer.get("joint_attention_dim", 4096)),
        ("text_encoder", text_encoder, "hidden_size", transformer.get("pooled_projection_dim", 768)),
    ):
        width = config.get(key, needed)
        if width != needed:
            raise UserError(
                f"{path / part}: gives vectors of width {width}, the transformer reads {needed}; put in the {part} "
                "that belongs to the transformer"
            )


def _is_schnell(transformer: dict[str, Any] | None, scheduler: dict[str, Any] | None) -> str:
    """Return a remark if the sizes are those of FLUX.1-schnell, else ""."""
    if _sizes(transformer) != [19, 38, False] or (scheduler or {}).get("use_dynamic_shifting", False):
        return ""
    return (
        "is FLUX.1-schnell, made for 4 steps without guidance; adapters are trained on FLUX.1-dev, "
        "which is what gives the images of the README"
    )


def _sizes(transformer: dict[str, Any] | None) -> list[object] | None:
    return transformer and [transformer.get(key) for key in ("num_layers", "num_single_layers", "guidance_embeds")]


def is_flux1_dev(path: Path) -> bool:
    """Tell whether the transformer of a pipeline's folder has the sizes of FLUX.1-dev."""
    return _sizes(read_json(path / "transformer" / "config.json")) == [19, 38, True]


def _without_index(path: Path) -> str:
    """Describe a folder without model_index.json."""
    config = read_json(path / "config.json")
    kind = config and _kind(config)
    if kind:
        return f"has no model_index.json: it is one part, a {kind}"
    if (path / "adapter.json").is_file() or (path / "default").is_dir():
        return "has no model_index.json: it holds adapters, which go to --lora_ckpt_path"
    single = sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", ".gguf"))
    return "has no model_index.json" + (
        f", but the file {single[0]}, which can be given itself if it holds FLUX's transformer" if single else ""
    )


def _kind(config: Mapping[str, Any]) -> str | None:
    """Return the class that a part's configuration names, None for one that names none."""
    named = config.get("architectures")
    kind = config.get("_class_name") or (named[0] if isinstance(named, list) and named else None)
    return None if kind is None else shown(kind).strip("'")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing. Raises UserError for a damaged file."""
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be loaded ({shown(str(error), 80)}); is the folder complete?") from None
    return content
