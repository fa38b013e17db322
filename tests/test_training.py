"""The trainer on a tiny random FLUX folder and rendered scenes at 64 px."""

import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from seg2any.adapters.files import add_adapters, save_adapters
from seg2any.bases.base import Posterior
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.errors import UserError
from seg2any.training import build, config
from seg2any.training.accelerator import make_accelerator
from seg2any.training.checkpoint import STATE
from seg2any.training.log import RunLog
from seg2any.training.optimizer import SCHEDULES, make_schedule
from seg2any.training.state_file import read_state, write_state
from seg2any.training.strategy import make_strategy
from seg2any.training.task import Batch
from tests import tiny_run
from tests.tiny_pipeline import CARD, fresh_pipe
from tests.tiny_run import fit, losses, rows, same

pytestmark = pytest.mark.slow


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(arguments, tmp_path):
    fit(arguments)
    parts = [*arguments, f"--project.output_dir={tmp_path / 'parts'}"]
    fit([*parts, "--trainer.max_train_steps=2"])
    fit([*parts, "--resume_from_checkpoint", "latest"])

    assert losses(tmp_path / "run") == losses(tmp_path / "parts") and len(losses(tmp_path / "run")) == 4
    whole, resumed = (tmp_path / name / "checkpoint-4" for name in ("run", "parts"))
    assert same(*(read_state(folder / "training_state.safetensors") for folder in (whole, resumed)))
    for adapter in ("default", "cond"):
        file = f"{adapter}/pytorch_lora_weights.safetensors"
        assert same(load_file(whole / file), load_file(resumed / file))


def test_resume_accepts_any_path_and_refuses_another_run(arguments, tmp_path):
    fit([*arguments, "--trainer.max_train_steps=2"])
    elsewhere = [*arguments, f"--project.output_dir={tmp_path / 'elsewhere'}"]
    resume = f"--resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-2'}"
    trainer = fit([*elsewhere, resume, "--trainer.max_train_steps=3"])
    assert trainer.progress.step == 3 and (tmp_path / "elsewhere" / "checkpoint-3").is_dir()
    for other in ([], [resume]):
        with pytest.raises(UserError, match="elsewhere holds checkpoints of another run"):
            fit([*elsewhere, *other])
    latest = [*elsewhere, "--resume_from_checkpoint=latest"]
    with pytest.raises(UserError, match="trainer.learning_rate: 0.01 in the checkpoint, 0.001 now"):
        fit([*latest, "--trainer.learning_rate=1e-3"])
    state = tmp_path / "elsewhere" / "checkpoint-3" / STATE
    assert "past trainer.max_train_steps" in tiny_run.trainer([*latest, "--trainer.max_train_steps=2"]).resume()
    assert "past" not in tiny_run.trainer([*latest, "--trainer.max_train_steps=3"]).resume()
    write_state(state, {key: value for key, value in read_state(state).items() if key != "progress"})
    with pytest.raises(UserError, match="checkpoint-3: its state has no 'progress'"):
        tiny_run.trainer(latest).resume()


def test_published_files_hold_the_average_and_load_into_a_pipeline(arguments, tiny_model, tmp_path):
    trainer = fit([*arguments, "--trainer.max_train_steps=2"])
    folder = tmp_path / "run" / "checkpoint-2"
    saved = {
        f"{adapter}/{key}": value
        for adapter in ("default", "cond")
        for key, value in load_file(folder / adapter / "pytorch_lora_weights.safetensors").items()
    }
    assert len(saved) == len(trainer.average.values)
    names = [name.rsplit(".", 3) for name in trainer.trainable.parameters]
    for (layer, matrix, adapter, _), average in zip(names, trainer.average.values, strict=True):
        assert torch.equal(saved[f"{adapter}/transformer.{layer}.{matrix}.weight"], average)

    pipeline = Seg2AnyPipeline.from_pretrained(tiny_model)
    pipeline.load_adapters(folder)
    card = pipeline.card
    assert (card.rank, card.alpha, card.step, card.dataset, card.resolution) == (3, 6, 2, "shapes", 64)
    assert card.condition.hard_attn_block_range == (1, 3) and not card.assumed
    assert pipeline.settings == replace(trainer.task.settings, vae_posterior=pipeline.settings.vae_posterior)


def test_a_new_run_starts_from_given_adapters_without_rounding(arguments, tmp_path):
    first = fit([*arguments, "--trainer.max_train_steps=1"])
    start = [f"--model.lora_ckpt_path={tmp_path / 'run' / 'checkpoint-1'}", f"--project.output_dir={tmp_path / 'new'}"]
    second = tiny_run.trainer([*arguments, *start, "--mixed_precision=no"])
    assert second.progress.step == 0 and second.trainable.parameters.keys() == first.trainable.parameters.keys()
    for ours, average in zip(second.trainable.parameters.values(), first.average.values, strict=True):
        assert ours.requires_grad and torch.equal(ours, average)
    with pytest.raises(UserError, match="checkpoint-1 has a cond/; change model.is_use_cond_token"):
        tiny_run.trainer([*arguments, *start, "--model.is_use_cond_token=false"])
    second.fit()
    shutil.rmtree(tmp_path / "run")  # a resumed run loads the adapters of its own checkpoint
    third = fit([*arguments, *start, "--resume_from_checkpoint=latest", "--trainer.max_train_steps=5"])
    assert third.progress.step == 5


def test_adapters_to_start_from_that_have_another_rank_or_alpha_are_told(arguments, tmp_path, stock_pipe):
    source = fresh_pipe(stock_pipe).transformer
    add_adapters(source, rank=2, alpha=4)
    save_adapters(source, tmp_path / "lora", CARD)
    start = [*arguments, f"--model.lora_ckpt_path={tmp_path / 'lora'}"]  # of rank 3 and alpha 6
    for other in ([], ["--model.rank=2", "--model.lora_alpha=2"]):
        with pytest.warns(UserWarning, match=r"model.rank: .* rank 2 with alpha 4"):
            build.attach_adapters(fresh_pipe(stock_pipe).transformer, config.load([*start, *other]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        same_size = config.load([*start, "--model.rank=2", "--model.lora_alpha=4"])
        build.attach_adapters(fresh_pipe(stock_pipe).transformer, same_size)


def test_only_the_adapters_change_and_they_are_fp32_under_bf16(arguments, tiny_model):
    before = Seg2AnyPipeline.from_pretrained(tiny_model).transformer.to(torch.bfloat16).state_dict()
    trainer = fit([*arguments, "--mixed_precision=bf16", "--trainer.max_train_steps=2"])
    after = trainer.task.pipeline.transformer.state_dict()
    frozen = {key.replace(".base_layer", ""): value for key, value in after.items() if "lora_" not in key}
    assert same(frozen, before)
    lora = {key: value for key, value in after.items() if "lora_" in key}
    assert all(value.dtype == torch.float32 for value in lora.values())
    # `lora_B` starts at zero and stays zero where it cannot matter (the last block's condition rows).
    moved = [key for key, value in lora.items() if "lora_B" in key and value.abs().max() > 0]
    assert len(moved) >= len(lora) / 2 - 6


def test_training_lowers_the_loss_at_fixed_noise(arguments):
    few = ["--data.train.params={n_scenes: 4, entities: [1, 2]}", "--trainer.train_batch_size=4", "--model.rank=16"]
    steps = ["--trainer.max_train_steps=40", "--trainer.gradient_accumulation_steps=1", "--model.lora_dropout=0"]
    trainer = tiny_run.trainer([*arguments, *few, *steps])
    task = trainer.task
    task.inputs = replace(task.inputs, encode_val=lambda: task.data)
    before = task.validation_losses()["val_loss"]
    trainer.fit()
    assert task.validation_losses()["val_loss"] < 0.85 * before


class Silence(RunLog):
    def __init__(self):
        pass

    def begin(self): ...
    def measure(self, *arguments, **named): ...
    def step(self, *arguments, **named): ...
    def say(self, message): ...


def test_a_step_with_a_non_finite_loss_changes_nothing_and_is_counted(arguments, monkeypatch):
    trainer = tiny_run.trainer([*arguments, "--trainer.max_skipped_steps=3"])
    trainer.step(Silence())
    weights = {name: p.detach().clone() for name, p in trainer.trainable.parameters.items()}
    rate = trainer.schedule.get_last_lr()
    poison = Posterior(torch.full((16, 64), torch.nan), torch.zeros(16, 64))
    monkeypatch.setattr(trainer.task.objective, "dropped_out", lambda sample, generator: replace(sample, image=poison))
    trainer.step(Silence())
    trainer.step(Silence())
    assert same(weights, dict(trainer.trainable.parameters)) and trainer.schedule.get_last_lr() == rate
    assert (trainer.progress.step, trainer.progress.skipped) == (3, 2)
    with pytest.raises(UserError, match=r"not finite 3 times in a row, last with samples train_normal_"):
        trainer.step(Silence())
    monkeypatch.undo()
    trainer.step(Silence())
    assert trainer.progress.skipped_in_a_row == 0 and not same(weights, dict(trainer.trainable.parameters))


def test_the_loss_is_the_equation_written_out(arguments):
    """Compute mean((v - (e - x0))^2) for the input (1 - s) x0 + s e.

    Each random number comes from the step's seed, in order.
    """
    trainer = tiny_run.trainer([*arguments, "--model.vae_posterior=mode", "--model.lora_dropout=0"])
    samples = [trainer.task.data[i] for i in (3, 5)]
    seen = {}

    def network(x, s, condition):
        seen.update(x=x, s=s, condition=condition)
        return 3 * x

    loss = trainer.task.objective(network, samples, trainer.randomness.generators(5))
    x0 = torch.stack([sample.image.mean for sample in samples])
    s = seen["s"].view(2, 1, 1)
    noise = (seen["x"] - (1 - s) * x0) / s
    assert 0.8 < noise.std() < 1.2 and abs(noise.mean()) < 0.1
    torch.testing.assert_close(loss, ((3 * seen["x"] - (noise - x0)) ** 2).mean(), rtol=1e-3, atol=1e-3)
    assert (seen["s"] * 1000).remainder(1).abs().max() < 1e-3
    assert seen["condition"].tokens.batch_size == 2


def test_dropout_removes_the_caption_or_the_contour(arguments):
    everything = ["--trainer.caption_dropout=1", "--trainer.cond_dropout=1"]
    trainer = tiny_run.trainer([*arguments, *everything])
    text, _, cond = trainer.task.data[0].lengths
    dropped = trainer.task.objective.dropped_out(trainer.task.data[0], torch.Generator())
    regions = sum(len(region) for region in trainer.task.data[0].layout.text.regions)
    assert text > regions and cond > 0 and dropped.lengths == (regions, 16, 0)
    assert trainer.task.objective(trainer.network, [dropped, dropped], trainer.randomness.generators(0)).isfinite()


def test_validation_loss_does_not_depend_on_batches_or_processes(arguments, monkeypatch):
    val = [
        "--data.val.type=shapes",
        "--data.val.params={split: val, n_scenes: 5}",
        "--trainer.num_validation_samples=5",
    ]
    trainer = tiny_run.trainer([*arguments, *val])
    task, state = trainer.task, torch.get_rng_state()
    from seg2any.training.tasks.flow_matching import fixed_losses, named_losses

    def measured(indices, batch_size):
        return fixed_losses(task.inputs.val, indices, task.settings, task.network, batch_size)

    trainer.task.pipeline.transformer.eval()
    whole = measured(range(5), 2)
    torch.testing.assert_close(whole, measured(range(0, 5, 2), 3) + measured(range(1, 5, 2), 1))
    assert whole[:, 1].sum() == 5
    named = named_losses(whole)
    assert named["val_loss"] == pytest.approx((whole[:, 0].sum() / 5).item())
    assert torch.equal(state, torch.get_rng_state())


def test_images_are_written_by_the_live_transformer(arguments, tmp_path):
    val = [
        "--data.val.type=shapes",
        "--data.val.params={split: val, n_scenes: 5}",
        "--trainer.num_validation_samples=3",
    ]
    images = ["--trainer.num_validation_images=2", "--trainer.validation_steps=1", "--model.num_inference_steps=2"]
    with pytest.warns(UserWarning, match="trainer.num_validation_images"):
        tiny_run.trainer([*arguments, *val, "--trainer.num_validation_images=7"])
    fit([*arguments, *val, *images, "--trainer.max_train_steps=1", "--trainer.validation_loss_steps=1"])
    written = sorted(path.relative_to(tmp_path / "run" / "gen_imgs") for path in tmp_path.rglob("gen_imgs/*/*"))
    assert [str(path) for path in written] == ["step-1/000.png", "step-1/001.png", "step-1/panels"]
    assert sorted(path.name for path in (tmp_path / "run/gen_imgs/step-1/panels").iterdir()) == ["000.png", "001.png"]
    assert {"val_loss"} <= set().union(*map(set, rows(tmp_path / "run")))


def test_published_layer_keys_must_choose_the_published_layers(arguments):
    published = (
        r"regular_expression:(.*x_embedder|.*(?<!single_)transformer_blocks\.[0-9]+\.norm1\.linear|"
        r".*(?<!single_)transformer_blocks\.[0-9]+\.attn\.to_(k|q|v|out\.0)|.*(?<!single_)transformer_blocks\.[0-9]+"
        r"\.ff\.net\.(2|0\.proj)|.*single_transformer_blocks\.[0-9]+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[kqv]))"
    )
    settings = config.load(arguments)
    settings.compatibility.cond_lora_layers = published
    pipeline = build.load_pipeline(settings, make_strategy(settings, make_accelerator(settings)))
    build.attach_adapters(pipeline.transformer, settings)
    settings.compatibility.cond_lora_layers = "regular_expression:.*to_k"
    pipeline = build.load_pipeline(settings, make_strategy(settings, make_accelerator(settings)))
    with pytest.raises(UserError, match="model.cond_lora_layers"):
        build.attach_adapters(pipeline.transformer, settings)


def test_accumulation_makes_the_update_of_the_larger_batch(arguments):
    """Compare two micro-steps of 2 samples with one of 4.

    Both dropouts, posterior samples and the average are on.
    """
    same_sums = ["--model.lora_dropout=0", "--optimizer.adam_epsilon=1e-3", "--trainer.learning_rate=3e-3"]
    reached = []
    for size, accumulated in ((4, 1), (2, 2)):
        chosen = [f"--trainer.train_batch_size={size}", f"--trainer.gradient_accumulation_steps={accumulated}"]
        trainer = tiny_run.trainer([*arguments, *same_sums, *chosen])
        numbers = [[3, 5, 0, 7], [1, 2, 6, 4]]
        parts = [step[start : start + size] for step in numbers for start in range(0, 4, size)]
        trainer.batches = iter(
            [Batch(list(range(size)), part, [*map(str, part)], [trainer.task.data[i] for i in part]) for part in parts]
        )
        for _ in numbers:
            trainer.step(Silence())
        reached.append({name: p.detach().clone() for name, p in trainer.trainable.parameters.items()})
        tiny_run.forget_accelerate()
    assert max((reached[0][name] - reached[1][name]).abs().max() for name in reached[0]) <= 1e-6
    assert max(value.abs().max() for name, value in reached[0].items() if "lora_B" in name) > 1e-4


def test_a_sample_that_stands_in_for_an_empty_batch_does_not_count(arguments):
    same_noise = ["--model.lora_dropout=0", "--trainer.train_batch_size=1"]
    reached = []
    for second, empty in ((5, True), (7, True), (7, False)):
        trainer = tiny_run.trainer([*arguments, *same_noise])
        data = trainer.task.data
        trainer.batches = (
            Batch([0], [index], [str(index)], [data[index]], is_empty)
            for _ in range(2)
            for index, is_empty in ((3, False), (second, empty))
        )
        for _ in range(2):
            trainer.step(Silence())
        reached.append({name: p.detach().clone() for name, p in trainer.trainable.parameters.items()})
        tiny_run.forget_accelerate()
    assert same(reached[0], reached[1]) and not same(reached[1], reached[2])


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_every_parameter_gets_a_gradient_even_without_condition_tokens(arguments, checkpointing):
    """Check gradients without condition tokens.

    Distributed processes would wait forever for a missing one.
    """
    everything = ["--trainer.cond_dropout=1", f"--trainer.gradient_checkpointing={checkpointing}"]
    trainer = tiny_run.trainer([*arguments, *everything])
    trainer.task.objective(trainer.network, next(trainer.batches).samples, trainer.randomness.generators(0)).backward()
    assert [name for name, p in trainer.trainable.parameters.items() if p.grad is None] == []


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_of_diffusers_is_available_by_name(name):
    rules = ["--scheduler.lr_step_rules=1:3,0.1:6,0.01"] if name == "piecewise_constant" else []
    chosen = config.load([f"--scheduler.lr_scheduler={name}", "--scheduler.lr_warmup_steps=2", *rules])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, rates = make_schedule(chosen, optimizer, last_step=8), []
    for _ in range(8):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    if rules:
        assert rates == pytest.approx([2, 2, 2, 0.2, 0.2, 0.2, 0.02, 0.02])
    elif name == "constant":
        assert rates == [2.0] * 8
    else:
        assert rates[:3] == [0, 1, 2] and all(a >= b for a, b in zip(rates[2:], rates[3:], strict=False))


@pytest.mark.parametrize("rules", ["''", "fast", "1:x,2", "1:2,"])
def test_rules_of_a_schedule_that_cannot_be_read_are_named(rules):
    chosen = config.load(["--scheduler.lr_scheduler=piecewise_constant", f"--scheduler.lr_step_rules={rules}"])
    with pytest.raises(UserError, match="scheduler.lr_scheduler: piecewise_constant: "):
        make_schedule(chosen, torch.optim.SGD([torch.zeros(1)], lr=1.0), last_step=8)


def test_validation_leaves_lora_dropout_on(arguments, tmp_path):
    """Check LoRA dropout after validation, also of initial adapters.

    The files of adapters do not store it.
    """
    val = ["--data.val.type=shapes", "--data.val.params={split: val, n_scenes: 1}", "--trainer.num_validation_images=0"]
    often = [*arguments, *val, "--trainer.validation_loss_steps=1", "--model.lora_dropout=0"]
    fit([*often, "--trainer.max_train_steps=1"])
    start = [f"--model.lora_ckpt_path={tmp_path / 'run' / 'checkpoint-1'}", f"--project.output_dir={tmp_path / 'new'}"]
    trainer = tiny_run.trainer([*often, *start, "--model.lora_dropout=0.5", "--trainer.max_train_steps=1"])
    dropouts = [m for name, m in trainer.task.pipeline.transformer.named_modules() if ".lora_dropout." in name]
    trainer.fit()
    assert len(dropouts) > 50 and all(dropout.training and dropout.p == 0.5 for dropout in dropouts)
