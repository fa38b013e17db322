"""What --help says of a config is a config, and says what the source says."""

from omegaconf import OmegaConf

import train
from seg2any.training.config import Config
from seg2any.training.config_help import explained_defaults


def test_the_explained_defaults_are_the_defaults():
    read = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(explained_defaults()))
    assert OmegaConf.to_object(read) == Config()
    assert OmegaConf.create(explained_defaults()).keys() == OmegaConf.structured(Config).keys()


def test_help_tells_keys_defaults_and_meanings(capsys):
    assert train.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  train_batch_size: 4  # per process" in lines and "  hard_attn_block_range: [19, 37]" in lines


def test_nothing_to_train_is_an_error(capsys):
    assert train.main([]) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.startswith("usage: train.py CONFIG.yaml")
