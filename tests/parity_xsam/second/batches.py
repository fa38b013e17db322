"""Batches of the tasks for the whole model."""

from __future__ import annotations

import numpy as np
import torch

from tests.parity_xsam.second.book import Book, numbered
from tests.parity_xsam.second.conditions import ALONE
from tests.parity_xsam.second.text import collated
from tests.parity_xsam.second.text_cases import CAPTION, SPANS, Made
from tests.parity_xsam.second.whole import Draws, Model

FILE, CONDITIONS = "end_to_end", "condition_embeddings"
KNOWN = [3, 11, 14, 20, 31]  # categories of regions
# Examples of each task: of each picture, what is asked.
ASKED = {
    "genseg": [{"sampled_cats": ["sea", "Traffic-light"]}, {"sampled_cats": ["snow-stuff", "wine glass", "zebra"]}],
    "refseg": [{"sampled_sents": ["the sea", "two birds", "Third cup"]}, {"sampled_sents": ["a wire"]}],
    "reaseg": [{"sampled_sents": ["which barks?"], "is_sentence": True, "explain": None}],
    "gcgseg": [{"caption": CAPTION, "annotations": [{"tokens_positive": list(one)} for one in SPANS[:3]]}],
    "vgdseg": [{"sampled_labels": [14, 3]}, {"sampled_labels": [11, 14]}],
    "imgconv": [{"conversations": [{"from": "human", "value": "<image>\nA sea?"}, {"from": "gpt", "value": "Yes."}]}],
}


class Batches:
    """The model of a set, and batches for it."""

    def __init__(self, book: Book, made: Made):
        self.book, self.made, self.model = book, made, Model(book, made.words)

    def batch(self, task: str, answered: bool, count: int, start: str = "usual") -> dict:
        """Make a batch of lists, named as recorded, on the first pictures."""
        samples = []
        for example in ASKED[task][:count]:
            one = (
                example if answered or task not in ALONE else example | {"sampled_sents": example["sampled_sents"][:1]}
            )
            about = {"task": task, "example": one, "choice_indices": [2, 0, 3], "explain_draw": 1.0}
            samples.append(self.made.made(about | {"with_output": answered}))
        batch = collated(samples, [])
        if start != "usual":  # a word of the answer is given: it decides what follows
            numbers = {"input_ids": self.model.starts[start], "labels": -100, "cond_ids": -1, "seg_ids": -1}
            for name, number in numbers.items():
                if name in batch:
                    batch[name] = [[*row, number] for row in batch[name]]
            batch["attention_mask"] = [[True] * len(row) for row in batch["input_ids"]]
        batch["images"] = list(self.model.pictures)[: len(samples)]
        if task == "vgdseg":
            self._add_prompts(batch, count)
        return batch

    def _add_prompts(self, batch: dict, count: int) -> None:
        """Add masks of regions, one of them large: what is in each picture, and what is asked."""
        side = self.model.side
        sampled = [example["sampled_labels"] for example in ASKED["vgdseg"][:count]]
        classes = [self.book.rng.permutation(len(own)).tolist() for own in sampled]
        batch["masks"] = [np.array([self.book.blob(side, side) for _ in own]) for own in classes]
        batch["masks"][0][0, : side // 2 + 2] = True
        batch["wanted"] = [[KNOWN.index(one) for one in own] for own in sampled]
        batch["categories"] = [
            [wanted[one] for one in own] for wanted, own in zip(batch["wanted"], classes, strict=True)
        ]
        batch["given"] = {"sampled_labels": sampled, "contiguous_labels": [KNOWN] * count}
        batch["classes"] = classes

    def tensors(self, batch: dict) -> dict:
        """Name a batch as recorded."""
        names = ("input_ids", "attention_mask", "labels", "cond_ids", "seg_ids")
        found = {f"in_{name}": torch.tensor(batch[name]) for name in names if name in batch}
        if "masks" in batch:
            found |= numbered("in_vprompt_masks", batch["masks"])
            found |= numbered("in_class_labels", [torch.tensor(own) for own in batch["classes"]])
        return found

    def run(self, task: str, batch: dict) -> tuple[dict, list, list, Draws]:
        """Read a batch: what was spliced, what was seen, the states of each row, and the draws."""
        draws, seen = Draws(), [self.model.seen(name) for name in batch["images"]]
        made = self.model.spliced(batch, seen, self.model.vectors(batch, seen, draws))
        return made, seen, [self.model.net.read(one) for one in made["out_inputs_embeds"]], draws
