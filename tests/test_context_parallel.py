"""Compare images that two real processes share with images of one process."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import TensorParallelConfig

from seg2any.adapters.fold import fold
from seg2any.bases.flux1.ulysses import _shares
from seg2any.system.errors import UserError
from tests import forked
from tests.tiny_flux import RULES, adapted, condition, run, sample
from tests.tiny_pipeline import MANY, ONE, fresh_pipe, latents_of

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-5, "atol": 2e-5}
ULYSSES = ContextParallelConfig(ulysses_degree=2)
BATCHES = [[sample(0, 2, 4)], [sample(1, 0, 3), sample(2, 5, 0)], [sample(3, 1, None)], [sample(4, 20, 1)] * 3]


def batches():
    """Compare velocities: odd and even lengths, no regions, no contour, every method but `place`."""
    for number, samples in enumerate(BATCHES):
        for changes in (
            {},
            {"attention_mask_method": "base", "cond2image_attention_weight": 0.3},
            {"cond_attention": "isolated", "global_text_sees": "background", "attention_backend": "grouped"},
            {"attention_mask_method": "none"},
        ):
            yield number, condition(samples, dataclasses.replace(RULES, **changes))


@torch.no_grad()
def be_one_of_two(rank: int, results) -> None:
    dist.init_process_group("gloo")
    model = adapted()
    given = list(batches())
    expected = [run(model, each) for _, each in given]
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    worst = [(run(model, each) - wanted).abs().max().item() for (_, each), wanted in zip(given, expected, strict=True)]
    fold(model)
    worst += [(run(model, each) - wanted).abs().max().item() for (_, each), wanted in zip(given, expected, strict=True)]
    (results / f"{rank}.json").write_text(json.dumps({"worst": worst, "processes": dist.get_world_size()}))


@pytest.mark.same_numbers("an image of two processes together, and of one | 1e-4")
def test_two_processes_compute_what_one_does(tmp_path):
    statuses = forked.run(lambda rank: be_one_of_two(rank, tmp_path), tmp_path / "log.txt", 2)
    assert statuses == [0, 0], (tmp_path / "log.txt").read_text()[-4000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["processes"] == 2 and len(found["worst"]) == 32 and max(found["worst"]) < 2e-5


@torch.no_grad()
def be_one_of_four(rank: int) -> None:
    dist.init_process_group("gloo")
    model, given = adapted(), condition(BATCHES[1 + rank // 2])
    expected = run(model, given)
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    assert dist.get_process_group_ranks(model.ulysses.group) == [[0, 1], [2, 3]][rank // 2]
    torch.testing.assert_close(run(model, given), expected, **CLOSE)


def test_two_pairs_of_processes_make_an_image_each(tmp_path):
    statuses = forked.run(be_one_of_four, tmp_path / "log.txt", 4)
    assert statuses == [0] * 4, (tmp_path / "log.txt").read_text()[-4000:]


@pytest.mark.same_numbers("an image of two processes together, and of one | 1e-4")
def test_two_processes_make_the_images_of_one(stock_pipe, tmp_path):
    """Compare whole pipelines: several layouts, true CFG, isolated condition tokens."""
    steered = {"negative_prompt": "a plain heart", "true_cfg_scale": 2.0}
    pipe = fresh_pipe(stock_pipe)
    settings = dataclasses.replace(pipe.settings, cond_attention="isolated")
    calls = [{}, steered, {"settings": settings}]
    expected = [latents_of(pipe, MANY, **each) for each in calls]

    def child(rank: int) -> None:
        dist.init_process_group("gloo")
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        for each, wanted in zip(calls, expected, strict=True):
            torch.testing.assert_close(latents_of(pipe, MANY, **each), wanted, atol=1e-4, rtol=0)
        for refused in ({"step_cache": "first_block"}, {"attention_mask_method": "place"}):
            with pytest.raises(UserError, match="context parallelism"):
                latents_of(pipe, ONE, **refused)

    statuses = forked.run(child, tmp_path / "log.txt", 2)
    assert statuses == [0, 0], (tmp_path / "log.txt").read_text()[-4000:]


def test_shares_are_equal_and_nothing_is_lost():
    text, image = torch.arange(5)[None], torch.arange(10, 14)[None]
    first, second = _shares([text, image, text[:, :0]], 2, [-1, -2, -3])
    assert first.tolist() == [[0, 1, 2, 10, 11]] and second.tolist() == [[3, 4, -1, 12, 13]]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (ContextParallelConfig(ring_degree=2), "ulysses_degree"),
        (ContextParallelConfig(ulysses_degree=3), "ulysses_degree 3"),
        (TensorParallelConfig(tp_degree=2), "tensor parallelism"),
        (ULYSSES, "init_process_group"),
    ],
)
def test_what_cannot_be_shared_is_one_line(config, named):
    model = adapted()
    with pytest.raises(UserError, match=named) as caught:
        model.enable_parallelism(config=config)
    assert "\n" not in str(caught.value) and model.ulysses is None
