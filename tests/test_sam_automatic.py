"""All regions by SAM 2 and SAM 3: the search against a reading of its rules, on small networks with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.layout.overlap import iou
from seg2any.segment.sam_automatic import AutomaticSam, GridSettings, boxes_of, different
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from seg2any.system.pretrained import imagenet_normalised
from tests.tiny_judges import tiny_sam2

EVERYTHING = GridSettings(per_side=4, sure=0, stable=0, same_box=2)
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = tiny_sam2()
    for parameter in model.mask_decoder.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(path := tmp_path_factory.mktemp("sam2"))
    return path


def test_regions_are_the_masks_under_the_points_of_the_grid(folder):
    sam = AutomaticSam(str(folder), settings=EVERYTHING)
    found = sam.segment(IMAGE, Prompt())
    assert (
        found.masks.shape[1:] == (40, 60) and found.source.startswith("sam2 (") and (np.diff(found.scores) <= 0).all()
    )

    pixels = imagenet_normalised(np.asarray(Image.fromarray(IMAGE).resize((64, 64), Image.Resampling.BICUBIC)))
    masks, scores = [], []
    with torch.no_grad():
        for x in (8, 24, 40, 56):
            for y in (8, 24, 40, 56):
                output = sam.model(pixel_values=pixels, input_points=torch.tensor([[[[x, y]]]]).float())
                for logits, score in zip(output.pred_masks[0, 0], output.iou_scores[0, 0], strict=True):
                    if score >= 0 and (logits > 0).any():
                        large = torch.nn.functional.interpolate(logits[None, None], (40, 60), mode="bilinear")
                        masks.append((large[0, 0] > 0).numpy())
                        scores.append(float(score))
    order = np.argsort(-np.array(scores), kind="stable")
    assert len(masks) == len(found.masks) > 4
    assert np.allclose(found.scores, np.clip(np.array(scores)[order], 0, 1), atol=1e-5)
    agree = [iou(one, masks[number]) for one, number in zip(found.masks, order, strict=True) if masks[number].any()]
    assert np.mean(agree) > 0.99


def test_unsure_and_unstable_masks_and_repeated_boxes_are_left_out(folder):
    sam = AutomaticSam(str(folder), settings=EVERYTHING)
    pixels = imagenet_normalised(np.asarray(Image.fromarray(IMAGE).resize((64, 64), Image.Resampling.BICUBIC)))
    grid = torch.tensor([[[x, y]] for x in (8, 24, 40, 56) for y in (8, 24, 40, 56)]).float()
    with torch.no_grad():
        output = sam.model(pixel_values=pixels, input_points=grid[None])
    logits, scores = output.pred_masks[0].flatten(0, 1), output.iou_scores[0].flatten()
    share = (logits > 0.001).sum((1, 2)) / (logits > -0.001).sum((1, 2))
    sure, stable = float(scores.median()) + 1e-5, float(share.median()) + 1e-5
    for settings, wanted in (
        (GridSettings(4, sure, 0, same_box=2), scores >= sure),
        (GridSettings(4, 0, stable, offset=0.001, same_box=2), share >= stable),
    ):
        found = AutomaticSam(str(folder), settings=settings).segment(IMAGE, Prompt())
        assert 0 < len(found.masks) == int(wanted.sum()) < 48, settings
    found = AutomaticSam(str(folder), settings=GridSettings(4, 0, 0, same_box=0.5)).segment(IMAGE, Prompt())
    assert 0 < len(found.masks) < 48
    none = AutomaticSam(str(folder), settings=GridSettings(4, 1, 1)).segment(IMAGE, Prompt())
    assert none.masks.shape == (0, *IMAGE.shape[:2]) and none.notes == ("no mask is sure and stable",)
    assert not found.notes


def test_boxes_and_their_choice_are_those_of_a_plain_reading():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 2:7], masks[1, 5, 0], masks[2] = True, True, True
    assert boxes_of(masks).tolist() == [[2, 1, 7, 3], [0, 5, 1, 6], [0, 0, 8, 6]]
    rng = np.random.default_rng(0)
    start = rng.integers(0, 20, (40, 2))
    boxes = np.concatenate([start, start + rng.integers(1, 15, (40, 2))], 1)

    def drawn(box: np.ndarray) -> np.ndarray:
        mask = np.zeros((40, 40), bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        return mask

    kept: list[int] = []
    for number in range(40):
        if all(iou(drawn(boxes[number]), drawn(boxes[other])) <= 0.3 for other in kept):
            kept.append(number)
    assert different(boxes, 0.3) == kept and len(kept) < 40


def test_an_image_without_a_sure_mask_gives_no_region(folder):
    found = AutomaticSam(str(folder), settings=GridSettings(2, sure=1.0)).segment(IMAGE, Prompt())
    assert found.masks.shape == (0, 40, 60) and found.captions == ()


def test_sam_3_is_told_by_its_config_and_a_prompt_is_refused(folder, tmp_path):
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    vision = {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "pretrain_image_size": 56, "window_size": 2, "global_attn_indexes": [1],
        },
        "fpn_hidden_size": 16, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": 56}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    torch.manual_seed(0)
    config = Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    Sam3TrackerModel(config).save_pretrained(tmp_path)
    found = AutomaticSam(str(tmp_path), settings=EVERYTHING).segment(IMAGE, Prompt())
    assert found.source.startswith("sam3_tracker (") and found.masks.shape[1:] == (40, 60)
    with pytest.raises(UserError, match="the prompt holds phrases; give an empty prompt"):
        AutomaticSam(str(folder)).segment(IMAGE, Prompt(phrases=("a cat",)))
