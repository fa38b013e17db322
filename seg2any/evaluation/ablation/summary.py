"""The document's numbers for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seg2any.evaluation.ablation.rows import Row
from seg2any.evaluation.ablation.trends import Checked, Runs, all_checked
from seg2any.evaluation.report.results import Row as Number

SHARED = ("num_inference_steps", "guidance_scale", "weight_dtype", "scenes", "seeds", "seed")


def summary(rows: Sequence[Row], runs: Runs) -> dict:
    """Trends, rows and their numbers, as JSON can hold them. Weights are told by digest: paths are of one machine."""
    told = {row.name: {"told": row.told, "changes": dict(row.changes)} for row in rows}
    content = [
        {"kind": kind, "row": name, **told.get(name, {}), "commit": run.commit, "machine": run.machine}
        | {key: digest(run.settings[key]) for key in ("model", "adapter") if key in run.settings}
        | ({"training": run.settings["training"]} if "training" in run.settings else {})
        | {"numbers": [_number(row) for row in run.rows]}
        for (kind, name), run in runs.items()
    ]
    trends = [
        {"trend": trend.text, "by": trend.by, "verdict": verdict, "unmeasured": len(trend.claims) - len(found)}
        | {"claims": [_checked(one) for one in found]}
        for trend, found, verdict in all_checked(runs)
    ]
    made = next(run.settings for (_, name), run in runs.items() if name in told)
    shared = {key: made[key] for key in SHARED}
    return {"schema": 1, "settings": shared, "trends": trends, "rows": content}


def digest(weights: Mapping | None) -> str | None:
    """What tells weights apart on any machine: a digest, or an id on the hub."""
    return weights and (weights.get("sha256") or weights.get("id"))


def _number(row: Number) -> dict:
    return {"name": row.name, "source": row.source, "value": row.value, "low": row.low, "high": row.high, **row.extra}


def _checked(one: Checked) -> dict:
    gap = {"difference": one.difference.value, "low": one.difference.low, "high": one.difference.high}
    return {**vars(one.claim), **gap, "scenes": one.difference.n, "verdict": one.verdict}
