"""Cases of answers: generated, or read with the question."""

from __future__ import annotations

import re

import numpy as np
import torch

from tests.parity_xsam.second import postprocess
from tests.parity_xsam.second.batches import ASKED, CONDITIONS, FILE, Batches
from tests.parity_xsam.second.conditions import ALONE, means, rows_of
from tests.parity_xsam.second.postprocess_cases import NUDGE
from tests.parity_xsam.second.text import collated, numbers


class Answers(Batches):
    """Cases of answers."""

    @torch.no_grad()
    def add_prediction(self, task: str, start: str = "usual") -> None:
        """Add an answer to a prompt, and what it segments."""
        batch, net = self.batch(task, False, 1, start), self.model.net
        made, seen, _, draws = self.run(task, batch)
        ids, states = self.model.answered(made, start)
        text = self.made.words.decode(ids)
        phrases = [one.strip() for one in re.findall("<p>(.*?)</p>", text)]
        size = (self.book.between(20, 50), self.book.between(20, 50))
        scaled = [int(edge * self.model.side / max(size) + 0.5) for edge in size]
        about = {"text": text, "phrases": phrases, "images": batch["images"], "task_names": [task]}
        about |= {"image_sizes": [size], "scaled_sizes": [scaled], "mask_margin": 1.0, **batch.get("given", {})}
        tensors = self.tensors(batch) | draws.named() | {"generated_ids": torch.tensor(ids)}
        if task != "imgconv":
            projected, prompt = net.projected(states), len(made["out_inputs_embeds"][0])
            marked = numbers(self.made.words, ids)
            own = marked["cond_ids"]
            conds = (
                means(projected[prompt:], own[:-1])
                if own
                else means(projected[:prompt], made["out_cond_ids"][0].tolist())
            )
            seg = means(projected[prompt:], marked["seg_ids"][:-1])
            rows = rows_of("genseg", [conds], [seg], net.plain["bg_embeds."]["weight"])
            masks, classes = self.model.layers(net, [seen[0][0]], rows)
            tensors |= {"class_logits": classes[-1], "mask_logits": self.model.upsampled(masks[-1])}
            steps = [prompt] + [1] * (len(ids) - 1)
            given = {"sequence": torch.tensor(ids), "states": states[None], "step_lengths": torch.tensor(steps)}
            given |= {"pool0_out_0": conds, "pool1_out_0": seg} | {
                key: x for key, x in rows.items() if torch.is_tensor(x)
            }
            self.book.add(CONDITIONS, f"generated_{task}", {"text": text, "task": task}, given)
        self.book.add(FILE, f"predict_{task}", about, tensors)
        if task != "imgconv":
            self._add_maps(task, about, tensors)

    def _add_maps(self, task: str, about: dict, tensors: dict) -> None:
        """Add the results of each kind of postprocessing."""
        scores = postprocess.probabilities(tensors["class_logits"][0].numpy())
        stuff = {"stuff_contiguous_ids": [0]}
        for kind, metadata in {"genseg": {"pan": stuff, "sem": None, "ins": None}}.get(task, {"": None}).items():
            maps = []
            for shift in (0, NUDGE):
                masks = tensors["mask_logits"][0].numpy()
                masks = masks + shift * np.abs(masks).max() * self.book.rng.normal(0, 1, masks.shape)
                maps.append(self._map(task, kind, scores, masks, about))
            if not np.array_equal(maps[0][0], maps[1][0]):
                about["mask_margin"] = 0.0
            name = f"post_{task}_{kind}" if kind else f"post_{task}"
            own = {"inputs": f"predict_{task}", "metadata": metadata, "segments_info": maps[0][1]}
            self.book.add(FILE, name, own, {"segmentation": maps[0][0]})

    def _map(self, task: str, kind: str, scores: np.ndarray, masks: np.ndarray, about: dict) -> tuple:
        scaled, size = about["scaled_sizes"][0], about["image_sizes"][0]
        fitted = postprocess.fitted(masks, scaled, size)
        if kind == "pan":
            return postprocess.panoptic(scores, fitted, {"stuff_contiguous_ids": [0]})
        if kind == "sem":
            return postprocess.semantic(scores, masks, scaled, size)[0], None
        if kind == "ins" or task == "vgdseg":
            return postprocess.instances(scores, fitted, {"threshold": 0.5}, -1 if kind == "ins" else 255, None)[:2]
        painted, listed = postprocess.best(scores, fitted, {"mask_threshold": 0.5})
        return painted, listed[0] if task in ALONE else listed

    @torch.no_grad()
    def add_reading(self, task: str) -> None:
        """Add a prompt with its answer, read in one pass."""
        batch = self.batch(task, True, 1)
        if task in ALONE:
            batch = self._first_turn(task)
        made, seen, states, draws = self.run(task, batch)
        projected = [self.model.net.projected(one) for one in states]
        rows = self.model.conditions("genseg", projected, made)
        masks, classes = self.model.layers(self.model.net, [seen[0][0]], rows)
        masks = self.model.upsampled(masks[-1])
        size = (self.model.side // 2 + 3, self.model.side + 7)
        scaled = [int(edge * self.model.side / max(size) + 0.5) for edge in size]
        stuff = [1] if task == "genseg" else None
        about = {"images": batch["images"], "task_names": [task], "stuff_contiguous_ids": stuff}
        about |= {"image_sizes": [size], "scaled_sizes": [scaled], **batch.get("given", {})}
        scores = postprocess.probabilities(classes[-1][0].numpy())
        fitted = postprocess.fitted(masks[0].numpy(), scaled, size)
        if task in ALONE:
            painted, (info,) = postprocess.best(scores, fitted, {"mask_threshold": 0.5})
        elif task == "vgdseg":
            painted, info, _ = postprocess.instances(scores, fitted, {"threshold": 0.5}, 255, None)
        else:
            painted, info = postprocess.panoptic(scores, fitted, {"stuff_contiguous_ids": stuff})
        about["segments_info"] = info
        tensors = self.tensors(batch) | draws.named() | {"class_logits": classes[-1], "mask_logits": masks}
        self.book.add(FILE, f"tensor_{task}", about, tensors | {"segmentation": painted})

    def _first_turn(self, task: str) -> dict:
        example = ASKED[task][0] | {"sampled_sents": ASKED[task][0]["sampled_sents"][:1]}
        about = {"task": task, "example": example, "choice_indices": [1], "explain_draw": 1.0, "with_output": True}
        return collated([self.made.made(about)], []) | {"images": list(self.model.pictures)[:1]}
