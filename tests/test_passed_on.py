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
