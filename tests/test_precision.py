"""Training and generation compute in one precision, that of the frozen weights; fp16 and bf16 where they can."""

from __future__ import annotations

from types import SimpleNamespace

import accelerate
import pytest
import torch
from torch import nn

from seg2any.system.precision import has_fast_bfloat16
from seg2any.training import accelerator, build, config
from seg2any.training.tasks.flow_matching import Velocity
from tests import tiny_run
from tests.tiny_flux import adapted, base_of, condition, inputs, run, sample

LOW = torch.bfloat16


@pytest.fixture
def trained():
    """Build a tiny transformer in bf16 with trained adapters, which stay in fp32."""
    model = adapted()
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(LOW)
    return model


def predict(model):
    """Predict as training does, from fp32 latents and embeddings."""
    given = condition([sample(0), sample(1)])
    return Velocity(base_of(model), 1.0)(inputs(2)["hidden_states"], torch.tensor([0.3, 0.7]), given)


def test_training_predicts_bit_for_bit_what_generation_predicts(trained):
    with torch.no_grad():
        of_training = predict(trained)
        trained.to(LOW)  # pipelines load adapters in the precision of the base
        given = condition([sample(0), sample(1)]).to("cpu", LOW)
        x, s = inputs(2)["hidden_states"].to(LOW), torch.tensor([0.3, 0.7], dtype=LOW)
        of_generation = base_of(trained).velocity(x, s, given, 1.0)
    assert of_generation.dtype == LOW and torch.equal(of_training, of_generation.float())


def test_no_layer_of_a_training_step_gets_or_returns_fp32(trained):
    seen = {}
    for name, module in trained.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.SiLU, nn.GELU)) and "lora_" not in name:
            module.register_forward_hook(
                lambda _, given, answer, name=name: seen.update({name: (given[0].dtype, answer.dtype)})
            )
    predict(trained).square().mean().backward()
    assert len(seen) > 40 and {name: found for name, found in seen.items() if found != (LOW, LOW)} == {}
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_restores_random_numbers_only_for_dropout(dropout, monkeypatch):
    """Compare gradients with those of a pass that keeps everything."""
    settings, gradients, saved = config.load([f"--model.lora_dropout={dropout}"]), [], []
    get = torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: saved.append(1) or get())
    for settings.trainer.gradient_checkpointing in (False, True):
        model = adapted().train()
        build._set_dropout(model, dropout)
        build.apply_memory_options(model, settings)
        torch.manual_seed(3)
        run(model, condition([sample(0)])).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert bool(saved) == bool(dropout)
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize(("major", "has"), [(7, False), (8, True)], ids=["T4", "A100"])
def test_gpus_that_emulate_bfloat16_are_not_fast_in_it(major, has, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    assert has_fast_bfloat16("cuda") == has_fast_bfloat16(torch.device("cuda", 0)) == has


class ScalesOnCPU(accelerate.Accelerator):
    """accelerate's fp16 on a CPU, which it refuses: a scaled loss, and its autocast around the prepared network."""

    def __init__(self, mixed_precision, **options):
        super().__init__(mixed_precision="no", **options)
        self.state._mixed_precision, self.native_amp = mixed_precision, True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)


@pytest.mark.slow
def test_fp16_trains_and_validates_with_an_fp32_vae(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "Accelerator", ScalesOnCPU)
    val = ["--data.val.type=shapes", "--data.val.params={split: val, n_scenes: 1}", "--trainer.num_validation_images=1"]
    steps = ["--model.num_inference_steps=1", "--trainer.max_train_steps=2", "--mixed_precision=fp16"]
    trainer = tiny_run.trainer([*arguments, *val, *steps])
    pipeline, seen = trainer.task.pipeline, {"vae": set(), "transformer": set()}
    for part, found in seen.items():
        for module in getattr(pipeline, part).modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
                module.register_forward_hook(lambda _, given, answer, found=found: found.add(answer.dtype))
    before = {name: p.detach().clone() for name, p in trainer.trainable.parameters.items()}
    trainer.fit()
    assert seen == {"vae": {torch.float32}, "transformer": {torch.float16}}
    assert trainer.progress.skipped == 0 and trainer.accelerator.scaler.get_scale() == 2.0**8
    assert any(not torch.equal(p, before[name]) for name, p in trainer.trainable.parameters.items())
    assert (tmp_path / "run" / "gen_imgs" / "step-2" / "000.png").is_file()
