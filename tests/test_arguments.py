"""Mistakes in command lines: one line, status 2, and the flag or key that was probably meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from seg2any.data.sacap.options import parse_options as parse_sacap
from seg2any.evaluation.generate_image import parse_request
from seg2any.evaluation.runners.options import parse_options as parse_runners
from seg2any.evaluation.shapes.options import parse_options as parse_shapes
from seg2any.generate.options import Options, parse_options
from seg2any.system.errors import UserError
from seg2any.system.words import SYNONYMS, probably_meant
from seg2any.training.config import Config, load

MASKS = ["--seg_mask_path", "x"]
SHAPES = "config/seg2any_shapes.yaml"


def line_of(parse: Callable, words: list[str], capsys: pytest.CaptureFixture) -> str:
    """Return the only line that a wrong command line prints."""
    with pytest.raises(SystemExit) as caught:
        parse(words)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert caught.value.code == 2 and not printed.out
    return line


@pytest.mark.parametrize(
    ("parse", "words", "said"),
    [
        (parse_options, ["--steps", "3"], "--steps: there is no such flag; did you mean --num_inference_steps?"),
        (parse_options, [*MASKS, "--num_inference_step=3"], "did you mean --num_inference_steps?"),
        (parse_options, [*MASKS, "--precision", "bf16"], "did you mean --weight_dtype?"),
        (parse_options, [*MASKS, "--Seg-Mask-Path", "x"], "did you mean --seg_mask_path?"),
        (parse_options, [*MASKS, "--num_inf", "3"], "did you mean --num_inference_steps?"),
        (parse_options, [*MASKS, "--lr", "3"], "--lr: there is no such flag; see `infer.py --help`"),
        (parse_options, [*MASKS, "--epochs", "3"], "--epochs: there is no such flag; see `infer.py --help`"),
        (parse_options, [], "--seg_mask_path: is missing; give a layout, "),
        (parse_options, ["--seg_mask_path"], "--seg_mask_path: its value is missing; give a layout"),
        (parse_options, [*MASKS, "--memory", "int-8"], "--memory: 'int-8' does not exist; did you mean int8? Choose"),
        (parse_options, [*MASKS, "--seed", "-1"], "--seed: -1 is not a whole number"),
        (parse_options, [*MASKS, "more"], "'more': belongs to no flag"),
        (parse_options, [*MASKS, "--na\nme"], "--na\\nme': there is no such flag"),
        (parse_shapes, ["--lora_path", "x"], "did you mean --lora?"),
        (parse_shapes, ["--batchsize", "2"], "did you mean --batch_size?"),
        (parse_runners, ["x", "--metric", "miou"], "did you mean --metrics?"),
        (parse_runners, ["x", "--metrics", "mIoU"], "did you mean miou?"),
        (parse_request, [SHAPES, "--steps", "3"], "did you mean --num_inference_steps?"),
        (parse_request, [SHAPES, "--ouput_path", "x"], "did you mean --output_path?"),
        (parse_request, [SHAPES, "--sed=3", "--output_path", "x"], "did you mean --seed?"),
        (parse_sacap, ["plan", "x", "--limt", "3"], "did you mean --limit?"),
        (parse_sacap, ["plam", "x"], "did you mean plan?"),
    ],
)
def test_a_wrong_flag_is_one_line_with_its_neighbour(parse, words, said, capsys):
    assert said in line_of(parse, words, capsys)


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--lr", "trainer.learning_rate"),
        ("--trainer.lr", "trainer.learning_rate"),
        ("--steps", "trainer.max_train_steps"),
        ("--trainer.steps", "trainer.max_train_steps"),
        ("--batch_size", "trainer.train_batch_size"),
        ("--epochs", "trainer.num_train_epochs"),
        ("--precision", "mixed_precision"),
        ("--trainer.precision", "mixed_precision"),
        ("--model.lora_rank", "model.rank"),
        ("--output_dir", "project.output_dir"),
        ("--eval.guidance_scal", "eval.guidance_scale"),
        ("--trainer.guidance_scal", "trainer.guidance_scale"),
        ("--modle.rank", "model"),
        ("--resolutoin", "resolution"),
    ],
)
def test_a_wrong_key_is_answered_with_its_neighbour(flag: str, key: str):
    with pytest.raises(UserError, match=f"did you mean '{key}'"):
        load([f"{flag}=1"])


def test_keys_pass_beside_flags(tmp_path):
    words = [SHAPES, "--trainer.train_batch_size=2", "--seed", "7", "--output_path", str(tmp_path)]
    assert parse_request(words).config.seed == 7


def test_every_synonym_leads_to_something_that_exists():
    sections = Config().to_dict()
    keys = {*sections, *(key for value in sections.values() if isinstance(value, dict) for key in value)}
    flags = {field.name for field in dataclasses.fields(Options)} | {"model", "lora", "output", "workers", "masks"}
    assert not {word: names for word, names in SYNONYMS.items() if not {*names} <= keys | flags}


def test_no_neighbour_is_named_where_none_is_near():
    assert probably_meant("zebra", ["seed", "height"]) is None
    assert probably_meant("lr", ["help", "overwrite"]) is None
    assert probably_meant("SEED", ["seed"]) == "seed"
