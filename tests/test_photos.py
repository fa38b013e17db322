"""Photos of all kinds, as the data set `folder` reads them: what people see, with known colours and turns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from seg2any.data.catalog import open_data_set
from seg2any.data.folder import FolderDataset
from seg2any.layout import Layout
from seg2any.system.weights import file_digest
from tests.opened_data import skipping
from tests.synthetic_data import make_ade20k

HEIGHT, WIDTH = 24, 40
SEEN = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # every corner has a colour of its own
SEEN[:12, :20], SEEN[:12, 20:], SEEN[12:, :20], SEEN[12:, 20:] = (250, 10, 10), (10, 250, 10), (10, 10, 250), (200,) * 3


def data_set(folder: Path, photo: Image.Image, suffix: str = "png", size=(HEIGHT, WIDTH), **options) -> FolderDataset:
    """Make a data set of one photo and a mask over its upper left quarter."""
    for name in ("photos", "layouts"):
        (folder / name).mkdir()
    photo.save(folder / "photos" / f"x.{suffix}", **options)
    mask = np.zeros(size, bool)
    mask[: size[0] // 2, : size[1] // 2] = True
    Layout(mask[None], ("a red corner",)).write(folder / "layouts" / "x.json")
    return FolderDataset(folder / "photos", folder / "layouts")


STORED = {  # orientation in EXIF -> the stored pixels of a photo that is seen as SEEN; from the EXIF specification
    1: SEEN,
    2: SEEN[:, ::-1],
    3: SEEN[::-1, ::-1],
    4: SEEN[::-1],
    5: SEEN.transpose(1, 0, 2),
    6: np.rot90(SEEN, 1),
    7: SEEN[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SEEN, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_turns_are_followed_and_masks_belong_to_the_turned_photo(orientation: int, suffix: str, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    data = data_set(tmp_path, photo, suffix, exif=exif, quality=95)
    assert abs(data[0].image.astype(int) - SEEN).mean() < 12
    inside = data[0].image[data[0].layout.masks[0]].astype(int)
    assert abs(inside - SEEN[0, 0]).mean() < 12, "the mask holds the red corner"


def test_masks_of_the_stored_size_are_left_out_with_a_word_about_exif(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.ascontiguousarray(STORED[6]))
    (tmp_path / "more").mkdir()
    data_set(tmp_path, photo, "jpg", exif=exif)
    Image.fromarray(np.ascontiguousarray(STORED[6])).save(tmp_path / "photos" / "y.jpg", exif=exif)
    Layout(np.ones((1, WIDTH, HEIGHT), bool), ("all",)).write(tmp_path / "layouts" / "y.json")
    roots = {"image_root": str(tmp_path / "photos"), "layout_root": str(tmp_path / "layouts")}
    (left_out,) = skipping("folder", roots).left_out
    assert left_out.key == "y" and "EXIF" in left_out.reason


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(mode: str, tmp_path: Path):
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:12], alpha[12:, 20:] = 255, 102
    photo = Image.fromarray(SEEN if mode != "LA" else SEEN[..., 0]).convert("LA" if mode == "LA" else "RGB")
    if mode == "P":
        indices = np.repeat(np.repeat([[0, 1], [2, 3]], 12, 0), 20, 1).astype(np.uint8)
        photo = Image.fromarray(indices).convert("P")
        photo.putpalette([250, 10, 10, 10, 250, 10, 10, 10, 250, 200, 200, 200])
        photo.save(tmp_path / "p.png", transparency=bytes([255, 255, 0, 102]))
        photo = Image.open(tmp_path / "p.png")
    else:
        photo.putalpha(Image.fromarray(alpha))
    found = data_set(tmp_path, photo)[0].image.astype(int)
    top = SEEN[:12] if mode != "LA" else np.repeat(SEEN[:12, :, :1], 3, 2)
    assert abs(found[:12] - top).max() <= 1
    assert (found[12:, :20] == 255).all(), "hidden pixels are not seen"
    assert abs(found[12:, 20:] - (0.4 * 200 + 0.6 * 255)).max() <= 1


def swapped_profile() -> bytes:
    """Build an ICC profile whose first channel is sRGB's green and whose second is its red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    table = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return table.replace(b"sRGB", b"mine").replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_are_converted_from_their_profile(alpha: bool, tmp_path: Path):
    photo = Image.fromarray(SEEN)
    if alpha:
        photo.putalpha(255)
    found = data_set(tmp_path, photo, icc_profile=swapped_profile())[0].image.astype(int)
    assert abs(found - SEEN[..., [1, 0, 2]]).max() <= 8


def test_srgb_and_damaged_profiles_change_nothing(tmp_path: Path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in {"srgb": srgb, "damaged": srgb[:200]}.items():
        (tmp_path / name).mkdir()
        assert (data_set(tmp_path / name, Image.fromarray(SEEN), icc_profile=profile)[0].image == SEEN).all()


def test_sixteen_bits_grey_and_cmyk(tmp_path: Path):
    for name in ("deep", "grey", "cmyk"):
        (tmp_path / name).mkdir()
    deep = data_set(tmp_path / "deep", Image.fromarray(SEEN[..., 0].astype(np.uint16) * 257))
    assert (deep[0].image == SEEN[..., :1]).all()
    assert (data_set(tmp_path / "grey", Image.fromarray(SEEN[..., 0]))[0].image == SEEN[..., :1]).all()
    inks = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    inks[:12, :, 1], inks[:12, :, 2], inks[12:, :, 3] = 255, 255, 255  # magenta and yellow are red, key is black
    found = data_set(tmp_path / "cmyk", Image.fromarray(inks, "CMYK"), "jpg", quality=95)[0].image.astype(int)
    assert abs(found[2:8] - [255, 0, 0]).max() < 8 and abs(found[16:22]).max() < 8


def test_an_animation_is_left_out(tmp_path: Path):
    frames = [Image.fromarray(np.roll(SEEN, step, 1)) for step in (3, 9)]
    data_set(tmp_path, Image.fromarray(SEEN))
    frames[0].save(tmp_path / "photos" / "y.webp", save_all=True, append_images=frames[1:])
    (tmp_path / "layouts" / "y.json").write_text(json.dumps({"segments_info": []}))
    Layout(np.ones((1, HEIGHT, WIDTH), bool), ("all",)).write(tmp_path / "layouts" / "y.json")
    roots = {"image_root": str(tmp_path / "photos"), "layout_root": str(tmp_path / "layouts")}
    (left_out,) = skipping("folder", roots).left_out
    assert left_out.key == "y" and "several pages or frames" in left_out.reason


def test_caches_of_photos_that_were_read_as_stored_are_not_used(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = {"plain": {}, "turned": {"exif": exif}, "coloured": {"icc_profile": swapped_profile()}}
    for name, options in turned.items():
        (tmp_path / name).mkdir()
        data = data_set(tmp_path / name, Image.fromarray(SEEN), **options)
        stored = file_digest(tmp_path / name / "photos" / "x.png")
        assert (data.photo_digest(0) == stored) == (name == "plain")


def test_published_data_sets_say_that_turns_are_not_followed(tmp_path: Path):
    made = make_ade20k(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    for truth in made.truths[:2]:
        with Image.open(truth.image) as image:
            image.save(truth.image, exif=exif, quality="keep")
    with pytest.warns(UserWarning, match="EXIF turns some photos") as caught:
        open_data_set("ade20k", made.params)
    assert len({str(one.message) for one in caught}) == 1
