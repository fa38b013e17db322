"""A case of panoptic quality, counted segment by segment."""

from __future__ import annotations

import numpy as np

from tests.parity_xsam.second.book import Book, numbered

CATEGORIES = {7: ("road", 0), 20: ("cat", 1), 21: ("grass", 0), 300: ("bus", 1)}


def scene(book: Book, height: int, width: int, number: int) -> tuple:
    """Draw a truth and an answer: maps and lists of segments, one of the truth a crowd."""
    truth, answer = np.zeros((2, height, width), int)
    wanted, found = [], []
    for place, category in enumerate((7, 20, 300, 21, 20)):
        one, own = 900 * number + 40 * place + 5, place + 1
        mask = book.blob(height, width)
        truth[mask] = one
        answer[np.roll(mask, place % 3, 1)] = own
        crowd = int(place == 4 and number == 0)
        wanted.append({"id": one, "category_id": category, "iscrowd": crowd})
        found.append({"id": own, "category_id": 300 if place == 3 else category})
    truth[: height // 8] = 0  # void
    answer[height // 2 :, : width // 6] = 6
    found.append({"id": 6, "category_id": 20})
    wanted = [one | {"area": int((truth == one["id"]).sum())} for one in wanted if (truth == one["id"]).any()]
    found = [one for one in found if (answer == one["id"]).any()]
    return truth, answer, wanted, found


def count(truth: np.ndarray, answer: np.ndarray, wanted: list, found: list, sums: dict) -> None:
    """Add the segments of a picture to tp, fp, fn and iou of their categories."""
    hit_wanted, hit_found = set(), set()
    for one in wanted:
        for other in found:
            if one["iscrowd"] or one["category_id"] != other["category_id"]:
                continue
            a, b = truth == one["id"], answer == other["id"]
            both = (a & b).sum()
            union = (a | b).sum() - (b & (truth == 0)).sum()
            if both / union > 0.5:
                sums[one["category_id"]]["tp"] += 1
                sums[one["category_id"]]["iou"] += float(both / union)
                hit_wanted.add(one["id"])
                hit_found.add(other["id"])
    for one in wanted:
        if not one["iscrowd"] and one["id"] not in hit_wanted:
            sums[one["category_id"]]["fn"] += 1
    for other in found:
        own = answer == other["id"]
        crowds = [one["id"] for one in wanted if one["iscrowd"] and one["category_id"] == other["category_id"]]
        free = (own & np.isin(truth, [0, *crowds])).sum() / own.sum()
        if other["id"] not in hit_found and free <= 0.5:
            sums[other["category_id"]]["fp"] += 1


def quality(sums: list[dict]) -> dict:
    """Average over categories that occur."""
    rows = []
    for one in sums:
        whole = one["tp"] + (one["fp"] + one["fn"]) / 2
        if whole:
            rows.append((one["iou"] / whole, one["iou"] / max(one["tp"], 1), one["tp"] / whole))
    pq, sq, rq = (float(x) for x in np.mean(rows, 0))
    return {"n": len(rows), "pq": pq, "sq": sq, "rq": rq}


def add(book: Book, height: int, width: int) -> None:
    """Add the case."""
    sums = {category: {"tp": 0, "fp": 0, "fn": 0, "iou": 0.0} for category in CATEGORIES}
    truths, answers, segments = [], [], []
    for number in range(3):
        truth, answer, wanted, found = scene(book, height, width, number)
        count(truth, answer, wanted, found, sums)
        truths.append(truth)
        answers.append(answer)
        segments.append([{"image_id": number, "segments_info": side} for side in (wanted, found)])
    named = {str(n): {"id": n, "name": name, "isthing": thing} for n, (name, thing) in CATEGORIES.items()}
    things = [one for number, one in sums.items() if CATEGORIES[number][1]]
    stuff = [one for number, one in sums.items() if not CATEGORIES[number][1]]
    result = {"All": quality(list(sums.values())), "Things": quality(things), "Stuff": quality(stuff)}
    about = {"categories": named, "segments": segments, "result": result}
    about["per_category"] = {str(number): one for number, one in sums.items()}
    book.add("metrics", "pq", about, numbered("gt", truths) | numbered("pred", answers))
