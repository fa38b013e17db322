"""Losses of the whole model and of the segmentor alone, with their gradients."""

from __future__ import annotations

import torch

from seg2any.segment.xsam.conditions import conditions_of, pooled
from seg2any.segment.xsam.keys import our_name
from seg2any.segment.xsam.segmentor import Predictions
from seg2any.training.set_losses import Prediction, Target, alone, set_loss
from seg2any.training.tasks.xsam import next_token_loss
from tests.parity_xsam.batches import seen_of, spliced_of
from tests.parity_xsam.recorded import Case, closed_model, pictures, whole_model

TERMS = {"cls": ("classes", 2), "mask": ("masks", 5), "dice": ("dice", 5)}


class Draws:
    """Random points in the order drawn: matching points of each row, then those of all pairs at once."""

    def __init__(self, case: Case):
        self.left = [one for one in case.drawn("rand") if one.dim()]  # scalars are those of a layer drop of rate 0
        self.rows: dict[str, torch.Tensor] = {}

    def matching(self, image: int) -> torch.Tensor:
        return self.left.pop(0)[0]

    def candidates(self, image: int, pairs: int) -> torch.Tensor:
        return self._taken("candidates", pairs)

    def uniform(self, image: int, pairs: int) -> torch.Tensor:
        return self._taken("uniform", pairs)

    def _taken(self, kind: str, pairs: int) -> torch.Tensor:
        if not len(self.rows.get(kind, ())):
            self.rows[kind] = self.left.pop(0)
        found, self.rows[kind] = self.rows[kind][:pairs], self.rows[kind][pairs:]
        return found


def segmentor_loss(predictions: Predictions, targets: list[Target], case: Case) -> torch.Tensor:
    """Compute the loss and compare every part of it."""
    points, total = Draws(case), torch.zeros(())
    every = [Prediction(*two) for two in zip(predictions.masks, predictions.classes, strict=True)]
    for suffix, prediction in zip(
        ["", *(f"_{n}" for n in range(len(every) - 1))], [every[-1], *every[:-1]], strict=True
    ):
        loss = set_loss(prediction, targets, points)
        for term, (name, weight) in TERMS.items():
            mine, recorded = weight * getattr(loss, name).item(), case.about["loss"][f"loss_{term}{suffix}"]
            assert abs(mine - recorded) <= 2e-5 * max(abs(recorded), 1), (term, suffix)
        total = total + loss.total
    assert not points.left and not any(map(len, points.rows.values()))
    return total


def compare(loss: torch.Tensor, case: Case, model: torch.nn.Module) -> None:
    assert abs(loss.item() - case.about["loss"]["loss"]) <= 2e-5 * case.about["loss"]["loss"]
    if "grad_norm" not in case.about:
        return
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = dict(model.named_parameters())
    # Some gradients are zero but for rounding, like that of a bias before a norm: it grows with all gradients.
    rounding = 1e-7 * max(10.0, *case.about["grad_norm"].values())
    for name, norm in case.about["grad_norm"].items():
        mine = found[our_name(name)].grad
        assert mine is not None and abs(mine.norm().item() - norm) <= 1e-3 * norm + rounding, name
    for name in case.about["without_grad"]:
        assert found[our_name(name)].grad is None, name
    for name, recorded in case.x.items():
        if name.startswith("grad/"):
            mine = found[our_name(name.removeprefix("grad/"))].grad
            assert (mine - recorded).abs().max() <= 1e-4 * recorded.abs().max() + rounding, name
    model.zero_grad(set_to_none=True)


def loss_case(case: Case) -> None:
    model, task = whole_model(), case.about["task_names"][0]
    seen = seen_of(case, model)
    spliced = spliced_of(case, model, seen)
    logits, states = model(spliced)
    loss = language = next_token_loss(logits, spliced.labels, alone)
    assert abs(language.item() - case.about["loss"]["loss_llm"]) <= 2e-5 * max(language.item(), 1)
    if task != "imgconv":
        phrases, segs = pooled(states, spliced.cond_ids), pooled(states, spliced.seg_ids)
        conditions = conditions_of(task, phrases, segs, model.bg_embeds.weight)
        loss = loss + segmentor_loss(model.segmentor(seen.maps, conditions), targets_of(case, task), case)
    compare(loss, case, model)


def targets_of(case: Case, task: str) -> list[Target]:
    """Return the recorded masks and classes: of each picture, or of each phrase with its place in the batch."""
    whole = list(zip(case.numbered("in_mask_labels"), case.numbered("in_class_labels"), strict=True))
    if task not in ("refseg", "reaseg"):
        return [Target(masks, classes.long()) for masks, classes in whole]
    masks = torch.cat([masks for masks, _ in whole])
    return [Target(masks[n : n + 1], torch.tensor([n])) for n in range(len(masks))]


def closed_loss_case(case: Case) -> None:
    model = closed_model()
    found = model(pictures(case.about["images"]).seg)
    compare(segmentor_loss(found, targets_of(case, "genseg"), case), case, model)
