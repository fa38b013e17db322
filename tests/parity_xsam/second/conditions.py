"""Cases of what the segmentor is given: means over spans, rows of conditions, and the masks that regions show."""

from __future__ import annotations

import torch

from tests.parity_xsam.second.book import Book, numbered

FILE = "condition_embeddings"
ALONE = ("refseg", "reaseg")


def means(states: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """Average states [L, D] over the places of each number that occurs, in ascending order: [N, D]."""
    rows = []
    for number in sorted(set(numbers) - {-1}):
        own = [states[place] for place, one in enumerate(numbers) if one == number]
        rows.append(sum(own) / len(own))
    return torch.stack(rows) if rows else states[:0]


def rows_of(task: str, phrases: list, segs: list, background: torch.Tensor) -> dict:
    """Make the rows of conditions, named as recorded; `local_cond_lens` is None unless phrases stand alone."""
    if task in ALONE:
        every = torch.cat([*phrases, background])
        seg = torch.cat(segs)
        return {
            "conditions_with_background": torch.stack([every] * len(seg)),
            "seg_embeds": torch.stack([one[None] for one in seg]),
            "local_cond_lens": [len(own) for own in phrases],
        }
    longest, rows, masks = max(len(own) for own in phrases), [], []
    for own in phrases:
        free = longest - len(own)
        rows.append(torch.cat([own, *[background - 1e9] * free, background]))
        masks.append([True] * len(own) + [False] * free + [True])
    return {
        "conditions_with_background": torch.stack(rows),
        "seg_embeds": torch.stack(segs),
        "embed_masks": torch.tensor(masks),
        "local_cond_lens": None,
    }


def add_processes(book: Book) -> None:
    width = book.between(6, 50)
    background = book.normal(1, width)
    book.add(FILE, "bg_embeds", None, {"": background})
    for name, task, counts in (
        ("genseg_of_three", "genseg", (2, 5, 1)),
        ("ovseg", "ovseg", (4,)),
        ("gcgseg", "gcgseg", (3, 3)),
        ("intseg", "intseg", (1, 1)),
        ("refseg_of_three", "refseg", (1, 4, 2)),
        ("reaseg", "reaseg", (2,)),
    ):
        phrases = [book.normal(count, width) for count in counts]
        segs = [book.normal(count if task in ALONE else 1, width) for count in counts]
        made = rows_of(task, phrases, segs, background)
        about = {"task": task, "local_cond_lens": made.pop("local_cond_lens")}
        book.add(FILE, f"process_{name}", about, numbered("in_cond", phrases) | numbered("in_seg", segs) | made)


def add_pools(book: Book) -> None:
    ids = torch.tensor([[-1, 5, 5, -1, 2, 0, 5], [-1] * 7, [3, 3, 3, 3, 3, 3, 3], [-1, -1, 9, -1, 0, 9, -1]])
    embeds = book.normal(4, 7, book.between(2, 30))
    out = [means(own, one.tolist()) for own, one in zip(embeds, ids, strict=True) if (one >= 0).any()]
    about = {"returned": len(out)}
    book.add(FILE, "pool_of_four", about, {"embeds": embeds, "ids": ids} | numbered("out", out))
    book.add(FILE, "pool_of_none", {"returned": None}, {})


def add_assignments(book: Book) -> None:
    """Add draws of masks for regions: of the same category in any picture, else of one that the picture lacks."""
    for name, wanted, present in (
        ("three_pictures", [[4, 0], [0], [2, 4, 0]], [[0, 4], [0, 0, 2], [2, 4, 2]]),
        ("lacking_everywhere", [[7], [1, 3]], [[1, 3], [3, 5, 1]]),
        ("all_taken", [[6, 6, 6]], [[6, 6]]),
    ):
        taken, choices, sources = set(), [], []
        masks = [(picture, number) for picture, own in enumerate(present) for number in range(len(own))]
        for picture, own in enumerate(wanted):
            sources.append([])
            for category in own:
                found = [one for one in masks if present[one[0]][one[1]] == category and one not in taken]
                same = bool(found)
                found = found or [one for one in masks if present[one[0]][one[1]] not in present[picture]]
                if found:
                    choices.append(book.between(0, len(found) - 1))
                    chosen = found[choices[-1]]
                    taken |= {chosen} if same else set()
                sources[-1].append([list(chosen)] if found else [])
        feats = [book.normal(len(own), 5) for own in present]
        out = [
            torch.stack([feats[one[0][0]][one[0][1]] if one else torch.zeros(5).double() for one in own])
            for own in sources
        ]
        about = {
            "wanted_converted": wanted,
            "class_labels_converted": present,
            "choices": choices,
            "source_image_and_mask": sources,
        }
        tensors = numbered("in_feats", feats) | numbered("out_feats", out)
        book.add(FILE, f"region_assignment_{name}", about, tensors)


def add(book: Book) -> None:
    """Add the cases that need no network."""
    add_processes(book)
    add_pools(book)
    add_assignments(book)
