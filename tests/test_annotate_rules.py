"""Rules, masks and copies of `annotate`, against pixels and numbers that were counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from seg2any.annotate import nested
from seg2any.annotate.aesthetic import Aesthetics, check_aesthetic
from seg2any.annotate.caption_file import open_captions
from seg2any.annotate.draft import Draft, Dropped, Region
from seg2any.annotate.journal import Journal
from seg2any.annotate.photos import find_photos
from seg2any.annotate.rules import Look, Rules, keep_large, keep_top_level
from seg2any.annotate.similar import copies, perceptual_hash
from seg2any.annotate.stages import DROPPED, FAILED, KEPT, Outcome
from seg2any.layout.rle import compressed, encode_rle
from seg2any.system.clip_images import centred_square
from seg2any.system.errors import UserError
from tests import annotate_set, synthetic_data
from tests.annotate_set import GOOD, HALF_NESTED, LARGE_ENOUGH, MOSTLY_NESTED, NESTED, SIZE, SMALL


def runs_of(mask: np.ndarray) -> np.ndarray:
    return np.array(encode_rle(mask)["counts"])


def draft(*masks: np.ndarray) -> Draft:
    (photo,) = find_photos([Path(__file__)], {})
    regions = [Region(number, compressed(runs_of(mask))) for number, mask in enumerate(masks)]
    return Draft(photo, masks[0].shape, regions)


def ids(found: Draft) -> list[int]:
    return [region.id for region in found.regions]


def test_areas_boxes_and_shared_pixels_are_those_of_the_drawn_masks():
    rng = np.random.default_rng(0)
    masks = [*synthetic_data.draw_regions(rng, (23, 31), 30), *(rng.random((6, 23, 31)) < 0.4), np.ones((23, 31), bool)]
    masks = [mask for mask in masks if mask.any()]
    for mask in masks:
        rows, columns = np.nonzero(mask)
        size = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert nested.box(runs_of(mask), 23) == (columns.min(), rows.min(), *size)
        assert nested.area(runs_of(mask)) == mask.sum()
        assert compressed(runs_of(mask)) == synthetic_data.encode_rle(mask)
        for other in masks:
            assert nested.shared(runs_of(mask), runs_of(other)) == (mask & other).sum()


def test_top_level_masks_are_those_that_the_rule_leaves_when_it_is_read_word_by_word():
    rng = np.random.default_rng(1)
    masks = [*synthetic_data.draw_regions(rng, (40, 40), 25)]
    kept: list[int] = []
    for number in sorted(range(25), key=lambda one: (-masks[one].sum(), one)):
        inside = [(masks[number] & masks[other]).sum() / max(1, masks[number].sum()) for other in kept]
        if not any(share >= 0.7 for share in inside):
            kept.append(number)
    assert nested.top_level([runs_of(mask) for mask in masks], 0.7, 40) == sorted(kept) and len(kept) < 25


def test_planted_masks_are_left_out_and_no_others():
    found = draft(NESTED, GOOD[0], MOSTLY_NESTED, HALF_NESTED, SMALL, LARGE_ENOUGH, GOOD[0])
    keep_top_level(found, Rules())
    assert ids(found) == [1, 3, 5]  # the small one lies in the large enough one, and the last repeats the first
    found = draft(GOOD[0], SMALL, LARGE_ENOUGH, np.zeros(SIZE, bool))
    keep_large(found, Rules())
    assert ids(found) == [0, 2]
    keep_large(found, Rules(min_area=0))
    assert ids(found) == [0, 2]
    found = draft(GOOD[0], NESTED)
    keep_top_level(found, Rules(nested=1.1))
    assert ids(found) == [0, 1]


def test_copies_are_found_and_other_photos_are_not(tmp_path):
    for seed in range(30):
        annotate_set.write_photo(tmp_path / f"{seed}.png", seed)
    photos = [Image.open(tmp_path / f"{seed}.png") for seed in range(30)]
    photos[3].resize((200, 150), Image.Resampling.LANCZOS).save(tmp_path / "small.jpg", quality=40)
    lighter = Image.fromarray((np.asarray(photos[5]) * 0.8 + 30).astype(np.uint8))
    found = [perceptual_hash(one) for one in (*photos, Image.open(tmp_path / "small.jpg"), lighter)]
    assert copies(found, 4) == {30: 3, 31: 5}


@pytest.mark.parametrize("distance", [0, 3, 10, 63])
def test_copies_are_those_of_a_comparison_of_all_pairs(distance: int):
    rng = np.random.default_rng(distance)
    found = [int(one) for one in rng.integers(0, 2**63, 60, dtype=np.uint64)]
    found += [one ^ sum(1 << int(bit) for bit in rng.choice(64, distance, replace=False)) for one in found[:20]]
    found += [one ^ (1 << 5) for one in found[60:]]
    kept, expected = [], {}
    for number, value in enumerate(found):
        near = [other for other in kept if (value ^ found[other]).bit_count() <= distance]
        if near:
            expected[number] = near[0]
        else:
            kept.append(number)
    assert copies(found, distance) == expected and expected


def test_photos_get_names_of_their_own_and_keep_them(tmp_path):
    for key in ("a/one.jpg", "b/one.png", "b/ONE.jpg", "é è.jpg", "b/.hidden.jpg", "b/notes.txt"):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).touch()
    found = {photo.key: photo for photo in find_photos([tmp_path], {})}
    assert [*found] == ["a/one.jpg", "b/ONE.jpg", "b/one.png", "é è.jpg"]
    names = {key: photo.name for key, photo in found.items()}
    assert names["a/one.jpg"] == "one" and names["é è.jpg"] == "_" and found["b/one.png"].group == "b"
    assert len({name.casefold() for name in names.values()}) == 4
    known = {"b/one.png": "one"}
    assert {photo.key: photo.name for photo in find_photos([tmp_path], known)}["b/one.png"] == "one"
    with pytest.raises(UserError, match="both would be one.jpg"):
        find_photos([tmp_path / "a", tmp_path / "a" / "one.jpg", _touch(tmp_path / "c" / "one.jpg")], {})


def _touch(path: Path) -> Path:
    path.parent.mkdir()
    path.touch()
    return path


def test_a_journal_goes_on_behind_a_half_written_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"min_area": 0.01})
    journal.add_looks({key: Look((1, 2), 3, 4) for key in "abc"})
    journal.add(Outcome("a", KEPT, record={"name": "a"}))
    journal.add(Outcome("c", FAILED, "masks", "x"))
    whole = path.read_bytes()
    journal.add(Outcome("b", DROPPED, "min_area", "y"))
    last = path.read_bytes()[len(whole) :]
    for cut in (1, len(last) // 2, len(last) - 1):
        path.write_bytes(whole + last[:cut])
        again = Journal(path, {"min_area": 0.01})
        assert [again.state(key) for key in "abc"] == [KEPT, None, None] and again.names == {"a": "a"}
        again.add(Outcome("b", DROPPED, "min_side", "z"))
        for reader in (again, Journal(path, {"min_area": 0.01})):
            (one, other) = reader.outcomes("ab")
            assert (one.key, other.reason) == ("a", "min_side")
    again.add_looks({"a": Look((1, 2), 3, 5)})  # the photo has changed
    assert Journal(path, {"min_area": 0.01}).state("a") is None
    with pytest.raises(UserError, match="was made with min_area 0.01, and now it is 0.02; choose another --output"):
        Journal(path, {"min_area": 0.02})
    path.write_text("{}\n")
    with pytest.raises(UserError, match="no journal"):
        Journal(path, {})


def small_clip(folder: Path) -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**small, image_size=32, patch_size=16, projection_dim=4))
    model.save_pretrained(folder)
    return model.eval()


def test_aesthetics_are_the_head_on_the_unit_vector_of_clip(tmp_path):
    model, image = small_clip(tmp_path / "clip"), np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    head = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(), torch.nn.Linear(6, 3), torch.nn.Linear(3, 1))
    torch.save({f"layers.{name}": value for name, value in head.state_dict().items()}, tmp_path / "five.pth")
    torch.save(torch.nn.Linear(4, 1).state_dict(), tmp_path / "one.pth")
    (found,) = Aesthetics(tmp_path / "five.pth", str(tmp_path / "clip"))([image])
    mean, std = (
        torch.tensor(one) for one in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    pixels = (torch.tensor(centred_square(image, 32)) / 255 - mean) / std
    with torch.no_grad():
        vector = model(pixels.permute(2, 0, 1)[None]).image_embeds
        expected = float(head.eval()(vector / vector.norm()))
    assert found == pytest.approx(expected, abs=1e-5)
    predictor = Aesthetics(tmp_path / "one.pth", str(tmp_path / "clip"))
    found = draft(GOOD[0])
    found.image = image
    check_aesthetic(found, Rules(min_aesthetic=-99), predictor)
    assert found.aesthetic == round(predictor([image])[0], 3)
    with pytest.raises(Dropped, match="min_aesthetic: scores"):
        check_aesthetic(found, Rules(min_aesthetic=99), predictor)


def test_a_head_that_is_missing_or_another_is_told_in_one_line(tmp_path):
    small_clip(tmp_path / "clip")
    with pytest.raises(UserError, match=r"aesthetics predictor: file .*no.pth is missing; download https://"):
        Aesthetics(tmp_path / "no.pth", str(tmp_path / "clip"))
    for name, tensors in {
        "two_scores": torch.nn.Linear(4, 2).state_dict(),
        "no_bias": {"weight": torch.ones(1, 4)},
        "other": {"conv": torch.ones(2)},
    }.items():
        torch.save(tensors, tmp_path / f"{name}.pth")
        with pytest.raises(UserError, match="holds no linear layers that end in one score"):
            Aesthetics(tmp_path / f"{name}.pth", str(tmp_path / "clip"))
    torch.save(torch.nn.Linear(5, 1).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError, match="reads 5 numbers and .* gives 4"):
        Aesthetics(tmp_path / "wide.pth", str(tmp_path / "clip"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "line 2: is no "),
        ('{"image": "b.jpg", "regions": {"x": "y"}}', "line 2: is no "),
        ('{"image": "b.jpg", "regions": {"1": 2}}', "are not all texts"),
        ('{"image": "a.jpg", "regions": {}}', "has captions already"),
    ],
)
def test_a_line_of_captions_that_cannot_be_read_is_named(tmp_path, line: str, said: str):
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"image": "a.jpg", "caption": None, "regions": {"7": "a cat"}}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=said):
        open_captions(path)
