"""Making the embedded model: tokenizers, the loop's resume, the loss it minimises."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from examples.shapes.make import (
    build,
    cards,
    curriculum,
    loop,
    picture,
    publish,
    train_base,
    train_together,
    train_vae,
    transfer,
)
from examples.shapes.make.muon import orthogonal
from seg2any.adapters.files import read_adapters, save_adapters
from seg2any.data.shapes import KINDS, ShapesDataset, held_out
from seg2any.data.shapes_draw import LETTERS, PATTERNS
from seg2any.generate.pipeline import Seg2AnyPipeline
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


@pytest.mark.parametrize("name", curriculum.STAGES)
def test_base_batches_hold_captions_of_one_length(name, tmp_path):
    pipeline, stage = build.build_pipeline(), replace(curriculum.STAGES[name], batch_size=4)
    size = stage.sizes[-1]
    pool = train_base.encode_pool(pipeline, stage, size, 20, tmp_path)
    assert pool.latents.shape == (len(pool.scenes), size[0] // 16 * (size[1] // 16), 64)
    for step in range(3):
        rng = np.random.default_rng(step)
        kind, indices = pool.draw(rng)
        lengths = {len(pipeline.tokenizer_2(pool.scenes[i].caption).input_ids) for i in indices}
        assert len(lengths) == 1 and len(indices) == 4
        loss = train_base.flow_loss(pipeline, pool, kind, indices, rng)
        assert torch.isfinite(loss) and loss.requires_grad


def test_a_model_without_the_article_an_reads_it_as_a(tmp_path):
    """Compare the captions of an old model and of one that was given the word: all but "an" have the same tokens."""
    old = FluxPipeline.from_pretrained("examples/shapes/model")
    if len(old.tokenizer_2) == len(build.build_t5_tokenizer()):
        pytest.skip("the shipped model knows the word")
    new = train_base.start_from("examples/shapes/model")
    for caption in ("a red star and a badge with the letter A", "many figures on a grey background"):
        assert new.tokenizer_2(caption).input_ids == old.tokenizer_2(caption).input_ids
    texts = ((new, "an orange star"), (old, "a orange star"))
    ids = [pipeline.tokenizer_2(text, return_tensors="pt").input_ids for pipeline, text in texts]
    assert ids[0].shape == ids[1].shape and not torch.equal(*ids)
    found = [pipeline.text_encoder_2.float()(row)[0] for pipeline, row in zip((new, old), ids, strict=True)]
    torch.testing.assert_close(*found)


def test_what_the_pooled_vector_reads_shows_the_figure_among_others():
    """Read what T5 and CLIP read of single figures: often T5 the figure alone, CLIP a whole scene with others."""
    rng, scenes = np.random.default_rng(0), [curriculum.large(index, (96, 96)) for index in range(8)]
    drawn = [train_base.read(scenes, "large", rng) for _ in range(60)]
    alone = [(texts, pooled) for texts, pooled, _, _ in drawn if texts != pooled]
    assert 0.4 < len(alone) / len(drawn) < 0.8
    for texts, pooled in alone:
        for scene, text, whole in zip(scenes, texts, pooled, strict=True):
            assert text == scene.figures[0].caption and whole.endswith(f"on a {scene.background} background")
            assert text in whole or whole.startswith("many figures")
            assert whole != scene.caption
    assert all(texts == [scene.caption for scene in scenes] for texts, pooled, *_ in drawn if texts == pooled)


def test_large_figures_fill_most_of_the_image_and_are_none_that_training_never_sees():
    scenes = [curriculum.large(index, (96, 96)) for index in range(60)]
    assert not any(held_out(figure) for scene in scenes for figure in scene.figures)
    shares = [scene.masks()[0].mean() for scene in scenes]
    assert np.mean(shares) > 0.4 and min(shares) > 0.05
    assert {figure.pattern for scene in scenes for figure in scene.figures} == set(PATTERNS)
    badges = [figure for scene in scenes for figure in scene.figures if figure.shape == "badge"]
    assert len(badges) > 8 and all(figure.letter in LETTERS for figure in badges)


def test_positions_keep_their_grid_when_it_is_moved():
    grids = [train_base.positions((6, 4), np.random.default_rng(seed)) for seed in range(30)]
    still = FluxPipeline._prepare_latent_image_ids(1, 6, 4, "cpu", torch.float32)
    for ids in grids:
        assert torch.equal(ids - ids[0], still) and ids.min() >= 0 and ids.max() < train_base.LARGEST_GRID
    assert 5 < sum(torch.equal(ids, still) for ids in grids) < 25


@pytest.mark.parametrize("shape", [(2, 48, 96), (3, 96, 32), (1, 64, 64)])
def test_singular_values_come_near_to_one_and_directions_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert values.quantile(0.05) > 0.6 and values.max() < 1.3  # a value near nought takes more steps
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    core = left.mT @ found @ right.mT
    off = core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-3, "the singular vectors changed"


def test_base_and_adapters_trained_together_are_saved_apart(tmp_path):
    model, lora = "examples/shapes/model", "examples/shapes/lora"
    pipeline = Seg2AnyPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.load_adapters(lora)
    names = train_together.muon(pipeline.transformer)
    assert names and not any("lora_" in name or "norm" in name for name in names)
    wanted = {name: p for name, p in pipeline.transformer.named_parameters()}
    for number, parameter in enumerate(wanted.values()):
        parameter.data += 0.01 * (number % 3)
    train_together.save(pipeline, model, pipeline.card, tmp_path)
    again = Seg2AnyPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    read_adapters(again.transformer, tmp_path / "lora", torch.float32)
    found = dict(again.transformer.named_parameters())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].data, value.data.half().float(), msg=name)

    lines = [{"settings": {"steps": 1, "learning_rate": 0.1, "seed": 5}, "machine": {"name": "abacus"}, "commit": "c"}]
    lines += [{"step": step, "loss": 2.0, "seconds": 7200.0} for step in (0, 1)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--base", str(tmp_path), "--vae", "--model", str(tmp_path / "m"), "--lora_output", str(tmp_path / "l")]
    assert publish.main(words) == 0
    for published, own in (
        ("l/default", "lora/default"),
        ("l/cond", "lora/cond"),
        ("m/transformer", "model/transformer"),
    ):
        files = [next((tmp_path / folder).glob("*.safetensors")).read_bytes() for folder in (published, own)]
        assert files[0] == files[1], published
    for folder in ("l", "m"):
        assert "| 1 | 0.1 | 2.00 | abacus | 5 | 2.0000 | c |" in (tmp_path / folder / "README.md").read_text()


def test_adapters_receive_what_a_further_training_changed(tmp_path):
    """Transfer the way from a to b onto c, all random: c + (b - a), with b's settings."""
    folders = {name: tmp_path / name for name in "abcd"}
    pipeline = Seg2AnyPipeline.from_pretrained("examples/shapes/model", dtype=torch.float32)
    pipeline.load_adapters("examples/shapes/lora")
    values = {}
    for seed, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in pipeline.transformer.named_parameters():
            if "lora_" in key:
                parameter.data = values[name, key] = torch.randn(parameter.shape, generator=generator).half().float()
        attention = pipeline.card.condition.override({"cond_attention": "isolated"})
        card = replace(pipeline.card, condition=attention) if name == "b" else pipeline.card
        save_adapters(pipeline.transformer, folders[name], card, dtype=torch.float16)
    words = [str(folders["c"]), "--before", str(folders["a"]), "--after", str(folders["b"])]
    assert transfer.main([*words, "--output", str(folders["d"])]) == 0
    found = Seg2AnyPipeline.from_pretrained("examples/shapes/model", dtype=torch.float32)
    found.load_adapters(str(folders["d"]))
    assert found.card.condition.cond_attention == "isolated" and found.card.step == pipeline.card.step
    changed = {key: value for key, value in found.transformer.named_parameters() if "lora_" in key}
    assert changed
    for key, value in changed.items():
        wanted = (values["c", key] + values["b", key] - values["a", key]).half().float()
        torch.testing.assert_close(value.detach(), wanted, atol=0, rtol=0, msg=key)


def test_layouts_are_encoded_once_and_with_their_captions(tmp_path):
    part = train_together.Layouts(((64, 96),), 1, 2, {"single": 0.5, "few": 0.5}, "", 1e-3)
    pipeline = Seg2AnyPipeline.from_pretrained("examples/shapes/model", dtype=torch.float32)
    found = [train_together.encode(pipeline, part, (64, 96), 4, tmp_path, "examples/shapes/lora") for _ in range(2)]
    assert [sample.image.mean.shape for sample in found[0]] == [(24, 64)] * 4
    scenes = curriculum.scenes_of("single", 2, (64, 96)) + curriculum.scenes_of("few", 2, (64, 96))
    for first, again, scene in zip(*found, scenes, strict=True):
        assert torch.equal(first.image.mean, again.image.mean) and len(first.layout.text.regions) == len(scene.figures)
        words = pipeline.tokenizer_2(scene.caption).input_ids
        assert first.layout.text.caption.shape == (len(words), 128) and first.pooled_without_caption is not None


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
    _, rows = cards.read_log(path)
    assert [(row["step"], row["loss"], row["seconds"]) for row in rows] == [(0, 3.0, 1.0), (10, 2.5, 7.0)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (build, ["{file}"]),
        (train_vae, ["--scenes", "1", "--steps", "1", "--output_dir", "{file}/run"]),
        (train_base, ["texture", "--vae", "{file}", "--output_dir", "{file}/run"]),
        (train_together, ["small", "--start_from", "{file}", "--lora", "{file}", "--output_dir", "{file}/run"]),
        (picture, ["{file}", "{file}/demo.png"]),
        (transfer, ["{file}", "--before", "{file}", "--after", "{file}", "--output", "{file}/run"]),
        (train_base, ["figure", "--start_from", "{file}", "--output_dir", "{file}/run"]),
        (publish, ["--vae", "{file}"]),
        (publish, ["--lora", "{file}"]),
    ],
)
def test_wrong_arguments_are_one_line(command, words, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command.main([word.format(file=tmp_path / "file") for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(command.__name__)]
    assert len(lines) == 1 and "file" in lines[0]
