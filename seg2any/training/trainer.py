"""Seg2Any's training: FLUX frozen, two LoRA adapters trained (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from seg2any import flow
from seg2any.condition import Condition
from seg2any.config import Config
from seg2any.data.sampler import LengthBatches
from seg2any.errors import UserError
from seg2any.models.adapters import save_adapters
from seg2any.prepare import assemble
from seg2any.training import build, validation
from seg2any.training.cache import EncodedSample
from seg2any.training.checkpoint import Average, Checkpoints, Identity, Trainable
from seg2any.training.interrupt import Interrupt
from seg2any.training.log import RunLog
from seg2any.training.run_data import RawData, encode_data, open_data

DESCRIBED_SAMPLES = 64  # at most so many are encoded to tell a data set's numbers of tokens


@dataclass
class Progress:
    """How far a run is; `skipped` steps had a non-finite gradient, `skipped_in_a_row` of them just now."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        vars(self).update(state)


class Trainer:
    """One run. `fit` trains to the end, or to the first SIGTERM or SIGINT, and leaves a checkpoint either way.

    Every random number of a micro-step comes from one seed made of (config seed, rank, micro-step), so a resumed run
    draws what the uninterrupted one would have drawn, and ranks draw different noise.
    """

    def __init__(self, config: Config):
        self.config, self.options = config, config.trainer
        self.folder = Path(config.project.output_dir)
        self.settings = build.condition_settings(config)
        self.weighting = build.timestep_weighting(config)
        self.accelerator = build.make_accelerator(config)
        raw = open_data(config)
        torch.manual_seed(config.seed)  # of the adapters' initial weights: the same on every rank

        self.pipeline = build.load_pipeline(config, self.accelerator)
        build.attach_adapters(self.pipeline.transformer, config)
        self.data = encode_data(raw, config, self.pipeline, self.settings, self.accelerator)

        self.trainable = Trainable(self.pipeline.transformer)
        parameters = list(self.trainable.parameters.values())
        self.average = Average(parameters, self.options.ema_decay)
        self.sampler = LengthBatches(
            self.data.lengths,
            self.options.train_batch_size,
            seed=config.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        self.last_step = build.number_of_steps(config, self.sampler.batches_per_epoch)
        optimizer = build.make_optimizer(config, parameters, self.accelerator.num_processes)
        self.schedule = build.make_schedule(config, optimizer, self.last_step)
        build.apply_memory_options(self.pipeline.transformer, config)
        self.transformer, self.optimizer = self.accelerator.prepare(self.pipeline.transformer, optimizer)
        self.progress = Progress()
        self.checkpoints = Checkpoints(self.folder, self.options.checkpoints_total_limit)

    @property
    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, by name. What is random follows from the step alone."""
        return {
            "identity": Identity(build.identity(self.config, self.last_step, self.accelerator.num_processes)),
            "adapters": self.trainable,
            "average": self.average,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "sampler": self.sampler,
            "progress": self.progress,
        }

    def fit(self) -> Signals | None:
        """Train. Returns the signal that stopped the run before its last step, None if it has reached that."""
        resumed = self.resume()
        if self.accelerator.is_main_process:
            self.config.save(self.folder / "config.yaml")
        log = RunLog(self.folder / "log.jsonl", self.accelerator, self.progress.step, self.last_step)
        log.say(resumed)
        saved = self.progress.step
        with Interrupt(self.accelerator) as interrupt:
            while self.progress.step < self.last_step and not interrupt.requested():
                self.step(log)
                self.validate(log)
                if self.progress.step % self.options.checkpointing_steps == 0:
                    saved = self.save()
        if saved != self.progress.step:
            self.save()
        stopped = interrupt.signal if self.progress.step < self.last_step else None
        log.say(f"{'stopped' if stopped else 'finished'} at step {self.progress.step}: {self.folder}")
        log.close()
        return stopped

    def step(self, log: RunLog) -> None:
        """One update: `gradient_accumulation_steps` micro-steps, clip, AdamW, schedule, average."""
        accelerator, options, progress = self.accelerator, self.options, self.progress
        log.begin()
        for _ in range(options.gradient_accumulation_steps):
            torch.manual_seed(self._seed(self.sampler.position))
            indices = next(self.sampler)
            with accelerator.accumulate(self.transformer):
                loss = self.loss([self._dropped_out(self.data.train[i]) for i in indices])
                accelerator.backward(loss)
            log.measure(loss, tokens=sum(self.data.lengths[i] for i in indices), samples=len(indices))
        # A non-finite loss makes a non-finite norm, the same on every rank: one check for both.
        norm = accelerator.clip_grad_norm_(self.trainable.parameters.values(), self.config.optimizer.max_grad_norm)
        if torch.isfinite(norm) or accelerator.scaler is not None:  # fp16's scaler skips and lowers its scale itself
            self.optimizer.step()
            self.schedule.step()
            self.average.update()
            progress.skipped_in_a_row = 0
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        self.optimizer.zero_grad()
        progress.step += 1
        log.step(progress.step, every=options.log_steps, lr=self.schedule.get_last_lr()[0], skipped=progress.skipped)
        if progress.skipped_in_a_row >= options.max_skipped_steps:
            raise UserError(
                f"step {progress.step}: the gradient was not finite {progress.skipped_in_a_row} times in a row, last "
                f"with samples {indices}; lower trainer.learning_rate or look at these samples"
            )

    def _seed(self, micro_step: int) -> int:
        key = (self.config.seed, self.accelerator.process_index, micro_step)
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)

    def _dropped_out(self, sample: EncodedSample) -> EncodedSample:
        """The sample, with the configured probabilities without its global caption or its contour tokens."""
        drop_caption, drop_contour = torch.rand(2).tolist()
        if drop_caption < self.options.caption_dropout:
            sample = sample.without_caption()
        if drop_contour < self.options.cond_dropout:
            sample = sample.without_contour()
        return sample

    def loss(self, samples: Sequence[EncodedSample]) -> Tensor:
        """L = E w(s) || v(x_s, s, y) - (e - x0) ||^2 with x_s = (1 - s) x0 + s e, for a batch of (x0, y)."""
        condition = assemble([sample.layout for sample in samples], self.settings)
        x0 = torch.stack([sample.image.sample(torch.randn(sample.image.mean.shape)) for sample in samples])
        noise = torch.randn(x0.shape)
        s = flow.noise_level(self.weighting.sample(len(samples)))
        prediction = self.predict(flow.interpolate(x0, noise, s), s, condition)
        target, weight = flow.velocity(x0, noise), self.weighting.loss_weight(s)
        return flow.loss(prediction, target.to(prediction.device), weight.to(prediction.device))

    def predict(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """v(x_s, s, y), [B, I, D] in fp32; x [B, I, D], s [B]."""
        device = self.accelerator.device
        condition = condition.to(device, torch.float32)  # autocast lowers what may be lowered
        guidance = None
        if self.pipeline.transformer.config.guidance_embeds:
            guidance = torch.full(s.shape, self.config.trainer.guidance_scale, device=device)
        return self.transformer(
            hidden_states=x.to(device),
            timestep=s.to(device),
            guidance=guidance,
            encoder_hidden_states=condition.prompt_embeds,
            pooled_projections=condition.pooled_prompt_embeds,
            joint_attention_kwargs={"condition": condition},
            return_dict=False,
        )[0].float()

    def validate(self, log: RunLog) -> None:
        """The loss at fixed noise and sample images, each at its own interval and at the end."""
        step, last = self.progress.step, self.progress.step == self.last_step
        loss_is_due = last or step % self.options.validation_loss_steps == 0
        images_are_due = last or step % self.options.validation_steps == 0
        if self.data.val is None or not (loss_is_due or images_are_due):
            return
        with validation.inference(self.pipeline.transformer), self.average.in_place():
            if loss_is_due:
                log.row(step, **self.validation_loss())
            if images_are_due and self.accelerator.is_main_process:
                folder = self.folder / self.config.project.gen_image_dir / f"step-{step}"
                validation.write_images(self.pipeline, self.data.shown, self.config, self.settings, folder)

    def validation_loss(self) -> dict[str, float]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        indices = range(len(self.data.val))[rank::world]
        totals = validation.fixed_losses(
            self.data.val, indices, self.settings, self.predict, self.options.train_batch_size
        )
        return validation.named_losses(self.accelerator.reduce(totals.to(self.accelerator.device)).cpu())

    def save(self) -> int:
        """Write checkpoint-N. Its adapter files hold the average, training_state.pt the weights as they are."""

        def write(folder: Path) -> None:
            self.config.save(folder / "config.yaml")
            card = build.adapter_card(self.config, self.progress.step)
            with self.average.in_place():
                save_adapters(self.pipeline.transformer, folder, card)

        if self.accelerator.is_main_process:
            self.checkpoints.save(self.progress.step, write, self.state)
        self.accelerator.wait_for_everyone()
        return self.progress.step

    def resume(self) -> str:
        """Continue from config.resume_from_checkpoint if there is one; returns what was done, in words."""
        wanted = self.config.resume_from_checkpoint
        found = self.checkpoints.load(wanted) if wanted else None
        if found is None:
            if self.checkpoints.steps():
                raise UserError(
                    f"project.output_dir: {self.folder} holds checkpoints of another run; "
                    "continue it with --resume_from_checkpoint latest, or choose another folder"
                )
            return f"new run in {self.folder}" + (", there is no checkpoint to resume from" if wanted else "")
        path, saved = found
        for name, item in self.state.items():
            item.load_state_dict(saved[name])
        return f"resumed from {path} at step {self.progress.step}"


def describe(config: Config) -> str:
    """What `--dry_run` prints: the resolved config, parameters, tokens per sample. Encodes a few samples, writes
    nothing. Raises UserError for what `Trainer` would refuse before its first step."""
    accelerator, settings = build.make_accelerator(config), build.condition_settings(config)
    build.timestep_weighting(config)
    raw = open_data(config)
    pipeline = build.load_pipeline(config, accelerator)
    build.attach_adapters(pipeline.transformer, config)
    n_samples = len(raw.train)
    some = Subset(raw.train, range(0, n_samples, -(-n_samples // DESCRIBED_SAMPLES)))
    in_memory = replace(config, trainer=replace(config.trainer, cache_dir=None))
    encoded = encode_data(RawData(some, None), in_memory, pipeline, settings, accelerator).train
    tokens = torch.tensor([encoded[i].lengths for i in range(len(encoded))], dtype=torch.float32)

    lines = [config.to_yaml()]
    lines += [f"{name} parameters: {count:,}" for name, count in build.parameter_counts(pipeline.transformer).items()]
    for name, column in zip(("text", "image", "condition"), tokens.unbind(1), strict=True):
        lines.append(f"{name} tokens per sample: {column.mean():.0f} on average, {column.max():.0f} at most")
    sampler = LengthBatches([0] * n_samples, config.trainer.train_batch_size, world=accelerator.num_processes)
    batches = sampler.batches_per_epoch
    lines.append(f"{n_samples:,} samples, {batches:,} batches per epoch and process; counted in {len(tokens)} of them")
    lines.append(f"{build.number_of_steps(config, batches):,} steps")
    return "\n".join(lines)
