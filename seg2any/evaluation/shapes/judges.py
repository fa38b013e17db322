"""The judges of the `shapes` benchmark that can be measured offline, and the table of their errors."""

from __future__ import annotations

from pathlib import Path

from seg2any.evaluation.report.results import make_run, write_run
from seg2any.evaluation.shapes.known import KnownJudge, judge_errors, pixel_judge, scenes_of, segmenter_judge, table
from seg2any.generate.session import Session

BACKGROUND = "background"
WORDS = """\
errors of the judges: IoU of a region as the judge sees it, less the IoU that the drawing has, on {count} scenes with
planted faults"""


def embedded_judges(session: Session) -> dict[str, KnownJudge]:
    """Return the judge that sees pixels, and the model's own attention if its blocks are known."""
    from seg2any.segment.attention import AttentionSegmenter, Choices
    from seg2any.segment.probe import ProbeSettings

    judges: dict[str, KnownJudge] = {"pixels": pixel_judge}
    pipe = session.pipeline
    if pipe.base.probing is not None:
        settings = ProbeSettings(pipe.base.probing.blocks, pipe.base.probing.side)
        attention = AttentionSegmenter(pipe.base, pipe.scheduler, settings, Choices(BACKGROUND))
        judges["attention"] = segmenter_judge(attention)
    return judges


def measure_judges(session: Session, count: int, recipe: dict, path: Path) -> str:
    """Measure the judges on `count` scenes, write their numbers to `path`, and return the table."""
    judges = embedded_judges(session)
    found = judge_errors(judges, scenes_of(count))
    run = make_run(
        "shapes, judges", found, recipe | {"scenes": count}, {"model": recipe["model"]}, session.pipeline.vae.device
    )
    write_run(run, path)
    unknown = (
        "" if "attention" in judges else "\nattention    not measured: which blocks to read is not known of this model"
    )
    return f"{WORDS.format(count=count)}\n{table(run, judges)}{unknown}"
