"""Check recorded losses of X-SAM: costs, pairs, points, values and gradients."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from seg2any.training import set_losses
from seg2any.training.set_losses import Prediction, Target
from tests.parity_xsam.recorded import Case, Tensors

FILE = "losses"
TERMS = {"cls": "classes", "mask": "masks", "dice": "dice"}


class RecordedPoints:
    """The points of one recorded prediction."""

    def __init__(self, x: Tensors, name: str):
        self.x, self.name, self.used = x, name, {"oversampled": 0, "uniform": 0}

    def matching(self, image):
        return self.x[f"{self.name}_match_points_{image}"][0]

    def candidates(self, image, pairs):
        return self._rows("oversampled", pairs)

    def uniform(self, image, pairs):
        return self._rows("uniform", pairs)

    def _rows(self, kind, pairs):
        first = self.used[kind]
        self.used[kind] += pairs
        return self.x[f"{self.name}_{kind}_points"][first : first + pairs]


class AllPoints:
    """The recorded points of several predictions, in their order."""

    def __init__(self, x: Tensors, names):
        self.of, self.images = [RecordedPoints(x, name) for name in names], -1

    def matching(self, image):
        self.images += image == 0
        return self.of[self.images].matching(image)

    def candidates(self, image, pairs):
        return self.of[self.images].candidates(image, pairs)

    def uniform(self, image, pairs):
        return self.of[self.images].uniform(image, pairs)


def names_of(x: Tensors) -> list[str]:
    """List the predictions of a case: final, aux0, aux1 and so on."""
    names = [key.removesuffix("_mask_logits") for key in x if key.endswith("_mask_logits")]
    return sorted(names, key=lambda name: -1 if name == "final" else int(name.removeprefix("aux")))


def suffix_of(name: str) -> str:
    return "" if name == "final" else f"_{name.removeprefix('aux')}"


def loss_case(case: Case) -> None:
    x, about = case.x, case.about
    names = names_of(x)
    targets = [Target(*two) for two in zip(case.numbered("mask_labels"), case.numbered("class_labels"), strict=True)]
    if not targets:  # recorded without any: every query of every image stands alone
        image = x["final_mask_logits"]
        targets = [Target(torch.zeros(0, *image.shape[2:]), torch.zeros(0, dtype=torch.int64))] * len(image)
        return no_targets_case(x, about, targets)
    inputs = {n: Prediction(*(x[f"{n}_{k}_logits"].requires_grad_() for k in ("mask", "class"))) for n in names}
    for name, prediction in inputs.items():
        points = RecordedPoints(x, name)
        for image, target in enumerate(targets):
            one = prediction.masks[image].detach(), prediction.classes[image].detach(), target, points.matching(image)
            assert_close(set_losses.costs(*one), x[f"{name}_cost_{image}"], rtol=1e-5, atol=1e-5)
            queries, wanted = set_losses.match(*one)
            assert torch.equal(queries, x[f"{name}_assigned_query_{image}"])
            assert torch.equal(wanted, x[f"{name}_assigned_target_{image}"])
        loss = set_losses.set_loss(prediction, targets, points)
        suffix = suffix_of(name)
        for term, ours in TERMS.items():
            torch.testing.assert_close(
                getattr(loss, ours), torch.tensor(about["unweighted"][f"loss_{term}{suffix}"]), rtol=1e-5, atol=1e-6
            )
    total = set_losses.total_loss(list(inputs.values()), targets, AllPoints(x, names))
    assert_close(total, torch.tensor(about["total"]), rtol=1e-5, atol=1e-6)
    total.backward()
    for name, prediction in inputs.items():
        for kind, given in zip(("mask", "class"), prediction, strict=True):
            wanted = x[f"{name}_{kind}_grad"]
            assert (given.grad - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def no_targets_case(x: Tensors, about: dict, targets: list[Target]) -> None:
    prediction = Prediction(x["final_mask_logits"], x["final_class_logits"].requires_grad_())
    loss = set_losses.set_loss(prediction, targets, set_losses.RandomPoints([torch.Generator()] * len(targets), 8))
    result = about["result"]
    assert (loss.masks.item(), loss.dice.item()) == (result["loss_mask"], result["loss_dice"])
    assert_close(set_losses.CLASS * loss.classes, torch.tensor(result["loss_cls"]), rtol=1e-5, atol=1e-6)


def stock_case(case: Case) -> None:
    """Compare with transformers' own criterion, which the published one equals where both pair alike."""
    on = Case(FILE, case.about["on"], {})
    x = on.x
    targets = [Target(*two) for two in zip(on.numbered("mask_labels"), on.numbered("class_labels"), strict=True)]
    for name in names_of(x):
        prediction = Prediction(x[f"{name}_mask_logits"], x[f"{name}_class_logits"])
        loss = set_losses.set_loss(prediction, targets, RecordedPoints(x, name))
        for term, recorded in (("classes", "cross_entropy"), ("masks", "mask"), ("dice", "dice")):
            wanted = case.about["matcher_class_cost_2"][f"loss_{recorded}{suffix_of(name)}"]
            assert_close(getattr(loss, term), torch.tensor(wanted), rtol=1e-5, atol=1e-6)


CHECKS = {"stock_transformers": stock_case, "": loss_case}
