"""The methods of `segment`, in one table; a method's module is light, and imports its network when it opens it."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from seg2any.system.arguments import Parser, shown_flag
from seg2any.system.errors import UserError

if TYPE_CHECKING:
    from seg2any.generate.choices import Machine
    from seg2any.segment.segmenter import Segmenter

NOTHING = "no names"  # the way of asking that needs no flag
WAYS = ("phrases", "categories", "points", "describe", "ask")  # flags that ask for regions, each in its own way


@dataclass(frozen=True)
class Method:
    """A line of the table.

    module  name of a module that is a `MethodModule`
    text    says in --help what it does
    takes   ways of asking that it takes: of WAYS, and NOTHING
    lacks   why it takes no others, as the second half of a sentence
    """

    module: str
    text: str
    takes: tuple[str, ...]
    lacks: str

    def load(self) -> MethodModule:
        """Import the module."""
        return importlib.import_module(self.module)

    def check(self, name: str, given: Namespace) -> str:
        """Return how the flags ask for regions. Raises UserError for two ways, and for one that it does not take."""
        asked = [way for way in WAYS if getattr(given, way)] or [NOTHING]
        if len(asked) > 1:
            flags = " and ".join(f"--{way}" for way in asked)
            raise UserError(f"{flags}: each asks for regions in its own way; give one of them")
        if asked[0] not in self.takes:
            *others, last = [way if way == NOTHING else f"--{way}" for way in self.takes]
            taken = f"{', '.join(others)} or {last}" if others else last
            where = f"--method {name}" if asked[0] == NOTHING else f"--{asked[0]}: --method {name}"
            raise UserError(f"{where} {self.lacks}; give {taken}")
        return asked[0]


class MethodModule(Protocol):
    """A module of a method. Its functions import what takes seconds when they are called.

    SCORE  a line about the scores in the report
    """

    SCORE: str

    def add_flags(self, parser: Parser) -> None:
        """Add the flags that only this method takes, with its defaults."""

    def check(self, given: Namespace, way: str) -> None:
        """Raise UserError for flags that contradict each other or the way of asking, before anything is loaded."""

    def identity(self, given: Namespace, machine: Machine) -> dict:
        """Return what a result depends on besides prompt, photo and machine, for the recipe; load no weights.

        `segment` holds the values of flags. Raises UserError.
        """

    def open_segmenter(self, given: Namespace, machine: Machine) -> Segmenter:
        """Load the method's network. Raises UserError."""


METHODS: Mapping[str, Method] = {
    "attention": Method(
        module="seg2any.commands.segment_attention",
        text="attention of the model that makes images (Seg4Diff); nothing is trained",
        takes=("phrases", "categories", NOTHING),
        lacks="reads texts only",
    ),
    "sam3": Method(
        module="seg2any.commands.segment_sam3",
        text="every instance of what short phrases name, by SAM 3",
        takes=("phrases", "categories"),
        lacks="reads texts only",
    ),
    "xsam": Method(
        module="seg2any.commands.segment_xsam",
        text="a language model that was trained to segment (X-SAM); it needs weights of its own",
        takes=("phrases", "categories", "points", "describe", "ask"),
        lacks="must be asked for something",
    ),
    "edges": Method(
        module="seg2any.commands.segment_edges",
        text="instances without names, parted where self-attention diverges (TRACE's idea); nothing is trained",
        takes=(NOTHING,),
        lacks="finds instances by itself",
    ),
    "sam": Method(
        module="seg2any.commands.segment_sam",
        text="all regions by SAM 2 or SAM 3, without names",
        takes=(NOTHING,),
        lacks="finds regions by itself",
    ),
    "coloring": Method(
        module="seg2any.commands.segment_coloring",
        text="every instance painted in a colour of its own, by adapters of task coloring (gen2seg)",
        takes=("phrases", "points", NOTHING),
        lacks="paints instances, and no names of all pixels",
    ),
}
DEFAULT = "attention"


def method_in(words: Sequence[str]) -> str:
    """Return the method that a command line names last; the default one if it names none that exists."""
    named = [word.split("=", 1)[1] for word in words if word.startswith("--method=")]
    named += [after for word, after in zip(words, words[1:], strict=False) if word == "--method"]
    return next((name for name in reversed(named) if name in METHODS), DEFAULT)


class MethodParser(Parser):
    """A parser of the common flags and those of one method; it says which method takes a flag of another."""

    method = DEFAULT

    def refuse_flag(self, flag: str, more: Sequence[str] = ()) -> NoReturn:
        """End the process for a flag that does not exist, or that only other methods take."""
        others = [name for name in METHODS if name != self.method and flag[2:] in self._flags_of(name)]
        if others:
            self.error(f"{shown_flag(flag)}: --method {self.method} does not take it, {' and '.join(others)} does")
        super().refuse_flag(flag, more)

    def _flags_of(self, name: str) -> list[str]:
        parser = MethodParser(add_help=False)
        METHODS[name].load().add_flags(parser)
        return parser._flags()
