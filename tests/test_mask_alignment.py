"""Mask alignment: scores of phrases, spans, masks, gradients, overfitting, and a run whose adapters `segment` reads."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seg2any.adapters import files as adapters
from seg2any.attention.settings import PLAIN, ConditionSettings
from seg2any.bases.text import encode_texts
from seg2any.commands.segment_attention import probe_settings
from seg2any.data.shapes import ShapesDataset
from seg2any.diffusion.prepare import EncodedLayout, assemble, draw_layout, encode_layouts
from seg2any.layout.overlap import iou
from seg2any.segment.attention import AttentionSegmenter, Choices
from seg2any.segment.mask_head import CARD, WEIGHTS, Learned, MaskHead, read_head, read_learned, save_learned
from seg2any.segment.phrase_scores import phrase_scores
from seg2any.segment.probe import ProbeSettings
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from seg2any.training import config
from seg2any.training.named_regions import NamedRegions, joined_names
from seg2any.training.reading import Preparation
from seg2any.training.samples import Captions
from seg2any.training.tasks.alignment_loss import (
    AlignmentLoss,
    Tapped,
    TappedAlone,
    every_token,
    spans_of_layout,
    spans_of_names,
)
from seg2any.training.tasks.flow_matching import Velocity
from tests import tiny_run
from tests.tiny_pipeline import SIZE, THREE, fresh_pipe

GRID = (SIZE[0] // 16, SIZE[1] // 16)
REGIONAL = ConditionSettings(
    attention_mask_method="base", is_use_cond_token=False, max_sequence_length=24, regional_max_sequence_length=12
)
PLAIN24 = PLAIN.override({"max_sequence_length": 24})


def masks_on(grid: tuple[int, int], count: int) -> np.ndarray:
    """Draw bands of columns, one for each region."""
    masks = np.zeros((count, *grid), dtype=bool)
    for number in range(count):
        masks[number, :, number * grid[1] // (count + 1) : (number + 1) * grid[1] // (count + 1)] = True
    return masks


def named_sample(pipe, captions: tuple[str, ...], background: str | None = "background"):
    """Return a sample with the joined names as its caption, and its text encoded."""
    text = joined_names(captions, background)[1]
    (encoded,) = encode_texts([pipe.base.caption_keys(text, (), PLAIN24)], pipe.base)
    layout = EncodedLayout(encoded, masks_on(GRID, len(captions)))
    return SimpleNamespace(layout=layout, captions=Captions(text, captions))


def test_scores_are_logits_averaged_over_the_tokens_of_a_phrase():
    torch.manual_seed(0)
    query, key = torch.randn(6, 3, 8, requires_grad=True), torch.randn(9, 3, 8)
    found = phrase_scores(query, key, [[1, 4], [2]])
    wanted = torch.zeros(2, 3, 6)
    for phrase, places in enumerate([[1, 4], [2]]):
        for head in range(3):
            for image in range(6):
                logits = [float(query[image, head].detach() @ key[place, head]) / 8**0.5 for place in places]
                wanted[phrase, head, image] = sum(logits) / len(logits)
    assert torch.allclose(found, wanted, atol=1e-6)
    found.sum().backward()
    assert query.grad.abs().min() > 0
    assert phrase_scores(query, key, []).shape == (0, 3, 6)


def test_spans_of_a_layout_are_the_rows_of_its_captions(pipe):
    encoded = encode_layouts([THREE, replace(THREE, caption=None)], SIZE, pipe.base, REGIONAL)
    tokens = assemble(encoded, REGIONAL).tokens
    for row, sample in enumerate(encoded):
        first, wanted = sample.text.lengths[0], []
        for length in sample.text.lengths[1:]:
            wanted.append(list(range(first, first + length)))
            first += length
        assert spans_of_layout(tokens, row, 3) == wanted


def test_spans_of_names_merge_regions_of_one_name_and_find_the_background(pipe):
    sample = named_sample(pipe, ("a ring", "a heart", "a ring"))
    target = spans_of_names(sample, "background", pipe.base.tokenizer, 24)
    drawn = sample.layout.masks
    assert sample.captions.caption == "a heart a ring background"
    assert target.masks.bool().numpy().tolist() == [
        mask.tolist() for mask in (drawn[1], drawn[0] | drawn[2], ~drawn.any(0))
    ]
    joined = sorted(place for places in target.columns for place in places)
    assert joined == list(range(len(pipe.base.tokenizer(sample.captions.caption).input_ids) - 1))
    cut = spans_of_names(sample, "background", pipe.base.tokenizer, len(target.columns[0]))
    assert cut.columns == target.columns[:1] and len(cut.masks) == 1


def test_plain_attention_learns_the_share_of_each_token_that_a_region_covers(pipe):
    """A mask of 3 columns of 4, on tokens of 2 x 2 pixels, covers half of the second column of tokens."""
    sample = named_sample(pipe, ("a ring",))
    pixels = np.zeros((1, 2 * GRID[0], 2 * GRID[1]), dtype=bool)
    pixels[:, :, :3] = True
    settings = config.load(["--model.attention_mask_method=none", "--model.is_use_cond_token=false"]).model.condition
    drawing = Preparation(64, "stretch", 2, settings).drawing
    drawn = draw_layout(pixels, (2 * GRID[0], 2 * GRID[1]), 2, drawing)
    layout = replace(sample.layout, masks=drawn.masks, coverage=drawn.coverage)
    sample = SimpleNamespace(layout=layout, captions=sample.captions)
    ring, background = spans_of_names(sample, "background", pipe.base.tokenizer, 24).masks
    assert ring[0, :3].tolist() == [1, 0.5, 0]
    assert torch.equal(background, 1 - ring)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_masks_alone_stop_the_network_at_their_last_block_with_the_same_gradients(checkpointing: bool, stock_pipe):
    pipe = fresh_pipe(stock_pipe)
    adapters.add_adapters(pipe.transformer, 4, is_use_cond_token=False, init_lora_weights="gaussian")
    sample = named_sample(pipe, ("a ring", "a heart"))
    condition, columns = assemble([sample.layout], PLAIN24), [[[0, 1], [2]]]
    x, s = torch.randn(1, GRID[0] * GRID[1], 64), torch.tensor([0.4])
    ran, found = [], []
    for number, block in enumerate(pipe.transformer.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    if checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    for tapped in (Tapped, TappedAlone):
        pipe.transformer.train().zero_grad()
        ran.clear()
        prediction, maps = tapped(Velocity(pipe.base, 1.0), (0, 2), None)(x, s, condition, columns)
        assert max(ran) == (4 if tapped is Tapped else 2)
        loss = torch.stack([one.square().sum() for block in maps for one in block]).sum()
        (loss + 0 * prediction.sum()).backward()
        found.append({name: p.grad for name, p in pipe.transformer.named_parameters() if p.requires_grad})
    assert not prediction.any() and all(grad is not None for grad in found[1].values())
    assert all(torch.allclose(found[0][name], grad, atol=1e-6) for name, grad in found[1].items())
    assert any(grad.any() for grad in found[1].values())


def test_matched_pairing_offers_all_tokens_but_padding_and_the_largest_masks(pipe):
    encoded = encode_layouts([THREE, replace(THREE, captions=("a",) * 3)], SIZE, pipe.base, REGIONAL)
    tokens = assemble(encoded, REGIONAL).tokens
    masks = np.zeros((40, 20, 20), dtype=bool)
    for number in range(40):
        masks[number, : number % 20, :number] = True  # the first has no pixel, others up to 741 of 400 tokens
    masks[1, 0, 0] = True
    target = every_token(tokens, 1, masks)
    assert [place for (place,) in target.columns] == list(range(sum(encoded[1].text.lengths)))
    shares = target.masks.mean((1, 2))
    assert len(shares) == 32 and (shares[:-1] >= shares[1:]).all() and shares.min() > 0.005


def test_the_tap_keeps_scores_through_gradient_checkpointing(stock_pipe):
    pipe = fresh_pipe(stock_pipe)
    adapters.add_adapters(pipe.transformer, 4, is_use_cond_token=False, init_lora_weights="gaussian")
    sample = named_sample(pipe, ("a ring", "a heart"))
    condition, columns = assemble([sample.layout], PLAIN24), [[[0, 1], [2]]]
    x, s = torch.randn(1, GRID[0] * GRID[1], 64), torch.tensor([0.4])
    network, found = Tapped(Velocity(pipe.base, 1.0), (1, 3), None), []
    for checkpointing in (False, True):
        if checkpointing:
            pipe.transformer.enable_gradient_checkpointing()
        pipe.transformer.train().zero_grad()
        prediction, maps = network(x, s, condition, columns)
        torch.stack([one.square().sum() for block in maps for one in block]).sum().backward()
        grads = [p.grad.clone() for p in pipe.transformer.parameters() if p.grad is not None]
        found.append((prediction.detach(), [one.detach() for block in maps for one in block], grads))
    (plain, maps, grads), (again, same_maps, same_grads) = found
    assert torch.equal(plain, again) and len(maps) == 2 and maps[0].shape == (2, 2, *GRID)
    assert all(torch.equal(a, b) for a, b in zip(maps, same_maps, strict=True))
    assert len(grads) == len(same_grads) > 0
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(grads, same_grads, strict=True))
    untapped = pipe.base.velocity(x, s, condition, 1.0)
    assert torch.equal(untapped.detach(), plain)


def test_a_loss_of_wrong_masks_or_wrong_names_is_larger(pipe):
    """Plant maps that are right; every mutation of the pairing must cost more."""
    sample = named_sample(pipe, ("a ring", "a heart"))
    loss = AlignmentLoss("spans", "background", "sigmoid", pipe.base)
    (target,) = loss.targets([sample], assemble([sample.layout], PLAIN24))
    right = [(8 * target.masks - 4)[:, None].expand(-1, 3, -1, -1)]
    best = float(loss([right], [target]))
    for order in ([1, 0, 2], [2, 1, 0], [0, 0, 1]):
        assert float(loss([[right[0][order]]], [target])) > 3 * best
    assert float(loss([[-right[0]]], [target])) > 3 * best
    mean = loss([right, [-right[0]]], [target])
    assert float(mean) == pytest.approx((best + float(loss([[-right[0]]], [target]))) / 2)
    matched = AlignmentLoss("matched", None, "sigmoid", pipe.base)
    shuffled = [right[0][[2, 0, 1]]]
    assert float(matched([shuffled], [target])) == pytest.approx(best, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "settings"), [("maps", PLAIN24), ("head", REGIONAL)], ids=["plain", "regional"])
def test_one_image_is_overfitted_and_only_adapters_and_head_learn(target: str, settings, stock_pipe):
    pipe = fresh_pipe(stock_pipe)
    torch.manual_seed(0)
    adapters.add_adapters(pipe.transformer, 8, is_use_cond_token=False, init_lora_weights="gaussian")
    captions = ("a ring", "a heart", "a star")
    if settings.is_plain:
        sample = named_sample(pipe, captions)
    else:
        keys = pipe.base.caption_keys(None, captions, settings)
        layout = EncodedLayout(encode_texts([keys], pipe.base)[0], masks_on(GRID, 3))
        sample = SimpleNamespace(layout=layout, captions=Captions(None, captions))
    head = MaskHead(2) if target == "head" else None
    network = Tapped(Velocity(pipe.base, 1.0), (2,), head)
    loss, condition = AlignmentLoss("spans", "background", "sigmoid", pipe.base), assemble([sample.layout], settings)
    (wanted,) = loss.targets([sample], condition)
    x, s = torch.randn(1, GRID[0] * GRID[1], 64), torch.tensor([0.4])
    frozen = {name: p for name, p in pipe.transformer.named_parameters() if not p.requires_grad}
    before = {name: p.clone() for name, p in frozen.items()}
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 2e-2)
    for _ in range(30):
        optimizer.zero_grad()
        prediction, maps = network(x, s, condition, [wanted.columns])
        (loss(maps, [wanted]) + 0 * prediction.mean()).backward()
        optimizer.step()
    assert all(p.grad is not None for p in trained) and all(p.grad is None for p in frozen.values())
    assert all(torch.equal(before[name], p) for name, p in frozen.items())
    logits = maps[0][0] if target == "head" else maps[0][0].mean(1)
    values = [iou(a, b) for a, b in zip((logits > 0).numpy(), wanted.masks.bool().numpy(), strict=True)]
    assert np.mean(values) > 0.9, values


def test_the_probe_reads_the_blocks_that_an_adapter_learned(pipe):
    given = SimpleNamespace(blocks=None, side=64, noise_level=None, seeds=[0], guidance_scale=3.5, text_tokens=24)
    assert probe_settings(given, pipe.base, Learned((1, 3))).blocks == (1, 3)
    given.blocks = [2]
    assert probe_settings(given, pipe.base, Learned((1, 3))).blocks == (2,)
    given.blocks, given.text_tokens = None, 512
    learned = Learned((1, 3), noise_level=0.25, text_tokens=24)
    found = probe_settings(given, pipe.base, learned)
    assert (found.noise_level, found.text_tokens) == (0.25, 24)
    given.noise_level = 0.0
    assert probe_settings(given, pipe.base, learned).noise_level == 0
    with pytest.raises(UserError, match="--blocks: nobody has measured this model"):
        probe_settings(given, pipe.base)


def test_named_regions_change_captions_only():
    data = ShapesDataset("train", 3)
    named = NamedRegions(data, "background")
    text = joined_names(data[1].layout.captions, "background")[1]
    assert named[1].layout.caption == named.annotation(1).caption == text and "background" in text
    assert (named[1].image == data[1].image).all() and named.key(1) == data.key(1) and len(named) == 3
    others = (NamedRegions(data, None), NamedRegions(data, "nothing"), data)
    assert named.fingerprint() == NamedRegions(data, "background").fingerprint()
    assert named.fingerprint() not in {other.fingerprint() for other in others}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--mask_alignment.pairing=hungarian"],
            "mask_alignment.pairing: 'hungarian' is not possible; choose one of",
        ),
        (["--mask_alignment.weight=-1"], "mask_alignment.weight: -1.0 is not possible; it must be at least 0"),
        (["--mask_alignment.weight=0", "--mask_alignment.flow_weight=0"], "so nothing is learned"),
        (["--mask_alignment.blocks=[]"], "mask_alignment.blocks: .* give numbers from 0"),
        (["--mask_alignment.target=head", "--mask_alignment.pairing=matched"], "set pairing to spans"),
        (["--task=generation", "--mask_alignment.weight=2"], "mask_alignment: only task mask_alignment reads"),
        (["--mask_alignment.wieght=2"], "did you mean 'mask_alignment.weight'"),
    ],
)
def test_settings_are_checked(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        config.load(["--task=mask_alignment", *words])


OLD = '{"blocks": [1], "background": null, "n_maps": 0'


def test_a_card_without_noise_level_is_read(tmp_path):
    (tmp_path / CARD).write_text(OLD + "}")
    assert read_learned(tmp_path) == Learned((1,))


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"blocks": ["a"], "background": null, "n_maps": 0}', '{"blocks": [1]}'),
        *(OLD + ', "noise_level": 2}', OLD + ', "text_tokens": 1e9}'),
    ],
)
def test_a_damaged_card_is_one_line(text: str, tmp_path):
    (tmp_path / CARD).write_text(text)
    with pytest.raises(UserError, match=CARD):
        read_learned(tmp_path)


def test_a_head_is_read_as_it_was_written_or_refused(tmp_path):
    head = MaskHead(6)
    learned = Learned((2, 4), "background", 6, 0.25, 64)
    save_learned(tmp_path, learned, head)
    assert read_learned(tmp_path) == learned
    maps = torch.randn(2, 6, 4, 4)
    assert torch.equal(read_head(tmp_path, read_learned(tmp_path))(maps), head(maps).detach())
    with pytest.raises(UserError, match="holds other tensors"):
        read_head(tmp_path, Learned((2, 4), None, 3))
    (tmp_path / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        read_head(tmp_path, Learned((2, 4), None, 6))
    assert read_learned(tmp_path / "none") is None and read_head(tmp_path, Learned((1,))) is None


def test_the_segmenter_reads_maps_by_the_head(pipe):
    """A head that returns the mean of its maps must give the scores themselves."""
    head = MaskHead(4).eval()
    for parameter in head.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    settings = ProbeSettings((0, 3), side=64, text_tokens=24)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    by_head = AttentionSegmenter(pipe.base, pipe.scheduler, settings, Choices("background"), head)
    found = by_head.maps(image, ["a ring", "a heart"])
    x0, grid, level = by_head._encoded_image(image)
    assert found.shape == (2, *grid) and ((found > 0) & (found < 1)).all()
    layout = by_head.segment(image, Prompt(categories=("a ring", "a heart")))
    assert layout.masks.sum(0).max() == 1 and "trained CNN" in layout.source
    with pytest.raises(UserError, match="reads 4 maps, but 1 blocks of 2 heads give 2"):
        AttentionSegmenter(pipe.base, pipe.scheduler, ProbeSettings((0,), 64), head=head)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_saves_what_segment_reads_and_resumes_exactly(arguments, tmp_path):
    from seg2any.training.tasks.choose import describe_task, make_task
    from seg2any.training.trainer import Trainer

    plain = ["--model.attention_mask_method=none", "--model.is_use_cond_token=false", "--trainer.cond_dropout=0"]
    given = [*arguments, *plain, "--task=mask_alignment", "--mask_alignment.blocks=[1,3]"]
    given += ["--mask_alignment.target=head", "--trainer.max_train_steps=2", "--trainer.gradient_accumulation_steps=1"]
    assert "mask_alignment" in describe_task(config.load(given))

    def fit(*more: str) -> Trainer:
        tiny_run.forget_accelerate()
        settings = config.load([*given, *more])
        trainer = Trainer(settings, make_task(settings))
        trainer.fit()
        return trainer

    fit("--trainer.max_train_steps=1")
    resumed = fit("--resume_from_checkpoint=latest").trainable.state_dict()
    trainer = fit(f"--project.output_dir={tmp_path / 'whole'}")
    whole = trainer.trainable.state_dict()
    averages = dict(zip(whole, trainer.average.values, strict=True))  # what a checkpoint publishes
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
    folder = tmp_path / "whole" / "checkpoint-2"
    card = {"blocks": [1, 3], "background": "background", "n_maps": 4, "noise_level": 0.5, "text_tokens": 64}
    assert json.loads((folder / CARD).read_text()) == card
    learned = read_learned(folder)
    head = read_head(folder, learned).state_dict()
    assert all(torch.equal(averages[f"mask_head.{name}"], tensor) for name, tensor in head.items())
    with pytest.raises(UserError, match=r"mask_alignment.blocks: 9 .* blocks 0 to 4"):
        describe_task(config.load([*given, "--mask_alignment.blocks=[9]"]))
