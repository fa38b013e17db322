"""Seg2Any's training: FLUX frozen, two LoRA adapters trained (paper section 3.4)."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from accelerate.utils import gather_object

from seg2any.adapters.files import save_adapters
from seg2any.attention.settings import check_blocks
from seg2any.system.errors import UserError
from seg2any.system.files import held
from seg2any.system.processes import Process
from seg2any.system.provenance import run_info
from seg2any.training import build
from seg2any.training.checkpoint import Checkpoints
from seg2any.training.config import Config
from seg2any.training.identity import Identity, run_identity
from seg2any.training.interrupt import Interrupt
from seg2any.training.log import RunLog
from seg2any.training.optimizer import OptimizerState, make_optimizer
from seg2any.training.parallel import is_deepspeed, make_accelerator, precision, process_of, weight_dtype
from seg2any.training.randomness import Randomness
from seg2any.training.run_data import load_data, open_data
from seg2any.training.shards import average_gradients, is_sharded, shard_frozen
from seg2any.training.tracking import check_tracker, start_trackers
from seg2any.training.trainable import Average, Trainable
from seg2any.training.validation import Validation, inference
from seg2any.training.velocity import Velocity


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
    """One run. `fit` trains to the end, or to the first SIGTERM or SIGINT, and leaves a checkpoint either way."""

    def __init__(self, config: Config):
        self.config, self.options = config, config.trainer
        self.folder = Path(config.project.output_dir)
        self.settings = config.model.condition
        self.objective = build.objective(config, self.settings)
        check_tracker(config)
        self.checkpoints = Checkpoints(self.folder, self.options.checkpoints_total_limit)
        self.checkpoints.check(config.resume_from_checkpoint)
        self.accelerator = make_accelerator(config)
        raw = open_data(config)
        process = process_of(self.accelerator)
        self.randomness = Randomness(config.seed, self.options.train_batch_size, process)
        computed_in = precision(config, self.accelerator.device)
        weights = build.base_fingerprint(config)
        self.identity = Identity(run_identity(config, raw.train.fingerprint(), weights, computed_in, process.count))
        before = self.checkpoints.plain(config.resume_from_checkpoint, "identity")
        if before is not None:
            self.identity.load_state_dict(before)  # what differs is named before anything is loaded
        torch.manual_seed(config.seed)  # of the adapters' initial weights: the same on every rank

        self.pipeline = build.load_pipeline(config, self.accelerator)
        check_blocks(self.settings, build.n_blocks(self.pipeline.transformer))
        saved = self.checkpoints.adapters(config.resume_from_checkpoint)
        build.attach_adapters(self.pipeline.transformer, config, saved)
        self.in_parts = is_sharded(config, self.accelerator)
        if self.in_parts:
            shard_frozen(self.pipeline.transformer, self.accelerator.device)
        self.data = load_data(raw, config, self.pipeline, self.settings, process)

        self.trainable = Trainable(self.pipeline.transformer)
        parameters = list(self.trainable.parameters.values())
        self.average = Average(parameters, self.options.ema_decay)
        self.sampler = self.data.train.sampler(
            self.options.sampler,
            self.options.train_batch_size,
            seed=config.seed,
            process=process,
        )
        self.batches = self.data.train.batches(self.sampler)
        self.last_step = build.number_of_steps(config, self.sampler.batches_per_epoch)
        optimizer = make_optimizer(config, parameters, process.count)
        self.schedule = build.make_schedule(config, optimizer, self.last_step)
        self.moments = OptimizerState(optimizer, self.trainable.parameters, is_deepspeed(self.accelerator))
        build.apply_memory_options(self.pipeline.transformer, config)
        dtype = weight_dtype(config, self.accelerator.device)
        velocity = Velocity(self.pipeline.transformer, self.options.guidance_scale, dtype)
        # Everything is on its device already; quantised weights and parts of weights could not be moved.
        placement = {"device_placement": [False, False]} if not is_deepspeed(self.accelerator) else {}
        if self.in_parts:  # without DDP's wrapper
            self.velocity, self.optimizer = velocity, self.accelerator.prepare(optimizer, device_placement=[False])
        else:
            self.velocity, self.optimizer = self.accelerator.prepare(velocity, optimizer, **placement)
        validating = Process() if self.in_parts else process  # with shared weights all make equally many passes
        self.validation = Validation(
            config, self.data, self.settings, self.pipeline, velocity, self.accelerator, validating
        )
        self.progress = Progress()

    @property
    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, by name. What is random follows from the step alone."""
        scaler = self.accelerator.scaler  # of fp16
        return {
            "identity": self.identity,
            **({} if scaler is None else {"scaler": scaler}),
            "adapters": self.trainable,
            "average": self.average,
            "optimizer": self.moments,
            "schedule": self.schedule,
            "sampler": self.sampler,
            "progress": self.progress,
        }

    def fit(self) -> Signals | None:
        """Train. Returns the signal that stopped the run before its last step, None if it has reached that."""
        with held(self.folder) if self.accelerator.is_main_process else contextlib.nullcontext():
            return self._fit()

    def _fit(self) -> Signals | None:
        resumed = self.resume()
        if self.accelerator.is_main_process:
            self.config.save(self.folder / "config.yaml")
        log = RunLog(self.folder / "log.jsonl", self.accelerator, self.progress.step, self.last_step)
        start_trackers(self.accelerator, self.config)
        log.start(
            self.progress.step,
            run_info(self.accelerator.device, self.accelerator.num_processes, self.accelerator.distributed_type.value),
        )
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
        keys = []
        for number in range(options.gradient_accumulation_steps):
            micro_step = progress.step * options.gradient_accumulation_steps + number
            batch = next(self.batches)
            self.randomness.seed_layers(micro_step)
            generators = self.randomness.generators(micro_step)
            with accelerator.accumulate(self.velocity):
                loss = self.objective(self.velocity, batch.samples, [generators[place] for place in batch.places])
                accelerator.backward(loss)
            log.measure(loss, [sample.lengths for sample in batch.samples])
            keys += batch.keys
        if self._update():
            self.schedule.step()
            self.average.update()
            progress.skipped_in_a_row = 0
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        progress.step += 1
        if progress.skipped_in_a_row:
            self._report_skipped(keys, log)
        log.step(progress.step, every=options.log_steps, lr=self.schedule.get_last_lr()[0], skipped=progress.skipped)

    def _update(self) -> bool:
        """Clip and step; False if the gradient was not finite: then no process changes anything.

        The gradients, and so their norm, are the same on every process. A loss that is not finite makes them so, too.
        """
        if self.in_parts:
            average_gradients(self.trainable.parameters.values())
        norm = self.accelerator.clip_grad_norm_(self.trainable.parameters.values(), self.config.optimizer.max_grad_norm)
        finite = math.isfinite(norm)
        if finite or self.accelerator.scaler is not None:  # fp16's scaler skips by itself, and lowers its scale
            self.optimizer.step()  # under DeepSpeed `backward` has done or skipped it
        self.optimizer.zero_grad()
        return finite

    def _report_skipped(self, keys: list[str], log: RunLog) -> None:
        in_a_row = self.progress.skipped_in_a_row
        samples = ", ".join(gather_object(keys))
        what = f"step {self.progress.step}: the gradient was not finite"
        log.say(f"{what}, no update; {self.progress.skipped} so far, now with samples {samples}")
        if in_a_row >= self.options.max_skipped_steps:
            raise UserError(
                f"{what} {in_a_row} times in a row, last with samples {samples}; lower trainer.learning_rate or look "
                "at these samples"
            )

    def validate(self, log: RunLog) -> None:
        """The loss at fixed noise and sample images, each at its own interval and at the end."""
        step, last = self.progress.step, self.progress.step == self.last_step
        loss_is_due = last or step % self.options.validation_loss_steps == 0
        images_are_due = last or step % self.options.validation_steps == 0
        if self.data.val is None or not (loss_is_due or images_are_due):
            return
        with inference(self.pipeline.transformer), self.average.in_place():
            if loss_is_due:
                log.row(step, **self.validation.losses())
            if images_are_due:
                folder = self.folder / self.config.project.gen_image_dir / f"step-{step}"
                log.images(step, self.validation.images(folder))

    def save(self) -> int:
        """Write checkpoint-N. Its adapter files hold the average, its state the weights as they are."""

        def write(folder: Path) -> None:
            self.config.save(folder / "config.yaml")
            card = build.adapter_card(self.config, self.progress.step)
            with self.average.in_place():
                save_adapters(self.pipeline.transformer, folder, card)

        state = {name: item.state_dict() for name, item in self.state.items()}  # on every process: ZeRO collects
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.progress.step, write, state)
        self.accelerator.wait_for_everyone()
        return self.progress.step

    def resume(self) -> str:
        """Continue from config.resume_from_checkpoint if there is one; returns what was done, in words."""
        wanted = self.config.resume_from_checkpoint
        found = self.checkpoints.load(wanted) if wanted else None
        if found is None:
            return f"new run in {self.folder}" + (", there is no checkpoint to resume from" if wanted else "")
        path, saved = found
        for name, item in self.state.items():
            if name not in saved:
                raise UserError(f"{path}: its state has no '{name}'; it was written by another version of train.py")
            item.load_state_dict(saved[name])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        steps = set(gather_object([self.progress.step]))
        if len(steps) > 1:
            raise UserError(f"{path.parent}: processes found different checkpoints; give them one shared folder")
        past = ", past trainer.max_train_steps, so nothing is left to train" if steps.pop() > self.last_step else ""
        return f"resumed from {path} at step {self.progress.step}{past}"
