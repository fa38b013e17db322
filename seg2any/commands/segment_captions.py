"""Captions of what `segment` finds, which make a folder of photos a data set for training."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seg2any.commands.caption_flags import PHRASES, captions_of, check_captions
from seg2any.commands.segment_methods import NOTHING
from seg2any.system.errors import UserError

if TYPE_CHECKING:
    from seg2any.annotate.draft import Draft

CONFIG = "config/seg2any_folder.yaml"


def check_captions_of(given: Namespace, way: str) -> None:
    """Raise UserError for flags of captions that contradict each other or the way of asking."""
    check_captions(given)
    unnamed = way == "points" or (way == NOTHING and getattr(given, "legend", None) is None)
    if given.captions == PHRASES and unnamed:
        raise UserError(f"--captions {PHRASES}: nothing names the regions; give --phrases, or choose other captions")


def captions_identity(given: Namespace) -> dict:
    """Return what the captions depend on, for the recipe; nothing where the method names the regions."""
    return {} if given.captions is None else {"captions": captions_of(given).identity}


def open_captions(given: Namespace) -> Callable[[Draft], None] | None:
    """Open the source of captions; None: the method names the regions. Raises UserError."""
    if given.captions is None:
        return None
    from seg2any.annotate.plan import open_writer  # late: it takes a second to import

    return open_writer(captions_of(given))


def how_to_train(photos: Sequence[Path], folder: Path) -> str | None:
    """Return the command that trains on photos and their layouts; None if the photos lie in several folders."""
    places = {photo.parent for photo in photos}
    if len(places) != 1:
        return None
    params = (f"--data.train.params.image_root={places.pop()}", f"--data.train.params.layout_root={folder}")
    return shlex.join(["seg2any", "train", CONFIG, *params])
