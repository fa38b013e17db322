"""Average precision as COCO's, of masks that all have the score 1, written out."""

from __future__ import annotations

import numpy as np

SIZES = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
         "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")  # fmt: skip
LIMITS = [0.5 + 0.05 * step for step in range(10)]
Picture = tuple[list[np.ndarray], list[np.ndarray]]  # wanted and found masks


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def verdicts(picture: Picture, limit: float, sizes: tuple[float, float], most: int) -> tuple[list[bool | None], int]:
    """Tell of each found mask whether it is right, None where it does not count, and how many are wanted."""
    wanted, found = picture
    inside = [sizes[0] <= one.sum() <= sizes[1] for one in wanted]
    order = sorted(range(len(wanted)), key=lambda place: not inside[place])
    taken, told = set(), []
    for mask in found[:most]:
        best, chosen = min(limit, 1 - 1e-10), None
        for place in order:
            if place in taken:
                continue
            if chosen is not None and inside[chosen] and not inside[place]:
                break
            value = overlap(mask, wanted[place])
            if value >= best:
                best, chosen = value, place
        if chosen is not None:
            taken.add(chosen)
            told.append(True if inside[chosen] else None)
        else:
            told.append(False if sizes[0] <= mask.sum() <= sizes[1] else None)
    return told, sum(inside)


def curve(pictures: list[Picture], limit: float, sizes: tuple[float, float], most: int) -> tuple[float, float]:
    """Return the precision, a mean over 101 recalls, and the recall; -1 where nothing is wanted."""
    told, wanted = [], 0
    for picture in pictures:
        own, count = verdicts(picture, limit, sizes, most)
        told += [one for one in own if one is not None]
        wanted += count
    if not wanted:
        return -1.0, -1.0
    right = np.cumsum([one is True for one in told])
    precision = [float(max(right[place:] / np.arange(place + 1, len(told) + 1))) for place in range(len(told))]
    reached = right / wanted
    values = []
    for step in range(101):
        places = [place for place, one in enumerate(reached) if one >= step / 100]
        values.append(precision[places[0]] if places else 0.0)
    return float(np.mean(values)), float(reached[-1]) if len(reached) else 0.0


def statistics(pictures: list[Picture]) -> list[float]:
    """Return the numbers of NAMES."""

    def mean(which: int, size: str = "", most: int = 100, limits: list[float] = LIMITS) -> float:
        return float(np.mean([curve(pictures, limit, SIZES[size], most)[which] for limit in limits]))

    precision = [mean(0), mean(0, limits=[0.5]), mean(0, limits=[0.75]), *(mean(0, size) for size in list(SIZES)[1:])]
    return precision + [mean(1, most=most) for most in (1, 10, 100)] + [mean(1, size) for size in list(SIZES)[1:]]
