"""Masks out of logits."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from seg2any.segment.xsam import postprocess
from seg2any.segment.xsam.conditions import TOGETHER
from seg2any.segment.xsam.pictures import Frame
from tests.parity_xsam.recorded import Case, close, parameters, same, tensors_of

FILE = "postprocess"
SCORE = 2e-6  # scores are recorded with six digits


def logits_of(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    source = case.about.get("inputs", case.name)
    found = tensors_of(FILE, f"{source}/")
    return found["class_logits"], found["mask_logits"]


def pictures_of(case: Case) -> Iterator[tuple[torch.Tensor, torch.Tensor, Frame, int]]:
    """Yield class logits, mask logits, frame and number of each picture."""
    classes, masks = logits_of(case)
    sizes = zip(case.about["image_sizes"], case.about["scaled_sizes"], strict=True)
    for number, (size, scaled) in enumerate(sizes):
        yield classes[number], masks[number], Frame(tuple(size), tuple(scaled), masks.shape[-1]), number


def resize_case(case: Case) -> None:
    x, about = case.x["input"], case.about
    frame = Frame(tuple(about["image_size"]), tuple(about["scaled_size"]), x.shape[-1])
    if case.name.endswith("bilinear"):
        close(postprocess.fitted(x, frame), case.x["output"])
    else:
        masks = x > 0
        same(postprocess.fitted_masks(masks, frame), case.x["output"] > 0)


def panoptic_case(case: Case) -> None:
    about = case.about
    stuff = about["stuff_contiguous_ids"] or ()
    limits = {
        name: about[key]
        for name, key in (
            ("threshold", "threshold"),
            ("mask_threshold", "mask_threshold"),
            ("overlap", "overlap_mask_area_threshold"),
        )
        if key in about
    }
    for classes, masks, frame, number in pictures_of(case):
        found, segments = postprocess.panoptic(classes, postprocess.fitted(masks, frame), stuff, **limits)
        recorded = about["segments_info"][number]
        compare_segments(segments, recorded, stuff)
        assert published_numbers(segments, stuff) == [one["id"] for one in recorded]
        same(published_map(found, segments, stuff), case.x[f"segmentation_{number}"])


def compare_segments(
    segments: list[postprocess.Segment], recorded: list[dict], stuff: Collection[int], tolerance: float = SCORE
) -> None:
    assert [one.category for one in segments] == [one["category_id"] for one in recorded]
    assert [one.category not in stuff for one in segments] == [one["isthing"] for one in recorded]
    for own, one in zip(segments, recorded, strict=True):
        assert abs(own.score - one["score"]) < tolerance


def published_numbers(segments: list[postprocess.Segment], stuff: Collection[int]) -> list[int]:
    """Number segments as published: after a joined one the count goes on from its number, which others may have."""
    numbers, count, first = [], 0, {}
    for one in segments:
        if one.category in first:
            count = first[one.category]
        else:
            count += 1
            if one.category in stuff:
                first[one.category] = count
        numbers.append(count)
    return numbers


def published_map(found: torch.Tensor, segments: list[postprocess.Segment], stuff: Collection[int]) -> torch.Tensor:
    """Give the segments of a map their published numbers; a joined one is listed several times."""
    theirs = torch.zeros_like(found)
    for own, number in zip(segments, published_numbers(segments, stuff), strict=True):
        theirs[found == own.number] = number
    return theirs


def semantic_case(case: Case) -> None:
    for classes, masks, frame, number in pictures_of(case):
        found, recorded = postprocess.semantic(classes, masks, frame), case.x[f"segmentation_{number}"]
        allowed = 2 if case.about["smallest_gap_between_best_two"][number] < 1e-4 else 0
        assert found.shape == recorded.shape and int((found != recorded).sum()) <= allowed


def instance_case(case: Case) -> None:
    """Compare as sets; the map by painting in the recorded order, which is not defined."""
    name, outside = ("vgd", 255) if case.name.startswith("vgd") else ("instance", -1)
    labels = case.about.get("sampled_labels") or [None] * len(case.about["image_sizes"])
    for classes, masks, frame, number in pictures_of(case):
        found = postprocess.instances(classes, postprocess.fitted(masks, frame), case.about["threshold"])
        recorded = case.about["segments_info"][number]
        named = [labels[number][one] if labels[number] else one for one in found.classes.tolist()]
        order = order_of(found.scores.tolist(), named, recorded)
        assert [named[at] for at in order] == [one["label_id"] for one in recorded]
        assert all(abs(float(found.scores[at]) - one["score"]) < SCORE for at, one in zip(order, recorded, strict=True))
        masks, values = found.masks[order], torch.tensor([one["id"] for one in recorded])
        if f"pred_masks_{number}" in case.x:
            same(masks, case.x[f"pred_masks_{number}"])
        if f"pred_boxes_{number}" in case.x:
            close(postprocess.boxes_of(masks), case.x[f"pred_boxes_{number}"])
        same(postprocess.painted(masks, values, outside), case.x[f"segmentation_{number}"])
        if name == "vgd":
            source = case.about.get("inputs", case.name)
            vprompts = tensors_of(FILE, f"{source}/")[f"input_vprompt_masks_{number}"].bool()
            same(postprocess.fitted_masks(vprompts, frame), case.x[f"vprompt_masks_{number}"])


def order_of(scores: list[float], labels: list[int], recorded: list[dict]) -> list[int]:
    """Find the places of recorded instances, each once: by the score, and by the label where scores are equal."""
    assert len(scores) == len(recorded)
    order: list[int] = []
    for one in recorded:
        off = [abs(score - one["score"]) for score in scores]
        free = set(range(len(scores))) - set(order)
        order.append(min(free, key=lambda at: (off[at] >= SCORE, labels[at] != one["label_id"], off[at])))
    return order


def referring_case(case: Case) -> None:
    for classes, masks, frame, number in pictures_of(case):
        fitted = postprocess.fitted(masks, frame)
        found = postprocess.best_of_class(classes, fitted, case.about.get("mask_threshold", 0.5))
        same(postprocess.painted(found.masks, torch.tensor([1]), 255), case.x[f"segmentation_{number}"])
        assert abs(float(found.scores[0]) - case.about["segments_info"][number]["score"]) < SCORE


def two_phrases_case(case: Case) -> None:
    """Published: fails; here each phrase gets its mask."""
    assert "error" in case.about
    found = postprocess.best_of_class(torch.randn(5, 3), torch.randn(5, 4, 6))
    assert found.masks.shape == (2, 4, 6)


def gcg_case(case: Case) -> None:
    for classes, masks, frame, number in pictures_of(case):
        fitted = postprocess.fitted(masks, frame)
        found = postprocess.best_of_class(classes, fitted, case.about["mask_threshold"])
        values = torch.arange(1, len(found.masks) + 1)
        same(postprocess.painted(found.masks, values, 255), case.x[f"segmentation_{number}"])
        for own, one in zip(found.scores.tolist(), case.about["segments_info"][number], strict=True):
            assert abs(own - one["score"]) < SCORE


def interactive_case(case: Case) -> None:
    for classes, masks, frame, number in pictures_of(case):
        prompt = postprocess.fitted_masks(case.x[f"input_vprompt_masks_{number}"].bool(), frame)
        same(prompt, case.x[f"vprompt_masks_{number}"])
        fitted = postprocess.fitted(masks, frame)
        found = postprocess.nearest_to(prompt[0], classes, fitted, case.about["threshold"])
        same(postprocess.painted(found.masks, torch.tensor([1]), 255), case.x[f"segmentation_{number}"])
        assert abs(float(found.scores[0]) - case.about["segments_info"][number]["score"]) < SCORE


def run_lengths_case(case: Case) -> None:
    """Published: run lengths by default, one list for each value of the map; masks are given here, so count them."""
    name = case.about["inputs"]
    source = Case(FILE, name, parameters()[FILE][name])
    for classes, masks, frame, number in pictures_of(source):
        found = postprocess.instances(classes, postprocess.fitted(masks, frame), source.about["threshold"])
        order = order_of(found.scores.tolist(), found.classes.tolist(), source.about["segments_info"][number])
        painted = postprocess.painted(found.masks[order], torch.arange(len(order)), -1)
        count = case.about["number"][number]
        assert len(painted.unique()) == len(source.x[f"segmentation_{number}"].unique()) == count


def name_case(case: Case) -> None:
    """Published: refuses a task that its own configuration names; here it is a task like the others."""
    assert "not supported" in case.about["error"]
    assert "genseg" in TOGETHER


CHECKS = {
    "resize_": resize_case,
    "panoptic_": panoptic_case,
    "semantic": semantic_case,
    "instance_rle": run_lengths_case,
    "instance": instance_case,
    "vgd": instance_case,
    "referring_two_phrases": two_phrases_case,
    "referring": referring_case,
    "reasoning": referring_case,
    "gcg": gcg_case,
    "interactive": interactive_case,
    "task_name_genseg": name_case,
}
