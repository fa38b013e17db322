"""Cases of the metrics, counted pixel by pixel."""

from __future__ import annotations

import numpy as np

from tests.parity_xsam.second import panoptic_quality
from tests.parity_xsam.second.average_precision import NAMES, statistics
from tests.parity_xsam.second.book import Book, numbered

FILE = "metrics"


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 0.0


def table(wanted: list, found: list) -> list[list[float]]:
    return [[overlap(one, other) for other in found] for one in wanted]


def by_overlap(iou: list[list[float]]) -> list[tuple[int, int]]:
    """Pair rows and columns one to one, the largest above 0 first."""
    left = [(value, row, column) for row, values in enumerate(iou) for column, value in enumerate(values) if value > 0]
    pairs = []
    while left:
        _, row, column = max(left, key=lambda one: one[0])
        pairs.append((row, column))
        left = [one for one in left if one[1] != row and one[2] != column]
    return pairs


def mean_overlap(iou: list[list[float]]) -> float:
    pairs = by_overlap(iou)
    return float(np.mean([iou[row][column] for row, column in pairs])) if pairs else 0.0


def moved(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.roll(mask, (rows, columns), (0, 1))


def add_phrases(book: Book, height: int, width: int) -> None:
    """Add IoU of referring and of reasoning, the latter with pixels to ignore."""
    for name, ignores in (("referring_iou", False), ("reasoning_iou_with_ignore", True)):
        targets = [book.blob(height, width) for _ in range(4)] + [np.zeros((height, width), bool)] * 2
        found = [moved(one, book.between(0, 3), 1) for one in targets[:3]] + [np.zeros((height, width), bool)] * 2
        found.append(book.blob(height, width))
        ignored = [book.blob(height, width) & ignores for _ in targets]
        samples, sums, means = [], np.zeros((2, 2)), np.zeros(2)
        for truth, answer, free in zip(targets, found, ignored, strict=True):
            inside = [
                [int((a & b & ~free).sum()) for a, b in ((~truth, ~answer), (truth, answer))],
                [int(((a | b) & ~free).sum()) for a, b in ((~truth, ~answer), (truth, answer))],
            ]
            samples.append({"intersection": inside[0], "union": inside[1]})
            sums += inside
            means += [a / b if b else 1.0 for a, b in zip(*inside, strict=True)]
        about = {"per_sample": samples, "cIoU_percent": (100 * sums[0] / sums[1]).tolist()}
        about["gIoU_percent"] = (100 * means / len(targets)).tolist()
        marked = [np.where(free, 255, one) for one, free in zip(targets, ignored, strict=True)]
        answers = [np.where(free, 255, one) for one, free in zip(found, ignored, strict=True)]
        tensors = numbered("target", [one.astype(np.uint8) for one in marked])
        tensors |= numbered("pred", [one.astype(np.uint8) for one in answers])
        book.add(FILE, name, about, tensors | (numbered("ignore", ignored) if ignores else {}))


def add_grounded(book: Book, height: int, width: int) -> None:
    wanted = [book.blob(height, width) for _ in range(3)]
    found = [moved(wanted[2], 1, 0), book.blob(height, width), moved(wanted[0], 0, 2), book.blob(height, width)]
    iou = table(found, wanted)
    about = {"iou_matrix": iou, "miou": mean_overlap(iou), "miou_no_predictions": 0.0}
    about["miou_one_prediction"] = mean_overlap(iou[:1])
    book.add(FILE, "gcg_miou", about, numbered("gt", wanted) | numbered("pred", found))
    # apart from each other and of falling overlap: a column more and more of each is cut
    wanted, found = [np.zeros((height, width), bool) for _ in range(4)], []
    for place, mask in enumerate(wanted):
        mask[1 + 5 * place : 5 + 5 * place, 1:13] = True
        found.append(mask.copy())
        found[-1][:, : 2 + (place * 3) % 4] = False
    found = [found[place] for place in (2, 0, 3, 1)]
    iou = table(wanted, found)
    every = by_overlap(iou)
    about = {"iou": iou, "matches_gt_pred": {"all_similar": every}}
    about["matches_gt_pred"] |= {"best_pair_dissimilar": [], "third_pair_dissimilar": every[:2]}
    book.add(FILE, "gcg_recall", about, numbered("gt", wanted) | numbered("pred", found))
    labels = np.full((height, width), 255)
    for number, mask in enumerate(wanted, 1):
        labels[mask & (np.arange(width) < 3 * number + 1)] = number
    areas = sorted(((labels == number).sum() for number in range(1, 5)), reverse=True)
    tensors = {"segmentation": labels}
    book.add(FILE, "gcg_mask_order", {"areas_in_order": [int(one) for one in areas]}, tensors)
    book.add(FILE, "instance_rle", {"of": "gcg_mask_order/segmentation", "value": runs(labels)}, {})
    texts = (
        ("<p> two cats</p>  sleep. Nobody is here. Sure, <SEG>.<|end|>", "two cats sleep. Nobody is here."),
        ("A <p>red bus</p> passes. And <SEG>.", "A red bus passes."),
        ("A <p>red bus</p> passes And <SEG>.", ""),
        ("Nothing to see.", ""),
    )
    results = [{"text": text, "caption": caption} for text, caption in texts]
    book.add(FILE, "gcg_caption", {"results": results}, {})


def runs(labels: np.ndarray) -> list[list[int]]:
    """List of each value the starts, from 1 and row by row, and the lengths of its runs."""
    flat, found = labels.flatten().tolist(), []
    for value in sorted(set(flat)):
        found.append([])
        for place, one in enumerate(flat):
            if one == value and (not place or flat[place - 1] != value):
                found[-1] += [place + 1, 0]
            if one == value:
                found[-1][-1] += 1
    return found


def add_average_precision(book: Book) -> None:
    """Add average precision of masks of all sizes, more than ten in a picture."""
    pictures, tensors = {}, {}
    for picture, (count, more) in enumerate(((12, 2), (0, 1), (3, 0), (2, 3))):
        wanted = [book.blob(60, 170) for _ in range(count)]
        found = [moved(one, book.between(0, 6), book.between(0, 2)) for one in wanted[: count - 1]]
        found += [book.blob(60, 170) for _ in range(more)]
        pictures[picture] = wanted, found
        tensors |= numbered(f"gt_{picture}", wanted) | numbered(f"pred_{picture}", found)
    book.add(FILE, "gcg_ap", {"names": list(NAMES), "stats": statistics(list(pictures.values()))}, tensors)


def add_semantic(book: Book, height: int, width: int) -> None:
    kinds, ignored = book.between(5, 7), book.between(200, 254)
    wanted, found = np.zeros((2, height, width), int)
    for kind in range(1, kinds - 1):  # the last one is never wanted
        wanted[book.blob(height, width)] = kind
    found[:] = np.where(book.rng.random((height, width)) < 0.7, wanted, book.rng.integers(0, kinds, (height, width)))
    wanted[book.blob(height, width)] = ignored
    seen = wanted != ignored
    present = [kind for kind in range(kinds) if (wanted == kind).any()]
    truth = {kind: (wanted == kind).sum() for kind in present}
    both = {kind: ((wanted == kind) & (found == kind)).sum() for kind in present}
    iou = {kind: both[kind] / (((wanted == kind) | (found == kind)) & seen).sum() for kind in present}
    accuracy = {kind: both[kind] / truth[kind] for kind in present}
    values = {
        "mIoU": np.mean(list(iou.values())),
        "fwIoU": sum(truth[kind] * iou[kind] for kind in present) / seen.sum(),
        "mACC": np.mean(list(accuracy.values())),
        "pACC": sum(both.values()) / seen.sum(),
    }
    for kind in range(kinds):
        values |= {f"IoU-{kind}": iou.get(kind, np.nan), f"ACC-{kind}": accuracy.get(kind, np.nan)}
    about = {"num_classes": kinds, "table_percent": [[name, f"{100 * x:.2f}"] for name, x in values.items()]}
    book.add(FILE, "semantic_miou", about, {"pred": found, f"target_ignore_is_{ignored}": wanted})


def add(book: Book) -> None:
    """Add the cases."""
    height, width = book.between(22, 30), book.between(15, 40)
    add_phrases(book, height, width)
    add_grounded(book, height, width)
    add_average_precision(book)
    add_semantic(book, height, width)
    panoptic_quality.add(book, height, width)
    error = "ModuleNotFoundError: No module named 'evaluator'"
    book.add(FILE, "evaluators_package", {"import_error": error}, {})
