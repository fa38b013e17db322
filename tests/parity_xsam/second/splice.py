"""Cases of pictures and regions put into conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tests.parity_xsam.second.book import Book, numbered

FILE = "splice"
PICTURE, REGION, IGNORED, NONE = -200, -300, -100, -1
FILLINGS = {"input_ids": IGNORED, "labels": IGNORED, "cond_ids": NONE, "seg_ids": NONE}


def spliced_row(row: dict[str, list[int]], table: torch.Tensor, pictures: list, regions: Sequence | None) -> tuple:
    """Splice one conversation: lists of ids and numbers by name; takes its pictures off the list's front.

    Returns its vectors, and the lists in their new length.
    """
    vectors, out, seen = [], {name: [] for name in row}, 0
    for place, one in enumerate(row["input_ids"]):
        numbers = {name: values[place] for name, values in row.items()}
        if one == PICTURE:
            new = list(pictures.pop(0))
            numbers = {"input_ids": PICTURE, "labels": IGNORED, "cond_ids": NONE, "seg_ids": NONE}
        elif one == REGION:
            if regions is None:
                continue
            new = [regions[seen]]
            numbers = {"input_ids": REGION, "labels": IGNORED, "cond_ids": seen, "seg_ids": NONE}
            seen += 1
        else:
            new = [table[one]]
        vectors += new
        for name in row:
            out[name] += [numbers[name]] * len(new)
    return vectors, out


def spliced(rows: list[dict], table: torch.Tensor, pictures: list, regions: Sequence | None = None) -> dict:
    """Splice conversations, fill them up, and name the result as recorded.

    pictures  [n, D] each, in the order of the markers
    """
    left = list(pictures)
    found = [
        spliced_row(row, table, left, None if regions is None else regions[number]) for number, row in enumerate(rows)
    ]
    longest = max(len(vectors) for vectors, _ in found)
    out: dict[str, list] = {f"out_{name}": [] for name in ("inputs_embeds", "attention_mask", "position_ids", *rows[0])}
    for vectors, numbers in found:
        free = longest - len(vectors)
        out["out_inputs_embeds"].append(torch.stack(vectors + [torch.zeros_like(table[0])] * free))
        out["out_attention_mask"].append([True] * len(vectors) + [False] * free)
        out["out_position_ids"].append(list(range(len(vectors))) + [0] * free)
        for name, values in numbers.items():
            out[f"out_{name}"].append(values + [FILLINGS[name]] * free)
    return {name: torch.stack(x) if torch.is_tensor(x[0]) else torch.tensor(x) for name, x in out.items()}


class Maker:
    """Conversations of random text, with a table of embeddings."""

    def __init__(self, book: Book):
        self.book, self.width = book, book.between(5, 40)
        self.table = book.normal(book.between(50, 300), self.width)
        book.add(FILE, "embedding_weight", None, {"": self.table})

    def text(self, length: int) -> list[int]:
        return self.book.rng.integers(0, len(self.table), length).tolist()

    def row(self, ids: list[int], *names: str) -> dict[str, list[int]]:
        """Give ids labels and numbers at random."""
        low = {"labels": 0, "cond_ids": -1, "seg_ids": -1}
        row = {"input_ids": ids}
        for name in names:
            row[name] = self.book.rng.integers(low[name], 4, len(ids)).tolist()
        return row

    def pictures(self, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        visual, grid = self.book.between(1, 6), self.book.between(1, 7)
        return [(self.book.normal(visual, self.width), self.book.normal(grid, self.width)) for _ in range(count)]

    def add(self, name: str, rows: list[dict], pictures: list, regions: list | None = None, **given: Any) -> None:
        """Add a case of rows of one length; `given` are further arguments as recorded."""
        tensors = {f"in_{key}": torch.tensor([row[key] for row in rows]) for key in rows[0]}
        tensors |= {f"in_{key}": torch.tensor(value) for key, value in given.items()}
        if pictures:
            tensors["in_pixel_values"] = torch.stack([one[0] for one in pictures])
            tensors["in_seg_pixel_values"] = torch.stack([one[1] for one in pictures])
        if regions:
            tensors |= numbered("in_vprompt_feats", regions)
        kept = rows
        if "attention_mask" in given:
            kept = [
                {key: [one for one, real in zip(values, mask, strict=True) if real] for key, values in row.items()}
                for row, mask in zip(rows, given["attention_mask"], strict=True)
            ]
        out = spliced(kept, self.table, [torch.cat(one) for one in pictures], regions)
        for key in ("attention_mask", "position_ids"):
            if key not in given:
                del out[f"out_{key}"]
        self.book.add(FILE, name, {"order_defect": False}, tensors | out)


def add(book: Book) -> None:
    """Add the cases."""
    make = Maker(book)
    every = ("labels", "cond_ids", "seg_ids")
    ids = make.text(5) + [PICTURE] + make.text(9)
    make.add("one_conversation", [make.row(ids, *every)], make.pictures(1))
    make.add("no_labels", [make.row(ids, "cond_ids", "seg_ids")], make.pictures(1))
    make.add("ids_alone", [make.row(ids)], make.pictures(1))
    ids = make.text(2) + [PICTURE] + make.text(4) + [PICTURE] + make.text(1)
    make.add("two_pictures", [make.row(ids, *every)], make.pictures(2))
    rows = [make.row(make.text(k) + [PICTURE] + make.text(12 - k), *every) for k in (1, 4, 11)]
    mask = [[True] * 13, [True] * 9 + [False] * 4, [True] * 13]
    make.add("three_conversations", rows, make.pictures(3), attention_mask=mask, position_ids=[list(range(13))] * 3)
    ids = make.text(2) + [PICTURE] + make.text(3) + [REGION] + make.text(2) + [REGION] + make.text(1)
    other = make.text(1) + [PICTURE] + make.text(3) + [REGION] + make.text(len(ids) - 6)
    vectors = [make.book.normal(2, make.width), make.book.normal(1, make.width)]
    make.add("regions_of_two", [make.row(ids, *every), make.row(other, *every)], make.pictures(2), vectors)
    make.add("regions_vanish", [make.row(ids, *every)], make.pictures(1))
    rows = [make.row(make.text(3) + [PICTURE] + make.text(3), *every), make.row(make.text(7), *every)]
    make.add("text_after_picture", rows, make.pictures(1), attention_mask=[[True] * 7] * 2)
    add_defects(make)


def add_defects(make: Maker) -> None:
    """Add what the published code does otherwise than it should."""
    book, table = make.book, make.table
    given = make.pictures(3)
    values = {"in_pixel_values": torch.stack([one[0] for one in given])}
    values["in_seg_pixel_values"] = torch.stack([one[1] for one in given])
    rows = [make.row(make.text(6)), make.row(make.text(2) + [PICTURE] + make.text(3)), make.row(make.text(6))]
    order = [rows[0], rows[1], rows[2]]
    wrong = spliced(order, table, [torch.cat(given[0])])  # the counter of pictures stands at the first one still
    ids = torch.tensor([row["input_ids"] for row in rows])
    tensors = values | {"in_input_ids": ids, "in_attention_mask": torch.ones_like(ids)} | wrong
    book.add(FILE, "words_then_picture", {"order_defect": False}, tensors)
    first = make.row([PICTURE] + make.text(5))
    moved = make.row(first["input_ids"][1:] + [PICTURE])
    out = spliced([moved], table, [torch.cat(given[0])])
    tensors = {"in_input_ids": torch.tensor([first["input_ids"]])} | {name: x[:1] for name, x in values.items()} | out
    del tensors["out_attention_mask"], tensors["out_position_ids"]
    book.add(FILE, "starts_with_picture", {"order_defect": True}, tensors)
    row = torch.tensor([make.text(2) + [PICTURE] + make.text(4)])
    book.add(FILE, "lacks_pictures", {"order_defect": False}, {"in_input_ids": row, "out_input_ids": row})
    alone = {name: x[:1] for name, x in values.items()} | {"in_input_ids": torch.tensor([[PICTURE]])}
    book.add(FILE, "nothing_but_a_picture", {"error": "RuntimeError", "order_defect": False}, alone)
