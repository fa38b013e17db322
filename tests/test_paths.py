"""Paths and names that people give: the home folder, names too long, sizes too large, capitals."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from seg2any.attention.settings import ConditionSettings
from seg2any.data.catalog import open_data_set
from seg2any.evaluation.generation import ImageSet
from seg2any.generate import survey as surveys
from seg2any.generate.options import Options, parse_options
from seg2any.generate.plan import Job
from seg2any.generate.preflight import ModelFacts
from seg2any.generate.recipe import MOST_PIXELS
from seg2any.generate.run import save
from seg2any.generate.survey import survey_layouts
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, check_name, takes_capitals_for_small
from seg2any.training import config
from tests.infer_command import files, layout

FACTS = ModelFacts(pixels_per_token=16, count_tokens=lambda text: len(text.split()) + 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home folder of its own; the working folder is another one."""
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def surveyed(folder: Path, **changes: object):
    options = Options(seg_mask_path=folder, output_path=folder.parent / "out", **changes)
    return survey_layouts(options, ConditionSettings(), FACTS)


class TestHome:
    def test_flags_of_infer(self, home: Path):
        named = ("seg_mask_path", "output_path", "pretrained_model_name_or_path", "lora_ckpt_path")
        options = parse_options([f"--{name}=~/{name}" for name in named])
        assert [str(getattr(options, name)) for name in named] == [f"{home}/{name}" for name in named]
        hub = parse_options(["--seg_mask_path=x", "--pretrained_model_name_or_path=./a/b"])
        assert hub.pretrained_model_name_or_path == "./a/b", "a local folder must not turn into a hub id"

    def test_keys_and_files_of_a_config(self, home: Path):
        (home / "mine.yaml").write_text(
            "project: {output_dir: ~/runs}\ndata: {val: {params: {image_root: ~/photos}}}\n"
        )
        keys = ("model.lora_ckpt_path", "model.pretrained_model_name_or_path", "trainer.cache_dir")
        words = ["~/mine.yaml", *(f"--{key}=~/{key}" for key in keys), "--resume_from_checkpoint=~/a"]
        read = config.load([*words, "--data.train.params.segm_root=~/maps", "--data.train.params.n_scenes=3"])
        assert read.project.output_dir == f"{home}/runs" and read.resume_from_checkpoint == f"{home}/a"
        assert [read.model.lora_ckpt_path, read.model.pretrained_model_name_or_path, read.trainer.cache_dir] == [
            f"{home}/{key}" for key in keys
        ]
        assert read.data.train.params == {"segm_root": f"{home}/maps", "n_scenes": 3}
        assert read.data.val.params == {"image_root": f"{home}/photos"}

    def test_layouts(self, home: Path):
        layout("a").write("~/masks/a.json")
        assert files(home / "masks") == ["a.json", "a.png"] and not os.listdir()
        assert [path.name for path in Layout.find("~/masks")] == ["a.json"]
        assert Layout.read("~/masks/a.json").captions == layout("a").captions

    def test_data_sets(self, home: Path):
        layout("a").write(home / "layouts" / "a.json")
        (home / "photos").mkdir()
        Image.new("RGB", (64, 64)).save(home / "photos" / "a.png")
        assert len(open_data_set("folder", {"image_root": "~/photos", "layout_root": "~/layouts"})) == 1


class TestLimits:
    def test_the_largest_images_are_those_that_the_libraries_write(self):
        for suffix, most in MOST_PIXELS.items():
            kind = Image.registered_extensions()[suffix]
            for size in ((most, 1), (1, most)):
                Image.new("RGB", size).save(io.BytesIO(), kind)
                with pytest.raises((OSError, ValueError)):
                    Image.new("RGB", tuple(side + (side > 1) for side in size)).save(io.BytesIO(), kind)

    @pytest.mark.parametrize(
        ("kind", "height", "width", "fits"),
        [
            ("webp", 16, 16384, False),
            ("webp", 16384, 16, False),
            ("webp", 16, 16368, True),
            ("jpg", 65504, 16, False),
            ("jpg", 16, 16384, True),
            ("png", 65504, 16, True),
        ],
    )
    def test_sizes_that_a_format_cannot_hold_are_known_before(self, kind, height, width, fits, tmp_path: Path):
        layout("a").write(tmp_path / "masks" / "a.json")
        errors = surveyed(tmp_path / "masks", format=kind, height=height, width=width).errors
        assert len(errors) == (not fits) and all("a.json" in error and kind in error for error in errors)

    @pytest.mark.parametrize(
        ("name", "flags", "fits"),
        [
            ("n" * 251, {}, True),
            ("n" * 248, {"save_panels": True}, False),
            ("n" * 245, {"save_panels": True}, True),
            ("n" * 250, {"num_images_per_prompt": 11}, False),
            ("n" * 250, {"format": "webp"}, True),
            ("n" * 250, {"check": True}, False),
            ("\u6f22" * 82, {"save_panels": True}, False),
        ],
    )
    def test_names_too_long_for_what_is_written(self, name, flags, fits, tmp_path: Path):
        layout("a").write(tmp_path / "masks" / "a.npz")
        (tmp_path / "masks" / "a.npz").rename(tmp_path / "masks" / f"{name}.npz")
        errors = surveyed(tmp_path / "masks", **flags).errors
        assert len(errors) == (not fits) and all("name" in error for error in errors), errors

    def test_an_image_without_room_for_its_panel_is_written(self, tmp_path: Path):
        image = tmp_path / f"{'n' * 250}.png"
        check_name(image)
        save(Options(), Job(SimpleNamespace(), 0, image, {"seed": 0}), layout("a"), Image.new("RGB", (8, 8)))
        assert files(tmp_path) == [image.name]

    def test_a_path_that_is_too_long(self, tmp_path: Path):
        deep = tmp_path.joinpath(*["d" * 200] * 30)
        with pytest.raises(UserError, match="longer than"):
            check_name(deep / "a.png")

    def test_every_name_that_is_accepted_can_be_written(self, tmp_path: Path):
        """Compare with the file system itself, at its limit."""
        for size in range(245, 260):
            path = tmp_path / ("n" * size)
            try:
                check_name(path)
            except UserError:
                with pytest.raises(OSError, match="too long"):
                    path.write_text("")
            else:
                with atomic_write(path) as temporary:
                    temporary.write_text("")
        assert len(files(tmp_path)) == 11

    def test_names_of_samples_are_known_before(self, tmp_path: Path):
        data = SimpleNamespace(key=lambda index: "folder/" + "k" * (251 + index))
        shared = {"images_per_sample": 1, "image_format": "png", "size": (64, 64), "seed": 0, "recipe": {}}
        assert len(ImageSet(data, tmp_path, samples=1, **shared).wanted()) == 1
        with pytest.raises(UserError, match="name has 256 bytes"):
            ImageSet(data, tmp_path, samples=2, **shared).wanted()


class TestCapitals:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("Cat", "cat", "dog"):
            layout(name).write(tmp_path / "masks" / f"{name}.npz")
        if len(files(tmp_path / "masks")) < 3:
            pytest.skip("this file system cannot hold the case")
        return tmp_path / "masks"

    def test_it_is_told_that_other_systems_would_lose_an_image(self, folder: Path):
        survey = surveyed(folder)
        assert not survey.errors
        (line,) = [line for line in survey.warnings if "one file" in line]
        assert "Cat and cat" in line and "dog" not in line

    def test_it_is_refused_where_an_image_would_be_lost(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(surveys, "takes_capitals_for_small", lambda folder: True)
        (error,) = surveyed(folder).errors
        assert "Cat.npz" in error and "cat.npz" in error and "rename one" in error

    def test_file_systems_are_asked(self, tmp_path: Path):
        (tmp_path / "Letters").mkdir()
        assert takes_capitals_for_small(tmp_path / "Letters" / "new") == (tmp_path / "lETTERS").exists()
