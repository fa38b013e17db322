"""A benchmark from a folder of images to numbers, pictures and a page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from seg2any.evaluation.generated import Generated
from seg2any.evaluation.judges.segmenters import OpenSegmenter, no_segmenter
from seg2any.evaluation.metrics.agreement import agreements
from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.result import GENERATED, Result
from seg2any.evaluation.report.results import make_run
from seg2any.evaluation.runners.finish import Gallery, finish, shown_table
from seg2any.evaluation.runners.items import Benchmark
from seg2any.evaluation.runners.measure import Loading, Measure
from seg2any.evaluation.runners.measures import load_measures
from seg2any.evaluation.runners.options import AGREEING, DEFAULTS, Options
from seg2any.evaluation.vqa.score import MODES
from seg2any.system.device import choose_device
from seg2any.system.errors import UserError
from seg2any.system.weights import known_weights


def run(options: Options, open_segmenter: OpenSegmenter = no_segmenter) -> None:
    """Load every judge, measure, print the table, and write JSON, pictures and page.

    Raises UserError.
    """
    generated = Generated.read(options.images)
    made, name = generated.run, generated.run["data"]["type"]
    metrics = options.metrics or DEFAULTS.get(name)
    if metrics is None:
        raise UserError(
            f"{options.images}: {name} is measured by another command; run bash eval.sh {name}, or give --metrics"
        )
    device = choose_device(options.device)
    benchmark = Benchmark.open(generated, options.cache_root)
    measures = load_measures(metrics, Loading(benchmark, options.judges, device, open_segmenter))
    by_name = {name: measure.results(benchmark) for name, measure in measures.items()}
    found = [result for results in by_name.values() for result in results] + agreements_of(by_name)
    settings = {key: made[key] for key in ("data", "samples", "groups", "format", "size", "seed")} | made["recipe"]
    used = {flag: options.judges[flag] for measure in measures.values() for flag in measure.uses}
    hashes = {"data": made["data"]["fingerprint"], **hashes_of(used)}
    if "vqa" in used:
        hashes["vqa_prompts"] = MODES[options.judges["vqa_mode"]].prompts
    evaluation = make_run(name, found, settings | {"metrics": list(metrics)}, hashes, device)
    page = finish(evaluation, options.output, found[0].name, gallery(benchmark, measures[metrics[0]]))
    print(f"\n{name}: {benchmark.samples} samples, {generated.groups} images of each")
    print(shown_table(evaluation), f"\nnumbers: {options.output}; page with pictures: {page}", sep="\n")


def gallery(benchmark: Benchmark, ranking: Measure) -> Gallery:
    """Build the gallery of samples' first images, with what the ranking judge sees in them."""

    def seen(item: Item) -> np.ndarray | None:
        return ranking.seen(item, benchmark) if ranking.seen else None

    return Gallery(
        lambda key: benchmark.item(benchmark.index(key)), lambda key: benchmark.photo(benchmark.index(key)), seen
    )


def hashes_of(judges: Mapping[str, str]) -> dict[str, str]:
    """Hash the judges that are on this disk; name the id of those in the hub's cache."""
    return {flag: known_weights(name) for flag, name in judges.items()}


def agreements_of(found: Mapping[str, list[Result]]) -> list[Result]:
    """Compare the orders in which judges of single images put the samples, by each judge's first number."""
    firsts = {
        name: next(result for result in found[name] if result.source == GENERATED) for name in AGREEING if name in found
    }
    return agreements({result.name: result for result in firsts.values()})
