"""Adapters to optional preference packages: their calls, and the message if one is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from seg2any.evaluation.judges.clip import image_reward
from seg2any.evaluation.metrics.captions import preference_score
from seg2any.evaluation.metrics.item import Item
from seg2any.layout import Layout
from seg2any.system.errors import UserError


def item(key: str, grey: int, caption: str | None) -> Item:
    layout = Layout(np.ones((1, 2, 2), bool), ("x",), caption)
    return Item(key, np.full((2, 2, 3), grey, np.uint8), layout=layout)


def test_the_package_is_asked_for_caption_and_image(monkeypatch: pytest.MonkeyPatch):
    asked = []

    class Model:
        def score(self, caption, image):
            asked.append((caption, image.size))
            return image.getpixel((0, 0))[0] / 10

    package = SimpleNamespace(load=lambda name, device: asked.append((name, device)) or Model())
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    items = [item("a", 10, "a cat"), item("a", 30, "a cat"), item("b", 50, "a dog")]
    result = preference_score("ImageReward", items, image_reward("weights", "cpu"))
    assert result.value == pytest.approx((2 + 5) / 2) and result.per_sample == {"a": 2, "b": 5}
    assert asked == [("weights", "cpu"), ("a cat", (2, 2)), ("a cat", (2, 2)), ("a dog", (2, 2))]
    with pytest.raises(UserError, match="'c' has no global caption"):
        preference_score("ImageReward", [item("c", 0, None)], lambda image, caption: 0.0)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(UserError, match="`pip install image-reward`, or leave the metric out") as told:
        image_reward("weights", "cpu")
    assert "\n" not in str(told.value)
