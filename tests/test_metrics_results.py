"""Metric results: resampled intervals, the JSON file, and paired comparisons."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from seg2any.evaluation.compare import compare, main
from seg2any.evaluation.metrics.bootstrap import draws, interval, paired_difference
from seg2any.evaluation.metrics.item import Item, grey, shuffled
from seg2any.evaluation.metrics.result import Result, mean, pooled
from seg2any.evaluation.report.results import make_run, read_run, write_run
from seg2any.system.errors import UserError


def test_pooled_value_is_the_mean_over_classes_of_quotients_of_sums():
    parts = {"a": {"sky": (1, 4), "cat": (2, 2)}, "b": {"sky": (5, 8)}, "c": {"dog": (0, 0)}}
    result = pooled("iou", parts)
    assert result.value == pytest.approx((6 / 12 + 2 / 2) / 2)  # class dog occurs nowhere and does not count
    assert result.per_sample == pytest.approx({"a": (1 / 4 + 1) / 2, "b": 5 / 8, "c": math.nan}, nan_ok=True)
    with pytest.raises(UserError, match="iou: "):
        pooled("iou", {"c": {"dog": (0, 0)}})


def test_interval_of_a_mean_is_the_one_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(10, 2, 400)
    per_sample = {str(i): value for i, value in enumerate(values)}
    low, high = interval(mean("m", per_sample), resamples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval(mean("m", {"a": 3.0, "b": 3.0})) == (3.0, 3.0)


def test_resamples_of_pooled_values_are_those_of_drawn_samples():
    rng = np.random.default_rng(2)
    parts = {str(i): {c: (float(rng.integers(9)), float(rng.integers(9, 20))) for c in "xyz"} for i in range(7)}
    expected = []
    for counts in draws(7, 200):
        chosen = [parts[str(i)] for i in np.repeat(np.arange(7), counts)]
        expected.append(np.mean([sum(p[c][0] for p in chosen) / sum(p[c][1] for p in chosen) for c in "xyz"]))
    assert interval(pooled("m", parts), resamples=200) == pytest.approx(np.quantile(expected, [0.025, 0.975]))
    assert (draws(7, 200).sum(1) == 7).all()


def test_pairing_finds_differences_that_separate_intervals_miss():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 1, 100)
    a = mean("m", {f"{i}": hard[i] + 0.1 + rng.normal(0, 0.05) for i in range(100)})
    b = mean("m", {f"{i}": hard[i] + rng.normal(0, 0.05) for i in range(99, -1, -1)} | {"only b": 50.0})
    assert interval(a)[0] < interval(b)[1]
    difference = paired_difference(a.parts, b.parts)  # B's samples come in another order
    assert difference.n == 100 and difference.is_clear
    assert difference.value == pytest.approx(0.1, abs=0.02) and difference.low > 0.05 and difference.high < 0.15
    assert not paired_difference(a.parts, a.parts).is_clear


def test_intervals_of_set_distances_are_centred_on_the_value():
    resamples = np.random.default_rng(0).normal(13, 0.5, 2000)
    low, high = interval(Result("FID", 10.0, {}, resamples=tuple(resamples)))
    assert (low + high) / 2 == pytest.approx(10) and high - low == pytest.approx(2 * 1.96 * 0.5, rel=0.05)
    assert all(math.isnan(bound) for bound in interval(Result("FID", 10.0, {})))


def runs(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(4)
    for name, shift in (("a", 0.0), ("b", -0.2)):
        per_sample = {f"s{i}": 0.5 + 0.01 * i + shift + rng.normal(0, 0.01) for i in range(20)}
        keys = {"n": 20, "keys_sha256": "same"}
        results = [
            mean("IoU", per_sample),
            mean("IoU", {key: 0.1 for key in per_sample}, source="grey"),
            mean("leak", per_sample, better="lower"),
            Result("FID", 5 + shift, {}, keys, "generated", "lower", {}, tuple(5 + shift + rng.normal(0, 0.01, 50))),
            Result("nothing", math.nan, {"s0": math.nan}),
        ]
        write_run(make_run("shapes", results, {"steps": 20}, {"adapter": "abc"}), tmp_path / f"{name}.json")
    return tmp_path / "a.json", tmp_path / "b.json"


def test_results_survive_their_file(tmp_path: Path):
    path, _ = runs(tmp_path)
    content = json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is not valid JSON
    assert content["schema"] == 1 and content["settings"] == {"steps": 20} and content["hashes"] == {"adapter": "abc"}
    assert {"torch", "transformers"} <= content["versions"].keys() and content["commit"] and content["machine"]
    run = read_run(path)
    write_run(run, tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()
    row = run.row("IoU")
    assert row.low < row.value < row.high and row.n == 20
    assert run.row("IoU", "grey").label == "IoU [grey]" and run.row("IoU", "grey").value == pytest.approx(0.1)
    assert math.isnan(run.row("nothing").value) and run.row("nothing").low is None
    assert run.row("FID").low < 5 < run.row("FID").high and run.row("FID").n == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "JSON"),
        ("[]", "schema None"),
        ('{"schema": 7}', "schema 7"),
        ('{"schema": 1, "rows": [{}]}', "is damaged"),
        ('{"schema": 1, "rows": [{"name": "x", "value": "a lot", "low": null, "high": null, "n": 1}]}', "is damaged"),
        ('{"schema": 1, "rows": [{"name": "x", "value": 1, "low": [], "high": null, "n": 1}]}', "is damaged"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_run(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_nan_survives_the_json_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Read NaN distances back as NaN.

    A network that overflows produces NaN, which JSON stores as null.
    """
    keys = {"n": 3, "keys_sha256": "same"}
    for name in ("a", "b"):
        nan = Result("FID", math.nan, {}, keys, resamples=(math.nan, 1.0, math.nan))
        write_run(make_run("shapes", [nan, Result("empty", 1.0, {})], {}, {}), tmp_path / f"{name}.json")
    run = read_run(tmp_path / "a.json")
    assert math.isnan(run.row("FID").value) and run.row("FID").low is None and math.isnan(run.resamples["FID"][0])
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    assert "undecided" in out and "not paired" in out


def test_two_results_of_one_name_are_refused():
    with pytest.raises(UserError, match="different sources"):
        make_run("shapes", [mean("IoU", {"a": 1.0})] * 2, {}, {})


def test_comparison_says_which_is_better(tmp_path: Path, capsys: pytest.CaptureFixture):
    a, b = runs(tmp_path)
    compared = {row.a.label: row for row in compare(read_run(a), read_run(b))}
    assert compared["IoU"].difference.value == pytest.approx(0.2, abs=0.02)
    verdicts = {label: row.verdict for label, row in compared.items()}
    assert verdicts == {
        "IoU": "A is better",
        "IoU [grey]": "undecided",
        "leak": "B is better",
        "FID": "B is better",
        "nothing": "not paired",
    }
    assert main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "A is better" in out and "+0.2" in out
    assert main([str(a), str(tmp_path / "missing.json")]) == 2
    assert "seg2any.evaluation.compare:" in capsys.readouterr().err


def test_comparison_names_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name, results in {
        "a": [mean("IoU", {"s0": 1.0, "s1": 0.5}), mean("extra", {"s0": 1.0})],
        "b": [mean("IoU", {"s1": 0.5, "s2": 0.0})],
    }.items():
        write_run(make_run("ade20k", results, {}, {}), tmp_path / f"{name}.json")
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    assert "extra: only in A" in out and "note: IoU: the difference leaves out 2 samples" in out
    write_run(make_run("shapes", [mean("IoU", {"s0": 1.0})], {}, {}), tmp_path / "c.json")
    assert main([str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 2


def test_one_sample_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name, value in (("a", 1.0), ("b", 0.5)):
        write_run(make_run("x", [mean("IoU", {"s0": value})], {}, {}), tmp_path / f"{name}.json")
    row = read_run(tmp_path / "a.json").row("IoU")
    assert (row.value, row.low, row.high) == (1, None, None)
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    assert "undecided" in out and "+0.5000" in out and "nan" not in out


def test_comparison_warns_if_the_data_may_differ(tmp_path: Path, capsys: pytest.CaptureFixture):
    results = [mean("IoU", {"s0": 1.0, "s1": 0.5})]
    for name, digest in (("a", "1"), ("b", "2"), ("c", "1")):
        write_run(make_run("x", results, {}, {"data": digest}), tmp_path / f"{name}.json")
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "different hashes" in capsys.readouterr().out
    assert main([str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 0
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (("a", "b", "c"), [("b", 0), ("c", 1), ("a", 2)]),
        (("a", "a", "b", "b"), [("b", 1), ("b", 1), ("a", 3), ("a", 3)]),
        (("a", "b", "a", "b"), [("b", 0), ("a", 1), ("b", 2), ("a", 3)]),
        (("a", "b", "a"), [("b", 0), ("a", 1), ("a", 1)]),
    ],
)
def test_shuffled_images_are_those_of_other_samples(order: tuple[str, ...], expected: list[tuple[str, int]]):
    items = [Item(key, np.full((2, 3, 3), index, np.uint8)) for index, key in enumerate(order)]
    assert [(item.key, item.image[0, 0, 0]) for item in shuffled(iter(items))] == expected


def test_floors_keep_everything_but_the_image():
    item = Item("a", np.zeros((2, 3, 3), np.uint8), group=2, labels=np.ones((2, 3), np.uint8))
    (floor,) = grey([item])
    assert set(floor.image.ravel()) == {128} and floor.image.shape == (2, 3, 3)
    assert (floor.key, floor.group) == ("a", 2) and floor.labels is item.labels
    with pytest.raises(UserError, match="shuffled images: "):
        list(shuffled([item, item]))
