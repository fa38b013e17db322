"""Compare one batch's loss, gradients and first AdamW steps with recorded training runs.

The runs were recorded with patched noise and u, so everything follows from the recorded batch.
"""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from seg2any.attention.pattern import additive_mask
from seg2any.attention.settings import Attention
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.bases.packing import pack
from seg2any.diffusion import flow
from seg2any.training import config
from seg2any.training.optimizer import make_optimizer
from seg2any.training.task import Batch
from seg2any.training.tasks.generation import Generation
from seg2any.training.trainer import Trainer
from tests.parity.recorded_data import positions, training_data
from tests.parity.train_run import RELATIVE, Run, close, read_run, saved_name, train

ROUNDING = 1e-7  # small gradients carry the rounding error of large ones
ROUNDED = 1e-3  # embeddings and latents pass through fp16
RECORDED_MASKS = {Attention.SAA: "fwd/attention_mask_head0", Attention.AIA: "fwd/hard_attention_mask_head0"}
OWN_T5 = 1e-4  # T5 of another transformers version differs by up to 1.2e-5


def cases(root: Path) -> dict[str, Callable[[], None]]:
    checks = {}
    for folder in _runs(root):
        for check in (check_input, check_condition, check_prediction, check_gradients, check_steps):
            checks[f"{folder.name}/{check.__name__.removeprefix('check_')}"] = partial(_on, folder, check)
        checks[f"{folder.name}/trainer"] = partial(_on, folder, check_trainer)
        checks[f"{folder.name}/without_token_filter"] = partial(_on, folder, check_unfiltered)
    return checks | {f"extra/{key}": partial(EXTRAS[key], root) for key in _extra(root) if key in EXTRAS}


def pending(root: Path) -> dict[str, str]:
    """List entries of extra.json that no check here covers."""
    return {f"extra/{key}": "a new kind of record" for key in _extra(root) if key not in EXTRAS}


def _extra(root: Path) -> dict:
    path = root / "train" / "extra.json"
    return json.loads(path.read_text() or "{}") if path.exists() else {}


def _runs(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("train/*/batch.safetensors"))


def _on(folder: Path, check: Callable[[Run], None]) -> None:
    check(read_run(folder))


def check_input(run: Run) -> None:
    """Compare noise levels computed from u, and x_s computed from pixels and noise."""
    s = flow.noise_level(run.batch["u"])
    close(s * flow.TRAIN_STEPS, run.batch["timesteps"])
    close(s, run.batch["fwd/timestep"])
    close(flow.interpolate(run.x0(), pack(run.batch["noise"]), s), run.batch["fwd/hidden_states"])


def check_condition(run: Run) -> None:
    """Compare our preparation of masks, captions and lengths with the recording.

    It covers embeddings, condition tokens and attention masks.
    """
    condition, batch = run.condition(), run.batch
    close(condition.text, batch["fwd/encoder_hidden_states"], OWN_T5)
    close(condition.pooled, batch["fwd/pooled_projections"])
    for attention, key in RECORDED_MASKS.items():
        if key in batch:
            ours = additive_mask(condition.tokens, attention, run.settings).expand(-1, 1, -1, -1)[:, 0]
            assert torch.equal(ours, batch[key]), key
    assert ("fwd/cond_ids" in batch) == (condition.cond is not None)
    if condition.cond is not None:
        close(condition.cond, batch["fwd/cond_hidden_states"])
        assert torch.equal(condition.tokens.positions[:, -condition.tokens.n_cond :], batch["fwd/cond_ids"])


def check_prediction(run: Run) -> None:
    loss, prediction = run.loss(run.transformer("lora_init"), run.recorded_condition())
    close(prediction, run.batch["fwd/model_pred"])
    close(loss, run.batch["loss_step0"][0])


def check_gradients(run: Run) -> None:
    """Compare the first step's gradients before clipping, and their norm."""
    transformer = run.transformer("lora_init")
    run.loss(transformer, run.recorded_condition())[0].backward()
    recorded = load_file(run.folder / "grads_step0.safetensors")
    ours = {saved_name(name): p.grad for name, p in transformer.named_parameters() if p.requires_grad}
    assert ours.keys() == recorded.keys()
    errors = {name: ((0 if ours[name] is None else ours[name]) - g).norm() for name, g in recorded.items()}
    total = torch.stack([g.norm() for g in recorded.values()]).norm()
    assert torch.stack(list(errors.values())).norm() <= RELATIVE * total
    for name, gradient in recorded.items():
        allowed = 5 * RELATIVE * gradient.norm() + ROUNDING * total
        assert errors[name] <= allowed, f"{name}: off by {errors[name]:.1e}, allowed {allowed:.1e}"
    close(total, torch.tensor(run.index["grad_norms"][0]))


def check_steps(run: Run) -> None:
    """Compare AdamW's losses on the recorded batch, and the adapters after the first step."""
    transformer = run.transformer("lora_init")
    losses = train(run, transformer, len(run.index["losses"]), after_first=lambda: _check_saved(run, transformer))
    for ours, recorded in zip(losses, run.index["losses"], strict=True):
        close(torch.tensor(ours), torch.tensor(recorded), 1e-4)


def check_trainer(run: Run) -> None:
    """Run the published config through our trainer and compare the losses.

    This covers files, data set, encoders, loss, clipping and AdamW.
    """
    with tempfile.TemporaryDirectory() as temporary:
        settings, log = _as_recorded(run, Path(temporary)), _Losses()
        trainer = Trainer(settings, Generation(settings))
        data = trainer.task.data
        known = positions(data)
        indices = [known[Path(name).stem] for name in run.index["image_names"]]
        batch = Batch(list(range(len(indices))), indices, list(known), [data[i] for i in indices])
        trainer.batches = itertools.repeat(batch)
        trainer.task.objective.weighting = _Recorded(run.batch["u"], trainer.task.objective.weighting)
        with mock.patch("seg2any.training.tasks.flow_matching.normal", lambda *_: pack(run.batch["noise"])):
            for _ in run.index["losses"]:
                trainer.step(log)
    AcceleratorState._reset_state(reset_partial_state=True)
    for ours, recorded in zip(log.losses, run.index["losses"], strict=True):
        close(torch.tensor(ours), torch.tensor(recorded), ROUNDED)


def _as_recorded(run: Run, output: Path) -> config.Config:
    """Return the recorded config with its relative folders resolved."""
    root = run.folder.parents[1]
    settings = copy.deepcopy(run.config)
    _, settings.data.train.params = training_data(root, run.index)
    settings.data.val = copy.deepcopy(settings.data.train)  # the recording holds nothing of validation
    settings.project.output_dir = str(output)
    settings.model.pretrained_model_name_or_path = str(root / "pipeline" / "model")
    settings.model.lora_ckpt_path = str(run.folder / "lora_init")
    return settings


class _Recorded:
    """The weighting of a config with the recorded u, one sample at a time."""

    def __init__(self, u: Tensor, weighting: flow.TimestepWeighting):
        self.u = itertools.cycle(u.split(1))
        self.loss_weight = weighting.loss_weight

    def sample(self, batch_size: int, generator: torch.Generator) -> Tensor:
        return next(self.u)


class _Losses:
    """A log that keeps losses."""

    def __init__(self):
        self.losses: list[float] = []

    def begin(self) -> None: ...

    def measure(self, loss: Tensor, lengths: list) -> None:
        self.losses.append(loss.item())

    def step(self, *arguments, **values) -> None: ...


def check_unfiltered(run: Run) -> None:
    """Check training with is_filter_cond_token off.

    The published code crashes; ours trains on every contour token.
    """
    settings = replace(run.settings, is_filter_cond_token=False)
    condition = run.condition(settings)
    if settings.is_use_cond_token:
        assert condition.tokens.n_cond == condition.tokens.n_image // settings.cond_scale_factor**2
    loss, _ = run.loss(transformer := run.transformer("lora_init"), condition)
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in transformer.parameters())


def check_resumed_loss(root: Path) -> None:
    """Check that the first recorded loss after `resume latest` is the resumed run's next loss."""
    recorded = _extra(root)["resume_latest"]["losses"]
    for run in map(read_run, _runs(root)):
        n_before = len(run.index["losses"])
        losses = train(run, run.transformer("lora_init"), n_before + len(recorded))[n_before:]
        if all(abs(a - b) < 1e-4 * b for a, b in zip(losses, recorded, strict=True)):
            return
    raise AssertionError(f"no run continues with {recorded}")


def check_filter_crash_is_gone(root: Path) -> None:
    assert "Error" in _extra(root)["is_filter_cond_token=False"]
    for run in map(read_run, _runs(root)):
        check_unfiltered(run)


EXTRAS: dict[str, Callable[[Path], None]] = {
    "resume_latest": check_resumed_loss,
    "is_filter_cond_token=False": check_filter_crash_is_gone,
}


def _check_saved(run: Run, transformer: Seg2AnyTransformer2DModel) -> None:
    recorded = {}
    for path in run.folder.glob("checkpoint-1/*/pytorch_lora_weights.safetensors"):
        recorded |= {f"{path.parent.name}/{key}": value for key, value in load_file(path).items()}
    ours = {saved_name(name): p.detach() for name, p in transformer.named_parameters() if p.requires_grad}
    assert ours.keys() == recorded.keys()
    gradients = load_file(run.folder / "grads_step0.safetensors")
    total = torch.stack([g.norm() for g in gradients.values()]).norm()
    clipping = min(1.0, run.config.optimizer.max_grad_norm / (total + 1e-6))
    for name, value in recorded.items():
        gradient = gradients[name]
        error = clipping * (RELATIVE * gradient.norm() + ROUNDING * total)
        allowed = first_step_error(run, clipping * gradient, error) + 10 * ROUNDING * value.abs().max()
        off = (ours[name] - value).abs() - allowed
        assert (off <= 0).all(), f"{name}: {(off > 0).sum()} numbers are off, by {off.max():.1e} more than allowed"


def first_step_error(run: Run, gradient: Tensor, error: Tensor) -> Tensor:
    """Return how far Adam's first step may be off, elementwise, if each number of `gradient` is off by `error`.

    The step is lr g / (|g| + eps), which grows with g: almost constant where |g| is large, and of arbitrary sign where
    g is smaller than its rounding error.
    """
    adam = make_optimizer(run.config, [torch.nn.Parameter(gradient)], processes=1).defaults

    def step(g: Tensor) -> Tensor:
        return adam["lr"] * g / (g.abs() + adam["eps"])

    return torch.maximum(step(gradient + error) - step(gradient), step(gradient) - step(gradient - error))
