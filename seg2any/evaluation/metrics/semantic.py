"""Closed-set mIoU: the classes that a label judge sees, compared with the wanted ones.

Protocol of mmsegmentation as published: one confusion matrix over all images of all groups, IoU per class, mean over
the classes that occur in either; pixels labelled IGNORED do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from seg2any.evaluation.judges.label_map import LabelJudge
from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.result import GENERATED, Result, pooled
from seg2any.system.errors import UserError

IGNORED = 255
NAME = "mIoU"


def confusion(wanted: np.ndarray, seen: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by wanted (row) and seen class (column) of two label maps, int64 [K, K + 1].

    The last column is for pixels in which the judge sees no class. Both maps have one shape. Raises ValueError for a
    class outside 0..K-1 that is not IGNORED.
    """
    counted = wanted != IGNORED
    pairs = wanted[counted].astype(np.int64) * (classes + 1) + seen[counted]
    if counted.any() and (wanted[counted].max() >= classes or not 0 <= seen.min() <= seen.max() <= classes):
        raise ValueError(f"the labels hold a class outside 0..{classes - 1}")
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def semantic_iou(
    items: Iterable[Item], judge: LabelJudge, names: Sequence[str], source: str = GENERATED, name: str = NAME
) -> Result:
    """Measure the mIoU of items with labels; `extra` holds a table per class and accuracies.

    `names` are the classes in order, `name` is that of the number. Raises UserError for items without labels, labels of
    another size than the image, or another number of classes than the judge's.
    """
    if judge.classes != len(names):
        raise UserError(
            f"{name}: the judge knows {judge.classes} classes, the data set {len(names)}; use a judge of the data set"
        )
    of_sample: dict[str, np.ndarray] = {}
    for item in items:
        matrix = _confusion_of(item, judge, len(names))
        of_sample[item.key] = of_sample.get(item.key, 0) + matrix
    return pooled_confusions(name, of_sample, names, source)


def pooled_confusions(
    name: str, of_sample: Mapping[str, np.ndarray], names: Sequence[str], source: str = GENERATED
) -> Result:
    """Compute the mIoU of all samples together, from the `confusion` of each; `extra` as in `semantic_iou`."""
    parts = {key: _parts(matrix, names) for key, matrix in of_sample.items()}
    result = pooled(name, parts, source=source)
    return replace(result, extra=_table(sum(of_sample.values()), names))


def _confusion_of(item: Item, judge: LabelJudge, classes: int) -> np.ndarray:
    if item.labels is None or item.labels.shape != item.image.shape[:2]:
        height, width = item.image.shape[:2]
        found = "none" if item.labels is None else "x".join(map(str, item.labels.shape[::-1]))
        raise UserError(f"mIoU: sample {item.key!r}: labels are {found}, the image is {width}x{height}; convert them")
    try:
        return confusion(item.labels, judge.labels(item.image), classes)
    except ValueError as error:
        raise UserError(f"mIoU: sample {item.key!r}: {error}; convert the labels") from None


def _parts(matrix: np.ndarray, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    hits, unions = _hits_and_unions(matrix)
    # Two classes of COCO-Stuff may have one name, so the index is part of it.
    return {f"{index} {names[index]}": (float(hits[index]), float(unions[index])) for index in np.flatnonzero(unions)}


def _hits_and_unions(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hits = matrix.diagonal()
    return hits, matrix[:, : len(matrix)].sum(0) + matrix.sum(1) - hits


def _table(matrix: np.ndarray, names: Sequence[str]) -> dict:
    hits, unions = _hits_and_unions(matrix)
    wanted = matrix.sum(1)
    present = np.flatnonzero(unions)
    per_class = [
        {
            "class": int(index),
            "name": names[index],
            "iou": float(hits[index] / unions[index]),
            "pixels": int(wanted[index]),
        }
        for index in present
    ]
    recalls = hits[wanted > 0] / wanted[wanted > 0]
    return {
        "per_class": per_class,
        "pixel_accuracy": float(hits.sum() / matrix.sum()),
        "mean_accuracy": float(recalls.mean()),
        "classes_seen": len(per_class),
    }


def wanted_classes_table(matrix: np.ndarray) -> dict[str, float | list[float]]:
    """Compute mIoU, fwIoU, mACC and pACC, in 0..1, of a confusion matrix, as detectron2 does.

    Unlike `semantic_iou`, a class that is seen but wanted nowhere does not count: its IoU and ACC are nan.
    """
    hits, unions = _hits_and_unions(matrix)
    wanted, present = matrix.sum(1), matrix.sum(1) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, accuracy = (np.where(present, hits / divisor, np.nan) for divisor in (unions, wanted))
    return {
        "mIoU": float(iou[present].mean()),
        "fwIoU": float((iou[present] * wanted[present]).sum() / wanted.sum()),
        "mACC": float(accuracy[present].mean()),
        "pACC": float(hits.sum() / wanted.sum()),
        "IoU": iou.tolist(),
        "ACC": accuracy.tolist(),
    }
