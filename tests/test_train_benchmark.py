"""`benchmarks.train_step --size`: random weights under the memory presets, on a CPU."""

import importlib.util
import json

import pytest
import torch

from benchmarks import train_sizes, train_step

pytestmark = pytest.mark.slow

needs_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed"
)


def test_flux_dev_is_refused_in_one_line_without_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train_step.main(["--size", "flux-dev"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks.train_step: --size flux-dev: ") and error.count("\n") == 1


@needs_bitsandbytes
def test_a_small_size_trains_under_every_preset(tmp_path, capsys):
    assert train_step.main(["--size", "tiny", "--rounds", "1", "--output", str(tmp_path / "result.json")]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert json.loads((tmp_path / "result.json").read_text()) == report
    assert [row["row"] for row in report["rows"]] == [row.name for row in train_sizes.ROWS]
    assert all(row["samples_per_s"] > 0 and row["tokens"] > 64 for row in report["rows"])


@needs_bitsandbytes
@pytest.mark.parametrize("row", train_sizes.ROWS, ids=lambda row: row.name)
def test_a_step_changes_both_adapters_and_nothing_else(row):
    size = train_sizes.SIZES["tiny"]
    config = row.config(size, 128)
    network = train_sizes.random_transformer(size, config, torch.device("cpu"))
    quantised = [m for m in network.modules() if type(m).__name__ == "Linear4bit"]
    assert bool(quantised) == (config.trainer.base_quantization == "nf4")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    case = train_sizes.Case(128, 2)
    given = train_sizes.Given(train_sizes.Models(size, *[network] * 3), case, torch.device("cpu"), torch.float32)
    train_sizes.training_step(network, config, given)()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert {name.split(".")[-2] for name in changed} == {"default", "cond"}


@needs_bitsandbytes
def test_a_quantised_network_keeps_no_fp32_activations():
    row, size = train_sizes.ROWS[-1], train_sizes.SIZES["tiny"]
    network = train_sizes.random_transformer(size, row.config(size, 128), torch.device("cpu"))
    block, seen = network.single_transformer_blocks[0], []
    block.register_forward_hook(lambda module, inputs, outputs: seen.extend(x.dtype for x in outputs))
    given = train_sizes.Given(
        train_sizes.Models(size, *[network] * 3), train_sizes.Case(128, 2), torch.device("cpu"), torch.float32
    )
    train_sizes.training_step(network, row.config(size, 128), given)()
    assert set(seen) == {torch.bfloat16}
