"""Keep what a judge finds in images, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.layout.checks import check_mask_shape
from seg2any.layout.entries import is_number
from seg2any.layout.rle import decode_runs, draw_runs, encode_rle
from seg2any.segment.sam3 import Instances
from seg2any.segment.segmenter import Prompt, Segmenter
from seg2any.system.errors import UserError
from seg2any.system.files import append_lines
from seg2any.system.json_text import lines_of, parse_json


@dataclass(frozen=True, eq=False)
class Found:
    """Masks bool [N, h, w] that a judge found, and its scores float [N]; None if it gives none."""

    masks: np.ndarray
    scores: np.ndarray | None


class KeptMasks:
    """Masks in a file of JSON lines; they are on disk before they are used.

    judge  identifies the model and its settings: masks of another judge in the same file are not mixed up with these

    Raises UserError if the file holds anything else.
    """

    def __init__(self, path: str | Path, judge: str):
        self.path, self.judge = Path(path), judge
        self._lines = self._read()

    def get(self, image: np.ndarray, asked: Sequence[str], find: Callable[[], Found]) -> Found:
        """Return what was found in an image uint8 [H, W, 3] for the texts; `find` is called if nothing is kept yet."""
        digest = hashlib.sha256(json.dumps([self.judge, image.shape, *asked]).encode())
        id = digest.hexdigest() + hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
        if id not in self._lines:
            found = find()
            line = {"id": id, "size": list(found.masks.shape[1:])}
            line["runs"] = [encode_rle(mask)["counts"] for mask in found.masks]
            line["scores"] = None if found.scores is None else [round(float(score), 6) for score in found.scores]
            append_lines(self.path, json.dumps(line))
            self._lines[id] = line
        return self._drawn(self._lines[id])

    def __len__(self) -> int:
        return len(self._lines)

    def _drawn(self, line: dict) -> Found:
        size = tuple(line["size"])
        masks = [draw_runs(np.array(runs), size) for runs in line["runs"]]
        scores = None if line["scores"] is None else np.array(line["scores"], np.float32)
        return Found(np.stack(masks) if masks else np.zeros((0, *size), bool), scores)

    def _read(self) -> dict[str, dict]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return {}
        try:
            # A line that a killed process left unfinished is found again.
            whole = (line.strip() for _, line in lines_of(self.path))
            read = [parse_json(line) for line in whole if line.endswith(b"}")]
            for line in read:
                _check(str(self.path), line)
            return {line["id"]: {name: line[name] for name in ("size", "runs", "scores")} for line in read}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise UserError(f"{self.path}: the file does not hold found masks; remove it, and evaluate again") from None


def _check(where: str, line: dict) -> None:
    """Raise ValueError, KeyError or TypeError for a line that does not hold masks and their scores."""
    scores = line["scores"]
    if not isinstance(line["id"], str) or not isinstance(line["runs"], list):
        raise ValueError("no masks")
    if scores is not None and not (len(scores) == len(line["runs"]) and all(map(is_number, scores))):
        raise ValueError("no scores")
    _, size = decode_runs(where, {"size": line["size"], "counts": [math.prod(line["size"][:2])]})
    check_mask_shape(where, (len(line["runs"]), *size))
    for runs in line["runs"]:
        if not isinstance(runs, list):
            raise ValueError("no runs")
        decode_runs(where, {"size": line["size"], "counts": runs})


class KeptSegmenter:
    """A segmenter whose answers to phrases are kept."""

    def __init__(self, segmenter: Segmenter, kept: KeptMasks):
        self.segmenter, self.kept = segmenter, kept

    def find(self, image: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """Find a mask for each of N different phrases in an image uint8 [H, W, 3]: bool [N, h, w]."""

        def found() -> Found:
            layout = self.segmenter.segment(image, Prompt(phrases=tuple(phrases)))
            return Found(layout.masks, layout.scores)

        return self.kept.get(image, phrases, found).masks


class KeptConcepts:
    """A finder of instances, such as `Sam3Segmenter.instances`, whose answers are kept."""

    def __init__(self, instances: Callable[[np.ndarray, Sequence[str]], list[Instances]], kept: KeptMasks):
        self.instances, self.kept = instances, kept

    def find(self, image: np.ndarray, phrases: Sequence[str]) -> list[Instances]:
        """Find the instances of each phrase in an image uint8 [H, W, 3]."""
        asked: list[Instances] = []  # those of all phrases, found at once so that the image is encoded once

        def found(number: int) -> Found:
            if not asked:
                asked.extend(self.instances(image, phrases))
            one = asked[number]
            # The presence stands behind the scores, with an empty mask.
            return Found(
                np.concatenate([one.masks, np.zeros((1, *one.masks.shape[1:]), bool)]),
                np.append(one.scores, np.float32(one.presence)),
            )

        kept = [self.kept.get(image, [phrase], lambda n=n: found(n)) for n, phrase in enumerate(phrases)]
        return [Instances(one.masks[:-1], one.scores[:-1], float(one.scores[-1])) for one in kept]
