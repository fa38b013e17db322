"""`python -m eval.ablation`: measures what is missing, then writes table, pictures and the verdict on every trend."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from eval.ablation.document import document, previous_text, summary
from eval.ablation.measure import BOUNDS, Ablation
from eval.ablation.options import Options, parse_options
from eval.ablation.panels import panel
from eval.ablation.rows import REFERENCE
from eval.results import Run
from eval.shapes_judge import judge
from seg2any.command import exit_status
from seg2any.errors import UserError
from seg2any.files import atomic_write
from seg2any.inference.console import plain_messages
from seg2any.inference.model import choose_device

PROBED = 2  # steps


def run(options: Options) -> None:
    """Measure and write. Raises UserError."""
    ablation = Ablation(options, choose_device(options.device))
    for row in options.rows:
        if row.adapter is not None and not row.adapter.is_dir():
            raise UserError(f"--variant {row.name}={row.adapter}: no such folder; train it first, see --help")
    ablation.open(REFERENCE)
    runs: dict[tuple[str, str], Run] = {(kind, BOUNDS): ablation.measure_bounds(kind) for kind in options.kinds}
    total = sum(scenes.images for scenes in ablation.scenes.values()) * len(options.rows)
    print(f"{len(options.rows)} rows of {total // len(options.rows)} images; {_estimate(ablation)}", flush=True)
    with tqdm(total=total, desc="images", unit="image") as bar:
        for row in options.rows:
            ablation.open(row)
            for kind in options.kinds:
                bar.set_postfix_str(f"{row.name}, {kind}")
                runs[kind, row.name] = ablation.measure(row, kind, bar)
    _write(ablation, runs)


def _estimate(ablation: Ablation) -> str:
    """How long the missing images take, from a few steps of a batch of each kind."""
    missing, seconds = 0, 0.0
    for kind, scenes in ablation.scenes.items():
        count = scenes.images * sum(not ablation.path(kind, row.name).exists() for row in ablation.options.rows)
        if count or ablation.options.overwrite:
            count = count or scenes.images * len(ablation.options.rows)
            missing, seconds = missing + count, seconds + count * _seconds_per_image(ablation, kind)
    if not missing:
        return "all are there already"
    return f"{missing} images to make, about {max(1, round(seconds / 60))} minutes on this machine"


def _seconds_per_image(ablation: Ablation, kind: str) -> float:
    options, batches = ablation.options, ablation.scenes[kind].batches(ablation.options.batch_size)
    batch = batches[len(batches) // 2]
    # The first call also encodes texts, which all later ones know.
    _, first, more = (_seconds(ablation.generate, REFERENCE, kind, batch, steps) for steps in (1, 1, 1 + PROBED))
    step = max(0.0, more - first) / PROBED
    judging = _seconds(judge, batch[0].image, batch[0].layout)
    return (first + (options.num_inference_steps - 1) * step) / (len(batch) * options.seeds) + judging


def _seconds(task: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    task(*arguments)
    return time.perf_counter() - start


def _write(ablation: Ablation, runs: dict[tuple[str, str], Run]) -> None:
    options = ablation.options
    text = document(options, runs, previous_text(options.docs / "ablation.md"))
    with atomic_write(options.docs / "ablation.png") as temporary:
        panel(ablation).save(temporary, optimize=True)
    with atomic_write(options.docs / "ablation.json") as temporary:
        temporary.write_text(json.dumps(summary(options.rows, runs), indent=1) + "\n", encoding="utf-8")
    with atomic_write(options.docs / "ablation.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"document: {options.docs / 'ablation.md'}, pictures and JSON beside it; rows: {options.output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted."""
    options = parse_options(arguments)
    with plain_messages():
        return exit_status("eval.ablation", lambda: run(options), "finished rows are kept, start again to go on")


if __name__ == "__main__":
    sys.exit(main())
