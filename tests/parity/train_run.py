"""A recorded training run, and the same run with our network."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import yaml
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
from seg2any.diffusion import flow
from seg2any.diffusion.prepare import assemble, encode_layouts
from seg2any.layout import Layout
from seg2any.training import config
from seg2any.training.optimizer import make_optimizer, make_schedule
from seg2any.training.tasks.generation import make_objective

RELATIVE = 1e-5


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
            Layout(self.batch[label].bool().numpy(), tuple(regions), caption, overlap="share")
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
        return flow.loss(prediction, self.target(), self.weighting.loss_weight(batch["fwd/timestep"])), prediction

    @property
    def weighting(self) -> flow.TimestepWeighting:
        return make_objective(self.config).weighting

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


def train(
    run: Run, transformer: Seg2AnyTransformer2DModel, steps: int, after_first: Callable[[], None] = lambda: None
) -> list[float]:
    """Return the losses of `steps` steps on the recorded batch, each before its update."""
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = make_optimizer(run.config, parameters, processes=1)
    schedule = make_schedule(run.config, optimizer, run.config.trainer.max_train_steps or steps)
    condition, losses = run.recorded_condition(), []
    for step in range(steps):
        loss, _ = run.loss(transformer, condition)
        loss.backward()
        # The published code gives layers without influence zero gradients, not None, so AdamW's decay acts on them.
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.nn.utils.clip_grad_norm_(parameters, run.config.optimizer.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step == 0:
            after_first()
    return losses


def saved_name(name: str) -> str:
    """Convert a parameter name to its key in the saved file.

    blocks.0.to_q.lora_A.cond.weight becomes cond/transformer.blocks.0.to_q.lora_A.weight.
    """
    layer, matrix, adapter, _ = name.rsplit(".", 3)
    return f"{adapter}/transformer.{layer}.{matrix}.weight"


def close(ours: Tensor, recorded: Tensor, relative: float = RELATIVE) -> None:
    difference = (ours - recorded).abs().max() / recorded.abs().max()
    assert difference <= relative, f"off by {difference:.2e} of the largest value"
