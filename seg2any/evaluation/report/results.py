"""Write and read the JSON file of an evaluation: numbers, intervals and how they arose."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from seg2any.evaluation.metrics.bootstrap import interval
from seg2any.evaluation.metrics.result import GENERATED, Parts, Result
from seg2any.system.errors import UserError, shown
from seg2any.system.files import atomic_write
from seg2any.system.json_text import parse_json
from seg2any.system.provenance import circumstances

if TYPE_CHECKING:
    import torch

SCHEMA = 1
BETTER = ("higher", "lower")


@dataclass(frozen=True)
class Row:
    """One number of an evaluation.

    value      the number, from `n` samples
    low, high  bounds of its 95 % interval; None where nothing could be resampled
    source     which images were measured
    better     "higher" or "lower"
    extra      JSON values to show beside the number
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    source: str = GENERATED
    better: str = "higher"
    extra: dict = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name that is unique in a run."""
        return label(self.name, self.source)


@dataclass(frozen=True)
class Run:
    """An evaluation.

    per_sample, parts, resamples  by row label, otherwise as in `metrics.result.Result`
    hashes                        of weights, adapters, prompts and the data
    """

    benchmark: str
    rows: tuple[Row, ...]
    settings: dict
    versions: dict
    commit: str
    hashes: dict
    machine: dict
    per_sample: dict[str, dict[str, float]]
    parts: dict[str, Parts]
    resamples: dict[str, list[float]]

    def row(self, name: str, source: str = GENERATED) -> Row:
        """Find a row. Raises KeyError if there is none."""
        return {row.label: row for row in self.rows}[label(name, source)]


def label(name: str, source: str) -> str:
    """Name a row as files do: the bare name for generated images, else "name [source]"."""
    return name if source == GENERATED else f"{name} [{source}]"


def make_run(
    benchmark: str, results: Iterable[Result], settings: Mapping, hashes: Mapping, device: torch.device | str = "cpu"
) -> Run:
    """Build a Run from results, adding intervals, versions, commit and machine.

    Raises UserError if two results have the same name and source.
    """
    results = list(results)
    by_label = {label(result.name, result.source): result for result in results}
    if len(by_label) < len(results):
        raise UserError(f"{benchmark}: two results have one name and source; give them different sources")
    around = circumstances(device)
    return Run(
        benchmark=benchmark,
        rows=tuple(map(_row, results)),
        settings=dict(settings),
        versions=around["versions"],
        commit=around["commit"],
        hashes=dict(hashes),
        machine=around["machine"],
        per_sample={name: result.per_sample for name, result in by_label.items() if result.per_sample},
        parts={name: result.parts for name, result in by_label.items() if result.parts},
        resamples={name: list(result.resamples) for name, result in by_label.items() if result.resamples},
    )


def write_run(run: Run, path: str | os.PathLike) -> None:
    """Write a run as JSON; numbers that are not finite become null."""
    content = finite({"schema": SCHEMA, **asdict(run)})
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")


def read_run(path: str | os.PathLike) -> Run:
    """Read what `write_run` wrote. Raises UserError for anything else."""
    try:
        content = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSON file of an evaluation") from None
    except ValueError:
        raise UserError(f"{path}: the file is not JSON; give one that an evaluation wrote") from None
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: the file has schema {schema!r}, this version reads {SCHEMA}; evaluate again")
    try:
        rows = tuple(map(_read_row, content.pop("rows")))
        parts = {
            name: {key: {c: (float(n), float(d)) for c, (n, d) in classes.items()} for key, classes in samples.items()}
            for name, samples in content.pop("parts").items()
        }
        per_sample = {
            name: {key: _number(value) for key, value in samples.items()}
            for name, samples in content.pop("per_sample").items()
        }
        resamples = {name: [_number(value) for value in values] for name, values in content.pop("resamples").items()}
        run = Run(rows=rows, parts=parts, per_sample=per_sample, resamples=resamples, **content)
        _check_types(run)
        return run
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: the file is damaged ({type(error).__name__}: {error}); evaluate again") from None


def _row(result: Result) -> Row:
    low, high = interval(result)
    bounds = (None if math.isnan(bound) else bound for bound in (low, high))
    n = len(result.per_sample) or result.extra.get("n", 0)
    return Row(result.name, result.value, *bounds, n, result.source, result.better, result.extra)


def finite(content: object) -> object:
    """Replace numbers that are not finite by None, which JSON can hold."""
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _read_row(row: dict) -> Row:
    bounds = {name: None if row[name] is None else float(row[name]) for name in ("low", "high")}
    read = Row(**row | bounds | {"value": _number(row["value"])})
    _check_types(read)
    if read.better not in BETTER:
        raise ValueError(f"better is {shown(read.better)}")
    return read


def _check_types(read: Row | Run) -> None:
    """Raise TypeError for a text, number or object that is something else: pages show them."""
    kinds = {"str": str, "int": int, "dict": dict}
    for each in fields(read):
        value = getattr(read, each.name)
        if each.type in kinds and not isinstance(value, kinds[each.type]):
            raise TypeError(f"{each.name} is {shown(value)}")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Bar:
    """A number that must not exceed `bound`, or with `at_least` must not fall below it.

    spread  least and most of the measurements of which `value` is the median; None: a single one
    aim     a better bound, to work towards; None: there is none
    """

    name: str
    value: float
    bound: float
    at_least: bool = False
    spread: tuple[float, float] | None = None
    aim: float | None = None

    @property
    def is_met(self) -> bool:
        """True if the value keeps the bound; a value equal to it does."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def bar_lines(bars: Sequence[Bar]) -> list[str]:
    """Print each bar on a line, in columns: name, value, spread, bound, aim, verdict."""
    spreads = [f"[{bar.spread[0]:.2f}..{bar.spread[1]:.2f}]" if bar.spread else "" for bar in bars]
    aims = [f"(aim {bar.aim:.4g})" if bar.aim is not None else "" for bar in bars]
    names, spans, hopes = (max(map(len, column), default=0) for column in ([bar.name for bar in bars], spreads, aims))
    return [
        f"{bar.name:<{names}} {bar.value:>8.4f} {spread:<{spans}} {'>=' if bar.at_least else '<='} {bar.bound:<6.4g} "
        f"{aim:<{hopes}} {'met' if bar.is_met else 'MISSED'}"
        for bar, spread, aim in zip(bars, spreads, aims, strict=True)
    ]
