"""Adapters that paint: what they are asked for, how they learn it, and segments out of what they paint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from seg2any.adapters.card import AdapterCard
from seg2any.adapters.files import add_adapters
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.text import encode_texts
from seg2any.commands import segment, train
from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation.cycle.again import by_phrases, by_points, find_again
from seg2any.evaluation.shapes.sources import open_session
from seg2any.generate.model import read_adapter_card
from seg2any.layout import Layout
from seg2any.segment.coloring.painter import Painter, Scene, check_painting, painting_settings, predict_paintings
from seg2any.segment.coloring.paints import COLORS, PAINTS, Legend, nearest_paints, painted
from seg2any.segment.coloring.segmenter import Choices, ColoringSegmenter
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from seg2any.training.config import Coloring
from seg2any.training.painting import PhotoEncoder, PhotoReader, wish_in_words, wish_without_words
from seg2any.training.reading import Preparation
from seg2any.training.tasks.coloring_objective import Objective
from tests.test_coloring import iou, planted
from tests.tiny_pipeline import fresh_pipe

NAMES = ("a red disc", "a ring", "a bar")
"""The captions of the numbers in `planted`."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a ring", "'a ring' names no colour; write PHRASE: COLOUR"),
        ("a ring: mauve", "'mauve' is no paint; choose among red, green"),
        ("a ring: red; a disc: red", "the colour 'red' is given twice"),
        ("a ring: red; a ring: blue", "the phrase 'a ring' is given twice"),
        ("; ".join(f"thing {n}: red" for n in range(200)), "has 200 entries; give 1 to 8"),
        ("everything else: black", "has 0 entries"),
    ],
)
def test_a_wrong_legend_is_one_line(text: str, message: str):
    with pytest.raises(UserError, match=message):
        Legend.parse(text)


def test_a_legend_reads_its_own_text_and_leaves_out_what_is_black():
    legend = Legend.parse("a red disc: blue; a ring: green; everything else: black")
    assert legend.entries == (("a red disc", "blue"), ("a ring", "green"))
    assert Legend.parse(legend.text) == legend
    assert legend.colors.tolist() == [list(PAINTS["blue"]), list(PAINTS["green"])]


def test_paints_are_near_own_colours_and_differ_while_there_are_enough():
    shuffled = np.random.default_rng(0).permutation(len(COLORS))
    assert np.array_equal(nearest_paints(COLORS[shuffled].astype(float) + 5), COLORS[shuffled])
    alike = nearest_paints(np.tile([230.0, 30, 30], (len(COLORS), 1)))
    assert len(np.unique(alike, axis=0)) == len(COLORS)
    assert nearest_paints(np.zeros((0, 3))).shape == (0, 3)
    assert len(nearest_paints(np.zeros((20, 3)))) == 20


class Oracle:
    """Paints the planted instances: by a legend's words, or each in its own colour."""

    def __init__(self):
        self.words = []

    def colors(self, image: np.ndarray, words: str = "") -> np.ndarray:
        self.words.append(words)
        entries = Legend.parse(words).entries if words else tuple(zip(NAMES, PAINTS, strict=False))
        masks = np.array([planted() == NAMES.index(phrase) + 1 for phrase, _ in entries])
        return painted(masks, np.array([PAINTS[paint] for _, paint in entries]))


PHOTO = np.zeros((60, 80, 3), np.uint8)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_phrases_are_painted_a_few_at_a_time_and_keep_their_order(most: int):
    order = [2, 0, 1]
    painter = Oracle()
    found = ColoringSegmenter(painter, Choices(entries=most)).segment(PHOTO, Prompt(tuple(NAMES[n] for n in order)))
    assert found.captions == tuple(NAMES[n] for n in order)
    assert len(painter.words) == -(-3 // most)
    assert all(iou(mask, planted() == n + 1) > 0.9 for mask, n in zip(found.masks, order, strict=True))
    assert (found.scores > 0.9).all()


def test_the_order_of_phrases_changes_no_word():
    heard = []
    for order in ([0, 1, 2], [2, 1, 0]):
        painter = Oracle()
        ColoringSegmenter(painter).segment(PHOTO, Prompt(tuple(NAMES[n] for n in order)))
        heard.append(painter.words)
    assert heard[0] == heard[1]


def test_points_take_what_is_connected_to_them_unless_asked_otherwise():
    bar = np.array([[[10 / 80, 52 / 60, 1], [0, 0, -1]], [[0.25, 1 / 3, 1], [10 / 80, 52 / 60, 0]]])
    found = ColoringSegmenter(Oracle()).segment(PHOTO, Prompt(points=bar))
    lower = planted() == 3
    lower[:48] = False
    assert iou(found.masks[0], lower) > 0.9 and iou(found.masks[1], planted() == 1) > 0.9
    whole = ColoringSegmenter(Oracle(), Choices(connected=False)).segment(PHOTO, Prompt(points=bar))
    assert iou(whole.masks[0], planted() == 3) > 0.9


def test_boxes_legends_and_nothing_are_taken_and_categories_are_not():
    segmenter = ColoringSegmenter(Oracle(), Choices(legend=Legend.parse("a ring: purple")))
    boxes = np.array([[9 / 80, 9 / 60, 31 / 80, 31 / 60]])
    assert iou(segmenter.segment(PHOTO, Prompt(boxes=boxes)).masks[0], planted() == 1) > 0.9
    ring = segmenter.segment(PHOTO, Prompt())
    assert ring.captions == ("a ring",) and iou(ring.masks[0], planted() == 2) > 0.9
    assert len(ColoringSegmenter(Oracle()).segment(PHOTO, Prompt()).masks) == 4
    assert ColoringSegmenter(Oracle()).segment(PHOTO, Prompt(phrases=())).masks.shape[0] == 0
    with pytest.raises(UserError, match="^coloring: the prompt holds categories"):
        segmenter.segment(PHOTO, Prompt(categories=("sky",)))


def photos(base, count: int, side: int = 32) -> list:
    data = ShapesDataset(split="train", n_scenes=count, kind="normal")
    preparation = Preparation(side, "stretch", base.geometry.pixels_per_token, ConditionSettings())
    reader = PhotoReader(data, preparation)
    return PhotoEncoder(base, keep=True)([reader(index) for index in range(count)])


@pytest.fixture
def painting_pipe(stock_pipe):
    pipe = fresh_pipe(stock_pipe)
    add_adapters(pipe.transformer, rank=4, alpha=4)
    for module in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        module.requires_grad_(False)
    return pipe


def predictor(base):
    return lambda x, s, condition: base.velocity(x, s, condition.to("cpu", base.dtype), 1.0)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in range(count)]


@pytest.mark.parametrize(("place", "loss"), [("condition", "instances"), ("image", "paintings")])
def test_gradients_reach_adapters_only_and_a_photo_can_be_overfitted(painting_pipe, place: str, loss: str):
    base, options = painting_pipe.base, Coloring(loss=loss, photo=place, legend_share=0.5, legends_per_photo=1)
    settings = painting_settings(ConditionSettings(max_sequence_length=32), place)
    objective = Objective(base, options, settings, partly_labelled=False)
    samples = photos(base, 2)
    trained = {n: p for n, p in painting_pipe.transformer.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=4e-2)
    losses = []
    for _ in range(20):
        value = objective(predictor(base), samples, generators(2))
        value.backward()
        losses.append(value.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    everything = [p for part in (painting_pipe.vae, painting_pipe.text_encoder_2) for p in part.parameters()]
    assert all(p.grad is None for p in everything)
    assert all("lora_" in name for name in trained)
    used = [name for name, p in trained.items() if ".cond." in name]
    assert bool(used) and (place == "image" or any(float(trained[n].abs().sum()) > 0 for n in used))


def test_one_prediction_is_minus_the_velocity_as_the_schedulers_last_step_says(painting_pipe):
    base = painting_pipe.base
    (photo,) = photos(base, 1)
    settings = painting_settings(ConditionSettings(max_sequence_length=8), "condition")
    (text,) = encode_texts([base.caption_keys("", (), settings)], base)
    seen = {}

    def velocity(x, s, condition):
        seen.update(x=x, s=s, condition=condition)
        return torch.full_like(x, 0.25)

    found = predict_paintings(velocity, [Scene(photo.latents, photo.grid, text)], settings)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0])
    step = scheduler.step(torch.full_like(found, 0.25), scheduler.timesteps[0], torch.zeros_like(found))
    torch.testing.assert_close(found, step.prev_sample)
    assert not seen["x"].any() and seen["s"].tolist() == [1]
    assert seen["condition"].tokens.n_cond == len(photo.latents)  # no token is dropped, not even of a flat patch
    torch.testing.assert_close(seen["condition"].cond[0], photo.latents)


def test_wishes_name_every_region_of_a_caption_and_are_drawn_anew():
    data = ShapesDataset(split="train", n_scenes=3, kind="normal")
    reader = PhotoReader(data, Preparation(64, "stretch", 16, ConditionSettings()))
    read = reader(1)
    read = replace(read, captions=("a ring",) * len(read.captions))
    wish = wish_in_words(read, 4, np.random.default_rng(0))
    assert wish.words.startswith("a ring: ") and np.array_equal(wish.masks[0], read.instances > 0)
    plain = wish_without_words(read)
    assert len(plain.masks) == len(np.unique(read.instances)) - 1
    words = {wish_in_words(reader(2), 4, np.random.default_rng(seed)).words for seed in range(8)}
    assert len(words) > 4
    empty = replace(read, instances=np.zeros_like(read.instances))
    assert wish_in_words(empty, 4, np.random.default_rng(0)).words == ""


@pytest.mark.slow
def test_a_run_writes_adapters_that_segment_takes_and_generation_names(tiny_model, tmp_path, capsys):
    run = tmp_path / "run"
    words = [
        *(f"--project.output_dir={run}", "--task=coloring", "--data.train.type=shapes", "--resolution=64"),
        *("--data.train.params={n_scenes: 4}", "--data.val.type=shapes", "--data.val.params={n_scenes: 2, split: val}"),
        *(f"--model.pretrained_model_name_or_path={tiny_model}", "--model.rank=2", "--mixed_precision=no"),
        *("--trainer.max_train_steps=2", "--trainer.train_batch_size=2", "--trainer.num_validation_images=1"),
        *(
            "--coloring.legend_share=0.5",
            "--coloring.legend_entries=2",
            "--model.max_sequence_length=32",
            "--trainer.num_validation_samples=2",
        ),
    ]
    assert train.main(words, "train.py") == 0, capsys.readouterr().err
    assert "segment photo.png --method coloring --lora_ckpt_path" in capsys.readouterr().out
    assert len(list((run / "gen_imgs").rglob("000.png"))) == 1
    assert json.loads((run / "checkpoint-2" / "adapter.json").read_text())["legend_entries"] == 2
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(tmp_path / "a.png")
    asked = [str(tmp_path / "a.png"), "--output_path", str(tmp_path / "out"), "--method", "coloring", "--device", "cpu"]
    model = ["--pretrained_model_name_or_path", str(tiny_model), "--lora_ckpt_path", str(run / "checkpoint-2")]
    assert segment.main([*asked, *model, "--points", "0.5,0.5", "--format", "npz"], "segment.py") == 0
    assert "colours of" in Layout.read(tmp_path / "out" / "a.npz").source


def test_adapters_that_make_images_are_refused(painting_pipe):
    with pytest.raises(UserError, match="these adapters make images and paint nothing"):
        check_painting(AdapterCard())
    card = AdapterCard(photo="condition", color_range="own", resolution=32, legend_entries=1)
    again = check_painting(AdapterCard.from_json(card.to_json(), "card"))
    assert (again.photo, again.legend_entries) == ("condition", 1) and "legend_entries" not in AdapterCard().to_json()
    with pytest.raises(UserError, match="legend_entries is 0"):
        AdapterCard.from_json(card.to_json().replace('"legend_entries": 1', '"legend_entries": 0'), "card")
    assert Painter(painting_pipe.base, card).colors(np.zeros((40, 70, 3), np.uint8)).shape == (32, 48, 3)
    with pytest.raises(UserError, match="which this version does not know"):
        check_painting(replace(card, photo="elsewhere"))


def test_the_shipped_adapters_find_the_figures_of_an_unseen_scene_and_one_by_its_words():
    folder = Path("examples/shapes/lora_coloring")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8_000_000
    card = check_painting(read_adapter_card(folder))
    session, _ = open_session("examples/shapes/model", folder, None, torch.device("cpu"))
    segmenter = ColoringSegmenter(Painter(session.pipeline.base, card), Choices(entries=card.legend_entries))
    scene = ShapesDataset("test", 200)[64]
    found = find_again(scene.image, by_points(scene.layout), segmenter)
    assert found.iou.mean() > 0.7 and len(segmenter.segment(scene.image, Prompt()).masks) >= len(found.iou) - 1
    assert find_again(scene.image, by_phrases(scene.layout), segmenter).iou.max() > 0.7
