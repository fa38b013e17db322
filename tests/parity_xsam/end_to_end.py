"""The whole model: from pictures and ids to words, classes and masks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from seg2any.segment.xsam import postprocess
from seg2any.segment.xsam.conditions import pooled, together
from seg2any.segment.xsam.generation import generate
from seg2any.segment.xsam.keys import our_name, published_name
from seg2any.segment.xsam.model import Seen
from seg2any.segment.xsam.pictures import Frame
from seg2any.segment.xsam.speaker import Answer, Segmented, Speaker
from tests.parity_xsam.batches import recorded_batch, regions_of, seen_of, spliced_of, tokens_of
from tests.parity_xsam.postprocess import SCORE, compare_segments, order_of, published_map
from tests.parity_xsam.recorded import Case, close, closed_model, kept, parameters_of, pictures, whole_model
from tests.parity_xsam.text import encoder
from tests.parity_xsam.training import closed_loss_case, loss_case

FILE = "end_to_end"
END = 2e-5
LESS_SURE = 1e-4  # a recorded margin below it may flip a pixel


@torch.no_grad()
def image_case(case: Case) -> None:
    model = whole_model()
    seen, seg = model.see(pictures(case.about["images"])), pictures(case.about["images"]).seg
    close(seen.tokens, torch.cat([case.x["visual_tokens"], case.x["seg_tokens"]], 1), END)
    for mine, recorded in zip(seen.maps, case.numbered("seg_embedding"), strict=True):
        close(mine, recorded, END)
    for mine, recorded in zip(model.segmentor.states(seg), case.numbered("sam_hidden"), strict=True):
        close(mine, recorded, END)
    assert model.config.visual_layer == case.about["visual_select_layer"]
    assert list(model.config.connector_layers) == case.about["seg_select_layers_used"]


def keys_case(case: Case) -> None:
    model = closed_model() if case.name == "keys_stage1" else whole_model()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {our_name(name): shape for name, shape in case.about["keys"].items()}
    assert {published_name(name): shape for name, shape in shapes.items()} == case.about["keys"]


@kept
@torch.inference_mode()
def predicted(name: str) -> tuple[Seen, Answer, Segmented | None]:
    model, batch = whole_model(), recorded_batch(name)
    speaker, seen = Speaker(model, encoder()), seen_of(batch, model)
    spliced = model.splice(tokens_of(batch), seen, regions_of(batch, seen))
    (answer,) = speaker.heard(spliced, generate(model.llm, spliced, speaker.ends, most()))
    (found,) = speaker.segment(seen, [0], [answer])
    return seen, answer, found


def most() -> int:
    """Return the most tokens of a recorded answer."""
    return parameters_of(FILE, "config")["max_new_tokens"]


def predict_case(case: Case) -> None:
    _, answer, found = predicted(case.name)
    assert answer.ids == case.x["generated_ids"].tolist()
    assert answer.text == case.about["text"]
    assert answer.phrases == case.about["phrases"]
    assert (found is None) == ("mask_logits" not in case.x)
    if found is not None:
        close(found.classes[None], case.x["class_logits"], END)
        close(found.masks[None], case.x["mask_logits"], END)


@kept
@torch.inference_mode()
def read(name: str) -> Segmented:
    """Read a question with its answer in one pass."""
    model, batch = whole_model(), recorded_batch(name)
    seen = seen_of(batch, model)
    spliced = spliced_of(batch, model, seen)
    states = model(spliced)[1]
    conditions = together(pooled(states, spliced.cond_ids), pooled(states, spliced.seg_ids), model.bg_embeds.weight)
    classes, masks = model.segmentor(seen.maps, conditions).answer(model.segmentor.side)
    return Segmented(classes[0], masks[0])


def tensor_case(case: Case) -> None:
    found = read(case.name)
    close(found.classes[None], case.x["class_logits"], END)
    close(found.masks[None], case.x["mask_logits"], END)
    (task,) = case.about["task_names"]
    kind = "pan" if task in ("genseg", "ovseg") else task
    compare_map(kind, found, case, case.about["stuff_contiguous_ids"] or (), 0)


def post_case(case: Case) -> None:
    source = recorded_batch(case.about["inputs"])
    found = predicted(case.about["inputs"])[2]
    stuff = (case.about["metadata"] or {}).get("stuff_contiguous_ids", ())
    allowed = 2 if source.about["mask_margin"] < LESS_SURE else 0
    compare_map(case.name.rpartition("_")[2], found, replace(case, about=source.about | case.about), stuff, allowed)


def compare_map(kind: str, found: Segmented, case: Case, stuff: Collection[int], allowed: int) -> None:
    (size,), (scaled,) = case.about["image_sizes"], case.about["scaled_sizes"]
    frame = Frame(tuple(size), tuple(scaled), found.masks.shape[-1])
    fitted, segments = postprocess.fitted(found.masks, frame), case.about["segments_info"]
    if kind == "sem":
        mine = postprocess.semantic(found.classes, found.masks, frame)
    elif kind == "pan":
        mine, own = postprocess.panoptic(found.classes, fitted, stuff)
        compare_segments(own, segments, stuff, 5e-6)
        mine = published_map(mine, own, stuff)
    elif kind in ("ins", "vgdseg"):
        some = postprocess.instances(found.classes, fitted)
        order = order_of(some.scores.tolist(), some.classes.tolist(), segments)
        assert some.classes[order].tolist() == [one["label_id"] for one in segments]
        values = torch.tensor([one["id"] for one in segments])
        mine = postprocess.painted(some.masks[order], values, -1 if kind == "ins" else 255)
    else:
        some = postprocess.best_of_class(found.classes, fitted)
        listed = segments if isinstance(segments, list) else [segments]
        assert all(abs(float(a) - b["score"]) < 5 * SCORE for a, b in zip(some.scores, listed, strict=True))
        mine = postprocess.painted(some.masks, torch.arange(1, len(some.masks) + 1), 255)
    recorded = case.x["segmentation"]
    assert mine.shape == recorded.shape and int((mine != recorded).sum()) <= allowed


@torch.no_grad()
def closed_case(case: Case) -> None:
    found = closed_model()(pictures(case.about["images"]).seg)
    classes, masks = found.answer(closed_model().segmentor.side)
    close(classes, case.x["class_logits"], END)
    close(masks, case.x["mask_logits"], END)


def fails_case(case: Case) -> None:
    """Published: generation without a language model fails late; here the segmentor alone has no such way."""
    assert "UnboundLocalError" in case.about["error"]
    with pytest.raises(AttributeError):
        _ = closed_model().llm


CHECKS = {
    "image_path": image_case,
    "keys_": keys_case,
    "predict_": predict_case,
    "tensor_": tensor_case,
    "post_": post_case,
    "stage1_tensor": closed_case,
    "stage1_loss": closed_loss_case,
    "loss_": loss_case,
    "stage1_predict_mode": fails_case,
}
