"""What a run says: a progress bar for people, log.jsonl for programs, the trackers of accelerate if asked for."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from seg2any.files import atomic_write

SHOWN = ("loss", "lr", "images_per_s", "val_loss")  # in the progress bar; the file has everything


class RunLog:
    """Rows of numbers by optimizer step. Every process calls it, the main one writes."""

    def __init__(self, path: Path, accelerator: Accelerator, first_step: int, last_step: int):
        self.path, self.accelerator = path, accelerator
        quiet = not accelerator.is_main_process
        self.bar = tqdm(total=last_step, initial=first_step, unit="step", disable=quiet, smoothing=0.02)
        self.shown: dict[str, str] = {}
        self._restart()
        if accelerator.is_main_process:
            _keep_until(path, first_step)

    def _restart(self) -> None:
        self._losses: list[Tensor] = []
        self._samples = self._tokens = 0
        self._seconds = 0.0

    def begin(self) -> None:
        """A step begins; what lies between steps (validation, checkpoints) does not count in the speed."""
        self._began = time.monotonic()

    def measure(self, loss: Tensor, samples: int, tokens: int) -> None:
        """One micro-step of this process."""
        self._losses.append(loss.detach())
        self._samples += samples
        self._tokens += tokens

    def step(self, step: int, every: int, **values: float) -> None:
        """Count an optimizer step. Each `every` of them write `values`, and mean loss and speed since the last row."""
        self.bar.update()
        self._seconds += time.monotonic() - self._began
        if step % every:
            return
        seconds, world = self._seconds, self.accelerator.num_processes
        loss = self.accelerator.reduce(torch.stack(self._losses).mean(), reduction="mean").item()
        rates = {"images_per_s": world * self._samples / seconds, "tokens_per_s": world * self._tokens / seconds}
        self.row(step, loss=loss, **values, **rates)
        self._restart()

    def row(self, step: int, **values: float) -> None:
        if self.accelerator.is_main_process:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in values.items()}}) + "\n")
            self.shown |= {k: f"{v:.4g}" for k, v in values.items() if k in SHOWN}
            self.bar.set_postfix(self.shown, refresh=False)
        self.accelerator.log(values, step=step)

    def say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            self.bar.write(message)

    def close(self) -> None:
        self.bar.close()
        self.accelerator.end_training()


def _keep_until(path: Path, step: int) -> None:
    """Drop rows after `step`: a resumed run takes those steps again. At step 0 this is a new run's empty log."""
    lines = path.read_text().splitlines() if path.exists() and step else []
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))
