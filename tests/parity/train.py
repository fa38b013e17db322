"""Compare one batch's loss, gradients and first AdamW steps with recorded training runs.

The runs were recorded with patched noise and u, so everything follows from the recorded batch.
"""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from unittest import mock

import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import FluxPipeline
from safetensors.torch import load_file
from torch import Tensor

from seg2any.adapters.files import load_adapters, trainable_parameters
from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Condition
from seg2any.bases.flux1.base import Flux1
from seg2any.bases.flux1.latents import encode_images
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.bases.packing import pack
from seg2any.data.catalog import data_set_name
from seg2any.diffusion import flow
from seg2any.diffusion.prepare import assemble, encode_layouts
from seg2any.layout import Layout
from seg2any.training import config
from seg2any.training.optimizer import make_optimizer
from seg2any.training.task import Batch
from seg2any.training.tasks.generation import Generation
from seg2any.training.trainer import Trainer

RELATIVE = 1e-5
ROUNDED = 1e-3  # embeddings and latents pass through fp16
OWN_T5 = 1e-4  # T5 of another transformers version differs by up to 1.2e-5


@dataclass(frozen=True)
class Run:
    """One recorded run, and what our code computes from its inputs."""

    folder: Path
    index: dict
    batch: dict[str, Tensor]
    config: config.Config
    settings: ConditionSettings
    pipeline: FluxPipeline

    @property
    def layouts(self) -> list[Layout]:
        labels = sorted((key for key in self.batch if key.startswith("label")), key=lambda key: int(key[5:]))
        captions = self.index["global_caption"] or [None] * len(labels)
        return [
            Layout(self.batch[label].bool().numpy(), tuple(regions), caption)
            for label, regions, caption in zip(labels, self.index["regional_captions"], captions, strict=True)
        ]

    def condition(self, settings: ConditionSettings | None = None) -> Condition:
        """Prepare the batch with our own code."""
        settings = settings or self.settings
        size = tuple(self.batch["pixel_values"].shape[-2:])
        return assemble(encode_layouts(self.layouts, size, Flux1(self.pipeline), settings), settings)

    def recorded_condition(self) -> Condition:
        """Build the same token layout with the recorded embeddings and latents."""
        return replace(
            self.condition(),
            text=self.batch["fwd/encoder_hidden_states"],
            pooled=self.batch["fwd/pooled_projections"],
            cond=self.batch.get("fwd/cond_hidden_states"),
        )

    def transformer(self, adapters: str) -> Seg2AnyTransformer2DModel:
        folder = self.folder.parents[1] / "pipeline" / "model"
        transformer = Seg2AnyTransformer2DModel.from_pretrained(folder, subfolder="transformer").requires_grad_(False)
        load_adapters(transformer, self.folder / adapters)
        trainable_parameters(transformer)
        return transformer

    def loss(self, transformer: Seg2AnyTransformer2DModel, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return (loss, prediction) of the recorded noisy batch."""
        batch = self.batch
        prediction = transformer(
            hidden_states=batch["fwd/hidden_states"],
            timestep=batch["fwd/timestep"],
            guidance=batch["fwd/guidance"],
            encoder_hidden_states=condition.text,
            pooled_projections=condition.pooled,
            joint_attention_kwargs={"condition": condition},
            return_dict=False,
        )[0]
        return flow.loss(prediction, self.target(), torch.ones(len(prediction))), prediction

    def x0(self) -> Tensor:
        return encode_images(self.batch["pixel_values"], self.pipeline.vae).mean

    def target(self) -> Tensor:
        return flow.velocity(self.x0(), pack(self.batch["noise"]))


@cache
def read_run(folder: Path) -> Run:
    index = json.loads((folder / "index.json").read_text())
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "published.yaml"
        path.write_text(yaml.safe_dump(index["cfg"]))
        settings = config.load([str(path), "--model.vae_posterior=mode"])
    return Run(
        folder=folder,
        index=index,
        batch=load_file(folder / "batch.safetensors"),
        config=settings,
        settings=settings.model.condition,
        pipeline=FluxPipeline.from_pretrained(folder.parents[1] / "pipeline" / "model", transformer=None),
    )


def cases(root: Path) -> dict[str, Callable[[], None]]:
    checks = {}
    for folder in _runs(root):
        for check in (check_input, check_condition, check_prediction, check_gradients, check_steps):
            checks[f"{folder.name}/{check.__name__.removeprefix('check_')}"] = partial(_on, folder, check)
        checks[f"{folder.name}/trainer"] = partial(_on, folder, check_trainer)
        checks[f"{folder.name}/without_token_filter"] = partial(_on, folder, check_unfiltered)
    if checks and (root / "train" / "extra.json").exists():
        checks["extra/resume_latest"] = partial(check_resumed_loss, root)
        checks["extra/is_filter_cond_token=False"] = partial(check_filter_crash_is_gone, root)
    return checks


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
    for block in (0, run.settings.hard_attn_block_range[0]):
        hard = "fwd/hard_attention_mask_head0" in batch and block > 0
        recorded = batch["fwd/hard_attention_mask_head0" if hard else "fwd/attention_mask_head0"]
        assert torch.equal(condition.plan.mask(block, torch.float32).expand(-1, 1, -1, -1)[:, 0], recorded)
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
    ours = {_saved_name(name): p.grad for name, p in transformer.named_parameters() if p.requires_grad}
    assert ours.keys() == recorded.keys()
    errors = {name: ((0 if ours[name] is None else ours[name]) - g).norm() for name, g in recorded.items()}
    total = torch.stack([g.norm() for g in recorded.values()]).norm()
    assert torch.stack(list(errors.values())).norm() <= RELATIVE * total
    for name, gradient in recorded.items():  # small ones carry the rounding error of large ones
        assert errors[name] <= 5 * RELATIVE * gradient.norm(), f"{name}: off by {errors[name]}"
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
        keys = {data.key(i): i for i in range(len(data))}
        indices = [keys[Path(name).stem] for name in run.index["image_names"]]
        batch = Batch(list(range(len(indices))), indices, list(keys), [data[i] for i in indices])
        trainer.batches = itertools.repeat(batch)
        trainer.task.objective.weighting = _Recorded(run.batch["u"])
        with mock.patch("seg2any.training.tasks.flow_matching.normal", lambda *_: pack(run.batch["noise"])):
            for _ in run.index["losses"]:
                trainer.step(log)
    AcceleratorState._reset_state(reset_partial_state=True)
    for ours, recorded in zip(log.losses, run.index["losses"], strict=True):
        close(torch.tensor(ours), torch.tensor(recorded), ROUNDED)


def _as_recorded(run: Run, output: Path) -> config.Config:
    """Return the recorded config with its relative folders resolved."""
    root = run.folder.parents[1]
    data = {"ade20k": root / "contour" / "dataset_ade", "sacap_1m": root / "train"}
    settings = copy.deepcopy(run.config)
    for section in (settings.data.train, settings.data.val):
        folder = data[data_set_name(section.type, section.target)]
        for key in section.params.keys() & {"image_root", "segm_root", "seg_caption_path"}:
            path = section.params[key]
            section.params[key] = str(folder / ("sacap_data/" + path if key == "seg_caption_path" else path))
    settings.project.output_dir = str(output)
    settings.model.pretrained_model_name_or_path = str(root / "pipeline" / "model")
    settings.model.lora_ckpt_path = str(run.folder / "lora_init")
    return settings


class _Recorded:
    """A weighting that returns the recorded u, one sample at a time."""

    def __init__(self, u: Tensor):
        self.u = itertools.cycle(u.split(1))

    def sample(self, batch_size: int, generator: torch.Generator) -> Tensor:
        return next(self.u)

    def loss_weight(self, s: Tensor) -> Tensor:
        return torch.ones_like(s)


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
    recorded = json.loads((root / "train" / "extra.json").read_text())["resume_latest"]["losses"]
    for run in map(read_run, _runs(root)):
        n_before = len(run.index["losses"])
        losses = train(run, run.transformer("lora_init"), n_before + len(recorded))[n_before:]
        if all(abs(a - b) < 1e-4 * b for a, b in zip(losses, recorded, strict=True)):
            return
    raise AssertionError(f"no run continues with {recorded}")


def check_filter_crash_is_gone(root: Path) -> None:
    assert "Error" in json.loads((root / "train" / "extra.json").read_text())["is_filter_cond_token=False"]
    for run in map(read_run, _runs(root)):
        check_unfiltered(run)


def train(
    run: Run, transformer: Seg2AnyTransformer2DModel, steps: int, after_first: Callable[[], None] = lambda: None
) -> list[float]:
    """Return the losses of `steps` steps on the recorded batch, each before its update."""
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = make_optimizer(run.config, parameters, processes=1)
    condition, losses = run.recorded_condition(), []
    for step in range(steps):
        loss, _ = run.loss(transformer, condition)
        loss.backward()
        # The published code gives layers without influence zero gradients, not None, so AdamW's decay acts on them.
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.nn.utils.clip_grad_norm_(parameters, run.config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step == 0:
            after_first()
    return losses


def _check_saved(run: Run, transformer: Seg2AnyTransformer2DModel) -> None:
    recorded = {}
    for path in run.folder.glob("checkpoint-1/*/pytorch_lora_weights.safetensors"):
        recorded |= {f"{path.parent.name}/{key}": value for key, value in load_file(path).items()}
    ours = {_saved_name(name): p.detach() for name, p in transformer.named_parameters() if p.requires_grad}
    assert ours.keys() == recorded.keys()
    gradients = load_file(run.folder / "grads_step0.safetensors")
    for name, value in recorded.items():
        # Adam's first step is lr * sign(g): where g is rounding noise, its sign is arbitrary.
        sure = gradients[name].abs() > 1e-6
        torch.testing.assert_close(ours[name][sure], value[sure], rtol=1e-4, atol=1e-6)


def _saved_name(name: str) -> str:
    """Convert a parameter name to its key in the saved file.

    blocks.0.to_q.lora_A.cond.weight becomes cond/transformer.blocks.0.to_q.lora_A.weight.
    """
    layer, matrix, adapter, _ = name.rsplit(".", 3)
    return f"{adapter}/transformer.{layer}.{matrix}.weight"


def close(ours: Tensor, recorded: Tensor, relative: float = RELATIVE) -> None:
    difference = (ours - recorded).abs().max() / recorded.abs().max()
    assert difference <= relative, f"off by {difference:.2e} of the largest value"
