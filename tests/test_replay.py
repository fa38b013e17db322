"""`seg2any replay`: the same image from its recipe, and one line for whatever stands in the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.commands import verbs
from seg2any.generate.recipe import MADE, differences, read_recipe, save_image
from seg2any.generate.recorded import find_layouts, read_recorded
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from tests.infer_command import MODEL, files, layout

RECIPE = {
    "layout": {"sha256": layout("a").digest(), "name": "a", "caption": "a red circle and a star"},
    "seed": 3,
    "size": [64, 64],
    "settings": {"attention_mask_method": "hard", "hard_attn_block_range": [19, 37]},
    "num_inference_steps": 1,
    "guidance_scale": 3.5,
    "model": {"path": str(MODEL)},
    "weight_dtype": "float32",
}
RECIPE["layout"]["captions"] = list(layout("a").captions)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Write an image with RECIPE into tmp_path/out, and its layout beside that folder."""
    (tmp_path / "out").mkdir()
    layout("a").write(tmp_path / "masks" / "a.json")
    save_image(Image.new("RGB", (64, 64)), RECIPE, tmp_path / "out" / "a.png")
    return tmp_path / "out" / "a.png"


def rewrite(image: Path, **changed: object) -> None:
    save_image(Image.open(image), {**RECIPE, **changed}, image)


def replayed(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    """Run `seg2any replay`; return status, output and errors."""
    try:
        status = verbs.main(["replay", *map(str, words)])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


@pytest.mark.slow
def test_images_of_a_batch_are_made_again_bit_by_bit(tmp_path: Path, call, capsys, monkeypatch):
    for one in (layout("a"), layout("b", seed=5, captions=("a blue ring with a very long caption", "a star"))):
        one.write(tmp_path / "masks" / f"{one.name}.npz")
    out, regions = tmp_path / "out", {"attention_mask_method": "hard"}
    assert call(seg_mask_path=tmp_path / "masks", output_path=out, batch_size=2, **regions)[0] == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    recipe = read_recipe(out / "b.png")
    assert recipe[MADE]["place"] == 1 and [one["name"] for one in recipe[MADE]["batch"]] == ["a", "b"]
    assert recipe[MADE]["threads"] == 1 and recipe[MADE]["processor"]

    status, said, errors = replayed(capsys, out / "b.png")
    assert status == 0 and "every pixel equals" in said and "note:" not in said, (said, errors)
    assert files(out) == ["a.png", "b.png", "b_replay.png"]
    assert {path: path.read_bytes() for path in before} == before
    assert differences(read_recipe(out / "b_replay.png"), recipe) == []

    changed = {**recipe, "seed": 6, "versions": {**recipe["versions"], "torch": "1.0"}}
    del changed[MADE]
    save_image(Image.open(out / "b.png"), changed, out / "b.png")
    status, said, _ = replayed(capsys, out / "b.png")
    assert status == 1 and "note: torch is" in said and "was 1.0" in said and "of the pixels differ" in said
    assert (out / "b_replay_2.png").exists()
    old, new = (np.asarray(Image.open(out / name)) for name in ("b.png", "b_replay_2.png"))
    assert not np.array_equal(old, new)

    (tmp_path / "masks" / "a.npz").unlink()
    save_image(Image.open(out / "b_replay.png"), recipe, out / "b.png")
    _, said, _ = replayed(capsys, out / "b.png")
    assert "note: layouts of its batch of 2 are missing, so it is made alone" in said

    monkeypatch.setattr("seg2any.generate.replay.known_model", lambda *name: {"fingerprint": "another"})
    status, _, errors = replayed(capsys, out / "b.png")
    assert status == 2 and "has other weights than the image was made with" in errors


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": {"path": "model", "fingerprint": "0"}}, "model: has other weights than the image was made with"),
        ({"size": [64]}, "its recipe is damaged"),
        ({"size": [10**6, 10**6]}, "its recipe is damaged"),
        ({"seed": "3"}, "its recipe is damaged"),
        ({"model": ["model"]}, "its recipe is damaged"),
        ({"adapter": {"path": "lora", "sha256": 3}}, "its recipe is damaged"),
        ({"adapter": {"path": "lora"}}, "its recipe is damaged"),
        ({"weight_dtype": "load"}, "its recipe is damaged"),
        ({"settings": {"attention_mask_method": "soft"}}, "its recipe is damaged"),
        ({"num_inference_steps": 10**9}, "its recipe is damaged"),
        ({MADE: {"batch": [], "place": 0}}, "its recipe is damaged"),
        ({MADE: {"fold": "yes"}}, "its recipe is damaged"),
        ({"layout": {"sha256": "0" * 64, "name": "../../a"}}, "say where it is by --seg_mask_path"),
        ({"model": {"id": "nobody/model"}}, "allow it by --pretrained_model_name_or_path 'nobody/model'"),
        ({"model": {"path": "/nowhere"}}, "say where it is by --pretrained_model_name_or_path"),
        ({"adapter": {"path": "/nowhere", "sha256": "0"}}, "say where it is by --lora_ckpt_path"),
    ],
)
def test_recipes_that_cannot_be_followed_are_one_line(image: Path, changed: dict, said: str, capsys):
    rewrite(image, **changed)
    status, output, errors = replayed(capsys, image, "--device", "cpu")
    assert status == 2 and said in errors and errors.count("\n") == 1 and not output
    assert files(image.parent) == ["a.png"]


def test_files_without_a_recipe_are_one_line(image: Path, capsys):
    panel, plain, cut = (image.with_name(f"{name}.png") for name in ("panel", "plain", "cut"))
    save_image(Image.new("RGB", (4, 4)), {"panel": RECIPE}, panel)
    Image.new("RGB", (4, 4)).save(plain)
    cut.write_bytes(image.read_bytes()[:-5])
    for path, said in (
        (panel, "is a panel"),
        (plain, "holds no recipe"),
        (cut, "is not a whole image"),
        (image.with_name("none.png"), "no such file"),
    ):
        status, _, errors = replayed(capsys, path)
        assert status == 2 and said in errors and errors.count("\n") == 1


def test_the_layout_is_found_by_its_digest_wherever_it_lies(image: Path, tmp_path: Path, monkeypatch):
    recorded = read_recorded(image)
    assert [*find_layouts(recorded, None)] == [layout("a").digest()]
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    assert [*find_layouts(recorded, tmp_path / "elsewhere")] == [layout("a").digest()]
    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "deep" / "masks")
    with pytest.raises(UserError, match="layout 'a' .* is not in the folders around the image; .* --seg_mask_path"):
        find_layouts(recorded, None)
    monkeypatch.chdir(tmp_path / "deep")
    assert find_layouts(recorded, None)


def test_layouts_of_the_demo_are_found_where_they_are_shipped(image: Path, tmp_path: Path, monkeypatch):
    shipped = Layout.read(MODEL.parent / "masks" / "five.json")
    rewrite(image, layout={**RECIPE["layout"], "sha256": shipped.digest(), "name": "five"})
    monkeypatch.chdir(tmp_path)
    assert [*find_layouts(read_recorded(image), None)] == [shipped.digest()]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("caption", "another", "the global caption has changed from 'a red circle and a star'"),
        ("segments_info", "a ring", "the caption of region 1 has changed from 'a red circle' to 'a ring'"),
    ],
)
def test_what_has_changed_in_a_layout_is_named(image: Path, tmp_path: Path, key, value, said):
    path = tmp_path / "masks" / "a.json"
    document = json.loads(path.read_text())
    if key == "caption":
        document[key] = value
    else:
        document[key][0]["text"] = value
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=said):
        find_layouts(read_recorded(image), None)


def test_changed_masks_and_lost_regions_are_named(image: Path, tmp_path: Path):
    layout("a", side=80).write(tmp_path / "masks" / "a.json")
    with pytest.raises(UserError, match="the masks have changed"):
        find_layouts(read_recorded(image), None)
    rewrite(image, layout={**RECIPE["layout"], "captions": ["one"]})
    with pytest.raises(UserError, match="has 2 regions, and the image's layout had 1"):
        find_layouts(read_recorded(image), None)
