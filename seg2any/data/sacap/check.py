"""Is a file of SA-1B whole? Both checks read bytes, so that nothing broken ever reaches its final name."""

from __future__ import annotations

import io
import warnings
from collections.abc import Set

from seg2any.layout.document import decode_json
from seg2any.layout.images import ImageError, decode_roughly, opened_image
from seg2any.layout.rle import decode_runs
from seg2any.system.errors import UserError, shown

# A stretch of a file that never arrived is zeros. No picture has so many in its code: at the least 2 bits a block, they
# would be 65,536 blocks without any detail.
HOLE = bytes(16384)


class Broken(UserError):
    """What is wrong with a file, without its name."""


def check_jpeg(data: bytes) -> tuple[int, int]:
    """(height, width) of a JPEG that decodes to its end. Raises Broken."""
    if not data:
        raise Broken("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about size, which is checked here
            with opened_image(io.BytesIO(data), "get it again", ("JPEG",)) as image:
                height, width = decode_roughly(image)
    except ImageError as error:
        raise Broken(str(error)) from None
    if HOLE in data:
        raise Broken(f"has a hole of {len(HOLE)} zeros or more")
    return height, width


def check_json(data: bytes, size: tuple[int, int], wanted: Set[int]) -> None:
    """Raise Broken unless the json of an image of `size` (height, width) parses, is about an image of this size, and
    has every `wanted` annotation, with run lengths that cover this size exactly."""
    try:
        content = decode_json(data)
        image, annotations = content["image"], content["annotations"]
        stated = (image["height"], image["width"])
        named = [annotation["id"] for annotation in annotations if annotation["id"] in wanted]
        by_id = {annotation["id"]: annotation["segmentation"] for annotation in annotations}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Broken(f"is no json of SA-1B ({type(error).__name__}: {shown(str(error))})") from None
    if stated != size:
        raise Broken(f"is about an image of {shown(stated[1])}x{shown(stated[0])}, the jpg has {size[1]}x{size[0]}")
    if missing := sorted(wanted - by_id.keys()):
        raise Broken(f"lacks {len(missing)} of the {len(wanted)} annotations, among them id {missing[0]}")
    if len(named) > len(wanted):
        raise Broken("has an annotation twice")
    for anno_id in sorted(wanted):
        if not isinstance(by_id[anno_id], dict):
            raise Broken(f"annotation {anno_id} has no run lengths")
        try:
            _, mask_size = decode_runs(f"annotation {anno_id}", by_id[anno_id])
        except UserError as error:
            raise Broken(str(error)) from None
        if mask_size != size:
            raise Broken(f"annotation {anno_id} is {mask_size[1]}x{mask_size[0]}, the image {size[1]}x{size[0]}")
