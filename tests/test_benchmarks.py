"""Benchmarks: compared schemes agree, and tables record their circumstances."""

import json

import numpy as np
import pytest
import torch

from benchmarks import attention, step
from benchmarks.clock import in_turn
from benchmarks.published_scheme import published_scheme
from benchmarks.scenes import ellipses
from seg2any.attention.settings import ConditionSettings
from seg2any.system.errors import UserError
from tests.tiny_flux import CONFIG, adapted, condition, run, sample

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "rules", [ConditionSettings("base"), ConditionSettings("hard", (1, 2), 0.5)], ids=["base", "hard"]
)
def test_the_published_scheme_computes_our_outputs_and_gradients(rules):
    model = adapted()
    samples = [sample(1, n_entities=3), sample(2, n_entities=0, n_cond=0), sample(3, n_entities=2, n_cond=5)]
    results = []
    for scheme in (False, True):
        model.zero_grad()
        given = condition(samples, rules)
        if scheme:
            with published_scheme(CONFIG["num_attention_heads"]):
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
    words = ["--size", "tiny", "--rounds", "1", "--sides", "64", "--skip_attention"]
    assert step.main([*words, "--output", str(tmp_path / "new" / "step.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    kept = json.loads((tmp_path / "new" / "step.json").read_text())
    assert json.loads(printed[-1]) == kept and {"machine", "versions", "commit"} <= kept.keys()
    for row in kept["results"]:
        assert len(row["seconds"]) == 1 and (row["image_seconds"] is None) == (row["n_entities"] != 8)
    by_name = {(row["n_entities"], row["scheme"]): row["seconds"][0] for row in kept["results"]}
    bars = [bar["value"] for bar in kept["bars"]]
    assert bars[:2] == [
        by_name[8, "published"] / by_name[8, "folded"],
        by_name[8, "folded"] / by_name[8, "plain"],
    ]
    growth = {(row["reading"], row["side"], row["scheme"]): row for row in kept["growth"]}
    assert {growth["entities", 64, "folded"]["growth"], growth["captions", 64, "folded"]["growth"]} <= set(bars)
    for scheme in ("folded", "isolated"):
        assert len({*growth["entities", 64, scheme]["tokens"]}) == 1, "the same picture and words"
    for reading, more_words in (("captions", 380), ("names", 76), ("same words", 0)):
        few, many = growth[reading, 64, "isolated"]["tokens"]
        assert many - few == more_words, "contour tokens are no part of its steps"
        few, many = growth[reading, 64, "folded"]["tokens"]
        assert many - few > more_words
    for row in growth.values():
        time, tokens = (row[name][1] / row[name][0] for name in ("seconds", "tokens"))
        assert (row["growth"], row["token_growth"], row["per_token"]) == (time, tokens, time / tokens)


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
