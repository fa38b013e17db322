"""Train a task: steps, checkpoints, validation, resuming and stopping.

It knows the network only through `Task`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

from seg2any.data.sampler import place_of
from seg2any.system.errors import UserError
from seg2any.system.files import held
from seg2any.system.provenance import run_info
from seg2any.training.accelerator import make_accelerator
from seg2any.training.checkpoint import Checkpoints
from seg2any.training.config import Config
from seg2any.training.elastic import Shares, shares_of, with_shares
from seg2any.training.first_lines import launch_facts, say, step_facts
from seg2any.training.identity import Identity, run_identity
from seg2any.training.interrupt import Interrupt
from seg2any.training.log import RunLog, check_tracker, start_trackers
from seg2any.training.optimizer import (
    Average,
    OptimizerState,
    Trainable,
    make_optimizer,
    make_schedule,
    number_of_steps,
)
from seg2any.training.strategy import make_strategy
from seg2any.training.task import Order, Plan, Randomness, Task, TrainingData


@dataclass
class Progress:
    """Numbers of steps, of steps skipped for a non-finite gradient, and of these in a row."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def state_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue the counts of a checkpoint."""
        vars(self).update(state)


class Trainer:
    """One run of a task; `fit` trains to the end, or to a signal, and leaves a checkpoint."""

    def __init__(self, config: Config, task: Task):
        self.given, self.task = config, task
        self.folder = Path(config.project.output_dir)
        check_tracker(config)
        self.checkpoints = Checkpoints(self.folder, config.trainer.checkpoints_total_limit)
        self.checkpoints.check(config.resume_from_checkpoint)
        self.accelerator = make_accelerator(config)
        self.shares, remembered = self._shares()
        self.config = config = with_shares(config, self.shares)
        self.options = config.trainer
        self.strategy = make_strategy(config, self.accelerator)
        process = self.strategy.process
        self.identity = self._checked_identity(remembered)
        self._say(launch_facts(self.strategy, self.shares))
        if remark := self.checkpoints.remark(config.resume_from_checkpoint):
            self._say({"resume": remark})
        torch.manual_seed(config.seed)  # initial weights of what is trained are the same on every process
        task.load(self.strategy, self.checkpoints.find(config.resume_from_checkpoint), self._planned)

        self.randomness = Randomness(config.seed, self.shares.batch_size, process)
        self.sampler = self._order(task.data)
        self.batches = task.data.batches(self.sampler)
        self.last_step = self._steps(self.sampler)
        self.trainable = Trainable(task.trainable())
        parameters = list(self.trainable.parameters.values())
        self.average = Average(parameters, self.options.ema_decay)
        optimizer = make_optimizer(config, parameters, process.count, self._factors())
        self.schedule = make_schedule(config, optimizer, self.last_step)
        self.moments = OptimizerState(optimizer, self.trainable.parameters, self.strategy.optimizer_is_sharded)
        self.network, self.optimizer = self.strategy.prepare(task.network, optimizer)
        self.progress = Progress()
        trained = sum(map(torch.Tensor.numel, parameters))
        self._say(step_facts(self.shares, self.sampler.samples_per_epoch, self.last_step, trained))
        self._say(task.facts(self.shares))

    def _factors(self) -> list[float]:
        """Return the factor of the learning rate of each trained parameter."""
        rates = getattr(self.task, "rates", dict)()
        names = self.trainable.parameters
        return [next((rates[begin] for begin in rates if name.startswith(begin)), 1.0) for name in names]

    def _order(self, data: TrainingData) -> Order:
        """Order the samples, from the place of the checkpoint to resume on."""
        shares, process = self.shares, self.strategy.process
        order = data.sampler(self.options.sampler, shares.batch_size, self.config.seed, process, shares.accumulation)
        if (place := self._saved("sampler")) is not None:  # it decides the number of steps of an epoch
            order.load_state_dict(place)
        return order

    def _steps(self, order: Order) -> int:
        return number_of_steps(self.config, order.samples_per_epoch // self.shares.samples)

    def _planned(self, data: TrainingData) -> Plan:
        """Return which samples the steps read."""
        order = self._order(data)
        count = self._steps(order) * self.shares.samples
        return Plan(all=order.among_first(count), own=order.own_until(count))

    def _say(self, facts: Mapping[str, str]) -> None:
        if self.accelerator.is_main_process:
            say(facts)

    def _saved(self, name: str) -> Any:
        """Return the tensor-free value `name` of the checkpoint to resume; None for a new run."""
        return self.checkpoints.plain(self.given.resume_from_checkpoint, name)

    def _shares(self) -> tuple[Shares, Shares]:
        """Decide the shares of a step's samples: those to use, and those to remember. Raises UserError."""
        identity, place = self._saved("identity"), self._saved("sampler")
        saved = Shares.saved(identity) if identity else None
        group = place_of(place)[1] if place else 0
        return shares_of(self.given, saved, group, self.accelerator.num_processes)

    def _checked_identity(self, shares: Shares) -> Identity:
        """Compare with the checkpoint to resume before anything is loaded.

        Raises UserError for a difference.
        """
        identity = Identity(run_identity(self.config, self.task.identity(), self.strategy, shares))
        if (before := self._saved("identity")) is not None:
            identity.load_state_dict(before)
        return identity

    @property
    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, by name.

        Random numbers need no state: they follow from the step.
        """
        scaler = self.accelerator.scaler  # only fp16 has one
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
        """Train; return the signal that stopped the run, None if it reached its last step."""
        with held(self.folder) if self.accelerator.is_main_process else contextlib.nullcontext():
            return self._fit()

    def _fit(self) -> Signals | None:
        resumed = self.resume()
        if self.accelerator.is_main_process:
            self.given.save(self.folder / "config.yaml")
        log = RunLog(self.folder / "log.jsonl", self.accelerator, self.progress.step, self.last_step)
        log.expect_memory(lambda: self.task.predicted_bytes(self.shares))
        start_trackers(self.accelerator, self.config)
        kind = self.accelerator.distributed_type.value
        log.start(self.progress.step, run_info(self.strategy.device, self.strategy.process.count, kind))
        log.say(resumed)
        saved = self.progress.step
        with Interrupt(self.accelerator) as interrupt, contextlib.closing(self.batches):
            while self.progress.step < self.last_step and not interrupt.requested():
                self.step(log)
                self.validate(log)
                if self.progress.step % self.options.checkpointing_steps == 0:
                    saved = self.save()
            if saved != self.progress.step:
                self.save()
        stopped = interrupt.signal if self.progress.step < self.last_step else None
        log.close()
        self._say_where(stopped)
        return stopped

    def _say_where(self, stopped: Signals | None) -> None:
        """Print where the last checkpoint is and how to use it."""
        step, folder = self.progress.step, self.folder / f"checkpoint-{self.progress.step}"
        if not self.accelerator.is_main_process or not folder.is_dir():
            return
        self._say({"stopped" if stopped else "finished": f"at step {step}; what was trained is in {folder}"})
        if command := self.task.usage(folder):
            tqdm.write(command)

    def step(self, log: RunLog) -> None:
        """Make one update: micro-steps, clipping, AdamW, schedule, average."""
        accelerator, options, progress = self.accelerator, self.options, self.progress
        log.begin()
        keys = []
        for number in range(options.gradient_accumulation_steps):
            micro_step = progress.step * options.gradient_accumulation_steps + number
            batch = next(self.batches)
            self.randomness.seed_layers(micro_step)
            generators = self.randomness.generators(micro_step)
            with accelerator.accumulate(self.network):
                loss = self.task.loss(self.network, batch.samples, [generators[place] for place in batch.places])
                # Every sample counts the same, however the samples of a step are shared.
                counted = [] if batch.empty else batch.samples
                present = len(counted) / options.train_batch_size
                accelerator.backward(loss if present == 1 else loss * present)
            log.measure(loss, [sample.lengths for sample in counted])
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
        """Clip and step; return False, with nothing changed, if the gradient was not finite.

        Gradients, and so their norm, are the same on every process; a loss that is not finite makes them so, too.
        """
        parameters = self.trainable.parameters.values()
        self.strategy.average(parameters)
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.optimizer.max_grad_norm)
        finite = math.isfinite(norm)
        if finite or self.accelerator.scaler is not None:  # fp16's scaler skips by itself, and lowers its scale
            self.optimizer.step()  # under DeepSpeed `backward` has stepped or skipped already
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
        """Measure validation losses and draw images, each at its own interval and at the end."""
        step, last = self.progress.step, self.progress.step == self.last_step
        losses_are_due = last or step % self.options.validation_loss_steps == 0
        images_are_due = last or step % self.options.validation_steps == 0
        if not (losses_are_due or images_are_due):
            return
        with inference(self.task.network), self.average.in_place():
            if losses_are_due and (losses := self.task.validation_losses()):
                log.row(step, **losses)
            if images_are_due:
                folder = self.folder / self.config.project.gen_image_dir / f"step-{step}"
                log.images(step, self.task.validation_images(folder))

    def save(self) -> int:
        """Write checkpoint-N: the task's files with the average, the state with the weights."""

        def write(folder: Path) -> None:
            self.given.save(folder / "config.yaml")
            with self.average.in_place():
                self.task.save(folder, self.progress.step)

        state = {name: item.state_dict() for name, item in self.state.items()}  # on every process: ZeRO collects
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.progress.step, write, state)
        self.accelerator.wait_for_everyone()
        return self.progress.step

    def resume(self) -> str:
        """Continue from config.resume_from_checkpoint if there is one.

        Return one line about it for the log.
        """
        wanted = self.config.resume_from_checkpoint
        found = self.checkpoints.load(wanted) if wanted else None
        if found is None:
            return f"new run in {self.folder}"
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
        return f"resumed from {path} at step {self.progress.step}{past}{self._changed_shares()}"

    def _changed_shares(self) -> str:
        """Describe how the samples of a step are shared if the config says otherwise, else ""."""
        used, processes = self.shares, self.shares.processes
        if used == Shares.given(self.given, processes):
            return ""
        return (
            f"; its {used.samples} samples a step are now {used.batch_size} x {used.accumulation} accumulated x "
            f"{processes} {'process' if processes == 1 else 'processes'}"
        )


@contextlib.contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside this context."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)
