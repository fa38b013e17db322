"""Check recorded metrics of X-SAM's evaluation."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import pytest
import torch

from seg2any.evaluation import words
from seg2any.evaluation.metrics.average_precision import Answers, average_precision
from seg2any.evaluation.metrics.grounded import caption_of, found_phrases, grounded_iou, overlaps
from seg2any.evaluation.metrics.panoptic import PanopticQuality, Segments, qualities
from seg2any.evaluation.metrics.referring import FoundPhrase, cumulative_iou, generalized_iou
from seg2any.evaluation.metrics.semantic import IGNORED, confusion, wanted_classes_table
from seg2any.layout.rle import encode_rle
from seg2any.segment.xsam.postprocess import best_of_class
from tests.parity_xsam.recorded import Case

FILE = "metrics"


def masks(case: Case, name: str) -> np.ndarray:
    """Stack the masks NAME_0, NAME_1 and so on: bool [N, H, W]."""
    return np.stack([one.numpy() > 0 for one in case.numbered(name)])


def referring_case(case: Case) -> None:
    x, about = case.x, case.about
    count = len(about["per_sample"])
    ignored = masks(case, "ignore") if "ignore_0" in x else [None] * count
    phrases = [
        FoundPhrase(str(i), x[f"target_{i}"].numpy() == 1, x[f"pred_{i}"].numpy() == 1, ignored[i])
        for i in range(count)
    ]
    for rows, which in ((1, phrases), (0, [phrase.outside() for phrase in phrases])):
        recorded = [(one["intersection"][rows], one["union"][rows]) for one in about["per_sample"]]
        assert [phrase.counts() for phrase in which] == recorded
        assert 100 * cumulative_iou("cIoU", which).value == pytest.approx(about["cIoU_percent"][rows], rel=1e-6)
        assert 100 * generalized_iou("gIoU", which).value == pytest.approx(about["gIoU_percent"][rows], rel=1e-6)


def gcg_iou_case(case: Case) -> None:
    about = case.about
    wanted, found = masks(case, "gt"), masks(case, "pred")
    assert np.allclose(overlaps(found, wanted), about["iou_matrix"], atol=1e-9)
    assert grounded_iou(wanted, found) == pytest.approx(about["miou"], abs=1e-9)
    assert grounded_iou(wanted, found[:0]) == about["miou_no_predictions"]
    assert grounded_iou(wanted, found[:1]) == pytest.approx(about["miou_one_prediction"], abs=1e-9)


def gcg_recall_case(case: Case) -> None:
    about = case.about
    iou = overlaps(masks(case, "gt"), masks(case, "pred"))
    assert np.allclose(iou, about["iou"], atol=1e-9)
    matches = {name: [tuple(pair) for pair in pairs] for name, pairs in about["matches_gt_pred"].items()}
    for name, recorded in matches.items():
        similarity = np.full(iou.shape, 0.9)
        for unlike in matches["all_similar"][len(recorded) :][:1]:  # it ended the pairing
            similarity[unlike] = 0.1
        found = found_phrases(iou, similarity, "published")
        assert found == recorded, (name, found, recorded)


def gcg_order_case(case: Case) -> None:
    """Published: masks are listed by falling area, phrases as they are said; here masks keep the phrases' order."""
    labels, about = case.x["segmentation"], case.about
    wanted = torch.stack([labels == number for number in labels.unique() if number != IGNORED])
    classes = torch.eye(len(wanted), len(wanted) + 1) * 9  # query k is sure of phrase k
    found = best_of_class(classes, torch.where(wanted, 9.0, -9.0)).masks
    assert torch.equal(found, wanted)
    areas = sorted(found.sum((1, 2)).tolist(), reverse=True)
    assert areas[: len(about["areas_in_order"])] == about["areas_in_order"] or areas == about["areas_in_order"]


def gcg_ap_case(case: Case) -> None:
    x, about = case.x, case.about
    ids = sorted({key.split("_")[1] for key in x}, key=int)

    def of(kind, image):
        found = [one.numpy() > 0 for one in case.numbered(f"{kind}_{image}")]
        return np.stack(found) if found else np.zeros((0, *next(iter(x.values())).shape), bool)

    images = {i: Answers(of("gt", i), of("pred", i), np.ones(len(of("pred", i)))) for i in ids}
    found = average_precision(images)
    assert list(found) == about["names"]
    assert np.allclose(list(found.values()), about["stats"], atol=1e-6)


def pq_case(case: Case) -> None:
    x, about = case.x, case.about
    names = {number: one["name"] for number, one in about["categories"].items()}
    quality = PanopticQuality()
    for i, (truth, answer) in enumerate(about["segments"]):
        of = [{one["id"]: names[str(one["category_id"])] for one in side["segments_info"]} for side in (answer, truth)]
        crowds = frozenset(one["id"] for one in truth["segments_info"] if one["iscrowd"])
        found, wanted = (x[f"{kind}_{i}"].numpy() for kind in ("pred", "gt"))
        quality.add(str(i), Segments(found, of[0]), Segments(wanted, of[1], crowds))
    result, counted = quality.result("PQ"), quality.per_class()
    for number, recorded in about["per_category"].items():
        one = counted[names[number]]
        assert (one.found, one.wrong, one.missed) == (recorded["tp"], recorded["fp"], recorded["fn"])
        assert one.iou == pytest.approx(recorded["iou"], abs=1e-9)
    things = {one["name"] for one in about["categories"].values() if one["isthing"]}
    groups = {"All": set(counted), "Things": things & set(counted), "Stuff": set(counted) - things}
    for name, classes in groups.items():
        found, recorded = qualities([counted[one] for one in classes]), about["result"][name]
        assert all(found[key] == pytest.approx(recorded[key], abs=1e-9) for key in ("pq", "sq", "rq"))
        assert len(classes) == recorded["n"]
    assert result.value == pytest.approx(about["result"]["All"]["pq"], abs=1e-9)
    assert result.extra["sq"] == pytest.approx(about["result"]["All"]["sq"], abs=1e-9)


def semantic_case(case: Case) -> None:
    x, about = case.x, case.about
    (key,) = (name for name in x if name.startswith("target_ignore_is_"))
    wanted = x[key].numpy().copy()
    wanted[wanted == int(key.rpartition("_")[2])] = IGNORED
    found = wanted_classes_table(confusion(wanted, x["pred"].numpy(), about["num_classes"]))
    for name, text in about["table_percent"]:
        kind, _, number = name.partition("-")
        value = found[kind][int(number)] if number else found[kind]
        assert f"{100 * value:.2f}" == text, name


def caption_case(case: Case) -> None:
    for one in case.about["results"]:
        assert caption_of(one["text"]) == one["caption"], one["text"]


def runs_case(case: Case) -> None:
    """Runs of each label in turn, row by row: starts from 1 and lengths alternate, as published results store them."""
    name, _, tensor = case.about["of"].partition("/")
    labels, recorded = Case(FILE, name, {}).x[tensor].numpy(), []
    for one in np.unique(labels):
        runs = encode_rle((labels == one).T)["counts"]
        starts = np.cumsum(runs)[::2][: len(runs[1::2])] + 1
        recorded.append(np.stack([starts, runs[1::2]], 1).ravel().tolist())
    assert recorded == case.about["value"]


def import_case(case: Case) -> None:
    """Published: a module of the evaluation is missing; here all can be imported."""
    assert case.about["import_error"].startswith("ModuleNotFoundError")
    for found in pkgutil.iter_modules(words.__path__):
        importlib.import_module(f"{words.__name__}.{found.name}")


CHECKS = {
    "referring_iou": referring_case,
    "reasoning_iou_with_ignore": referring_case,
    "gcg_miou": gcg_iou_case,
    "gcg_recall": gcg_recall_case,
    "gcg_mask_order": gcg_order_case,
    "gcg_ap": gcg_ap_case,
    "gcg_caption": caption_case,
    "pq": pq_case,
    "semantic_miou": semantic_case,
    "instance_rle": runs_case,
    "evaluators_package": import_case,
}
