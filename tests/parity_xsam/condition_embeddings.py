"""Conditions of the segmentor out of the states of the language model."""

from __future__ import annotations

import torch

from seg2any.segment.xsam.conditions import ALONE, conditions_of, pooled
from seg2any.segment.xsam.generation import generate
from seg2any.segment.xsam.regions import choose_sources
from seg2any.segment.xsam.segmentor import Conditions
from seg2any.segment.xsam.speaker import Speaker
from tests.parity_xsam.batches import drawn, recorded_batch, regions_of, seen_of, spliced_of, taken, tokens_of
from tests.parity_xsam.end_to_end import most
from tests.parity_xsam.recorded import Case, close, same, tensors_of, whole_model
from tests.parity_xsam.text import encoder

FILE = "condition_embeddings"
END = 2e-5  # of what has passed the whole model


def compare(found: Conditions, case: Case, tolerance: float) -> None:
    recorded = case.x["conditions_with_background"]
    usual, theirs = found.embeddings.clamp(min=-1e8), recorded.clamp(min=-1e8)
    close(usual, theirs, tolerance)
    same(found.embeddings < -1e8, recorded < -1e8)
    close(found.seg, case.x["seg_embeds"], tolerance)
    if "embed_masks" in case.x:
        same(found.present, case.x["embed_masks"])
    else:
        assert found.present is None or found.present.all()


def process_case(case: Case) -> None:
    task, background = case.about["task"], tensors_of(FILE, "bg_embeds")[""]
    found = conditions_of(task, case.numbered("in_cond"), case.numbered("in_seg"), background)
    compare(found, case, 1e-5)
    if case.about["local_cond_lens"]:
        assert list(found.repeats) == case.about["local_cond_lens"]


def pool_case(case: Case) -> None:
    """Published: conversations without numbers are left out; here they give no vectors."""
    if case.about.get("returned") is None:
        assert [len(one) for one in pooled(torch.ones(2, 3, 4), torch.full((2, 3), -1))] == [0, 0]
        assert [len(one) for one in pooled(torch.ones(2, 3, 4), None)] == [0, 0]
        return
    found = [one for one in pooled(case.x["embeds"], case.x["ids"]) if len(one)]
    assert len(found) == case.about["returned"]
    for mine, recorded in zip(found, case.numbered("out"), strict=True):
        close(mine, recorded)


def assignment_case(case: Case) -> None:
    about = case.about
    found = choose_sources(about["wanted_converted"], about["class_labels_converted"], drawn(about["choices"]))
    listed = [[[[one.picture, one.mask]] if one else [] for one in own] for own in found]
    assert listed == about["source_image_and_mask"]
    features = case.numbered("in_feats")
    for own, recorded in zip(found, case.numbered("out_feats"), strict=True):
        assert torch.equal(taken(own, features), recorded)


@torch.no_grad()
def teacher_case(case: Case) -> None:
    model, batch = whole_model(), recorded_batch(f"loss_{case.about['task']}")
    seen = seen_of(batch, model)
    spliced = spliced_of(batch, model, seen)
    same(spliced.cond_ids, case.x["cond_ids"])
    same(spliced.seg_ids, case.x["seg_ids"])
    real = spliced.mask[..., None]
    close(model(spliced)[1] * real, case.x["projected"] * real, END)
    states = model(spliced)[1]
    phrases, segs = pooled(states, spliced.cond_ids), pooled(states, spliced.seg_ids)
    for mine, name in ((phrases, "cond_embeds"), (segs, "seg_embeds")):
        for own, recorded in zip(mine, case.numbered(name), strict=True):
            close(own, recorded, END)
    found = conditions_of(case.about["task"], phrases, segs, model.bg_embeds.weight)
    compare(found, case, END)
    if case.about["task"] in ALONE:
        assert list(found.repeats) == case.about["local_cond_lens"]


@torch.inference_mode()
def generated_case(case: Case) -> None:
    model, batch = whole_model(), recorded_batch(f"predict_{case.about['task']}")
    speaker, seen = Speaker(model, encoder()), seen_of(batch, model)
    spliced = model.splice(tokens_of(batch), seen, regions_of(batch, seen))
    (given,) = generate(model.llm, spliced, speaker.ends, most())
    assert given.ids == case.x["sequence"].tolist()
    close(given.states[None], case.x["states"], END)
    assert case.x["step_lengths"].tolist() == [int(spliced.mask.sum())] + [1] * (len(given.ids) - 1)
    (answer,) = speaker.heard(spliced, [given])
    assert answer.text == case.about["text"]
    close(answer.found, case.x["pool0_out_0"], END)
    close(answer.seg, case.x["pool1_out_0"], END)
    compare(conditions_of("genseg", [answer.found], [answer.seg], model.bg_embeds.weight), case, END)


CHECKS = {
    "process_": process_case,
    "pool_": pool_case,
    "region_assignment_": assignment_case,
    "teacher_forced_": teacher_case,
    "generated_": generated_case,
}
