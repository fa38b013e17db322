"""Layouts and images that a run has to leave out: it names them, goes on, and stops where it cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from seg2any.generate.failures import Failures
from seg2any.system.console import exit_status
from seg2any.system.errors import Incomplete, UserError
from seg2any.training.config import Config
from seg2any.training.dry_run import preparation

JOB = SimpleNamespace(layout=SimpleNamespace(path=Path("in/big.json")))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise MemoryError("out of memory; turn on --memory offload") from error


def test_bad_layouts_and_images_are_named_at_once_and_at_the_end(capsys: pytest.CaptureFixture):
    failures = Failures(explained)
    failures.add_layouts(["a.json: is empty"], shown=True)
    failures.add_image(JOB, UserError("b.json: has changed"))
    failures.add_image(JOB, RuntimeError("no memory left"))
    told = capsys.readouterr().err
    lines = ["a.json: is empty", "b.json: has changed", "in/big.json: out of memory; turn on --memory offload"]
    assert told == "".join(f"warning: left out: {line}\n" for line in lines)
    assert exit_status("infer.py", failures.report) == 1
    ended = capsys.readouterr().err.splitlines()
    assert ended == [f"infer.py: {line}" for line in ["3 left out, all others are made:", *lines]]


def test_an_error_that_is_not_about_one_image_stops_the_run():
    failures = Failures(explained)
    for error in (RuntimeError("a bug"), OSError("disk full"), KeyError("x")):
        with pytest.raises(type(error)) as raised:
            failures.add_image(JOB, error)
        assert raised.value is error
    failures.report()  # nothing was left out
    failures.add_layouts(["a.json: is empty"], shown=False)
    with pytest.raises(Incomplete, match="1 left out"):
        failures.report()


def test_a_dry_run_says_what_is_done_before_step_1():
    config = Config()
    assert preparation(config, 6000, 64) == "the tokens of 6,000 samples are counted"
    config.trainer.cache_text, config.trainer.cache_latents, config.trainer.cache_dir = "all", True, "runs/cache"
    told = preparation(config, 6000, 64)
    assert told.endswith(
        "and images, contours and captions of up to 64 are encoded, but for those that runs/cache holds"
    )
    assert "up to 10 are" in preparation(config, 10, 64)
    config.trainer.cache, config.trainer.cache_dir = "all", None
    assert preparation(config, 6000, 64).endswith("up to 6,000 are encoded")
