"""Sources of `shapes` images: the pipeline, ceiling and floors; and judging their images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from seg2any.data.dataset import Sample
from seg2any.diffusion.prepare import as_image
from seg2any.evaluation.metrics.item import GREY
from seg2any.evaluation.shapes.judge import Verdict, judge
from seg2any.generate.model import known_adapter, known_model
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.generate.session import Loading, Session
from seg2any.system.errors import UserError
from seg2any.system.precision import choose_dtype, has_fast_bfloat16

CEILING, ROUND_TRIP = "rendered (ceiling)", "VAE round trip"
OTHER_SCENE, EMPTY = "another scene (floor)", "grey image (floor)"
GUIDANCE_SCALE = 3.5
VAE_BATCH = 8
Images = Callable[[], Iterable[np.ndarray]]


def open_session(
    model: str, adapter: Path | None, weight_dtype: str | None, device: torch.device
) -> tuple[Session, dict]:
    """Load the model, and build the recipe that all its images share.

    weight_dtype None is bf16 where the device computes fast in it, else fp32. Raises UserError.
    """
    if adapter is not None and not adapter.is_dir():
        raise UserError(f"--lora {adapter}: no such folder; train one, or --lora none for the plain model")
    if weight_dtype is None and has_fast_bfloat16(device):
        weight_dtype = "bf16"
    session = Session.open(model, choose_dtype(weight_dtype, device), device, Loading(adapter))
    return session, {
        "settings": session.settings.to_json(),
        "guidance_scale": GUIDANCE_SCALE,
        "model": known_model(model),
        "adapter": adapter and known_adapter(adapter),
        "weight_dtype": str(session.pipeline.vae.dtype).removeprefix("torch."),
    }


def bounds(images: Sequence[np.ndarray], pipeline: Seg2AnyPipeline) -> dict[str, Images]:
    """Build ceiling, VAE round trip and floors of rendered images uint8 [H, W, 3]."""
    sources: dict[str, Images] = {
        CEILING: lambda: images,
        ROUND_TRIP: lambda: round_trip(images, pipeline),
        OTHER_SCENE: lambda: [*images[1:], images[0]],
        EMPTY: lambda: [np.full_like(image, GREY) for image in images],
    }
    if len(images) == 1:
        del sources[OTHER_SCENE]
    return sources


def round_trip(images: Sequence[np.ndarray], pipeline: Seg2AnyPipeline) -> Iterator[np.ndarray]:
    """Encode and decode images uint8 [H, W, 3]."""
    base = pipeline.base
    for start in range(0, len(images), VAE_BATCH):
        batch = torch.cat([as_image(image) for image in images[start : start + VAE_BATCH]])
        grid = tuple(side // base.geometry.pixels_per_token for side in batch.shape[-2:])
        decoded = base.decode(base.encode_images(batch).mean, grid)
        yield from to_bytes(pipeline.image_processor.postprocess(decoded, output_type="np"))


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Convert float [..., 3] in [0, 1] to uint8, rounded as files are."""
    return np.round(255 * images).astype(np.uint8)


def judged(images: Iterable[np.ndarray], samples: Sequence[Sample], title: str) -> Mapping[str, list[Verdict]]:
    """Judge one image of each sample; the verdicts are by the sample's name."""
    pairs = tqdm(zip(images, samples, strict=True), title, len(samples), leave=False)
    return {sample.layout.name: [judge(image, sample.layout)] for image, sample in pairs}
