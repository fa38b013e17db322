"""`seg2any`: the table of verbs, what it imports, and what a mistake costs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from seg2any.commands import evaluate, verbs
from tests.golden_root import REPOSITORY

HEAVY = ("torch", "numpy", "PIL", "transformers", "omegaconf", "tqdm")
ASKING = """
import json, runpy, sys, time
began = time.process_time()
sys.argv = ["seg2any", *json.loads(sys.argv[1])]
try:
    runpy.run_module("seg2any", run_name="__main__")
except SystemExit as end:
    print(json.dumps([end.code, time.process_time(), sorted(name for name in sys.modules if "." not in name)]))
"""


def ask(*words: str) -> tuple[int, float, set[str], str, str]:
    """Return exit status, processor seconds, loaded packages, output and errors of `seg2any` in a process."""
    command = [sys.executable, "-c", ASKING, json.dumps(words)]
    asked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    output, _, told = asked.stdout.rstrip("\n").rpartition("\n")
    status, seconds, modules = json.loads(told)
    return status, seconds, {*modules}, output, asked.stderr


def test_every_verb_can_be_imported_and_takes_a_command_line():
    for verb in verbs.VERBS.values():
        assert callable(importlib.import_module(verb.module).main)
    for program in evaluate.PROGRAMS.values():
        assert callable(importlib.import_module(program.module).main)


def test_help_lists_every_verb_and_loads_none_of_them():
    status, seconds, modules, output, errors = ask("--help")
    assert status == 0 and not errors and seconds < 0.3
    assert not modules & {*HEAVY} and all(f"\n  {name} " in output for name in verbs.VERBS)


def test_the_version_is_that_of_the_package(capsys):
    import seg2any

    assert verbs.main(["--version"]) == 0
    assert capsys.readouterr().out == f"seg2any {seg2any.__version__}\n"


def test_no_word_is_a_question_for_help(capsys):
    assert verbs.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: seg2any VERB")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chek"], "seg2any: 'chek' is no verb; did you mean `seg2any check`?"),
        (["xyz"], "seg2any: 'xyz' is no verb; choose one of "),
        (["evaluate", "compar"], "seg2any evaluate: 'compar' is no verb; did you mean `seg2any evaluate compare`?"),
    ],
)
def test_a_wrong_verb_is_one_line(words, said, capsys):
    assert verbs.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize("name", verbs.VERBS)
def test_help_of_a_verb_shows_an_example_under_its_own_name(name, capsys):
    try:
        status = verbs.main([name, "--help"])
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr().out
    assert status == 0 and printed.startswith(f"usage: seg2any {name}") and printed.count(f"seg2any {name} ") > 1


def test_check_is_generate_with_check(monkeypatch):
    from seg2any.commands import generate

    seen = []
    monkeypatch.setattr(generate, "run", seen.append)
    assert verbs.main(["check", "--seg_mask_path", "x"]) == 0
    assert verbs.main(["generate", "--seg_mask_path", "x"]) == 0
    assert [options.check for options in seen] == [True, False]


def wrong_inputs(folder) -> dict[str, tuple[list[str], str]]:
    """Return command lines that need no weights to be refused, and a part of what they are told."""
    (folder / "empty").mkdir()
    (folder / "bad.json").write_text("{")
    (folder / "no_regions.json").write_text('{"segments_info": []}')
    (folder / "alone.json").write_text('{"segments_info": [{"color": [1, 2, 3], "text": "a cat"}]}')
    masks, shapes = "examples/shapes/masks", "config/seg2any_shapes.yaml"
    return {
        "flag": (["generate", "--steps", "3"], "did you mean --num_inference_steps?"),
        "missing": (["generate", "--seg_mask_path", str(folder / "none")], "no such file or folder"),
        "empty": (["check", "--seg_mask_path", str(folder / "empty")], "has no layout in it"),
        "JSON": (["generate", "--seg_mask_path", str(folder / "bad.json")], "is not valid JSON"),
        "regions": (["check", "--seg_mask_path", str(folder / "no_regions.json")], "segments_info is empty"),
        "picture": (["generate", "--seg_mask_path", str(folder / "alone.json")], "alone.png"),
        "model": (["generate", "--seg_mask_path", masks, "--pretrained_model_name_or_path", "./no"], "no such folder"),
        "adapter": (["generate", "--seg_mask_path", masks, "--lora_ckpt_path", "./no"], "no such folder"),
        "device": (["generate", "--seg_mask_path", masks, "--device", "gpu"], "is no device"),
        "output": (["generate", "--seg_mask_path", masks, "--output_path", "LICENSE"], "is a file"),
        "config": (["train", "no.yaml"], "does not exist"),
        "key": (["train", shapes, "--trainer.lr=1"], "did you mean 'trainer.learning_rate'?"),
        "data": (["train", shapes, "--data.train.type=shape"], "data set 'shape' does not exist"),
        "resume": (["train", shapes, "--resume_from_checkpoint=./no"], "is not a folder"),
        "base": (["train", shapes, "--model.pretrained_model_name_or_path=./no"], "no such folder"),
        "shard": (["prepare", shapes, "--shard", "3"], "is not i/n"),
    }


def test_refusals_that_need_no_weights_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    for name, (words, said) in wrong_inputs(tmp_path).items():
        try:
            status = verbs.main(words)
        except SystemExit as end:
            status = end.code
        (line,) = capsys.readouterr().err.splitlines()
        assert status == 2 and said in line and line.startswith(f"seg2any {words[0]}: "), (name, line)


@pytest.mark.slow
def test_refusals_that_need_no_weights_take_less_than_two_seconds_of_the_processor(tmp_path):
    inputs = wrong_inputs(tmp_path)
    for name in ("flag", "empty", "picture", "adapter", "data", "shard"):  # one of each way; a process takes a second
        words, said = inputs[name]
        status, seconds, modules, _, errors = ask(*words)
        assert status == 2 and said in errors and seconds < 2 and "torch" not in modules, (name, seconds, errors)
