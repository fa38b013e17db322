"""The recipe stored in every image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.generate.recipe import BrokenImage, differences, read_recipe, save_image
from seg2any.system.errors import UserError
from tests.infer_command import files


class TestRecipe:
    RECIPE = {"seed": 3, "settings": {"range": (1, 2)}, "caption": '\u732b "quoted"\n', "versions": {"torch": "1"}}

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
    def test_a_recipe_is_read_back_from_its_image(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"x.{suffix}"
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        save_image(image, self.RECIPE, path)
        assert (
            differences(read_recipe(path), self.RECIPE) == [] and read_recipe(path)["caption"] == self.RECIPE["caption"]
        )
        whole = path.read_bytes()
        for length in {len(whole) - 1, len(whole) - 13, len(whole) // 2, 10, 0} - (
            {len(whole) - 1} if suffix != "png" else set()
        ):
            path.write_bytes(whole[:length])
            with pytest.raises(BrokenImage):
                read_recipe(path)

    def test_an_image_may_have_the_longest_legal_name(self, tmp_path: Path):
        path = tmp_path / f"{'n' * 251}.png"
        save_image(Image.new("RGB", (2, 2)), {"seed": 1}, path)
        assert read_recipe(path) == {"seed": 1} and files(tmp_path) == [path.name]

    def test_differing_keys_are_named(self):
        other = {**self.RECIPE, "seed": 4, "settings": {"range": [1, 3]}, "versions": {"torch": "2"}, "new": 1}
        assert differences(json.loads(json.dumps(self.RECIPE)), other) == ["new", "seed", "settings.range"]

    def test_a_recipe_too_long_for_jpeg(self, tmp_path: Path):
        with pytest.raises(UserError, match="use --format png"):
            save_image(Image.new("RGB", (8, 8)), {"caption": "x" * 70000}, tmp_path / "x.jpg")
        assert not list(tmp_path.iterdir())
