"""Read what a model knows, where its folder says so: a small model has seen few words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from seg2any.system.errors import UserError, shown
from seg2any.system.json_text import parse_json

FILE = "world.json"  # in the folder of a model


@dataclass(frozen=True)
class World:
    """The range of a model.

    knows    what it draws, for people
    words    all words of its training captions, in small letters
    largest  side in pixels up to which its images hold together; None: unknown
    """

    knows: str
    words: frozenset[str]
    largest: int | None = None

    def foreign(self, captions: Iterable[str]) -> list[str]:
        """List the words of captions that the model has never seen, each once."""
        words = dict.fromkeys(word for text in captions for word in re.findall(r"[^\W_]+", text))
        return [word for word in words if word.lower() not in self.words]

    def size_remark(self, size: tuple[int, int]) -> str | None:
        """Return a line about an image of `size` (H, W) that is too large for the model; None if it is not."""
        height, width = size
        if self.largest is None or max(size) <= self.largest:
            return None
        return (
            f"{width}x{height} is larger than the {self.largest} pixels a side up to which the model's images hold "
            "together; give a smaller --height and --width"
        )

    def remark(self, captions: Iterable[str]) -> str | None:
        """Return a line about the words that the model has never seen; None without any."""
        foreign = self.foreign(captions)
        if not foreign:
            return None
        named = ", ".join(shown(word, 30) for word in foreign[:6]) + (", ..." if len(foreign) > 6 else "")
        return f"the model knows {self.knows}, and has never seen {named}; use other words, or another model"


def read_world(model: str) -> World | None:
    """Read what a model in a folder knows; None where nothing says it. Raises UserError for a damaged file."""
    path = Path(model) / FILE
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_bytes())
        words = frozenset(str(word).lower() for word in content["words"])
        largest = content.get("largest")
        return World(str(content["knows"]), words, None if largest is None else int(largest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({shown(str(error), 80)}); get it again, or remove it") from None
