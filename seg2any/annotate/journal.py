"""Keep what a run has finished, in a file of JSON lines: a killed run goes on from it.

A line is on the disk when `add` returns, and of two lines about one photo the later counts, so no record is lost or
doubled. A line that a killed process left unfinished counts as not written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seg2any.annotate.rules import Look
from seg2any.annotate.stages import DROPPED, KEPT, Outcome
from seg2any.system.errors import UserError, brief, shown
from seg2any.system.files import append_lines
from seg2any.system.json_text import lines_of, parse_json
from seg2any.system.limits import limits

FORMAT = 1


class Journal:
    """The lines of one set, and where they lie in the file: records themselves are read when they are needed.

    looks     key -> first look at the photo
    names     key -> name of each photo that was written

    Raises UserError if the file was written with other settings, and names the first that differs.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.looks: dict[str, Look] = {}
        self.names: dict[str, str] = {}
        self._places: dict[str, tuple[str, int, int]] = {}  # key -> state, bytes of the photo, place in the file
        header = {"format": FORMAT, "settings": json.loads(json.dumps(settings))}
        if path.exists() and path.stat().st_size:
            self._read(header)
        else:
            append_lines(path, json.dumps(header))

    def add_looks(self, looks: Mapping[str, Look]) -> None:
        """Keep first looks at photos."""
        if looks:
            append_lines(self.path, "\n".join(json.dumps({"look": key, **asdict(one)}) for key, one in looks.items()))
            self.looks.update(looks)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome. One that failed is not kept: the next run tries again."""
        if outcome.state in (KEPT, DROPPED):
            about = {"outcome": outcome.to_dict(), "bytes": self.looks[outcome.key].bytes}
            self._note(about, append_lines(self.path, json.dumps(about)))

    def state(self, key: str) -> str | None:
        """Return the state of a photo that is finished and has not changed since, else None."""
        state, size, _ = self._places.get(key, (None, -1, 0))
        return state if state and key in self.looks and self.looks[key].bytes == size else None

    def forget(self, key: str) -> None:
        """Count a photo as not finished, because its files are gone."""
        self._places.pop(key, None)

    def outcomes(self, keys: Iterable[str]) -> Iterator[Outcome]:
        """Read the outcomes of finished photos."""
        with open(self.path, "rb") as file:
            for key in keys:
                file.seek(self._places[key][2])
                yield _outcome(parse_json(file.readline(limits().json_bytes)))

    def _note(self, about: dict, place: int) -> None:
        outcome = _outcome(about)
        self._places[outcome.key] = outcome.state, about["bytes"], place
        if outcome.state == KEPT:
            self.names[outcome.key] = outcome.record["name"]

    def _read(self, header: dict) -> None:
        first = True
        try:
            for place, line in lines_of(self.path):
                about = _parsed(line)
                if first:
                    _check_header(self.path, about, header)
                elif "look" in about:
                    self.looks[about["look"]] = _look(about)
                elif "outcome" in about:
                    self._note(about, place)
                first = False
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: is damaged ({brief(error)}); start anew with --overwrite") from None


def _parsed(line: bytes) -> dict:
    try:
        found = parse_json(line) if line.endswith(b"\n") else {}
    except ValueError:  # a killed process left it
        return {}
    return found if isinstance(found, dict) else {}


def _look(about: Mapping[str, Any]) -> Look:
    numbers = [*about["size"], about["hash"], about["bytes"]]
    if len(numbers) != 4 or not all(type(one) is int for one in numbers) or not isinstance(about["look"], str):
        raise ValueError("a look at a photo is none")
    return Look(tuple(about["size"]), about["hash"], about["bytes"])


def _outcome(about: Mapping[str, Any]) -> Outcome:
    outcome = Outcome(**about["outcome"])
    texts = [outcome.key, outcome.state, outcome.reason, outcome.detail]
    if outcome.state == KEPT:
        texts.append(outcome.record["name"])
    if not all(isinstance(text, str) for text in texts) or outcome.state not in (KEPT, DROPPED):
        raise ValueError("an outcome is none")
    return outcome


def _check_header(path: Path, found: dict, header: dict) -> None:
    if found.get("format") != FORMAT or not isinstance(found.get("settings"), dict):
        raise UserError(f"{path}: this is no journal of this program; choose another --output")
    known, asked = found["settings"], header["settings"]
    for name in {**known, **asked}:
        if known.get(name) != asked.get(name):
            was, now = shown(known.get(name), 80), shown(asked.get(name), 80)
            raise UserError(
                f"{path.parent}: was made with {name} {was}, and now it is {now}; choose another --output, or start "
                "anew with --overwrite"
            )
