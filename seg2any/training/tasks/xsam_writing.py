"""Write the conversation of a training sample: what is asked of an image, the answer, and the masks it means.

Everything that is drawn comes from the sample's own generator: the words of the question, which phrases, which
categories that the image lacks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from seg2any.data.words import Asked, Worded, joined
from seg2any.segment.xsam.asking import (
    Turn,
    Wording,
    ask_categories,
    ask_description,
    ask_phrases,
    ask_questions,
    ask_regions,
    chat,
)
from seg2any.segment.xsam.conditions import ALONE
from seg2any.segment.xsam.conversation import Encoded, Encoder
from seg2any.segment.xsam.pictures import Frame, jittered, seg_masks, seg_picture, visual_picture
from seg2any.segment.xsam.wordings import PICTURE, REGION
from seg2any.training.set_losses import Target
from seg2any.training.tasks.xsam_prompts import draw_prompts

MOST_PHRASES = 6  # of one image, a turn for each; likewise of questions
MOST_TALK = 6  # questions of one image that are answered in words
MOST_SHOWN = 4  # regions of one image that visual prompts show
MOST_NAMED = 8  # likewise, where their names are asked for
TALKS = ("imgconv", "vgdconv")  # ask for words alone, about the image or about regions that visual prompts show
NAMING = f"What is {REGION}?"
CHATS_OPEN = ("What does the image show?", "What can be seen here?", "Describe the image in one sentence.")
TALK = 0.8  # share of chats that are questions where the image has some; the others describe it
ALL = 0.5  # share of samples that are asked for all categories, not for a drawn number of those they lack


@dataclass(frozen=True)
class Written:
    """A conversation about an image, encoded, with the pictures of both encoders and what it means.

    targets  a row for each prediction: none for chat, one for categories, descriptions and visual prompts, one for each
             phrase otherwise; classes are numbers of the sample's own phrases
    shown    bool [N, S, S], the visual prompts, or None where there are none
    """

    seg: Tensor
    visual: Tensor
    encoded: Encoded
    targets: tuple[Target, ...]
    shown: Tensor | None = None


@dataclass(frozen=True)
class Spoken:
    """Turns, and the regions of each mask with the number of the phrase that means it.

    names  of the categories that are asked for, in order
    shown  regions that visual prompts show, in the order of their markers
    """

    turns: Sequence[Turn]
    regions: Sequence[tuple[int, ...]]
    phrases: Sequence[int]
    names: Sequence[str] = ()
    shown: Sequence[int] = ()


T = TypeVar("T")
Speak = Callable[[Worded, Sequence[str], random.Random], Spoken]


def speak_categories(worded: Worded, categories: Sequence[str], chance: random.Random) -> Spoken:
    """Ask for the image's categories and for some or all of the others, in a drawn order."""
    own = list(dict.fromkeys(worded.names))
    lacking = [name for name in categories if name not in own]
    if chance.random() >= ALL:
        lacking = chance.sample(lacking, chance.randint(0, len(lacking)))
    asked = own + lacking
    chance.shuffle(asked)
    turns = ask_categories(asked, Wording.drawn(chance), answered=True)
    regions = [(n,) for n in range(len(worded.names))]
    return Spoken(turns, regions, [asked.index(name) for name in worded.names], asked)


def speak_phrases(worded: Worded, categories: Sequence[str], chance: random.Random) -> Spoken:
    """Ask for up to MOST_PHRASES phrases, a turn for each."""
    found = _some_of(worded.phrases, chance)
    turns = ask_phrases(list(found), Wording.drawn(chance), answered=True)
    return Spoken(turns, [one.regions for one in found.values()], range(len(found)))


def speak_question(worded: Worded, categories: Sequence[str], chance: random.Random) -> Spoken:
    """Ask up to MOST_PHRASES questions, which half of the answers explain."""
    found = _some_of(worded.questions, chance)
    reasons = [one.reason or None for one in found.values()]
    turns = ask_questions(list(found), Wording.drawn(chance), True, explanations=reasons)
    return Spoken(turns, [one.regions for one in found.values()], range(len(found)))


def speak_description(worded: Worded, categories: Sequence[str], chance: random.Random) -> Spoken:
    """Describe the image with a region for each phrase."""
    told = worded.told
    turns = ask_description(Wording.drawn(chance), told.text, told.spans)
    return Spoken(turns, [(region,) for region in told.regions], range(len(told.regions)))


def speak_regions(worded: Worded, categories: Sequence[str], chance: random.Random) -> Spoken:
    """Ask for up to MOST_SHOWN regions that visual prompts show."""
    some = _some_regions(worded, chance.randint(1, MOST_SHOWN), chance)
    turns = ask_regions(len(some), Wording.drawn(chance), answered=True)
    return Spoken(turns, [(n,) for n in some], range(len(some)), shown=some)


def speak_chat(worded: Worded, categories: Sequence[str], chance: random.Random) -> Spoken:
    """Ask what the image shows, or up to MOST_TALK questions about it; nothing is segmented."""
    if worded.talk and (worded.told is None or chance.random() < TALK):
        asked = dict(_one_of(worded.talk, chance) for _ in range(MOST_TALK))
    else:
        asked = {chance.choice(CHATS_OPEN): worded.told.text}
    spoken = [message for question, answer in asked.items() for message in (("human", question), ("gpt", answer))]
    spoken[0] = ("human", f"{PICTURE}\n{spoken[0][1]}")
    return Spoken(chat(spoken), (), ())


def speak_names(worded: Worded, categories: Sequence[str], chance: random.Random) -> Spoken:
    """Ask what up to MOST_NAMED regions are that visual prompts show; the image itself is left out."""
    some = _some_regions(worded, MOST_NAMED, chance)
    spoken = [message for n in some for message in (("human", NAMING), ("gpt", f"It is {worded.looks[n]}."))]
    return Spoken(chat(spoken), (), (), shown=some)


SPEAKING: dict[str, Speak] = {
    "genseg": speak_categories,
    "refseg": speak_phrases,
    "reaseg": speak_question,
    "gcgseg": speak_description,
    "vgdseg": speak_regions,
    "imgconv": speak_chat,
    "vgdconv": speak_names,
}


def offers(worded: Worded, kind: str) -> bool:
    """Tell whether an image can be asked so."""
    wanted = {
        "genseg": ("names",),
        "refseg": ("phrases",),
        "reaseg": ("questions",),
        "gcgseg": ("told",),
        "vgdseg": ("names",),
        "imgconv": ("talk", "told"),
        "vgdconv": ("names",),
    }
    return any(getattr(worded, one) for one in wanted[kind])


@dataclass(frozen=True)
class Writer:
    """Writes the conversations of samples for a model.

    categories       all that may be asked for
    side, visual     edges of the pictures of SAM and of SigLIP
    """

    encoder: Encoder
    categories: Sequence[str]
    side: int
    visual: int

    def __call__(self, worded: Worded, kind: str, generator: torch.Generator) -> Written:
        """Write one conversation."""
        chance = chance_of(generator)
        return self.written(worded, kind, SPEAKING[kind](worded, self.categories, chance), chance)

    def written(self, worded: Worded, kind: str, spoken: Spoken, chance: random.Random) -> Written:
        """Encode what is spoken about an image; `chance` draws visual prompts."""
        frame = Frame.of(worded.image.shape[:2], self.side)
        pictures = seg_picture(worded.image, frame), visual_picture(worded.image, self.visual)
        encoded = self.encoder.encode(spoken.turns, answered=True)
        shown = draw_prompts(worded.masks[list(spoken.shown)], frame, chance) if spoken.shown else None
        if kind in TALKS:
            return Written(*pictures, encoded, (), shown)
        wanted = np.stack([joined(worded, regions) for regions in spoken.regions])
        masks = seg_masks(wanted, frame)
        whole = Target(masks, torch.tensor(spoken.phrases))
        rows = tuple(Target(*(part[n : n + 1] for part in whole)) for n in range(len(masks)))
        return Written(*pictures, encoded, rows if kind in ALONE else (whole,), shown)


def closed_target(worded: Worded, categories: Sequence[str], side: int, scale: float | None) -> tuple[Tensor, Target]:
    """Make picture [3, S, S] and target of a closed list of categories; `scale` as of `jittered`, None for 1."""
    image, masks = (worded.image, worded.masks) if scale is None else jittered(worded.image, worded.masks, side, scale)
    frame = Frame.of(image.shape[:2], side) if scale is None else Frame(image.shape[:2], image.shape[:2], side)
    kept = [n for n, name in enumerate(worded.names) if name in categories]
    masks = seg_masks(masks[kept], frame)
    classes = torch.tensor([categories.index(worded.names[n]) for n in kept], dtype=torch.int64)
    seen = masks.flatten(1).any(1)
    return seg_picture(image, frame), Target(masks[seen], classes[seen])


def chance_of(generator: torch.Generator) -> random.Random:
    """Make a generator of Python's that depends on one of torch's."""
    return random.Random(int(torch.randint(2**62, (1,), generator=generator)))


def _some_regions(worded: Worded, most: int, chance: random.Random) -> list[int]:
    """Draw regions that can be seen."""
    seen = [n for n, mask in enumerate(worded.masks) if mask.any()]
    return chance.sample(seen, min(len(seen), most))


def _some_of(by_kind: Mapping[str, Sequence[Asked]], chance: random.Random) -> dict[str, Asked]:
    """Draw up to MOST_PHRASES different ones, by their texts."""
    return {one.text: one for one in (_one_of(by_kind, chance) for _ in range(MOST_PHRASES))}


def _one_of(by_kind: Mapping[str, Sequence[T]], chance: random.Random) -> T:
    """Draw a kind, then one of it."""
    return chance.choice(by_kind[chance.choice(sorted(by_kind))])
