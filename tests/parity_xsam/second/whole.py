"""The whole model of the second set at work: pictures, conversations, answers and losses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.parity_xsam.second import losses, plain, regions
from tests.parity_xsam.second.book import Book, Undecided
from tests.parity_xsam.second.conditions import means, rows_of
from tests.parity_xsam.second.network import Network, sizes_of
from tests.parity_xsam.second.splice import spliced
from tests.parity_xsam.second.tokens import OWN, SPACE, Vocabulary

POINTS = 256


@dataclass
class Draws:
    """Random numbers in the order drawn, each of a kind."""

    every: list[tuple[str, Tensor]] = field(default_factory=list)

    def add(self, kind: str, numbers: Tensor) -> Tensor:
        self.every.append((kind, numbers))
        return numbers

    def named(self) -> dict[str, Tensor]:
        return {f"draw_{number:02d}_{kind}": one for number, (kind, one) in enumerate(self.every)}


class Model:
    """A network that answers as planned, its pictures and its words."""

    def __init__(self, book: Book, words: Vocabulary):
        self.book, self.words = book, words
        self.sizes = sizes_of(book)
        self.net = Network(book, self.sizes, len(words.names))
        self.closed = Network(book, self.sizes, 0, closed=True)
        side, small = self.sizes["sam"]["image_size"], self.sizes["siglip"]["image_size"]
        self.side = side
        self.pictures = {
            name: {"seg_pixel_values": book.normal(3, side, side), "pixel_values": book.normal(3, small, small)}
            for name in ("bay", "kitchen", "x7")
        }
        self._plan()

    def _plan(self) -> None:
        """Make each token of three chains the likeliest after the one before it."""
        ids = self.words.ids
        texts = [one for one in self.words.names[: self.words.learned] if one[0] == SPACE and one[1:].isalpha()]
        chosen = [ids[texts[place]] for place in self.book.rng.permutation(len(texts))[:9]]
        seg, begin, end = (ids[one] for one in OWN)
        over = ids["<|end|>"]
        self.starts = {"usual": ids["<|assistant|>"], "told": chosen[0], "talk": chosen[1]}
        self.chains = {
            "usual": [*chosen[2:4], seg, chosen[4], over],
            "told": [begin, *chosen[5:7], end, chosen[7], seg, chosen[4], over],
            "talk": [chosen[8], over],
        }
        with torch.no_grad():
            embeds, head = self.net.llm.model.embed_tokens.weight, self.net.llm.lm_head.weight
            embeds *= 10
            rows = {}
            for name, chain in self.chains.items():
                for one, following in zip([self.starts[name], *chain], chain, strict=False):
                    rows[one, following] = embeds[one] / embeds[one].norm()
            for (_, following), row in rows.items():
                head[following] += (4 * row).float().double()

    def seen(self, name: str) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the maps of a picture, and its tokens of both kinds."""
        picture = self.pictures[name]
        states = self.net.sam_states(picture["seg_pixel_values"])
        return self.net.maps(states), *self.net.tokens(picture["pixel_values"], states)

    def spliced(self, batch: dict, seen: list, vectors: list | None) -> dict:
        """Splice a batch, lists of ids and numbers by name; every row has as many vectors afterwards."""
        rows = [
            {name: batch[name][number] for name in ("input_ids", "labels", "cond_ids", "seg_ids") if name in batch}
            for number in range(len(batch["input_ids"]))
        ]
        pictures = [torch.cat([visual, grid]) for _, visual, grid in seen]
        return spliced(rows, self.net.llm.model.embed_tokens.weight, pictures, vectors)

    def vectors(self, batch: dict, seen: list, draws: Draws) -> list[Tensor] | None:
        """Choose the masks that the regions show, by draws, and return their vectors for each picture."""
        if "masks" not in batch:
            return None
        found, own = [], []
        for (_, _, grid), masks in zip(seen, batch["masks"], strict=True):
            side = round(len(grid) ** 0.5)
            drawn: list = []
            found.append(regions.vectors(self.book, grid.reshape(side, side, -1), masks, POINTS, drawn))
            for kind, numbers in drawn:
                draws.add(kind, torch.tensor(numbers))
        places = [(p, n) for p, several in enumerate(batch["categories"]) for n in range(len(several))]
        taken = set()
        for picture, wanted in enumerate(batch["wanted"]):
            own.append([])
            for category in wanted:
                same = [(p, n) for p, n in places if batch["categories"][p][n] == category and (p, n) not in taken]
                other = [(p, n) for p, n in places if batch["categories"][p][n] not in batch["categories"][picture]]
                place = self.book.between(0, len(same or other) - 1)
                draws.add("randint", torch.tensor([place]))
                picked = (same or other)[place]
                taken |= {picked} if same else set()
                own[-1].append(found[picked[0]][picked[1]])
        return [torch.stack(several) for several in own]

    def conditions(self, task: str, states: list[Tensor], made: dict) -> dict:
        """Make the rows of conditions of projected states, with what they are made of."""
        conds, segs = (
            [means(one, numbers.tolist()) for one, numbers in zip(states, made[f"out_{kind}"], strict=True)]
            for kind in ("cond_ids", "seg_ids")
        )
        rows = rows_of(task, conds, segs, self.net.plain["bg_embeds."]["weight"])
        return rows | {"conds": conds, "segs": segs}

    def layers(self, net: Network, maps: list, rows: dict | None) -> tuple[list[Tensor], list[Tensor]]:
        """Predict mask logits [R, Q, h, w] and class logits [R, Q, K] of each layer, a row at a time."""
        masks, classes = [], []
        counts = [1] * len(maps) if rows is None else rows["local_cond_lens"] or [1] * len(maps)
        for own, count in zip(maps, counts, strict=True):
            pixels = net.segmentor.pixels(own)
            for _ in range(count):
                row, given = len(masks), (None, None)
                if rows is not None:
                    present = rows["embed_masks"][row] if "embed_masks" in rows else None
                    given = rows["conditions_with_background"][row], present
                seg = None if rows is None else rows["seg_embeds"][row]
                queries, found = net.segmentor.row(*pixels, seg)
                masks.append(found)
                classes.append([net.segmentor.classes(one, *given) for one in queries])
        return [torch.stack(one) for one in zip(*masks, strict=True)], [
            torch.stack(one) for one in zip(*classes, strict=True)
        ]

    def segmentor_loss(self, predictions: tuple, targets: list, labels: list, draws: Draws) -> tuple[Tensor, dict]:
        """Sum the losses of all layers, the last first: weighted parts named as recorded."""
        masks, classes = predictions
        for _ in range(self.sizes["mask2former"]["decoder_layers"] - 1):
            draws.add("rand", torch.tensor(self.book.rng.random()))  # a layer drop of rate 0
        plain_draw = losses.drawing(self.book, self.sizes["mask2former"]["train_num_points"])

        def draw(kind: str, sets: int, times: float) -> Tensor:
            points = plain_draw(kind, sets, times)
            return points if kind == "sizes" else draws.add("rand", points)

        total, parts = 0, {}
        order = [len(masks) - 1, *range(len(masks) - 1)]
        for place, layer in enumerate(order):
            found, _ = losses.prediction_loss(draw, masks[layer], classes[layer], targets, labels)
            for term, value in found.items():
                weighted = losses.WEIGHTS[term] * value
                parts[f"loss_{term}" + (f"_{place - 1}" if place else "")] = weighted.item()
                total = total + weighted
        return total, parts

    def language_loss(self, states: list[Tensor], labels: Tensor) -> Tensor:
        """Average the cross entropy of the next token over labels [B, L] that are not ignored."""
        total, count = 0, 0
        for one, own in zip(states, labels.tolist(), strict=True):
            logits = torch.log_softmax(one @ self.net.llm.lm_head.weight.T, -1)
            for place, label in enumerate(own[1:]):
                if label != -100:
                    total, count = total - logits[place, label], count + 1
        return total / count

    @torch.no_grad()
    def answered(self, made: dict, start: str) -> tuple[list[int], Tensor]:
        """Continue one spliced prompt: new ids, and the states [L + N - 1, D] of all but the last."""
        embeddings, new = made["out_inputs_embeds"][0], []
        while len(new) < 20 and (not new or new[-1] != self.words.ids["<|end|>"]):
            states = self.net.read(embeddings)
            new.append(int((self.net.llm.lm_head.weight @ states[-1]).argmax()))
            embeddings = torch.cat([embeddings, self.net.llm.model.embed_tokens.weight[new[-1:]]])
        if new != self.chains[start]:
            raise Undecided("the network does not answer as planned")
        return new, states

    def upsampled(self, masks: Tensor) -> Tensor:
        return plain.resize(masks, (self.side, self.side))
