"""Cases of the pixel decoder, the decoder and the heads."""

from __future__ import annotations

import torch

from tests.parity_xsam.second import plain
from tests.parity_xsam.second.book import Book, numbered
from tests.parity_xsam.second.network import Segmentor

FILE = "mask_decoder"
SURE = 2e-5  # least size of a logit that decides what attention may see


def blocked(masks: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, float]:
    """Tell which places [Q, h * w] a layer may not look at, and the smallest logit that decides it."""
    found = plain.resize(masks, size).flatten(1)
    return found < 0, float(found.abs().min())


class Maker:
    """Cases of one network."""

    def __init__(self, book: Book):
        self.book = book
        self.sizes = {
            "feature_size": 32, "hidden_dim": 32, "mask_feature_size": 32, "num_attention_heads": 4,
            "encoder_feedforward_dim": book.between(20, 60), "encoder_layers": book.between(1, 2),
            "decoder_layers": book.between(3, 5), "dim_feedforward": book.between(20, 60), "dropout": 0.0,
            "common_stride": 4, "feature_strides": [4, 8, 16, 32], "num_queries": book.between(3, 9),
            "num_labels": book.between(2, 7), "pre_norm": False,
        }  # fmt: skip
        self.channels = [4 * book.between(1, 4) for _ in range(3)]
        self.open, self.closed = (Segmentor(book, self.sizes, self.channels, closed) for closed in (False, True))
        self.closed.pixel_decoder, self.closed.decoder = self.open.pixel_decoder, self.open.decoder
        about = self.sizes | {"activation": "relu", "feature_channels": self.channels}
        weights = self.open.weights() | self.closed.weights()
        book.add(FILE, "config", about, {})
        book.add(FILE, "weights", None, weights)

    def maps(self, count: int, size: tuple[int, int]) -> list[torch.Tensor]:
        return [
            self.book.normal(count, width, *(edge // 2**level for edge in size))
            for level, width in enumerate(self.channels)
        ]

    def run(self, maps: list, repeats: list[int], seg: torch.Tensor | None, conds: tuple | None) -> tuple[dict, float]:
        """Run rows one by one: tensors named as recorded, and the margin of the attention masks."""
        segmentor, rows, margin, tensors = self.closed if conds is None else self.open, [], 1.0, {}
        pictures = [segmentor.pixels([one[number : number + 1] for one in maps]) for number in range(len(maps[0]))]
        tensors["pixel_mask_features"] = torch.cat([one[1] for one in pictures])
        tensors |= numbered(
            "pixel_multi_scale", [torch.cat(level) for level in zip(*(p[0] for p in pictures), strict=True)]
        )
        for picture in [one for one, count in zip(pictures, repeats, strict=True) for _ in range(count)]:
            row = len(rows)
            queries, masks = segmentor.row(*picture, None if seg is None else seg[row])
            own = (None, None) if conds is None else (conds[0][row], None if conds[1] is None else conds[1][row])
            hidden = []
            for layer, one in enumerate(masks[:-1]):
                found = blocked(one, tuple(picture[0][layer % 3].shape[-2:]))
                hidden.append(found[0])
                margin = min(margin, found[1])
            rows.append((queries, masks, [segmentor.classes(one, *own) for one in queries], hidden))
        for kind, name in enumerate(("queries", "masks", "classes", "blocked")):
            for layer, several in enumerate(zip(*(row[kind] for row in rows), strict=True)):
                last = layer == len(rows[0][1]) - 1
                key = f"layer_{layer}_{name}"
                if name == "classes":
                    key = "class_logits" if last else f"aux_{layer}_class_logits"
                tensors[key] = torch.stack(several)
        return tensors, margin

    def add(self, name: str, size: tuple[int, int], kinds: int | None, **given: list | bool) -> None:
        """Add a case; `given`: rows of each picture, classes present in each row, whether to scale the masks up."""
        repeats = given.get("repeats", [1])
        margin = 0.0
        while margin < SURE:
            maps, conds, seg = self.maps(len(repeats), size), None, None
            rows = sum(repeats)
            if kinds is not None:
                counts = given.get("present")
                present = None
                if counts:
                    present = torch.tensor(
                        [[place < one or place == kinds for place in range(kinds + 1)] for one in counts]
                    )
                conds, seg = (self.book.normal(rows, kinds + 1, 32), present), self.book.normal(rows, 1, 32, scale=2)
                seg = seg * (not given.get("zero", False))
            found, margin = self.run(maps, repeats, seg, conds)
        tensors = found | numbered("image_embedding", maps)
        about = {"cond_lens": None, "image_embeddings_of": name, "image_size": 3 * max(size) + 1, "margin": margin}
        if kinds is not None:
            tensors |= {"cond_embeddings": conds[0], "seg_embeddings": seg}
            tensors |= {} if conds[1] is None else {"embed_masks": conds[1].float()}
            about["cond_lens"] = repeats if max(repeats) > 1 else None
        if given.get("upsampled"):
            masks = found[f"layer_{self.sizes['decoder_layers'] - 1}_masks"]
            tensors["mask_logits_upsampled"] = plain.resize(masks, (about["image_size"],) * 2)
        self.book.add(FILE, name, about, tensors)


@torch.no_grad()
def add(book: Book) -> None:
    """Add the cases."""
    make = Maker(book)
    make.add("classes_closed", (12, 8), None, repeats=[1, 1, 1])
    make.add("one_row_upsampled", (8, 8), 1, upsampled=True)
    make.add("rows_of_three_pictures", (8, 16), 6, repeats=[2, 1, 3])
    make.add("some_absent", (16, 12), 4, repeats=[1, 1], present=[4, 1])
    make.add("nothing_added", (8, 12), 3, repeats=[1, 1], zero=True)
    for name, scale in (("low", 0.5), ("high", 9.0)):
        queries, conditions = book.normal(3, 4, 18), book.normal(3, 6, 18)
        present = torch.tensor(book.rng.random((3, 6)) < 0.7)
        logit_scale = torch.tensor([scale]).double()
        out = plain.cosines(queries, conditions, present, logit_scale)
        tensors = {"queries": queries, "conditions": conditions, "embed_masks": present.float()}
        book.add(FILE, f"cosine_{name}", {}, tensors | {"logit_scale": logit_scale, "class_logits": out})
