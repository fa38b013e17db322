"""A recorded pipeline run, and the same run with our pipeline."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.flux1.text import caption_keys_of
from seg2any.bases.text import TextKey, TruncationWarning
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.layout import Layout

# Tolerances, relative to the largest recorded value.
FED = 1e-4  # latents and images, with the recorded embeddings; measured 4e-5
OWN = 2e-4  # the same with our own embeddings; measured 4e-5
EMBEDDINGS = 2e-5  # our own T5 and CLIP; measured 3e-6
# The first velocity, before the step shrinks it. The last bit of exp() in the sinusoids of guidance 3500 and time 1000
# already moves it; measured 3e-5.
VELOCITY = 2e-4


@functools.lru_cache(maxsize=4)
def pipeline(folder: Path, has_adapters: bool) -> Seg2AnyPipeline:
    pipe = Seg2AnyPipeline.from_pretrained(folder / "model", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if has_adapters:
        pipe.load_adapters(str(folder / "checkpoint"))
    return pipe


@dataclass
class Run:
    """One recorded run: its tensors, its layouts, and our arguments for the same run."""

    folder: Path
    name: str
    case: dict

    def __post_init__(self) -> None:
        self.recorded = load_file(self.folder / "cases" / f"{self.name}.safetensors")
        self.pipe = pipeline(self.folder, self.case["lora"])
        captions = self.case["global_prompt"] or [None] * len(self.case["regional_prompts"])
        self.layouts = [
            Layout(self.recorded[f"in/label{number}"].numpy().astype(bool), tuple(regions), caption, overlap="share")
            for number, (regions, caption) in enumerate(zip(self.case["regional_prompts"], captions, strict=True))
        ]
        self.images_per_prompt = self.case["opts"].get("num_images_per_prompt", 1)

    @property
    def settings(self) -> ConditionSettings:
        options = self.case["opts"]
        return ConditionSettings(vae_posterior="mode" if "mode" in self.case["vae_posterior"] else "sample").override(
            {
                "attention_mask_method": self.case["method"],
                "hard_attn_block_range": tuple(self.case["hard_attn_block_range"]),
                "cond2image_attention_weight": options.get("cond2image_attention_weight"),
                "cond_scale_factor": self.case["cond_scale_factor"],
                "is_use_cond_token": "in/cond_1ch" in self.recorded,
                "is_filter_cond_token": options.get("is_filter_cond_token"),
                "max_sequence_length": options.get("max_sequence_length"),
                "regional_max_sequence_length": options.get("regional_max_sequence_length"),
            }
        )

    @property
    def arguments(self) -> dict[str, object]:
        options = self.case["opts"]
        named = ("height", "width", "num_inference_steps", "guidance_scale", "negative_prompt", "true_cfg_scale")
        return {
            "settings": self.settings,
            "num_images_per_prompt": self.images_per_prompt,
            "latents": self.recorded.get("in/latents"),
            "generator": self.generators,
            "output_type": "np",
            **{name: options[name] for name in named if name in options},
        }

    @property
    def generators(self) -> torch.Generator | list[torch.Generator]:
        """Return the generators that the index describes.

        Either one seed per image for the latents, or one global seed for the VAE's posterior.
        """
        per_image = re.search(r"manual_seed\((\d+)\+j\) for j in range\((\d+)\)", self.case["generator"] or "")
        if per_image:
            return [torch.Generator().manual_seed(int(per_image[1]) + j) for j in range(int(per_image[2]))]
        shared = re.search(r"manual_seed\((\d+)\)", self.case["vae_posterior"])
        return torch.Generator().manual_seed(int(shared[1]) if shared else 0)

    def texts(self) -> dict[TextKey, Tensor]:
        """Return the recorded embeddings under the keys that our pipeline looks up."""
        found = self._texts([(layout.caption, layout.captions) for layout in self.layouts], "enc", "txt_seq_lens")
        negative = self.case["opts"].get("negative_prompt")
        if negative is not None:
            prompts = [(negative, [negative] * len(layout.captions)) for layout in self.layouts]
            found |= self._texts(prompts, "enc_neg", "neg_txt_seq_lens")
        return found

    def _texts(self, prompts: list[tuple], group: str, lengths: str) -> dict[TextKey, Tensor]:
        found = {}
        for number, (caption, regions) in enumerate(prompts):
            prompt, image = caption_keys_of(caption, regions, self.settings), number * self.images_per_prompt
            ends = np.cumsum(self.case[lengths][image])[: len(regions) + 1]  # an entry after these is padding
            parts = self.recorded[f"{group}/prompt_embeds"][image].tensor_split(torch.from_numpy(ends))
            found |= dict(zip(prompt.regions, parts[1:], strict=False))
            found[prompt.pooled] = self.recorded[f"{group}/pooled"][image]
            if prompt.caption:
                found[prompt.caption] = parts[0]
        return found

    def __call__(self, texts: dict[TextKey, Tensor], **arguments) -> Result:
        """Run our pipeline and record the first call of the transformer and every step."""
        result = Result()

        def note_step(pipe, step, timestep, tensors):
            result.steps.append(tensors["latents"])
            result.timesteps.append(timestep)

        with first_call(self.pipe.transformer, result), quiet():
            arguments = {**self.arguments, **arguments}
            result.images = self.pipe(
                arguments.pop("layouts", self.layouts), known_texts=texts, callback_on_step_end=note_step, **arguments
            ).images
        return result


@dataclass
class Result:
    call: dict = field(default_factory=dict)  # keyword arguments of the first transformer call
    velocity: Tensor | None = None
    steps: list[Tensor] = field(default_factory=list)
    timesteps: list[Tensor] = field(default_factory=list)
    images: np.ndarray | None = None


@contextlib.contextmanager
def first_call(transformer: torch.nn.Module, result: Result) -> Iterator[None]:
    def note(module, args, kwargs, output):
        if not result.call:
            result.call, result.velocity = kwargs, output[0]

    handle = transformer.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings about truncated captions; the recorded runs truncate on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        yield


def assert_close(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare tensors; `tolerance` is relative to the largest expected value."""
    assert found.shape == expected.shape, f"{what}: {list(found.shape)}, recorded {list(expected.shape)}"
    if found.numel():
        difference, allowed = (found - expected).abs().max().item(), tolerance * expected.abs().max().item()
        assert difference <= allowed, f"{what}: differs by {difference:.2e}, allowed {allowed:.0e}"
