"""Tasks of X-SAM: the segmentor with a closed list, and everything together. Networks of some ten thousand numbers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from seg2any.data.words import Words
from seg2any.segment.xsam.model import Pictures
from seg2any.system.errors import UserError
from seg2any.training import config as configs
from seg2any.training.state_file import read_state
from seg2any.training.tasks.choose import describe_task, make_task
from seg2any.training.tasks.xsam import next_token_loss
from seg2any.training.tasks.xsam_networks import build_model, build_segmentor
from seg2any.training.tasks.xsam_writing import SPEAKING
from tests import forked, tiny_xsam
from tests.tiny_run import forget_accelerate, losses, same
from tests.tiny_xsam import generator, writer

TASKS = ("xsam_segmentor", "xsam")
VALIDATION = (
    *("--data.val.type=shapes", "--data.val.params={n_scenes: 3, split: val, entities: [2, 3], size: 64}"),
    "--trainer.num_validation_images=1",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_xsam.write_model(tmp_path_factory.mktemp("model") / "xsam")


@pytest.fixture(scope="module")
def words() -> Words:
    return tiny_xsam.words()


class Lone:
    """The strategy of one process on a CPU, as far as a loss asks it."""

    device, dtype = torch.device("cpu"), torch.float32
    process = type("One", (), {"count": 1})


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_is_the_uninterrupted_one(task, model, tmp_path):
    tiny_xsam.fit(tiny_xsam.arguments(task, model, tmp_path / "whole", *VALIDATION))
    half = tiny_xsam.arguments(task, model, tmp_path / "parts", *VALIDATION, "--trainer.max_train_steps=2")
    tiny_xsam.fit(half)
    tiny_xsam.fit([*half, "--trainer.max_train_steps=4", "--resume_from_checkpoint=latest"])
    whole, parts = (tmp_path / name / "checkpoint-4" for name in ("whole", "parts"))
    assert losses(whole.parent) == losses(parts.parent) and len(losses(whole.parent)) == 4
    assert same(read_state(whole / "training_state.safetensors"), read_state(parts / "training_state.safetensors"))
    first, second = (load_file(path / "xsam" / "model.safetensors") for path in (whole, parts))
    assert same(first, second) and not same(first, load_file(whole.parent / "checkpoint-2/xsam/model.safetensors"))
    assert [path.name for path in (whole.parent / "gen_imgs").rglob("*.png")] == ["000.png"]


@pytest.mark.slow
@pytest.mark.same_numbers("two processes that train X-SAM, and one with their batches together | 1e-6")
@pytest.mark.parametrize(("task", "mix"), [("xsam_segmentor", "{}"), ("xsam", "{refseg: 0, reaseg: 0}")])
def test_two_processes_make_the_updates_of_one(task, mix, model, tmp_path):
    """Where each conversation has classes of its own; phrases of a batch are each other's classes, as published."""

    def command(name, batch):
        options = (f"--trainer.train_batch_size={batch}", f"--xsam.mix={mix}", "--optimizer.adam_epsilon=1e-3")
        return tiny_xsam.arguments(task, model, tmp_path / name, *options)

    tiny_xsam.fit(command("alone", 4))
    forget_accelerate()
    log = tmp_path / "log.txt"
    statuses = forked.run(lambda rank: tiny_xsam.fit(command("two", 2)), log, 2)
    assert statuses == [0, 0], log.read_text()[-4000:]
    one, two = losses(tmp_path / "alone"), losses(tmp_path / "two")
    assert one.keys() == two.keys() == {1, 2, 3, 4}
    assert max(abs(one[step] - two[step]) / one[step] for step in one) < 1e-5
    files = [load_file(tmp_path / name / "checkpoint-4/xsam/model.safetensors") for name in ("alone", "two")]
    assert max((files[0][name] - files[1][name]).abs().max().item() for name in files[0]) < 1e-6


def test_every_way_of_asking_reaches_all_that_is_trained_and_nothing_else(model, tmp_path):
    settings = configs.load(tiny_xsam.arguments("xsam", model, tmp_path, "--xsam.mix={vgdconv: 1}"))
    task = make_task(settings)
    torch.manual_seed(0)
    task.load(Lone(), None, None)
    named = task.trainable()
    rest = dict(task.model.named_parameters()).keys() - named.keys()
    assert any(".neck." in name for name in rest) and any("visual_encoder" in name for name in rest)
    ways = len(task.data.ways)
    assert {*task.data.ways} == {*SPEAKING}
    for way, kind in enumerate(task.data.ways):
        samples = [one for i in range(way, 6 * ways, ways) if (one := task.data.usable(i))][:2]
        assert {one.kind for one in samples} == {kind}
        task.loss(task.network, samples, [generator(1), generator(2)]).backward()
        assert not [name for name, p in named.items() if p.grad is None], kind
        assert not [name for name, p in task.model.named_parameters() if name in rest and p.grad is not None]
        task.network.zero_grad(set_to_none=True)
    encoders = [name.startswith(("segmentor.encoder", "visual_encoder")) for name in named]
    assert encoders == sorted(encoders) and set(task.rates().values()) == {0.1}


def test_the_language_counts_as_much_as_is_asked_for(model, tmp_path):
    torch.manual_seed(0)
    task = make_task(configs.load(tiny_xsam.arguments("xsam", model, tmp_path)))
    task.load(Lone(), None, None)
    samples = [task.data[0]]
    total = []
    for weight in (0.0, 1.0, 3.0):
        task.options.language = weight
        total.append(task.loss(task.network, samples, [generator(1)]).item())
    assert total[1] - total[0] > 1 and total[2] - total[0] == pytest.approx(3 * (total[1] - total[0]), rel=1e-4)


def test_chat_trains_words_alone(model, words, tmp_path):
    torch.manual_seed(0)
    task = make_task(configs.load(tiny_xsam.arguments("xsam", model, tmp_path)))
    task.load(Lone(), None, None)
    (number,) = (way for way, kind in enumerate(task.data.ways) if kind == "imgconv")
    sample = task.data[number]
    task.loss(task.network, [sample], [generator(1)]).backward()
    moved = {name for name, one in task.trainable().items() if one.grad.abs().max() > 0}
    assert {name.split(".")[0] for name in moved} == {
        "llm",
        "visual_encoder",
        "visual_projector",
        "seg_projector",
        "segmentor",
    }
    assert all(name.startswith("segmentor.encoder.") for name in moved if name.startswith("segmentor."))


def test_the_encoders_learn_at_a_rate_of_their_own(model, tmp_path):
    words = tiny_xsam.arguments("xsam_segmentor", model, tmp_path, "--trainer.max_train_steps=1")
    trainer = tiny_xsam.fit([*words, "--xsam.encoder_rate=0.25"])
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-3, 0.25e-3]
    slow = {id(p) for p in trainer.optimizer.param_groups[1]["params"]}
    assert slow == {id(p) for name, p in trainer.trainable.parameters.items() if name.startswith("segmentor.encoder.")}


def test_the_whole_model_starts_with_a_trained_segmentor(model, tmp_path):
    one = tiny_xsam.arguments("xsam_segmentor", model, tmp_path / "first", "--trainer.max_train_steps=1")
    tiny_xsam.fit(one)
    forget_accelerate()
    folder = tmp_path / "first" / "checkpoint-1" / "xsam"
    more = ("--trainer.max_train_steps=1", "--trainer.learning_rate=1e-12", "--trainer.ema_decay=0")
    tiny_xsam.fit(tiny_xsam.arguments("xsam", model, tmp_path / "second", *more, f"--xsam.segmentor={folder}"))
    learned = load_file(folder / "model.safetensors")
    found = load_file(tmp_path / "second" / "checkpoint-1" / "xsam" / "model.safetensors")
    shared = [n for n in learned if n.startswith(("segmentor.decoder", "segmentor.encoder.layers", "seg_connector"))]
    assert len(shared) > 40 and all(torch.allclose(found[name], learned[name], atol=1e-6) for name in shared)


def test_a_model_without_weights_starts_with_positions_that_differ(model, tmp_path):
    settings = configs.load(tiny_xsam.arguments("xsam_segmentor", model, tmp_path))
    table = build_segmentor(settings, 3).segmentor.encoder.pos_embed.detach().flatten(1, 2)[0]
    apart = torch.cdist(table, table) + 10 * torch.eye(len(table))
    side = 4  # of the grid
    assert apart.min() > 0.05 and apart[0, 1] < apart[0, side - 1] and apart[0, side] < apart[0, -side]


def test_tokens_of_pictures_start_with_their_places_and_no_longer_than_words(model, words, tmp_path):
    torch.manual_seed(0)
    fresh = build_model(configs.load(tiny_xsam.arguments("xsam", model, tmp_path)), resumes=False)
    (table,) = (p for name, p in fresh.visual_encoder.named_parameters() if name.endswith("position_embedding.weight"))
    apart = torch.cdist(table, table) + 10 * torch.eye(len(table))
    assert apart.min() > 0.05 and apart[0, 1] < apart[0, -1]
    written = writer(words)(words[0], "genseg", generator())
    tokens = fresh.see(Pictures(written.seg[None], written.visual[None])).tokens
    longer = tokens.norm(dim=-1).mean() / fresh.get_input_embeddings().weight.norm(dim=-1).mean()
    assert 0.1 < longer < 10, longer


def test_only_the_labels_that_follow_count():
    logits = torch.randn(1, 4, 3, generator=generator())
    labels = torch.tensor([[2, -100, 1, 0]])
    logs = logits.log_softmax(-1)[0]
    by_hand = -(logs[1, 1] + logs[2, 0]) / 2
    assert torch.isclose(next_token_loss(logits, labels, lambda number: number), by_hand)
    assert torch.isclose(next_token_loss(logits, labels, lambda number: 2 * number), by_hand / 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--xsam.model=null", "^xsam.model: not set; give a folder"),
        ("--xsam.model=/tmp", "^xsam.model: /tmp has no config.json"),
        ("--xsam.mix={paint: 1}", "^xsam.mix: 'paint' is no way to ask; give counts"),
        (
            "--xsam.mix={genseg: 0, refseg: 0, reaseg: 0, gcgseg: 0, vgdseg: 0, imgconv: 0}",
            "^xsam.mix: nothing is asked",
        ),
        ("--xsam.points=0", "^xsam.points: 0 is not possible"),
        ("--data.train.type=null", "^data.train.type: no data set chosen"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(option, message, model, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        settings = configs.load(tiny_xsam.arguments("xsam", model, tmp_path, option))
        make_task(settings).identity()
    assert "\n" not in str(caught.value)


def test_a_dry_run_names_images_and_ways(model, tmp_path):
    told = describe_task(configs.load(tiny_xsam.arguments("xsam", model, tmp_path, "--xsam.mix={refseg: 3}")))
    assert "12 images, each as 1 x genseg, 3 x refseg, 1 x reaseg, 1 x gcgseg, 1 x vgdseg, 1 x imgconv" in told
