"""Parse a command line: a mistake is answered by one line that names the flag which was probably meant."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from seg2any.system.errors import shown
from seg2any.system.words import probably_meant

LACKING = "the following arguments are required: "
UNREAD = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """A parser of flags that must be written out; mistakes end the process with status 2 and one line, no usage."""

    def __init__(
        self,
        prog: str | None = None,
        usage: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        parents: Sequence[argparse.ArgumentParser] = (),
        add_help: bool = True,
    ):
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            parents=parents,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=add_help,
            allow_abbrev=False,
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse a command line, by default this process's; an unknown flag comes before other mistakes."""
        words = sys.argv[1:] if args is None else list(args)
        for flag, parser in self._unknown_flags(words):
            parser.refuse_flag(flag)
        return super().parse_args(words, namespace)

    def parse_beside_keys(self, words: Sequence[str], keys: Iterable[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse the parser's flags among files and `--section.key=value`, which are returned as they are.

        keys  names without a section, such as seed, that are no flags of the parser
        """
        keys = list(keys)
        for flag, parser in self._unknown_flags(words):
            if "." not in flag and flag[2:] not in keys:
                parser.refuse_flag(flag, keys)
        return self.parse_known_args(words)

    def refuse_flag(self, flag: str, more: Iterable[str] = ()) -> NoReturn:
        """End the process for a flag that does not exist.

        more  names that are known besides the parser's flags, without dashes
        """
        near = probably_meant(flag.lstrip("-"), [*self._flags(), *more])
        hint = f"did you mean --{near}?" if near else f"see `{self.prog} --help`"
        self.error(f"{shown_flag(flag)}: there is no such flag; {hint}")

    def error(self, message: str) -> NoReturn:
        """End the process with status 2 and one line."""
        text = " ".join(message.split()).removeprefix("argument ")
        if text.startswith(LACKING):
            name, *_ = text.removeprefix(LACKING).split(", ")
            text = f"{name}: is missing; give {self._meaning(name)}, see `{self.prog} --help`"
        elif text.startswith(UNREAD):
            word = text.removeprefix(UNREAD).split(" ")[0]
            text = f"{shown(word)}: belongs to no flag; leave it out, or see `{self.prog} --help`"
        elif text.endswith(("expected one argument", "expected at least one argument")):
            name = text.split(": ")[0].split("/")[0]
            text = f"{name}: its value is missing; give {self._meaning(name)}, see `{self.prog} --help`"
        self.exit(2, f"{self.prog}: {text}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = probably_meant(str(value), names)
        hint = f"did you mean {near}? Choose" if near else "choose"
        raise argparse.ArgumentError(action, f"{shown(str(value))} does not exist; {hint} one of {', '.join(names)}")

    def _flags(self) -> list[str]:
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]

    def _unknown_flags(self, words: Sequence[str]) -> Iterator[tuple[str, Parser]]:
        """Yield every unknown flag, with the parser of its subcommand."""
        parser = self
        for word in words:
            if word == "--":
                return
            flag = word.split("=")[0]
            if flag.startswith("--") and " " not in flag and flag not in parser._option_string_actions:
                yield flag, parser
            parser = parser._subcommands().get(word, parser)

    def _subcommands(self) -> dict[str, Parser]:
        found = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return next((action.choices for action in found), {})

    def _meaning(self, name: str) -> str:
        """Return the help of a flag or a place, without its default."""
        for action in self._actions:
            if name in (*action.option_strings, action.metavar, action.dest):
                return re.split(r" \(default|[;:]", (action.help or "it") % {"default": "", "prog": self.prog})[0]
        return "it"


def call_of(program: str) -> str:
    """Return the words that call a program: a script of this repository by Python, the command by its name."""
    return f"python {program}" if program.endswith(".py") else program


def script_of(program: str) -> str:
    """Return a program as a launcher such as torchrun takes it: a script, or a module with its verb."""
    return program if program.endswith(".py") else f"-m {program}"


def shown_flag(flag: str) -> str:
    """Return a flag as a message shows it: as it is, unless it is long or holds strange characters."""
    return flag if flag.isascii() and flag.isprintable() and len(flag) <= 60 else shown(flag)
