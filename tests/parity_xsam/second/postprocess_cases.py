"""Cases of masks out of logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tests.parity_xsam.second import postprocess
from tests.parity_xsam.second.book import Book, numbered
from tests.parity_xsam.second.plain import resize

FILE = "postprocess"
NUDGE = 3e-6  # of the logits; it must not change a result


class Maker:
    """Logits of B pictures that a nudge does not change the results of, and cases of them."""

    def __init__(self, book: Book, queries: int, side: int, sizes: list[tuple[int, int]]):
        self.book, self.queries, self.side, self.sizes = book, queries, side, sizes
        self.scaled = [tuple(int(edge * side / max(size) + 0.5) for edge in size) for size in sizes]

    def logits(self, kinds: int) -> dict[str, torch.Tensor]:
        """Draw class and mask logits: masks are blobs, smooth ones."""
        count = len(self.sizes)
        classes = self.book.normal(count, self.queries, kinds + 1, scale=2.5)
        masks = np.zeros((count, self.queries, self.side, self.side))
        for place in np.ndindex(count, self.queries):
            noise = self.book.rng.normal(0, 0.6, (self.side, self.side))
            masks[place] = 4.0 * self.book.blob(self.side, self.side) - 2 + noise
        return {"class_logits": classes, "mask_logits": torch.from_numpy(masks).float()}

    def pictures(self, logits: dict, shift: float = 0.0) -> list[tuple]:
        """List scores, mask logits of the square, those of the picture, scaled size and size of each picture."""
        found = []
        for number, (scaled, size) in enumerate(zip(self.scaled, self.sizes, strict=True)):
            masks = logits["mask_logits"][number].double().numpy()
            masks = masks + shift * self.book.rng.normal(0, 1, masks.shape)
            scores = postprocess.probabilities(logits["class_logits"][number].double().numpy())
            found.append((scores, masks, postprocess.fitted(masks, scaled, size), scaled, size))
        return found

    def sure(self, kinds: int, result: Callable) -> dict[str, torch.Tensor]:
        """Draw logits until a nudge changes no map."""
        while True:
            logits = self.logits(kinds)
            maps = [[result(*one) for one in self.pictures(logits, shift)] for shift in (0, NUDGE, NUDGE)]
            if all(np.array_equal(a, b) for other in maps[1:] for a, b in zip(maps[0], other, strict=True)):
                return logits

    def add(self, name: str, about: dict, results: list[tuple], extra: dict | None = None) -> None:
        """Add a case: of each picture its map and its segments."""
        sizes = {"image_sizes": [list(one) for one in self.sizes], "scaled_sizes": [list(one) for one in self.scaled]}
        infos = {"segments_info": [one[1] for one in results]}
        tensors = numbered("segmentation", [one[0] for one in results]) | (extra or {})
        for number, one in enumerate(results):
            tensors |= {f"{key}_{number}": value for key, value in (one[2] if len(one) > 2 else {}).items()}
        self.book.add(FILE, name, about | sizes | infos, tensors)


def add_panoptic(make: Maker) -> None:
    variants = {
        "threshold_half": {"threshold": 0.5, "stuff_contiguous_ids": [0, 2]},
        "all_stuff": {"threshold": 0.0, "stuff_contiguous_ids": [0, 1, 2, 3, 4]},
        "no_stuff": {"threshold": 0.2, "stuff_contiguous_ids": None},
        "loose": {"stuff_contiguous_ids": [1, 3], "mask_threshold": 0.2, "overlap_mask_area_threshold": 0.3},
        "nothing": {"threshold": 0.999999, "stuff_contiguous_ids": [1]},
    }

    def result(about: dict, scores: np.ndarray, fitted: np.ndarray) -> tuple:
        return postprocess.panoptic(scores, fitted, about)

    def maps(scores: np.ndarray, _: np.ndarray, fitted: np.ndarray, *__: tuple) -> np.ndarray:
        return np.stack([result(about, scores, fitted)[0] for about in variants.values()])

    logits = make.sure(5, maps)
    make.book.add(FILE, "panoptic", None, logits)
    for name, about in variants.items():
        found = [result(about, scores, fitted) for scores, _, fitted, *_ in make.pictures(logits)]
        make.add(f"panoptic_{name}", about | {"inputs": "panoptic"}, found)


def add_limit(book: Book) -> None:
    """Add bands that another query has a part of, so that just over or just under 0.8 of each is left."""
    parts = book.rng.permutation([0.24, 0.22, 0.18, 0.16]).tolist()
    side = 50
    masks = -6 + book.normal(1, len(parts) + 1, side, side, scale=0.5)
    masks[0, 1:] -= 4  # the first has what lies between the bands
    for band, part in enumerate(parts):
        rows = slice(12 * band, 12 * band + 10)
        masks[0, band + 1, rows] += 16
        masks[0, 0, rows, : round(part * side)] += 12
    classes = book.normal(1, len(parts) + 1, 4, scale=0.1)
    classes[0, 0, 0] += 7  # the surest
    for band in range(len(parts)):
        classes[0, band + 1, book.between(1, 2)] += 4
    about = {"stuff_contiguous_ids": None, "image_sizes": [[side, side]], "scaled_sizes": [[side, side]]}
    found = postprocess.panoptic(postprocess.probabilities(classes[0].numpy()), masks[0].numpy(), about)
    assert len(found[1]) == 3  # the surest one and two bands
    tensors = {"class_logits": classes, "mask_logits": masks, "segmentation_0": found[0]}
    book.add(FILE, "panoptic_at_the_limit", about | {"segments_info": [found[1]]}, tensors)


def add_semantic(make: Maker) -> None:
    for name, kinds in (("semantic", 6), ("semantic_one_class", 1)):
        logits = make.sure(kinds, lambda scores, masks, _, *sizes: postprocess.semantic(scores, masks, *sizes)[0])
        found = [postprocess.semantic(scores, masks, *sizes) for scores, masks, _, *sizes in make.pictures(logits)]
        gaps = {"smallest_gap_between_best_two": [min(one[1], 1.0) for one in found]}
        make.add(name, gaps, [(one[0], None) for one in found], logits)


def add_instances(make: Maker, prompts: list[np.ndarray]) -> None:
    for name, kinds, outside, variants in (
        ("instance", 3, -1, {"": (0.5, None), "_threshold_0": (0.0, None), "_sure": (0.8, None)}),
        ("vgd", 4, 255, {"": (0.3, None), "_numbered": (0.0, [[3, 1, 0, 2]] * len(make.sizes))}),
    ):
        # every threshold and the recorded digits of a score are far from the scores
        def maps(scores: np.ndarray, _: np.ndarray, fitted: np.ndarray, *__: tuple) -> np.ndarray:
            every = postprocess.pairs(scores, fitted, 0)
            return np.array([*(round(one[0], 3) for one in every), *np.sum([one[2] for one in every], 0).flat])

        logits = make.sure(kinds, maps)
        inputs = numbered("input_vprompt_masks", prompts) if name == "vgd" else {}
        for suffix, (threshold, labels) in variants.items():
            found, about = [], {"inputs": name, "threshold": threshold, "sampled_labels": labels}
            for number, (scores, _, fitted, *sizes) in enumerate(make.pictures(logits)):
                own = None if labels is None else labels[number]
                painted, listed, masks = postprocess.instances(scores, fitted, about, outside, own)
                if name == "vgd":
                    masks["vprompt_masks"] = postprocess.fitted_nearest(prompts[number], *sizes)
                found.append((painted, listed, masks))
            make.add(f"{name}{suffix}", about, found, {} if suffix else logits | inputs)
    count = [len(np.unique(make.book.tensors[FILE][f"instance/segmentation_{n}"])) for n in range(len(make.sizes))]
    make.book.add(FILE, "instance_rle", {"inputs": "instance", "number": count}, {})


def add_phrases(make: Maker) -> None:
    for name, kinds, variants in (
        ("referring", 1, {"referring": 0.5, "referring_low": 0.15, "reasoning": 0.5, "reasoning_high": 0.9}),
        ("gcg", 4, {"gcg": 0.5, "gcg_high": 0.7}),
        ("gcg_one", 1, {"gcg_one": 0.6}),
    ):
        add_best(make, name, kinds, variants)


def add_best(make: Maker, name: str, kinds: int, variants: dict[str, float]) -> None:
    """Add cases of the same logits with several limits of the mask's probability."""

    def result(limit: float, scores: np.ndarray, fitted: np.ndarray) -> tuple:
        return postprocess.best(scores, fitted, {"mask_threshold": limit})

    def maps(scores: np.ndarray, _: np.ndarray, fitted: np.ndarray, *__: tuple) -> np.ndarray:
        return np.stack([result(limit, scores, fitted)[0] for limit in variants.values()])

    logits = make.sure(kinds, maps)
    for case, limit in variants.items():
        found = [result(limit, scores, fitted) for scores, _, fitted, *_ in make.pictures(logits)]
        if name == "referring":
            found = [(painted, listed[0]) for painted, listed in found]
        make.add(case, {"inputs": name, "mask_threshold": limit}, found, logits if case == name else {})


def add_interactive(make: Maker, prompts: list[np.ndarray]) -> None:
    for name, threshold in (("interactive", 0.5), ("interactive_none_sure", 0.99)):
        about = {"threshold": threshold}

        def result(fitted: np.ndarray, scores: np.ndarray, number: int, sizes: tuple, about: dict = about) -> tuple:
            prompt = postprocess.fitted_nearest(prompts[number], *sizes)
            return *postprocess.interactive(scores, fitted, about, prompt[0]), {"vprompt_masks": prompt}

        def maps(scores: np.ndarray, _: np.ndarray, fitted: np.ndarray, *sizes: tuple) -> np.ndarray:
            return np.stack([result(fitted, scores, number, sizes)[0] for number in at(sizes)])

        def at(sizes: tuple) -> list[int]:
            return [number for number, size in enumerate(make.sizes) if size == sizes[1]]

        logits = make.sure(1, maps)
        found = [
            result(fitted, scores, number, sizes)
            for number, (scores, _, fitted, *sizes) in enumerate(make.pictures(logits))
        ]
        make.add(name, about, found, logits | numbered("input_vprompt_masks", prompts))


def add_resizes(make: Maker) -> None:
    x = make.book.normal(2, make.side, make.side)
    about = {"image_size": list(make.sizes[0]), "scaled_size": list(make.scaled[0])}
    out = resize(x[:, : make.scaled[0][0], : make.scaled[0][1]], make.sizes[0])
    make.book.add(FILE, "resize_bilinear", about, {"input": x, "output": out})
    out = postprocess.fitted_nearest(x.numpy(), make.scaled[0], make.sizes[0])
    make.book.add(FILE, "resize_nearest", about, {"input": x, "output": out})


def add(book: Book) -> None:
    """Add the cases: of three pictures, wide, high and square, larger and smaller than SAM's square."""
    side = book.between(22, 34)
    sizes = [(book.between(12, 20), book.between(40, 47)), (book.between(35, 39), book.between(20, 25)), (19, 19)]
    make = Maker(book, book.between(5, 9), side, sizes)
    prompts = [np.array([book.blob(side, side) for _ in range(2)]) for _ in sizes]
    for prompt, scaled in zip(prompts, make.scaled, strict=True):
        prompt[:, scaled[0] // 2, scaled[1] // 2] = True
    add_panoptic(make)
    add_limit(book)
    add_semantic(make)
    add_instances(make, prompts)
    add_phrases(make)
    add_interactive(make, prompts)
    add_resizes(make)
    book.add(FILE, "referring_two_phrases", {"error": "AssertionError"}, {})
    book.add(FILE, "task_name_genseg", {"error": "ValueError: Task name genseg not supported"}, {})
