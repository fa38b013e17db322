"""Find instances without any name: borders where the self-attention of neighbouring image tokens diverges.

    image --> x_s --> Base.velocity(.., tap=SelfAttention) --> weights [I, I] --> divergence of neighbours
          --> tokens joined where it is small --> flooded up to the edges of the photo --> regions

The idea is that of TRACE (arXiv 2503.07982): tokens of one instance attend to the same places, so rows of weights on
the two sides of its outline differ. Outlines of the regions are the contour that generation takes in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from seg2any.attention.pattern import AttentionPattern
from seg2any.attention.settings import PLAIN
from seg2any.bases.base import Base, Grid
from seg2any.bases.text import TextCache, encode_texts
from seg2any.layout import Layout
from seg2any.segment.probe import ProbeSettings, check_probe, encode_image, inputs, run_tapped
from seg2any.segment.regions import is_flat
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError

METHOD = "edges"
THRESHOLD = 0.06  # measured on examples/shapes
NOISE_LEVEL = 0.1  # likewise; 0 to 0.2 give the same
LEAST_TOKENS = 2  # of a region: single tokens lie on an outline
CORE = 3 / 8  # of a token's edge is left out along a region's border: there the photo decides
TINY = 1e-9
SLICE = 2**22  # weights computed at a time


@dataclass(frozen=True, eq=False)
class Borders:
    """Divergence between neighbouring tokens of a grid [h, w].

    right  float32 [h, w - 1], of each token and the one at its right
    below  float32 [h - 1, w], of each token and the one below
    """

    right: np.ndarray
    below: np.ndarray

    def joined(self, threshold: float) -> np.ndarray:
        """Number the groups of tokens that are joined across borders below the threshold: int32 [h, w], from 0."""
        h, w = len(self.right), self.below.shape[1]
        numbers = np.arange(h * w).reshape(h, w)
        open_right, open_below = self.right < threshold, self.below < threshold
        first = np.concatenate([numbers[:, :-1][open_right], numbers[:-1][open_below]])
        second = np.concatenate([numbers[:, 1:][open_right], numbers[1:][open_below]])
        graph = coo_matrix((np.ones(len(first)), (first, second)), (h * w, h * w))
        return connected_components(graph, directed=False)[1].reshape(h, w)

    def contrast(self, own: np.ndarray) -> float:
        """Compare the mean divergence on the outline and inside of tokens bool [h, w]: out / (out + in)."""
        pairs = [(own[:, :-1], own[:, 1:], self.right), (own[:-1], own[1:], self.below)]
        outline = np.concatenate([values[one != other] for one, other, values in pairs])
        inside = np.concatenate([values[one & other] for one, other, values in pairs])
        if not len(outline) or not len(inside):
            return 0.5
        out, within = float(outline.mean()), float(inside.mean())
        return out / max(out + within, TINY)


class SelfAttention:
    """The weights of image tokens for image tokens in chosen blocks: a `Tap`, which changes nothing.

    mean  of all heads and blocks, float32 [I, I]; heads are added one by one
    """

    def __init__(self, blocks: Iterable[int]):
        self.left = list(dict.fromkeys(blocks))
        self.count, self.mean = len(self.left), None

    @torch.no_grad()
    def __call__(self, block: int, query: Tensor, key: Tensor, pattern: AttentionPattern | None) -> None:
        """Add the weights of a chosen block; the batch has one image."""
        if block not in self.left:
            return
        self.left.remove(block)
        tokens = pattern.tokens
        rows = slice(tokens.n_text, tokens.n_text + tokens.n_image)
        q, k = query[0, rows].float() * query.shape[-1] ** -0.5, key[0, rows].float()
        if self.mean is None:
            self.mean = q.new_zeros(len(q), len(q))
        heads, step = q.shape[1], max(1, SLICE // len(q))
        for head in range(heads):
            for start in range(0, len(q), step):
                some = slice(start, start + step)
                self.mean[some] += (q[some, head] @ k[:, head].T).softmax(-1) / (heads * self.count)


def borders_of(weights: Tensor, grid: Grid) -> Borders:
    """Compute (KL(x|y) + KL(y|x)) / 2 of the rows of weights [I, I] of neighbouring tokens."""
    x = weights.unflatten(0, grid).clamp_min(TINY)
    logs = x.log()
    right = ((x[:, 1:] - x[:, :-1]) * (logs[:, 1:] - logs[:, :-1])).sum(-1) / 2
    below = ((x[1:] - x[:-1]) * (logs[1:] - logs[:-1])).sum(-1) / 2
    return Borders(right.cpu().numpy(), below.cpu().numpy())


def flooded(image: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Flood a photo uint8 [H, W, 3] from the cores of groups of tokens, int [h, w]: int32 [H, W], the groups from 0.

    Single tokens are no group: what surrounds them takes them. -1 everywhere if there is no other group.
    """
    (height, width), (h, w) = image.shape[:2], groups.shape
    margin = [int(CORE * side / tokens) for side, tokens in ((height, h), (width, w))]
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    markers = np.zeros((height, width), np.int32)
    for group in np.flatnonzero(np.bincount(groups.ravel()) >= LEAST_TOKENS):
        own = (groups == group)[rows[:, None], columns].astype(np.uint8)
        kernel = np.ones([2 * one + 1 for one in margin], np.uint8)
        markers[cv2.erode(own, kernel) > 0] = group + 1  # beyond the image counts as inside
    if not markers.any():
        return np.full((height, width), -1, np.int32)
    frame = [1, 1, 1, 1, cv2.BORDER_REPLICATE]  # which cv2 leaves without a basin
    found = cv2.watershed(cv2.copyMakeBorder(image, *frame), cv2.copyMakeBorder(markers, *frame))[1:-1, 1:-1]
    while (lines := found < 1).any():  # between basins
        spread = cv2.dilate(found.astype(np.float32), np.ones((3, 3), np.uint8)).astype(np.int32)
        found = np.where(lines, spread, found)
    return found - 1


class EdgeSegmenter:
    """A flow model that finds instances by the divergence of its self-attention, without any name or training.

    Masks have the size of the image and cover it: what lies behind the instances is a region, too. `scores` compare the
    mean divergence on a region's outline and inside, out / (out + in): 0.5 says nothing and 1 is sure.

    threshold  divergence from which two neighbouring tokens are parted
    """

    def __init__(self, base: Base, settings: ProbeSettings, threshold: float = THRESHOLD):
        check_probe(settings, base)
        self.base, self.settings, self.threshold, self.texts = base, settings, threshold, TextCache(base)

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find all instances in an image uint8 [H, W, 3]; a flat photo gives none. Raises UserError for any prompt."""
        prompt.check(METHOD, ())
        nothing = np.zeros((0, *image.shape[:2]), dtype=bool)
        if is_flat(image):
            return replace(self._layout(nothing, []), notes=("the photo has one colour",))
        borders = self.borders(image)
        groups = borders.joined(self.threshold)
        labels = flooded(image, groups)
        found = np.unique(labels[labels >= 0])
        if len(found) < 2:
            return replace(self._layout(nothing, []), notes=("no edge stands out",))
        return self._layout(labels == found[:, None, None], [borders.contrast(groups == group) for group in found])

    def borders(self, image: np.ndarray) -> Borders:
        """Measure the divergence between all neighbouring tokens, averaged over blocks, heads and seeds."""
        x0, grid = encode_image(self.base, image, self.settings.side)
        plain = PLAIN.override({"max_sequence_length": self.settings.text_tokens})
        (text,) = encode_texts([self.base.caption_keys("", (), plain)], self.base, self.texts)
        level = NOISE_LEVEL if self.settings.noise_level is None else self.settings.noise_level
        weights = []
        for x, s, condition in inputs(self.base, x0, grid, text, level, self.settings):
            tap = SelfAttention(self.settings.blocks)
            with torch.no_grad():
                run_tapped(self.base, x, s, condition, self.settings, tap)
            if tap.left:
                raise UserError(f"attention of block {tap.left[0]}: the network did not run it; choose another block")
            weights.append(tap.mean)
        return borders_of(torch.stack(weights).mean(0), grid)

    def _layout(self, masks: np.ndarray, scores: list[float]) -> Layout:
        captions = tuple(f"region {number}" for number in range(1, len(masks) + 1))
        source = f"edges by self-attention of blocks {' '.join(map(str, self.settings.blocks))}"
        return Layout(masks, captions, scores=np.array(scores, np.float32), source=source)
