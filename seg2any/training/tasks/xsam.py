"""Train the whole X-SAM on all that words and visual prompts can ask: the published stage 3."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg2any.data.words import Worded
from seg2any.segment.xsam.conditions import ALONE
from seg2any.segment.xsam.conversation import CHATS, Encoder, collate
from seg2any.segment.xsam.model import Pictures
from seg2any.segment.xsam.pictures import Frame
from seg2any.segment.xsam.postprocess import fitted, panoptic
from seg2any.segment.xsam.splice import IGNORED, Tokens
from seg2any.system.errors import UserError
from seg2any.training.config import Config
from seg2any.training.set_losses import Prediction, RandomPoints, Share, Target, total_loss
from seg2any.training.tasks.xsam_data import Picture
from seg2any.training.tasks.xsam_networks import Listener, build_model, model_folder, open_tokenizer
from seg2any.training.tasks.xsam_task import FOLDER, XSamTask
from seg2any.training.tasks.xsam_writing import SPEAKING, Writer, Written, speak_categories


class MixedTask(XSamTask):
    """The task that trains everything; a batch is asked in one way."""

    def __init__(self, config: Config):
        super().__init__(config)
        unknown = [kind for kind in self.options.mix if kind not in SPEAKING]
        if unknown or not sum(self.options.mix.values()) or min(self.options.mix.values()) < 0:
            found = f"{unknown[0]!r} is no way to ask" if unknown else "nothing is asked"
            raise UserError(f"xsam.mix: {found}; give counts from 0 on of {', '.join(SPEAKING)}")

    @property
    def mix(self) -> Mapping[str, int]:
        """The number of times that an epoch asks an image in each way."""
        return {kind: count for kind, count in self.options.mix.items() if count}

    def build(self, resumes: bool) -> nn.Module:
        """Build the model, its tokenizer and the writer of conversations."""
        self.model = build_model(self.config, resumes)
        described = self.model.config
        self.tokenizer = open_tokenizer(model_folder(self.config))
        encoder = Encoder(self.tokenizer, CHATS[described.chat], self.model.marks, described.max_length)
        sides = self.sam.image_size, described.siglip_config.image_size
        self.writer = Writer(encoder, self.words.categories, *sides)
        return Listener(self.model, self.strategy.dtype)

    def batch_loss(
        self, network: nn.Module, samples: Sequence[Picture], generators: Sequence[torch.Generator], share: Share
    ) -> Tensor:
        """Compute the loss of the language model, weighted by xsam.language, and that of the segmentor but for chat."""
        kind = samples[0].kind
        written = [self.writer(one.worded, kind, g) for one, g in zip(samples, generators, strict=True)]
        logits, spliced, found = network(*self._batch(written), kind, self._shown(written))
        language = self.options.language * next_token_loss(logits, spliced.labels, share)
        if found is None:  # a chat, which leaves the masks alone; but every parameter needs a gradient
            return language + 0 * sum(one.sum() for one in network.parameters() if one.requires_grad)
        predictions = [Prediction(*two) for two in zip(found.masks, found.classes, strict=True)]
        rows = [g for one, g in zip(written, generators, strict=True) for _ in one.targets]
        points = RandomPoints(rows, self.options.points)
        return language + total_loss([predictions[-1], *predictions[:-1]], joined_targets(written, kind), points, share)

    def found(self, worded: Worded) -> tuple[Tensor, list[str]]:
        """Find the segments of an image's own categories, the answer being given."""
        chance = random.Random(0)
        spoken = speak_categories(worded, (), chance)
        names = list(spoken.names)
        written = [self.writer.written(worded, "genseg", spoken, chance)]
        *_, answer = self.network(*self._batch(written), "genseg", self._shown(written))
        classes, masks = answer.answer(self.sam.image_size)
        frame = Frame.of(worded.image.shape[:2], self.sam.image_size)
        stuff = [names.index(name) for name in self.words.stuff if name in names]
        labels, segments = panoptic(classes[0], fitted(masks[0], frame), stuff)
        named = {one.number: names[one.category] for one in segments}
        return torch.stack([labels.cpu() == number for number in named] or [labels.cpu() < 0]), list(named.values())

    def save(self, folder: Path, step: int) -> None:
        """Write the model and its tokenizer as `from_pretrained` reads them."""
        super().save(folder, step)
        self.tokenizer.save_pretrained(folder / FOLDER)

    def _batch(self, written: Sequence[Written]) -> tuple[Pictures, Tokens]:
        device = self.strategy.device
        pictures = Pictures(*(torch.stack([getattr(one, x) for one in written]).to(device) for x in ("seg", "visual")))
        return pictures, collate([one.encoded for one in written]).to(device)

    def _shown(self, written: Sequence[Written]) -> list[Tensor | None]:
        device = self.strategy.device
        return [None if one.shown is None else one.shown.to(device) for one in written]


def next_token_loss(logits: Tensor, labels: Tensor, share: Share) -> Tensor:
    """Average the cross entropy of logits [B, L, V] with the labels [B, L] that follow, over those not ignored."""
    following = labels[:, 1:].flatten()
    entropy = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), following, ignore_index=IGNORED, reduction="sum")
    return entropy / share((following != IGNORED).sum().float())


def joined_targets(written: Sequence[Written], kind: str) -> list[Target]:
    """List the targets of all rows; phrases that stand alone are classes of the whole batch, numbered on."""
    targets, first = [], 0
    for one in written:
        offset = first if kind in ALONE else 0
        targets += [Target(target.masks, target.classes + offset) for target in one.targets]
        first += len(one.targets)
    return targets
