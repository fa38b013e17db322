"""Strangers' files make this program print text, start nothing and pass on no folders of this machine."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from seg2any.generate.preflight import LayoutReport
from seg2any.generate.recipe import BrokenImage, differences, read_recipe, save_image
from seg2any.layout.checks import LayoutError
from seg2any.layout.images import load_image
from seg2any.system.console import exit_status, warn
from seg2any.system.errors import UserError, printable
from tests.golden_root import REPOSITORY
from tests.infer_command import infer, three_layouts

ESCAPES = "a\x1b]0;title\x07\x1b[2Jb\u202ec\r"


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture):
    assert printable(ESCAPES) == r"a\x1b]0;title\x07\x1b[2Jb\u202ec\r" and printable("ä猫 x") == "ä猫 x"

    def fail() -> None:
        raise UserError(f"{ESCAPES}: is wrong")

    assert exit_status("program", fail) == 2
    warn([ESCAPES])
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\u202e" not in error and error.count(r"\x1b]0;title") == 2


def test_a_report_of_layouts_shows_names_as_text():
    facts = dict.fromkeys((each.name for each in fields(LayoutReport)), 0)
    facts |= {"name": ESCAPES, "image_size": (8, 8), "regions": (), "warnings": (ESCAPES,), "caption": None}
    facts |= {"notes": (ESCAPES,)}
    assert "\x1b" not in str(LayoutReport(**facts)) and r"\x1b[2J" in str(LayoutReport(**facts))


def test_recipes_in_images_name_no_folders(tmp_path: Path):
    recipe = {
        "model": {"path": "/home/ada/models/flux", "fingerprint": "x"},
        "adapter": {"path": "../lora/", "sha256": "y"},
    }
    for suffix in ("png", "jpg", "webp"):
        for given in (recipe, {"panel": recipe}, {"model": {"id": "owner/name"}, "adapter": None}):
            path = tmp_path / f"x.{suffix}"
            save_image(Image.new("RGB", (8, 8)), given, path)
            written = read_recipe(path)
            assert b"/home" not in path.read_bytes() and "/" not in json.dumps(written).replace("owner/name", "")
            assert differences(written, given) == [] or "panel" in given
    assert written == {"model": {"id": "owner/name"}, "adapter": None}


def held(path: Path) -> dict:
    """Return what an image file holds beside its pixels and its format's own numbers."""
    with Image.open(path) as image:
        image.load()
        told = {key: value for key, value in image.info.items() if key not in ("jfif", "jfif_version", "jfif_unit")}
        return {**told, **image.getexif()}


@pytest.mark.slow
def test_without_recipes_images_hold_nothing_but_pixels(tmp_path: Path):
    flags = {"seg_mask_path": three_layouts(tmp_path), "output_path": tmp_path / "out"}
    first = infer("--no_recipe", "--save_panels", **flags)
    assert first.returncode == 0 and first.stdout.startswith("3 images to make"), first.stderr
    made = sorted((tmp_path / "out").iterdir())
    assert len(made) == 6 and all(held(path) == {} and read_recipe(path) is None for path in made)
    again = infer("--no_recipe", **flags)
    assert again.stdout.startswith("0 images to make") and "left alone" not in again.stderr
    infer("--overwrite", **flags)
    assert all("seg2any" in held(path) for path in made if "panel" not in path.name), "the comparison can fail"
    numbers = {"jfif_density", "dpi", "loop", "background", "timestamp", "duration"}
    for suffix in ("jpg", "webp"):
        save_image(Image.new("RGB", (8, 8)), None, tmp_path / f"x.{suffix}")
        assert held(tmp_path / f"x.{suffix}").keys() <= numbers


def test_output_folders_are_read_as_pictures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An EPS called .png would make Pillow start another program."""
    monkeypatch.setattr("subprocess.Popen", lambda *words, **options: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *words, **options: pytest.fail("a program was started"))
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(BrokenImage):
        read_recipe(path)
    with pytest.raises(LayoutError):
        load_image(path)


def test_every_picture_is_opened_in_a_format_from_a_list():
    """`Image.open` without formats reads what an EPS says; these files alone may call it."""
    files = [path for path in REPOSITORY.glob("seg2any/**/*.py") if "Image.open(" in path.read_text(encoding="utf-8")]
    assert [path.name for path in files] == ["images.py"]
