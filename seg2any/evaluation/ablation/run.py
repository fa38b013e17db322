"""Run an ablation: skip finished rows and those of other processes, write the document."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from seg2any.evaluation.ablation.document import document, previous_text, summary
from seg2any.evaluation.ablation.measure import Ablation
from seg2any.evaluation.ablation.options import Options
from seg2any.evaluation.ablation.panels import panel
from seg2any.evaluation.ablation.rows import REFERENCE, Row
from seg2any.evaluation.ablation.trends import NEEDED
from seg2any.evaluation.report.results import Run, finite
from seg2any.evaluation.shapes.judge import judge
from seg2any.generate.folder import open_folder
from seg2any.system.device import choose_device
from seg2any.system.errors import UserError
from seg2any.system.files import RUNNING, atomic_write, locked

PROBED = 2  # steps
Unit = tuple[Row | None, str]  # a row, or None for ceiling and floors, and a kind of scenes
Runs = dict[tuple[str, str], Run]  # kind, name -> what was measured


def run(options: Options) -> None:
    """Measure missing rows, and write the document once all are finished, or if asked to.

    Raises UserError.
    """
    for row in options.rows:
        if row.adapter is not None and not row.adapter.is_dir():
            raise UserError(f"--variant {row.name}={row.adapter}: no such folder; train the row first, see --help")
    for folder in dict.fromkeys((options.output, options.docs)):
        open_folder(folder, "--output" if folder == options.output else "--docs")
    ablation = Ablation(options, choose_device(options.device))
    # Rows that the trends need come first, so that a run stopped early has verdicts.
    ordered = sorted(options.rows, key=lambda row: row.name not in NEEDED)
    units: list[Unit] = [(row, kind) for row in (None, *ordered) for kind in options.kinds]
    runs = {} if options.document_only else _measured(ablation, units)
    missing = _read(ablation, [unit for unit in units if _key(ablation, unit) not in runs], runs)
    if missing and not options.document_only:
        print(f"another process measures {_listed(ablation, missing)}; the last to finish writes the document")
        return
    if missing:
        print(f"not finished: {_listed(ablation, missing)}")
    _write(ablation, runs)


def _key(ablation: Ablation, unit: Unit) -> tuple[str, str]:
    row, kind = unit
    return kind, ablation.name(row)


def _listed(ablation: Ablation, units: Sequence[Unit]) -> str:
    return "; ".join(f"{name}, {kind}" for kind, name in (_key(ablation, unit) for unit in units))


def _measured(ablation: Ablation, units: Sequence[Unit]) -> Runs:
    """Measure or read what no other process is measuring."""
    ablation.open(REFERENCE)
    print(f"{len(ablation.options.rows)} rows; {_estimate(ablation)}", flush=True)
    runs: Runs = {}
    with tqdm(total=sum(ablation.images(*unit) for unit in units), desc="images", unit="image") as bar:
        left = _sweep(ablation, units, runs, bar)
        # Units of other processes are free again if those were stopped.
        while left and len(again := _sweep(ablation, left, runs, bar)) < len(left):
            left = again
    return runs


def _sweep(ablation: Ablation, units: Sequence[Unit], runs: Runs, bar: tqdm) -> list[Unit]:
    """Measure into `runs` all units that no other process holds, and return the held ones."""
    taken = []
    for row, kind in units:
        ablation.open(row or REFERENCE)
        name = ablation.name(row)
        bar.set_postfix_str(f"{name}, {kind}")
        with locked(ablation.folder(kind, name) / RUNNING) as is_ours:
            if not is_ours:
                taken.append((row, kind))
                continue
            found = ablation.finished(row, kind)
            if found is not None:
                bar.update(ablation.images(row, kind))
            runs[kind, name] = found or ablation.measure(row, kind, bar)
    return taken


def _read(ablation: Ablation, units: Sequence[Unit], runs: Runs) -> list[Unit]:
    """Add the runs of other processes to `runs`, and return the units that are not finished."""
    missing = []
    for row, kind in units:
        ablation.open(row or REFERENCE)
        found = ablation.finished(row, kind)
        if found is None:
            missing.append((row, kind))
        else:
            runs[kind, ablation.name(row)] = found
    return missing


def _estimate(ablation: Ablation) -> str:
    """Estimate how long the missing images take, from a few steps of a batch of each kind."""
    missing, seconds, options = 0, 0.0, ablation.options
    for kind in ablation.scenes:
        rows = [row for row in options.rows if options.overwrite or not ablation.path(kind, row.name).exists()]
        if count := sum(ablation.images(row, kind) for row in rows):
            missing, seconds = missing + count, seconds + count * _seconds_per_image(ablation, kind)
    if not missing:
        return "all images are there already"
    return f"{missing} images to make, about {max(1, round(seconds / 60))} minutes for one process on this machine"


def _seconds_per_image(ablation: Ablation, kind: str) -> float:
    options, batches = ablation.options, ablation.scenes[kind].batches(ablation.options.batch_size)
    batch = batches[len(batches) // 2]
    # The first call also encodes texts, which the cache then holds.
    _, first, more = (_seconds(ablation.generate, REFERENCE, kind, batch, steps) for steps in (1, 1, 1 + PROBED))
    step = max(0.0, more - first) / PROBED
    judging = _seconds(judge, batch[0].image, batch[0].layout)
    return (first + (options.num_inference_steps - 1) * step) / (len(batch) * options.seeds) + judging


def _seconds(task: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    task(*arguments)
    return time.perf_counter() - start


def _write(ablation: Ablation, runs: Runs) -> None:
    options = ablation.options
    rows = [row for row in options.rows if any((kind, row.name) in runs for kind in options.kinds)]
    if not rows:
        raise UserError(f"{options.output}: no row is finished; run the same command without --document_only")
    text = document(options, rows, runs, previous_text(options.docs / "ablation.md"))
    with atomic_write(options.docs / "ablation.png") as temporary:
        panel(ablation, rows).save(temporary, optimize=True)
    with atomic_write(options.docs / "ablation.json") as temporary:
        temporary.write_text(
            json.dumps(finite(summary(rows, runs)), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
    with atomic_write(options.docs / "ablation.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"document: {options.docs / 'ablation.md'}, pictures and JSON beside it; rows: {options.output}")
