"""What a run says: a progress bar for people, log.jsonl for programs, the trackers of accelerate if asked for."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from seg2any.system.files import atomic_write
from seg2any.training.tracking import show_images

SHOWN = {  # in the progress bar, which adds the time that is left; the file has everything
    "loss": "loss",
    "lr": "lr",
    "images_per_s": "img/s",
    "tokens_per_s": "tok/s",
    "padded": "padded",
    "val_loss": "val",
}


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
        self._samples = self._tokens = self._computed = 0
        self._seconds = 0.0

    def begin(self) -> None:
        """A step begins; what lies between steps (validation, checkpoints) does not count in the speed."""
        self._began = time.monotonic()

    def measure(self, loss: Tensor, lengths: Sequence[tuple[int, int, int]]) -> None:
        """One micro-step of this process: its loss, and text, image and condition tokens of its samples."""
        self._losses.append(loss.detach())
        self._samples += len(lengths)
        self._tokens += sum(map(sum, lengths))
        self._computed += len(lengths) * sum(map(max, zip(*lengths, strict=True)))

    def step(self, step: int, every: int, **values: float) -> None:
        """Count an optimizer step. Each `every` of them write `values`, and what was measured since the last row.

        Of the losses only finite ones count; the steps of the others are skipped and counted elsewhere.
        """
        self.bar.update()
        self._seconds += time.monotonic() - self._began
        if step % every:
            return
        losses = torch.stack(self._losses).double()
        finite = losses.isfinite()
        counts = [finite.sum().item(), self._samples, self._tokens, self._computed]
        sums = torch.tensor([losses[finite].sum().item(), *counts], dtype=torch.float64)
        # fp32 on the way: not every device has fp64, and the sums are of a few steps
        loss, n_losses, samples, tokens, computed = self.accelerator.reduce(
            sums.float().to(self.accelerator.device)
        ).tolist()
        self.row(
            step,
            **({"loss": loss / n_losses} if n_losses else {}),
            **values,
            images_per_s=samples / self._seconds,
            tokens_per_s=tokens / self._seconds,
            padded=1 - tokens / computed,
        )
        self._restart()

    def start(self, step: int, info: dict[str, object]) -> None:
        """What runs here and where; one row at every start of the run."""
        if self.accelerator.is_main_process:
            self._append({"step": step, "run": info})

    def row(self, step: int, **values: float) -> None:
        """A line of log.jsonl, and the same to the trackers."""
        if self.accelerator.is_main_process:
            self._append({"step": step, **{key: float(f"{value:.6g}") for key, value in values.items()}})
            self.shown |= {SHOWN[key]: f"{value:.4g}" for key, value in values.items() if key in SHOWN}
            self.bar.set_postfix(self.shown, refresh=False)
        self.accelerator.log(values, step=step)

    def images(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """To the trackers; the files are written elsewhere. The main process has the pictures."""
        if self.accelerator.is_main_process:
            show_images(self.accelerator, step, pictures)

    def _append(self, row: dict[str, object]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def say(self, message: str) -> None:
        """A line above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(message)

    def close(self) -> None:
        """End bar and trackers."""
        self.bar.close()
        self.accelerator.end_training()


def _keep_until(path: Path, step: int) -> None:
    """Drop rows after `step`: a resumed run takes those steps again. At step 0 this is a new run's empty log."""
    lines = path.read_text().splitlines() if path.exists() and step else []
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # the killed run's last line is not complete
        return math.inf
