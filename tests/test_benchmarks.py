"""Benchmarks: compared schemes agree, and tables record their circumstances."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import attention, label_size, step, step_bars, step_train
from benchmarks import published_scheme as scheme
from benchmarks.clock import in_turn
from benchmarks.machine_limit import machine_limit
from benchmarks.scenes import ellipses
from benchmarks.step_schemes import Case
from seg2any.attention.settings import ConditionSettings
from seg2any.evaluation.report.results import bar_lines
from seg2any.system.errors import UserError
from tests.tiny_flux import adapted, condition, run, sample

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "rules", [ConditionSettings("base"), ConditionSettings("hard", (1, 2), 0.5)], ids=["base", "hard"]
)
def test_the_published_scheme_computes_our_outputs_and_gradients(rules):
    model = adapted()
    samples = [sample(1, n_entities=3), sample(2, n_entities=0, n_cond=0), sample(3, n_entities=2, n_cond=5)]
    results = []
    for is_published in (False, True):
        model.zero_grad()
        given = condition(samples, rules)
        if is_published:
            with scheme.published_scheme():
                output = run(model, given)
        else:
            output = run(model, given)
        output.square().mean().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.detach(), grads))
    (ours, our_grads), (published, their_grads) = results
    torch.testing.assert_close(published, ours, rtol=1e-5, atol=5e-6)
    for name, grad in our_grads.items():
        torch.testing.assert_close(their_grads[name], grad, rtol=1e-4, atol=1e-7)


def test_the_step_benchmark_keeps_its_table_bars_and_circumstances(tmp_path, capsys):
    words = ["--size", "tiny", "--rounds", "1", "--sides", "64", "--skip", "attention", "training"]
    words += ["--readings", "entities", "captions", "names", "same words"]
    assert step.main([*words, "--output", str(tmp_path / "new" / "step.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    kept = json.loads((tmp_path / "new" / "step.json").read_text())
    assert json.loads(printed[-1]) == kept and {"machine", "versions", "commit"} <= kept.keys()
    for row in kept["results"]:
        assert len(row["seconds"]) == 1
        assert (row["image_seconds"] is None) == (row["n_entities"] != 8 or row["scheme"] == "limit")
    by_name = {(row["n_entities"], row["scheme"]): row["seconds"][0] for row in kept["results"]}
    tables = (tmp_path / "new" / "step.md").read_text().splitlines()
    for bar in kept["bars"]:
        assert any(bar["name"] in line and line.endswith("met |" if bar["is_met"] else "MISSED |") for line in tables)
    rows = {tuple(line.split(" | ")[2:6:3]): line.split(" | ")[7] for line in tables if line.startswith("| tiny | 64")}
    speed = by_name[8, "published"] / by_name[8, "routed"]
    assert len(rows) == len(kept["results"]) and rows["8", "routed"].startswith(f"{speed:.2f} [")
    bars = [bar["value"] for bar in kept["bars"]]
    assert bars[:2] == [
        round(by_name[8, "published"] / by_name[8, "routed"], 2),
        round(by_name[8, "routed"] / by_name[8, "plain"], 2),
    ]
    growth = {(row["reading"], row["side"]): row for row in kept["growth"]}
    for reading in ("entities", "captions"):
        few, many = growth[reading, 64]["seconds"]
        assert round(many[0] / few[0], 2) in bars
    assert len({*growth["entities", 64]["tokens"]}) == 1, "the same picture and words"
    for reading, more_words in (("captions", 380), ("names", 76), ("same words", 0)):
        few, many = growth[reading, 64]["tokens"]
        assert many - few > more_words, "contours differ too"


def test_the_published_scheme_builds_its_masks_once_for_a_condition(monkeypatch):
    built = []
    mask = scheme.dense_mask
    monkeypatch.setattr(scheme, "dense_mask", lambda *words: built.append(words[2]) or mask(*words))
    model, rules = adapted(), ConditionSettings("hard", (1, 2), 0.5)
    given = condition([sample(1, n_entities=3)], rules)
    for _ in range(3):  # three steps of an image
        with scheme.published_scheme():
            run(model, given)
    assert sorted(attention.value for attention in built) == sorted({attention.value for attention in built})
    with scheme.published_scheme():
        run(model, condition([sample(1, n_entities=3)], rules))  # another image
    assert len(built) == 2 * len(set(built))


def test_the_limit_computes_the_products_of_the_blocks_and_their_attention():
    n_double, n_single, heads, width, n_text, n_tokens = 2, 3, 2, 16, 5, 12
    like = torch.zeros(1, 3)
    compute = machine_limit(n_double, n_single, heads, width // heads, (n_text, n_tokens - n_text), like)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        compute()
    # torch counts the operations
    per_block = 24 * n_tokens * width**2 + 4 * n_tokens**2 * width
    assert counter.get_total_flops() == (n_double + n_single) * per_block


def test_a_missed_bound_is_a_missed_bar():
    def row(scheme, seconds):
        return {"size": "cpu", "side": 512, "n_entities": 8, "batch_size": 1, "scheme": scheme, "seconds": seconds}

    slow = [row("published", [1.29, 1.31, 1.2]), row("routed", [1.0, 1.0, 1.0]), row("limit", [0.5, 0.4, 0.5])]
    speed, beside_limit = step_bars.step_bars(slow)
    assert (speed.value, speed.spread, speed.is_met) == (1.29, (1.2, 1.31), False)
    assert (beside_limit.value, beside_limit.spread, beside_limit.is_met) == (2.0, (2.0, 2.5), True)
    assert ["MISSED" in line for line in bar_lines([speed, beside_limit])] == [True, False]


def test_attention_slower_than_one_dense_mask_is_a_missed_bar(monkeypatch):
    options = step.parse_options(["--dtype", "fp32"])

    def measured(words):
        seconds = {"one mask": [1.0, 1.2], "auto": [1.25, 1.25]}
        row = {"image_tokens": 1024, "block": "SAA", "plan_ms": 3.0, "seconds": seconds}
        return [row] * len(words.entities)

    dense, growth, plan = step_bars.attention_bars(options, measured)
    assert (dense.value, dense.spread, dense.is_met) == (0.88, (0.8, 0.96), False)
    assert growth.value == 1.0 and plan.value == 3.0


def test_training_schemes_that_differ_are_not_timed(monkeypatch):
    case = Case(64, 2)
    row = step_train.measure_training("tiny", case, 1, "cpu", torch.bfloat16)
    assert {name: len(each) for name, each in row["seconds"].items()} == {"published": 1, "routed": 1}
    monkeypatch.setattr(
        scheme, "dense_mask", lambda tokens, *_: torch.zeros(tokens.kind.shape[1], tokens.kind.shape[1])
    )
    with pytest.raises(UserError, match="gradients differ"):
        step_train.measure_training("tiny", case, 1, "cpu", torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_the_size_of_flux_is_refused_without_cuda_in_one_line(capsys):
    assert step.main(["--size", "flux-dev"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_schemes_that_differ_are_not_timed():
    with pytest.raises(UserError, match="folded.* differs by 10.0%"):
        step.check_agreement({"published": torch.ones(9), "folded": torch.full((9,), 1.1)})
    with pytest.raises(UserError, match="folded.* differs by nan"):
        step.check_agreement({"published": torch.ones(9), "folded": torch.full((9,), torch.nan)})


def test_the_attention_benchmark_measures_a_mask_in_one_call_beside_every_backend(capsys):
    options = attention.parse_options(["--tokens", "64", "--entities", "2", "--heads", "2", "--rounds", "1"])
    found = attention.measure(options)
    assert [result["block"] for result in found] == ["AIA", "SAA"]
    assert found[0]["seconds"].keys() == {"one mask", "auto", "sdpa", "grouped", "matmul", "dense", "open"}


def test_ellipses_cover_the_same_share_whatever_their_number_and_do_not_overlap():
    for n in (1, 8, 20):
        masks = ellipses(512, n)
        assert len(masks) == n and masks.sum(0).max() == 1
        assert abs(masks.mean((1, 2)).sum() - np.pi / 4) < 0.01


def test_works_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = in_turn({name: lambda name=name: calls.append(name) for name in "abc"}, 2, "cpu")
    assert "".join(calls) == "abcbcacab" and {name: len(each) for name, each in seconds.items()} == {
        "a": 2,
        "b": 2,
        "c": 2,
    }


def test_stretched_label_maps_are_compared_before_their_times_are(tmp_path, monkeypatch):
    report = label_size.measure(2, 1, tmp_path / "equal")
    assert report["ms each"].keys() == {"published", "ours"} and report["bytes"]["ours"] <= report["bytes"]["published"]
    monkeypatch.setattr(label_size, "published", lambda source, target: Image.new("L", (512, 512)).save(target))
    with pytest.raises(UserError, match="pixels differ"):
        label_size.measure(2, 1, tmp_path / "other")
