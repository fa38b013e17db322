"""Making the embedded model: tokenizers, the loop's resume, the loss it minimises."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from examples.shapes.make import build, loop, publish, train_base, train_vae
from seg2any.data.shapes import KINDS, ShapesDataset
from seg2any.training.state_file import read_state

pytestmark = pytest.mark.slow


def test_captions_fit_the_trained_text_lengths_and_no_word_is_spelt():
    tokenizer, words = build.build_t5_tokenizer(), build.build_clip_tokenizer()
    for kind in KINDS:
        for index in range(10):
            scene = ShapesDataset("test", 10, kind).scene(index)
            assert len(tokenizer(scene.caption).input_ids) <= build.GLOBAL_TOKENS
            for figure in scene.figures:
                ids = tokenizer(figure.caption).input_ids
                assert len(ids) == len(figure.caption.split()) + 1 <= build.REGION_TOKENS
                assert len(words(figure.caption).input_ids) == len(figure.caption.split()) + 2
    assert tokenizer.decode(tokenizer("a crimson star").input_ids, skip_special_tokens=True) == "a crimson star"
    assert len(tokenizer("crimson").input_ids) > 5 and tokenizer.unk_token_id not in tokenizer("crimson").input_ids


def test_folder_is_a_stock_flux_pipeline(tmp_path):
    pipeline = build.build_pipeline(seed=3)
    pipeline.save_pretrained(tmp_path)
    loaded = FluxPipeline.from_pretrained(tmp_path)
    caption = "a red striped star on a sand background"
    for name in ("tokenizer", "tokenizer_2"):
        assert getattr(loaded, name)(caption).input_ids == getattr(pipeline, name)(caption).input_ids
    options = {"height": 256, "width": 256, "num_inference_steps": 1, "output_type": "np", "max_sequence_length": 16}
    images = [p(caption, generator=torch.Generator().manual_seed(0), **options).images for p in (pipeline, loaded)]
    assert images[0].shape == (1, 256, 256, 3)
    np.testing.assert_allclose(*images, atol=1e-5)


@pytest.mark.same_numbers("a run or a folder after a kill, and in one go | equal")
def test_loop_resumes_bit_for_bit(tmp_path):
    straight, stopped = (_fit(tmp_path / name, steps) for name, steps in (("a", [6]), ("b", [3, 6])))
    assert torch.equal(straight.weight, stopped.weight)


def test_loop_ends_with_the_average(tmp_path):
    model = _fit(tmp_path, [6])
    state = read_state(tmp_path / "state.safetensors")
    own, average = state["parameters"]["weight"], state["average"]["values"][0]
    assert torch.equal(average, model.weight) and not torch.equal(own, model.weight)


def _fit(folder, stops: list[int]) -> nn.Module:
    """Train to each stop in turn, as separate runs of the same schedule.

    Returns the model of the last run.
    """
    for stop in stops:
        torch.manual_seed(0)
        model = nn.Linear(3, 3)

        def loss_at(step: int, model=model):
            if step == stop:  # noqa: B023 (called at once)
                raise KeyboardInterrupt
            return (model(torch.randn(4, 3)) - 1).square().mean(), {}

        settings = loop.LoopSettings(str(folder), steps=6, learning_rate=0.1, warmup=2, save_every=1)
        try:
            loop.run(model, loss_at, settings)
        except KeyboardInterrupt:
            continue
    return model


def test_learning_rate_warms_up_and_falls():
    settings = loop.LoopSettings("", steps=10, learning_rate=1.0, warmup=2, final_lr=0.1)
    factors = [loop.lr_factor(step, settings) for step in (0, 1, 2, 6, 10)]
    np.testing.assert_allclose(factors, [0.5, 1.0, 1.0, 0.55, 0.1])


def test_latent_statistics_standardise():
    torch.manual_seed(0)
    vae = build.build_vae()
    images = train_vae.render(8)
    shift, scale = train_vae.latent_statistics(vae, images)
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    standard = (latents - shift) * scale
    assert abs(float(standard.mean())) < 1e-4 and abs(float(standard.std()) - 1) < 1e-4


@pytest.mark.parametrize("stage", train_base.STAGES, ids=lambda stage: f"{stage.size}px")
def test_base_batches_hold_captions_of_one_length(stage, tmp_path):
    pipeline = build.build_pipeline()
    pool = train_base.encode_pool(pipeline, replace(stage, batch_size=4), 20, tmp_path)
    assert pool.latents.shape == (len(pool.captions), (stage.size // 16) ** 2, 64)
    for step in range(3):
        rng = np.random.default_rng(step)
        kind, indices = pool.draw(rng)
        lengths = {len(pipeline.tokenizer_2(pool.captions[i]).input_ids) for i in indices}
        assert len(lengths) == 1 and len(indices) == 4
        loss = train_base.flow_loss(pipeline, pool, kind, indices, rng)
        assert torch.isfinite(loss) and loss.requires_grad


@pytest.mark.same_numbers("a run or a folder after a kill, and in one go | equal")
def test_muon_trains_the_named_matrices_and_resumes(tmp_path):
    def trained(folder, steps):
        for stop in steps:
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

            def loss_at(step: int, model=model, stop=stop):
                if step == stop:
                    raise KeyboardInterrupt
                return (model(torch.randn(8, 4)) - 1).square().mean(), {}

            settings = loop.LoopSettings(str(folder), steps=8, learning_rate=0.01, save_every=1, muon=("0.",))
            with contextlib.suppress(KeyboardInterrupt):
                loop.run(model, loss_at, settings)
        kinds = [type(o).__name__ for o in loop.build_optimizers(dict(model.named_parameters()), settings)]
        return kinds, model.state_dict()

    (kinds, whole), (_, resumed) = trained(tmp_path / "whole", [None]), trained(tmp_path / "resumed", [5, None])
    assert kinds == ["AdamW", "Muon"]
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_log_of_a_resumed_run_counts_each_step_once(tmp_path):
    lines = [
        {"settings": {"seed": 1}, "start": 0},
        {"step": 0, "loss": 3.0, "seconds": 1.0},
        {"step": 10, "loss": 2.0, "seconds": 5.0},
        {"settings": {"seed": 1}, "start": 10},
        {"step": 10, "loss": 2.5, "seconds": 2.0},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    _, rows = publish.read_log(path)
    assert [(row["step"], row["loss"], row["seconds"]) for row in rows] == [(0, 3.0, 1.0), (10, 2.5, 7.0)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (build, ["{file}"]),
        (train_vae, ["--scenes", "1", "--steps", "1", "--output_dir", "{file}/run"]),
        (train_base, ["--vae", "{file}"]),
        (publish, ["--vae", "{file}"]),
        (publish, ["--lora", "{file}"]),
    ],
)
def test_wrong_arguments_are_one_line(command, words, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command.main([word.format(file=tmp_path / "file") for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(command.__name__)]
    assert len(lines) == 1 and "file" in lines[0]
