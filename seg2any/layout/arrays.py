"""Convert what callers of `Layout` have at hand to its masks: arrays, tensors, pictures of Pillow, nested lists.

Numbers are cut to masks by the rules of `seg2any.layout.masks`, as in files. Neither torch nor Pillow is imported: a
tensor or a picture can only come from a caller who has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from seg2any.layout.checks import LayoutError, check_mask_shape, check_masks
from seg2any.layout.masks import cut, without_channel
from seg2any.system.errors import shown

if TYPE_CHECKING:
    from PIL import Image

WANTED = "give N masks [H, W], as one array [N, H, W] or as a list"


def as_masks(where: str, given: object) -> np.ndarray:
    """Convert masks to bool [N, H, W]; a bool array stays the same object.

    given  an array or tensor [N, H, W] or [N, 1, H, W], or a list of N masks, each an array or tensor [H, W], a picture
           of Pillow or nested lists

    The numbers of a list are cut together, as those of one array. Raises LayoutError, which starts with `where`, also
    for values that are labels. Warns with LayoutWarning.
    """
    if isinstance(given, np.ndarray) and given.dtype == np.bool_:
        masks = given
    elif _is_picture(given):
        raise LayoutError(f"{where}: masks are one picture; {WANTED}")
    elif isinstance(given, (np.ndarray, *_tensors())):
        masks = _cut(where, _as_numbers(where, given))
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, dict)):
        masks = _stack(where, list(given))
    else:
        raise LayoutError(f"{where}: masks are {type(given).__name__}; {WANTED}")
    masks = without_channel(masks)
    check_masks(where, masks)
    return masks


def as_scores(where: str, given: object) -> np.ndarray:
    """Convert scores, a list or tensor of N numbers, to a float array; an array stays the same object."""
    return given if isinstance(given, np.ndarray) else _as_numbers(f"{where}: scores", given).astype(np.float32)


def _stack(where: str, given: list) -> np.ndarray:
    """Convert a list of masks to bool [N, H, W]."""
    if not given:
        raise LayoutError(f"{where}: masks are an empty list, without a size; give a bool array [0, H, W]")
    masks: list[np.ndarray] = []
    for number, mask in enumerate(given):
        place = f"{where}: masks[{number}]"
        masks.append(_of_picture(place, mask) if _is_picture(mask) else _one(place, _as_numbers(place, mask)))
    for number, mask in enumerate(masks):
        if mask.shape != masks[0].shape:
            found, first = (f"{m.shape[1]}x{m.shape[0]}" for m in (mask, masks[0]))
            raise LayoutError(f"{where}: masks[{number}] is {found}, but masks[0] {first}; give masks of one size")
    counted = [number for number, mask in enumerate(masks) if mask.dtype != np.bool_]
    kinds = {str(masks[number].dtype) for number in counted}
    if len(kinds) > 1:
        raise LayoutError(f"{where}: masks are {' and '.join(sorted(kinds))}; give numbers of one type")
    if counted:
        together = _cut(where, np.stack([masks[number] for number in counted]))
        for number, mask in zip(counted, together, strict=True):
            masks[number] = mask
    return np.stack(masks)


def _one(place: str, mask: np.ndarray) -> np.ndarray:
    """Return a mask [H, W], without a leading axis of length 1."""
    if mask.ndim == 3 and len(mask) == 1:
        mask = mask[0]
    if mask.ndim != 2:
        raise LayoutError(f"{place} is {mask.dtype} {list(mask.shape)}; give [H, W]")
    return mask


def _cut(where: str, values: np.ndarray) -> np.ndarray:
    """Cut numbers [N, H, W] or [N, 1, H, W] to masks of the same shape."""
    if values.ndim == 2:
        raise LayoutError(f"{where}: masks are {values.dtype} {list(values.shape)}; {WANTED}, `labels == k` for each k")
    values = without_channel(values)
    if values.ndim != 3:
        raise LayoutError(f"{where}: masks are {values.dtype} {list(values.shape)}; {WANTED}")
    return cut(where, values)


def _as_numbers(where: str, given: object) -> np.ndarray:
    """Convert an array, a tensor or nested lists to an array of booleans or numbers."""
    if isinstance(given, _tensors()):
        tensor = given.detach().cpu()
        given = (tensor.float() if tensor.dtype.is_floating_point else tensor).numpy()  # numpy lacks bfloat16
    try:
        values = np.asarray(given)
    except (ValueError, TypeError):
        raise LayoutError(f"{where}: {shown(given)} has rows of different lengths; {WANTED}") from None
    if values.dtype.kind not in "biuf":
        raise LayoutError(f"{where}: {shown(given)} holds no numbers; {WANTED}")
    return values


def _of_picture(place: str, picture: Image.Image) -> np.ndarray:
    from seg2any.layout.images import mask_of_image, upright  # late: they need Pillow

    check_mask_shape(place, (1, picture.height, picture.width))  # it may be a file that is not decoded yet
    try:
        picture.load()
        turned = upright(picture)
    except Exception as error:  # on damaged files the decoders raise nearly every kind of exception
        raise LayoutError(f"{place}: cannot be read as an image ({shown(str(error))}); save it again") from error
    turned.format = picture.format
    return mask_of_image(place, turned)


def _is_picture(given: object) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(given, pillow.Image)


def _tensors() -> tuple[type, ...]:
    torch = sys.modules.get("torch")
    return (torch.Tensor,) if hasattr(torch, "Tensor") else ()
