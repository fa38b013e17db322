"""Print `--estimate`: the predicted peak of every memory mode. Loads no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.saved import folded_adapters
from seg2any.bases.flux1.text import TOKENS_PER_PASS
from seg2any.bases.flux1.weightless import weightless_pipeline
from seg2any.generate.choices import Machine
from seg2any.generate.memory_estimate import GIB, RESERVE, Networks, Request, predict
from seg2any.generate.memory_modes import MEMORY_MODES
from seg2any.generate.model import adapter_folder, explained
from seg2any.generate.options import Options
from seg2any.generate.preflight import LayoutReport
from seg2any.generate.survey import Survey


def describe(survey: Survey, options: Options, settings: ConditionSettings, machine: Machine) -> str:
    """Build a table of modes and stages for the batch that takes most.

    Raises UserError for a model that cannot be read.
    """
    model = options.model
    adapter = adapter_folder(model, options.lora_ckpt_path)
    networks = networks_of(model, adapter, options.fold, options.base_parts)
    reports = [layout.report for layout in survey.layouts]
    reports.sort(key=lambda report: request_of([report], settings).n_tokens, reverse=True)
    batch = [report for report in reports for _ in range(options.num_images_per_prompt)][: options.batch_size]
    request, largest = replace(request_of(batch, settings), in_parts=options.vae_tiling), batch[0]
    height, width = request.size
    lines = [
        f"peak memory in GiB, estimated (seg2any/generate/memory_estimate.py): {model} in "
        f"{machine.precision}, {request.batch} x {width}x{height}, {len(largest.regions)} regions, "
        f"{request.n_tokens} tokens ({largest.name})",
        f"  {'--memory':<14}{'text':>8}{'denoise':>9}{'decode':>8}{'peak':>8}   ({RESERVE / GIB:.0f} of it reserve)",
    ]
    for mode in MEMORY_MODES:
        stages = predict(networks, request, mode, machine.dtype.itemsize, machine.device.type)
        text, denoising, decoding = (size / GIB for size in stages.values())
        peak = (max(stages.values()) + RESERVE) / GIB
        chosen = "  <- chosen" if mode == options.memory else ""
        lines.append(f"  {mode:<14}{text:8.3f}{denoising:9.3f}{decoding:8.3f}{peak:8.3f}{chosen}")
    return "\n".join(lines)


def networks_of(model: str, adapter: Path | None, fold: bool = False, base_parts: str | None = None) -> Networks:
    """Read the sizes of a model and its adapters, folded by `fold` or as they were saved."""
    with explained(model, base_parts):
        pipe = weightless_pipeline(model, base_parts)
    n_adapter = sum(map(_n_parameters, sorted(adapter.glob("*/[!.]*.safetensors")))) if adapter else 0
    is_folded = fold or folded_adapters(model) is not None
    return Networks(pipe.transformer, pipe.base.text_encoders, pipe.vae, n_adapter, is_folded)


def _n_parameters(file: Path) -> int:
    with safe_open(file, "pt") as opened:
        return sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118


def request_of(reports: Sequence[LayoutReport], settings: ConditionSettings) -> Request:
    """Describe a batch of layouts by its largest numbers of tokens.

    Captions are encoded in passes of a limited number of tokens, which bounds `n_captions`.
    """
    captions = [report.caption for report in reports if report.caption]
    regions = [] if settings.is_plain else [region.caption for report in reports for region in report.regions]
    in_passes = [
        len({caption.text for caption in some}) * length
        for some, length in (
            (captions, settings.max_sequence_length),
            (regions, settings.regional_max_sequence_length),
        )
    ]
    n_cond = max(report.contour_tokens for report in reports)
    return Request(
        size=reports[0].image_size,
        batch=len(reports),
        n_tokens=max(_n_tokens(report, settings) for report in reports),
        n_captions=min(max(in_passes), TOKENS_PER_PASS),
        caption_length=settings.max_sequence_length,
        n_kept=n_cond if settings.cond_attention == "isolated" else 0,
        n_masks=2 if settings.attention_mask_method == "hard" else 1,
    )


def _n_tokens(report: LayoutReport, settings: ConditionSettings) -> int:
    if settings.is_plain:
        return report.image_tokens + settings.max_sequence_length
    captions = [*([report.caption] if report.caption else []), *(region.caption for region in report.regions)]
    return report.image_tokens + report.contour_tokens + sum(min(text.tokens, text.limit) for text in captions)
