"""Cases of the whole model: what it sees, its losses and answers."""

from __future__ import annotations

import numpy as np
import torch

from tests.parity_xsam.second.answers import Answers
from tests.parity_xsam.second.batches import ASKED, CONDITIONS, FILE
from tests.parity_xsam.second.book import Book, numbered
from tests.parity_xsam.second.conditions import ALONE
from tests.parity_xsam.second.network import Network
from tests.parity_xsam.second.text_cases import Made
from tests.parity_xsam.second.whole import Draws


class Maker(Answers):
    """All cases."""

    def add_loss(self, task: str) -> None:
        """Add the losses of a batch with their gradients, and the conditions on the way."""
        batch = self.batch(task, True, 2)
        made, seen, states, draws = self.run(task, batch)
        language = self.model.language_loss(states, made["out_labels"])
        parts, total = {"loss_llm": language.item()}, language
        tensors, about = (
            self.tensors(batch),
            {"task_names": [task], "images": batch["images"], **batch.get("given", {})},
        )
        if task != "imgconv":
            projected = [self.model.net.projected(one) for one in states]
            rows = self.model.conditions(task, projected, made)
            self._add_teacher(task, made, projected, rows)
            targets, labels = self._targets(task, batch, rows)
            if "masks" not in batch:
                tensors |= numbered("in_class_labels", [torch.tensor(own) for own in labels])
            tensors |= numbered("in_mask_labels", targets)
            if task in ALONE:
                whole = [one[None] for own in targets for one in own]
                given = [torch.from_numpy(one).double() for one in whole], [[place] for place in range(len(whole))]
            else:
                given = [torch.from_numpy(own).double() for own in targets], labels
            layers = self.model.layers(self.model.net, [maps for maps, *_ in seen], rows)
            loss, found = self.model.segmentor_loss(layers, *given, draws)
            total, parts = total + loss, parts | found
        self._add_gradients(self.model.net, f"loss_{task}", total, parts, about, tensors | draws.named())

    def _targets(self, task: str, batch: dict, rows: dict) -> tuple[list, list]:
        side = self.model.side
        kinds = [len(own) for own in rows["conds"]]
        if "masks" in batch:
            return batch["masks"], batch["classes"]
        counts = kinds if task in ALONE else [kind + 1 for kind in kinds]
        targets = [np.array([self.book.blob(side, side) for _ in range(count)]) for count in counts]
        if task in ALONE:
            return targets, [list(range(count)) for count in counts]
        return targets, [self.book.rng.integers(0, kind, kind + 1).tolist() for kind in kinds]

    def _add_teacher(self, task: str, made: dict, projected: list, rows: dict) -> None:
        tensors = {"projected": torch.stack(projected)} | {
            name: made[f"out_{name}"] for name in ("cond_ids", "seg_ids")
        }
        tensors |= numbered("cond_embeds", rows["conds"]) | numbered("seg_embeds", rows["segs"])
        tensors |= {name: x for name, x in rows.items() if torch.is_tensor(x)}
        about = {"task": task, "local_cond_lens": rows["local_cond_lens"]}
        self.book.add(CONDITIONS, f"teacher_forced_{task}", about, tensors)

    def _add_gradients(
        self, net: Network, name: str, total: torch.Tensor, parts: dict, about: dict, tensors: dict
    ) -> None:
        for weight in net.weights().values():
            weight.grad = None
        total.backward()
        grads = {key: weight.grad for key, weight in net.weights().items()}
        about |= {
            "loss": parts | {"loss": total.item()},
            "grad_norm": {key: grad.norm().item() for key, grad in grads.items() if grad is not None},
            "without_grad": [key for key, grad in grads.items() if grad is None],
        }
        kept = [key for key in grads if grads[key] is not None][::17]
        self.book.add(FILE, name, about, tensors | {f"grad/{key}": grads[key] for key in kept})

    def add_pictures(self) -> None:
        names = list(self.model.pictures)[:2]
        tensors = {}
        with torch.no_grad():
            for number, name in enumerate(names):
                picture = self.model.pictures[name]
                states = self.model.net.sam_states(picture["seg_pixel_values"])
                visual, grid = self.model.net.tokens(picture["pixel_values"], states)
                found = {"visual_tokens": visual[None], "seg_tokens": grid[None]}
                found |= numbered("seg_embedding", self.model.net.maps(states)) | numbered("sam_hidden", states)
                tensors = {key: torch.cat([tensors[key], x]) if number else x for key, x in found.items()}
        about = {"images": names, "visual_select_layer": -2}
        about["seg_select_layers_used"] = self.model.sizes["seg_select_layers"][-3:]
        self.book.add(FILE, "image_path", about, tensors)

    def add_closed(self) -> None:
        """Add the segmentor with a linear head: its answers, and losses with a picture without targets."""
        names, net, side = list(self.model.pictures), self.model.closed, self.model.side
        maps = [net.maps(net.sam_states(self.model.pictures[name]["seg_pixel_values"])) for name in names]
        masks, classes = self.model.layers(net, maps, None)
        tensors = {"class_logits": classes[-1], "mask_logits": self.model.upsampled(masks[-1])}
        self.book.add(FILE, "stage1_tensor", {"images": names}, tensors)
        counts, kinds = [2, 0, 3], self.model.sizes["mask2former"]["num_labels"]
        targets = [np.array([self.book.blob(side, side) for _ in range(n)]).reshape(n, side, side) for n in counts]
        labels = [self.book.rng.integers(0, kinds, count).tolist() for count in counts]
        tensors = numbered("in_mask_labels", targets)
        tensors |= numbered("in_class_labels", [torch.tensor(own, dtype=torch.int64) for own in labels])
        draws, wide = Draws(), [torch.from_numpy(own).double() for own in targets]
        total, parts = self.model.segmentor_loss((masks, classes), wide, labels, draws)
        self._add_gradients(net, "stage1_loss", total, parts, {"images": names}, tensors | draws.named())
        error = "UnboundLocalError: cannot access local variable"
        self.book.add(FILE, "stage1_predict_mode", {"error": error}, {})


def add(book: Book, made: Made) -> None:
    """Add the cases, and the weights."""
    make = Maker(book, made)
    book.add(
        FILE,
        "config",
        make.model.sizes | {"phi3": make.model.sizes["phi3"] | {"vocab_size": len(made.words.names)}},
        {},
    )
    for name, picture in make.model.pictures.items():
        book.add(FILE, "images", None, {f"{name}/{key}": x for key, x in picture.items()})
    for stage, net in (("stage3", make.model.net), ("stage1", make.model.closed)):
        state = net.state()
        book.add(FILE, f"keys_{stage}", {"keys": {name: list(x.shape) for name, x in state.items()}}, {})
        for name, x in state.items():
            book.add(f"model_tiny_{stage}", name, None, {"": x})
    make.add_pictures()
    for task in ASKED:
        make.add_loss(task)
    for task, start in (("genseg", "usual"), ("refseg", "usual"), ("reaseg", "usual"), ("vgdseg", "usual")):
        make.add_prediction(task, start)
    make.add_prediction("gcgseg", "told")
    make.add_prediction("imgconv", "talk")
    for task in ("genseg", "refseg", "reaseg", "vgdseg"):
        make.add_reading(task)
    make.add_closed()
