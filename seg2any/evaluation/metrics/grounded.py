"""Measure grounded captions: phrases with masks, paired with the wanted ones, and the caption without its marks."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

LEAST_IOU, LEAST_SIMILARITY = 0.5, 0.5  # of a phrase that counts as found
SEG = "<SEG>"
MARKS = re.compile(r"<[^<>]*>")
Pair = tuple[int, int]  # numbers of a wanted and of a found mask
# What happens to the best remaining pair whose texts are unlike: the next one is tried, or none, as published.
FORMS: dict[str, Callable[[Callable[[Pair], bool], Iterable[Pair]], Iterator[Pair]]] = {
    "every": filter,
    "published": itertools.takewhile,
}


def overlaps(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Compute the IoU of every pair of masks bool [N, H, W] and [M, H, W]: float64 [N, M], 0 for two empty ones."""
    a, b = (masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(float) for masks in (wanted, found))
    both = a @ b.T
    return both / np.maximum(a.sum(1)[:, None] + b.sum(1) - both, 1)


def greedy_pairs(iou: np.ndarray) -> list[Pair]:
    """Pair rows and columns of iou [N, M] one to one, the largest above 0 first."""
    return list(_one_to_one(pair for pair in _by_overlap(iou) if iou[pair] > 0))


def grounded_iou(wanted: np.ndarray, found: np.ndarray) -> float:
    """Average the IoU over the greedy pairs of masks; masks without a partner do not count, and 0 without any pair."""
    iou = overlaps(wanted, found)
    pairs = greedy_pairs(iou)
    return float(np.mean([iou[pair] for pair in pairs])) if pairs else 0.0


def found_phrases(iou: np.ndarray, similarity: np.ndarray, form: str = "every") -> list[Pair]:
    """Pair wanted and found phrases whose masks and whose texts are alike, the largest overlap first.

    iou, similarity  [N, M]
    form             a key of FORMS
    """

    def alike(pair: Pair) -> bool:
        return iou[pair] >= LEAST_IOU and similarity[pair] >= LEAST_SIMILARITY

    pairs, taken_rows, taken_columns = [], set(), set()
    free = (p for p in _by_overlap(iou) if p[0] not in taken_rows and p[1] not in taken_columns)
    for pair in FORMS[form](alike, free):
        pairs.append(pair)
        taken_rows.add(pair[0])
        taken_columns.add(pair[1])
    return pairs


def caption_of(answer: str) -> str:
    """Cut the sentences that hold <SEG> out of an answer, and its marks; "" without a <SEG>, as published."""
    if SEG not in answer:
        return ""
    sentences = answer.split(".")[:-1]  # what follows the last full stop is none
    return " ".join(MARKS.sub("", "".join(f"{one}." for one in sentences if SEG not in one)).split())


def _by_overlap(iou: np.ndarray) -> Iterator[Pair]:
    """Yield the places of iou [N, M], the largest first."""
    for place in np.argsort(-iou, axis=None, kind="stable"):
        yield divmod(int(place), iou.shape[1])


def _one_to_one(pairs: Iterable[Pair]) -> Iterator[Pair]:
    rows, columns = set(), set()
    for row, column in pairs:
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            yield row, column
