"""Paint with the published networks of gen2seg: a Stable Diffusion 2 U-Net, or a ViT-MAE, in one pass each.

    U-Net    latents z of the photo take the place of the noise at the last time step t; text ""; v = U-Net(z, t)
             x0 = sqrt(a_t) z - sqrt(1 - a_t) v, decoded
    ViT-MAE  no patch is masked; the decoder's patches are the picture

The time step is that of training, the last one, whatever spacing the saved scheduler has: with the spacing "leading" a
scheduler of one step would give the first one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, ViTMAEForPreTraining

from seg2any.diffusion.prepare import as_image
from seg2any.segment.coloring.ranges import as_pixels, published_mae, published_pipeline
from seg2any.segment.coloring.segmenter import Paints
from seg2any.system.errors import UserError
from seg2any.system.hub import fetch_folder
from seg2any.system.pretrained import for_inference, imagenet_normalised, pretrained_model, pretrained_processor

UNET, MAE = "reachomk/gen2seg-sd", "reachomk/gen2seg-mae-h"
LANDMARKS = {UNET: "unet/config.json", MAE: "config.json"}
FILES = ("*.json", "*.txt", "*.safetensors", "*/*.json", "*/*.txt", "*/*.safetensors")
LONGEST = 768  # pixels of the longer side, as published
DAMAGE = (OSError, ValueError, SafetensorError, RuntimeError, KeyError, TypeError)


class UnetPainter:
    """The U-Net of gen2seg with its VAE and text encoder, from a folder of diffusers."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        self.device = device
        unet, vae = (
            _part(cls, folder / name) for cls, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        )
        self.unet, self.vae = for_inference(unet, device), for_inference(vae, device)
        self.scheduler = _part(DDPMScheduler, folder / "scheduler")
        text = for_inference(pretrained_model(CLIPTextModel, folder / "text_encoder", "gen2seg", UNET), device)
        tokenizer = pretrained_processor(CLIPTokenizer, folder / "tokenizer", "gen2seg", UNET)
        with torch.inference_mode():  # "" without padding, as published for inference
            self.text = text(tokenizer("", return_tensors="pt").input_ids.to(device))[0]

    @torch.inference_mode()
    def colors(self, image: np.ndarray, words: str = "") -> np.ndarray:
        """Paint a photo uint8 [H, W, 3], brought to LONGEST pixels: uint8 [h, w, 3]. Raises UserError for words."""
        _refuse_words(words)
        unit = 2 ** (len(self.vae.config.block_out_channels) - 1) * 2 ** (len(self.unet.config.block_out_channels) - 1)
        pixels = _resized(image, LONGEST, unit)
        scale = self.vae.config.scaling_factor
        latents = self.vae.encode(as_image(pixels).to(self.device)).latent_dist.mean * scale
        return as_pixels(published_pipeline(self.vae.decode(self.clean(latents) / scale).sample))

    def clean(self, latents: Tensor) -> Tensor:
        """Return x0 for latents [1, C, h, w] at the last time step of training."""
        settings = self.scheduler.config
        last = settings.num_train_timesteps - 1
        found = self.unet(latents, last, self.text).sample
        signal, noise = self.scheduler.alphas_cumprod[last].sqrt(), (1 - self.scheduler.alphas_cumprod[last]).sqrt()
        return CLEAN[settings.prediction_type](latents, found, float(signal), float(noise))


# prediction_type -> (z, prediction, sqrt(a), sqrt(1 - a)) -> x0
CLEAN: Mapping[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "v_prediction": lambda z, v, signal, noise: signal * z - noise * v,
    "epsilon": lambda z, e, signal, noise: (z - noise * e) / signal,
    "sample": lambda z, x0, signal, noise: x0,
}


class MaePainter:
    """The ViT-MAE of gen2seg, from a folder of transformers."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        model = pretrained_model(ViTMAEForPreTraining, folder, "gen2seg", MAE)
        model.config.mask_ratio = model.vit.embeddings.config.mask_ratio = 0.0
        self.model, self.device = for_inference(model, device), device

    @torch.inference_mode()
    def colors(self, image: np.ndarray, words: str = "") -> np.ndarray:
        """Paint a photo uint8 [H, W, 3], squashed to the model's side: uint8 [s, s, 3]. Raises UserError for words."""
        _refuse_words(words)
        sizes = self.model.config
        pixels = Image.fromarray(image).resize((sizes.image_size,) * 2, Image.Resampling.BILINEAR)
        in_order = torch.arange((sizes.image_size // sizes.patch_size) ** 2, device=self.device)[None].float()
        found = self.model(imagenet_normalised(np.asarray(pixels)).to(self.device), noise=in_order).logits
        return as_pixels(published_mae(self.model.unpatchify(found)))


def open_published(name: str, device: torch.device | str) -> Paints:
    """Load a published painter from a folder, or by its name on the hub. Raises UserError."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.partition("@")[0] not in LANDMARKS:
            raise UserError(f"--painter {name}: no such folder; give one, {UNET} or {MAE}")
        folder = fetch_folder(Path(name), "--painter", LANDMARKS[name.partition("@")[0]], FILES)
    if (folder / LANDMARKS[UNET]).is_file():
        return UnetPainter(folder, device)
    if _model_type(folder / LANDMARKS[MAE]) == "vit_mae":
        return MaePainter(folder, device)
    raise UserError(f"--painter {name}: holds neither a U-Net of diffusers nor a ViT-MAE; give {UNET} or {MAE}")


def _model_type(path: Path) -> str | None:
    try:
        return json.loads(path.read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _part(cls: type, folder: Path) -> object:
    options = {} if cls is DDPMScheduler else {"use_safetensors": True, "local_files_only": True}
    try:
        return cls.from_pretrained(folder, **options)
    except DAMAGE:
        raise UserError(
            f"{folder}: is missing or damaged; fetch it again with `hf download {UNET}`, or give another --painter"
        ) from None


def _refuse_words(words: str) -> None:
    if words:
        raise UserError("coloring: the published painters read no words; ask by points, or for everything")


def _resized(image: np.ndarray, longest: int, unit: int) -> np.ndarray:
    """Bring a photo to `longest` pixels on its longer side, both sides in multiples of `unit`, bilinearly."""
    scale = longest / max(image.shape[:2])
    height, width = (max(unit, round(edge * scale / unit) * unit) for edge in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
