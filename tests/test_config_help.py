"""The config shown by --help: it loads as a config and repeats the source's comments."""

from omegaconf import OmegaConf

import train
from seg2any.training.config import Config, explained_defaults, load


def test_explained_defaults_load_as_the_defaults(tmp_path):
    (tmp_path / "all.yaml").write_text(explained_defaults())
    assert load([str(tmp_path / "all.yaml")]) == Config()
    told, keys = OmegaConf.create(explained_defaults()), OmegaConf.create(Config().to_dict())
    assert {*told} == {*keys} and {*told.model} == {*keys.model}


def test_help_lists_keys_defaults_and_meanings(capsys):
    assert train.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  train_batch_size: 4  # per process" in lines
    assert any(line.startswith("  hard_attn_block_range: [19, 37]  # ") for line in lines)


def test_nothing_to_train_is_an_error(capsys):
    assert train.main([]) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.startswith("usage: train.py CONFIG.yaml")
