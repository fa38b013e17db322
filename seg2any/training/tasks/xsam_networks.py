"""Build the networks that the tasks of X-SAM train, as modules that DDP can wrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from seg2any.segment.xsam.conditions import conditions_of, pooled
from seg2any.segment.xsam.config import XSamConfig, XSamSegmentorConfig
from seg2any.segment.xsam.model import Pictures, XSam, XSamSegmentor
from seg2any.segment.xsam.segmentor import Predictions
from seg2any.segment.xsam.splice import Spliced, Tokens
from seg2any.system.errors import UserError
from seg2any.training.config import Config
from seg2any.training.tasks.xsam_writing import TALKS

WEIGHTS = "model.safetensors"
ENCODERS = ("segmentor.encoder.", "visual_encoder.")  # learn at a rate of their own
# Of the segmentor, what a closed list of classes has taught; not its head.
TAUGHT = ("segmentor.encoder.", "segmentor.pixel_decoder.", "segmentor.decoder.", "seg_connector.")
# Read by nothing: SAM's neck, SAM's embedding of prompts, SigLIP's ending.
UNUSED = (
    *("segmentor.encoder.neck.", "segmentor.shared_image_embedding."),
    *("visual_encoder.post_layernorm.", "visual_encoder.head.", "visual_encoder.vision_model.post_layernorm."),
    "visual_encoder.vision_model.head.",
)

# Parts whose weights are drawn well enough, and layers that must start as transformers starts them.
DRAWN_BY_LIBRARY = ("llm.", "visual_encoder.")
DEFORMABLE = ("sampling_offsets", "attention_weights")
# Amplitude of the first positions in SAM's table: what is learned drowns 0.5, and the language model cannot say
# where anything lies.
WAVE = 2.0
QUIET = 0.3  # factor of the projectors' first weights: longer tokens than those of words, no layer would ever change


class Listener(nn.Module):
    """The whole model: pictures and conversations in, next tokens and masks out.

    It computes in `dtype` by autocast where that is not fp32.
    """

    def __init__(self, model: XSam, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(
        self, pictures: Pictures, tokens: Tokens, kind: str, shown: Sequence[Tensor | None]
    ) -> tuple[Tensor, Spliced, Predictions | None]:
        """Return logits of the next token [B, L, V], the spliced conversations, and predictions unless it is a chat.

        shown  visual prompts bool [N, S, S] of each conversation, or None
        """
        model = self.model
        with torch.autocast(tokens.ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            seen = model.see(pictures)
            regions = [None if one is None else seen.regions_of(row, one) for row, one in enumerate(shown)]
            spliced = model.splice(tokens, seen, regions)
            logits, states = model(spliced)
            if kind in TALKS:
                return logits, spliced, None
            phrases, segs = pooled(states, spliced.cond_ids), pooled(states, spliced.seg_ids)
            conditions = conditions_of(kind, phrases, segs, model.bg_embeds.weight)
            return logits, spliced, model.segmentor(seen.maps, conditions)


class ClosedSegmentor(nn.Module):
    """The segmentor with a closed list of classes, likewise."""

    def __init__(self, model: XSamSegmentor, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, pictures: Tensor) -> Predictions:
        """Predict masks and classes of pictures [B, 3, S, S]."""
        with torch.autocast(pictures.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(pictures)


def model_folder(config: Config) -> Path:
    """Return xsam.model. Raises UserError without it, or if it holds no config.json."""
    if config.xsam.model is None:
        raise UserError("xsam.model: not set; give a folder with config.json, and weights unless you train from none")
    folder = Path(config.xsam.model)
    if not (folder / "config.json").is_file():
        raise UserError(f"xsam.model: {folder} has no config.json; give the folder of an X-SAM model")
    return folder


def build_segmentor(config: Config, classes: int, frozen: bool = False) -> XSamSegmentor:
    """Build the segmentor of xsam.model for a number of classes, with its weights if it has any."""
    folder = model_folder(config)
    described = XSamSegmentorConfig.from_pretrained(folder)
    described.mask_config.num_labels = classes
    if (folder / WEIGHTS).is_file():
        return _fp32(XSamSegmentor.from_pretrained(folder, config=described))
    return started(XSamSegmentor(described))


@torch.no_grad()
def started(model: XSamSegmentor | XSam) -> XSamSegmentor | XSam:
    """Give a model without weights a start from which a small one learns within hours.

    Transformers draws weights as for wide layers, and begins SAM's table of positions with zeros: here layers of the
    segmentor, its connector and the projectors have torch's own start, and tables of positions hold waves.
    """
    for part, module in model.named_modules():
        is_drawn = isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)) and not part.startswith(DRAWN_BY_LIBRARY)
        if is_drawn and not part.endswith(DEFORMABLE):
            module.reset_parameters()
    table = model.segmentor.encoder.pos_embed
    if table is not None:
        table.copy_(WAVE * waves(*table.shape[1:]))
    if isinstance(model, XSam):
        _start_tokens(model)
    return model


def _start_tokens(model: XSam) -> None:
    """Let the tokens of pictures hold their places, and be about as long as those of words."""
    for name, table in model.visual_encoder.named_parameters():
        if name.endswith("position_embedding.weight"):
            side = math.isqrt(len(table))
            table.copy_(waves(side, side, table.shape[1]).flatten(1, 2)[0])
    for projector in (model.visual_projector, model.seg_projector):
        for layer in projector.model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(QUIET)
                layer.bias.zero_()


def waves(height: int, width: int, channels: int) -> Tensor:
    """Make a table of positions [1, height, width, channels]: sines and cosines from a quarter to four waves a side."""
    count = channels // 4
    rates = 2 * torch.pi * 2 ** (torch.arange(count) * (4 / count) - 2)
    y, x = (((torch.arange(side) + 0.5) / side)[:, None] * rates for side in (height, width))
    rows, columns = (torch.cat([one.sin(), one.cos()], 1) for one in (y, x))
    table = torch.zeros(1, height, width, channels)
    table[..., : 2 * count], table[..., 2 * count : 4 * count] = rows[:, None], columns[None]
    return table


def build_model(config: Config, resumes: bool) -> XSam:
    """Build xsam.model with its weights if it has any, and what xsam.segmentor has learned.

    resumes  the trainer will load what is trained, so xsam.segmentor may be gone by now
    """
    folder = model_folder(config)
    with_weights = (folder / WEIGHTS).is_file()
    described = XSamConfig.from_pretrained(folder)
    model = _fp32(XSam.from_pretrained(folder)) if with_weights else started(XSam(described))
    if config.xsam.segmentor is not None and not resumes:
        _take_over(model, Path(config.xsam.segmentor))
    return model


def open_tokenizer(folder: Path) -> object:
    """Open the tokenizer beside a model. Raises UserError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        raise UserError(f"xsam.model: {folder} has no tokenizer; add its tokenizer.json") from None


def trained(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Name what a loss reaches, the encoders last, and freeze the rest."""
    unused, reached = (*UNUSED, *_last_layers(model)), {}
    for name, parameter in model.named_parameters():
        if name.startswith(unused):
            parameter.requires_grad_(False)
        else:
            reached[name] = parameter
    return dict(sorted(reached.items(), key=lambda item: item[0].startswith(ENCODERS)))


def _last_layers(model: PreTrainedModel) -> list[str]:
    """Return the beginnings of names of SigLIP's layers behind the one that is read."""
    if not isinstance(model, XSam):
        return []
    layers = model.config.siglip_config.num_hidden_layers
    read = model.config.visual_layer % (layers + 1)
    places = ("visual_encoder.encoder", "visual_encoder.vision_model.encoder")
    return [f"{place}.layers.{number}." for place in places for number in range(read, layers)]


def _take_over(model: XSam, folder: Path) -> None:
    """Load what a segmentor has learned. Raises UserError if it does not suit the model."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"xsam.segmentor: {folder} has no {WEIGHTS}; give the xsam folder of a checkpoint")
    own = model.state_dict()
    learned = {name: value for name, value in load_file(path).items() if name.startswith(TAUGHT)}
    wanted = [name for name in own if name.startswith(TAUGHT)]
    for name in wanted:
        if name not in learned or learned[name].shape != own[name].shape:
            raise UserError(f"xsam.segmentor: {folder} does not suit xsam.model: {name} differs; give another")
    model.load_state_dict({name: learned[name] for name in wanted}, strict=False)


def _fp32(model: PreTrainedModel) -> PreTrainedModel:
    return model.float()
