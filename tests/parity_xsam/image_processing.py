"""Pictures and masks for the encoders."""

from __future__ import annotations

import torch

from seg2any.segment.xsam import pictures
from seg2any.segment.xsam.pictures import Frame
from tests.parity_xsam.recorded import Case, close, parameters, same, tensors_of

FILE = "image_processing"


def image_of(name: str = "image_rgb"):
    return tensors_of(FILE, name)[""].numpy()


def seg_case(case: Case) -> None:
    image, about = image_of(), case.about
    frame = Frame.of(image.shape[:2], about["image_size"])
    assert [list(frame.scaled)] == case.x["scaled_sizes"].tolist()
    assert [list(frame.size)] == case.x["original_sizes"].tolist()
    close(pictures.seg_picture(image, frame), case.x["pixel_values"][0])
    same(pictures.seg_masks(image_of("masks"), frame), case.x["mask_labels"])
    same(pictures.seg_masks(image_of("vprompt"), frame), case.x["vprompt_masks"])


def jitter_case(case: Case) -> None:
    side, drawn = parameters()[FILE]["segmentation_image"]["image_size"], case.about["scale_drawn"]
    image, masks = pictures.jittered(image_of(), image_of("masks"), side, drawn)
    frame = Frame(image.shape[:2], image.shape[:2], side)  # it has its size already
    assert [list(frame.scaled)] == case.x["scaled_sizes"].tolist()
    close(pictures.seg_picture(image, frame), case.x["pixel_values"][0])
    same(pictures.seg_masks(masks, frame), case.x["mask_labels"])


def visual_case(case: Case) -> None:
    side = parameters()[FILE]["visual_image"]["size"]
    assert case.about["image_mean"] == case.about["image_std"] == [0.5] * 3
    close(pictures.visual_picture(image_of(), side), case.x["pixel_values"][0])


def square_case(case: Case) -> None:
    side, square = parameters()[FILE]["visual_image"]["size"], pictures.padded_to_square(image_of())
    same(torch.from_numpy(square), case.x["square_rgb"])
    close(pictures.visual_picture(square, side), case.x["pixel_values"][0])


CHECKS = {
    "segmentation_image_scale_jitter": jitter_case,
    "segmentation_image": seg_case,
    "visual_image_padded_to_square": square_case,
    "visual_image": visual_case,
}
