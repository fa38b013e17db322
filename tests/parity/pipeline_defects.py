"""Check that defects demonstrated on the published pipeline are absent here."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from seg2any.diffusion.prepare import encode_layouts
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.layout import Layout
from tests.parity.pipeline_runs import EMBEDDINGS, FED, Run, assert_close
from tests.tiny_pipeline import images_of


def shown_run(folder: Path) -> str | None:
    """Return the name of a recorded run with a global caption, adapters and filtered condition tokens, or None."""
    cases = json.loads((folder / "index.json").read_text())["cases"]
    for name, case in cases.items():
        given, known = case["opts"], folder / "cases" / f"{name}.safetensors"
        usual = case["lora"] and case["global_prompt"] and not case.get("error") and known.is_file()
        if usual and not {"negative_prompt", "is_filter_cond_token"} & set(given) and _has_condition(known):
            return name
    return None


def _has_condition(file: Path) -> bool:
    with safe_open(file, "pt") as tensors:
        return "in/cond_1ch" in tensors.keys()  # noqa: SIM118 (not a dict)


def show_layouts(folder: Path) -> tuple[Seg2AnyPipeline, list[Layout], dict]:
    """Return the layout of a recorded run, its mirror image, and arguments for one cheap step."""
    index = json.loads((folder / "index.json").read_text())["cases"]
    name = shown_run(folder)
    run = Run(folder, name, index[name])
    layout = run.layouts[0]
    mirrored = dataclasses.replace(layout, masks=layout.masks[:, :, ::-1].copy(), captions=layout.captions[::-1])
    arguments = {**run.arguments, "latents": None, "num_inference_steps": 1, "output_type": "latent"}
    return run.pipe, [layout, mirrored], {**arguments, "num_images_per_prompt": 1, "generator": None}


def check_joined_captions(folder: Path) -> None:
    """Check the pooled vector without a global caption.

    It has to be that of the joined region captions; the published code joins their letters.
    """
    pipe, layouts, arguments = show_layouts(folder)
    layout = dataclasses.replace(layouts[0], caption=None)
    (encoded,) = encode_layouts([layout], layout.size, pipe.base, arguments["settings"])
    with torch.no_grad():
        expected = pipe._get_clip_prompt_embeds([".".join(layout.captions)])[0]
    assert_close("pooled", encoded.text.pooled, expected, EMBEDDINGS)


def check_unfiltered_batch(folder: Path) -> None:
    """Check two layouts with two images each and every condition token kept.

    The shapes have to fit, and each image has to equal the one made alone.
    """
    pipe, layouts, arguments = show_layouts(folder)
    arguments["settings"] = dataclasses.replace(arguments["settings"], is_filter_cond_token=False)
    arguments["num_images_per_prompt"] = 2
    together = pipe(layouts, seeds=[0, 1, 2, 3], **arguments).images
    alone = torch.cat([pipe(layout, seeds=[2 * n, 2 * n + 1], **arguments).images for n, layout in enumerate(layouts)])
    assert_close("latents", together, alone, FED)


def check_blank_contour(folder: Path) -> None:
    """Check that a contour without any condition token equals using no condition tokens."""
    pipe, layouts, arguments = show_layouts(folder)
    blank = dataclasses.replace(layouts[0], masks=np.zeros_like(layouts[0].masks))
    found = pipe(blank, seeds=[0], **arguments).images
    assert_close("latents", found, images_of(pipe, blank, seeds=[0], is_use_cond_token=False, **arguments), FED)


def check_place_of_any_size(folder: Path) -> None:
    """Check `place` with masks whose size is not a multiple of the token grid.

    Doubling every pixel must not change a covered fraction.
    """
    pipe, layouts, arguments = show_layouts(folder)
    arguments |= {"height": layouts[0].size[0], "width": layouts[0].size[1], "is_use_cond_token": False}
    odd = dataclasses.replace(layouts[0], masks=layouts[0].masks[:, :-1, :-3])
    twice = dataclasses.replace(odd, masks=odd.masks.repeat(2, axis=1).repeat(2, axis=2))
    runs = [images_of(pipe, layout, seeds=[0], attention_mask_method="place", **arguments) for layout in (odd, twice)]
    assert_close("latents", *runs, FED)


def check_truncation_message(folder: Path) -> None:
    """Check that the truncation message holds the caption, not an empty string."""
    pipe, layouts, arguments = show_layouts(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images_of(pipe, layouts[0], max_sequence_length=3, **arguments)
    assert any(layouts[0].caption[:20] in str(warning.message) for warning in caught)


def check_padding_is_seen(folder: Path) -> None:
    """Check that T5 attends to its padding, as in FLUX's training.

    Embeddings therefore depend on the length and are cached under it.
    """
    pipe, layouts, arguments = show_layouts(folder)
    longer = arguments["settings"].override({"max_sequence_length": arguments["settings"].max_sequence_length + 32})
    first, second = (
        encode_layouts(layouts[:1], layouts[0].size, pipe.base, settings)[0].text.caption
        for settings in (arguments["settings"], longer)
    )
    assert (first - second).abs().max() > 100 * EMBEDDINGS * first.abs().max()


DEFECTS = {
    "encode_all_prompt": check_joined_captions,
    "nofilter batch": check_unfiltered_batch,
    "blank contour": check_blank_contour,
    "place label": check_place_of_any_size,
    "truncation message": check_truncation_message,
    "embeds depend on max_sequence_length": check_padding_is_seen,
}
