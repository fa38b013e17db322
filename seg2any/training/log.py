"""Report a run: a progress bar, log.jsonl, and TensorBoard or W&B through accelerate."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from seg2any.generate.memory_estimate import GIB
from seg2any.system.device import peak_bytes
from seg2any.system.errors import UserError
from seg2any.system.files import append_lines, atomic_write
from seg2any.training.config import Config

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # project.report_to -> package
DIGITS = 8  # of a number: fp32 has seven to eight
SHOWN = {  # column of the log -> its name in the progress bar
    "loss": "loss",
    "lr": "lr",
    "images_per_s": "img/s",
    "tokens_per_s": "tok/s",
    "padded": "padded",
    "val_loss": "val",
}


class RunLog:
    """Rows of numbers by optimizer step. Every process calls every method; the main one writes."""

    def __init__(self, path: Path, accelerator: Accelerator, first_step: int, last_step: int):
        self.path, self.accelerator = path, accelerator
        quiet = not accelerator.is_main_process
        self.bar = tqdm(total=last_step, initial=first_step, unit="step", disable=quiet, smoothing=0.02)
        self.shown: dict[str, str] = {}
        self._memory: dict[str, float] = {}
        self._restart()
        if accelerator.is_main_process:
            _keep_until(path, first_step)

    def _restart(self) -> None:
        self._losses: list[tuple[Tensor, int]] = []  # and their numbers of samples
        self._samples = self._tokens = self._computed = 0
        self._seconds = 0.0

    def expect_memory(self, predict: Callable[[], int]) -> None:
        """Write the peak of the device's memory beside its prediction, in GiB, where the device counts it.

        predict  returns bytes; called only if they will be shown
        """
        if self.accelerator.is_main_process and peak_bytes(self.accelerator.device) is not None:
            self._memory = {"predicted_gib": predict() / GIB}

    def begin(self) -> None:
        """Start the clock of a step; speed excludes the time between steps, as for validation."""
        self._began = time.monotonic()

    def measure(self, loss: Tensor, lengths: Sequence[Sequence[int]]) -> None:
        """Add a micro-step of this process: its loss, and the tokens of each sample in each stream."""
        self._losses.append((loss.detach(), len(lengths)))
        self._samples += len(lengths)
        self._tokens += sum(map(sum, lengths))
        self._computed += len(lengths) * sum(map(max, zip(*lengths, strict=True)))

    def step(self, step: int, every: int, **values: float) -> None:
        """Count an optimizer step; every `every`-th writes `values` and what was measured since.

        Only finite losses count; the others belong to skipped steps, which `values` counts.
        """
        self.bar.update()
        self._seconds += time.monotonic() - self._began
        if step % every:
            return
        losses = torch.stack([loss for loss, _ in self._losses]).double().cpu()
        weights = torch.tensor([n for _, n in self._losses], dtype=torch.float64)
        finite = losses.isfinite()
        counts = [weights[finite].sum().item(), self._samples, self._tokens, self._computed]
        sums = torch.tensor([(losses * weights)[finite].sum().item(), *counts], dtype=torch.float64)
        # Sent as fp32: not every device has fp64, and the sums cover a few steps.
        loss, n_finite, samples, tokens, computed = self.accelerator.reduce(
            sums.float().to(self.accelerator.device)
        ).tolist()
        self.row(
            step,
            **({"loss": loss / n_finite} if n_finite else {}),
            **values,
            images_per_s=samples / self._seconds,
            tokens_per_s=tokens / self._seconds,
            **({"padded": 1 - tokens / computed} if computed else {}),
            **self._memory,
            **({"peak_gib": peak_bytes(self.accelerator.device) / GIB} if self._memory else {}),
        )
        self._restart()

    def start(self, step: int, info: dict[str, object]) -> None:
        """Write the row that begins every start of the run.

        See `seg2any.system.provenance.run_info`.
        """
        if self.accelerator.is_main_process:
            self._append({"step": step, "run": info})

    def row(self, step: int, **values: float) -> None:
        """Write a line of log.jsonl, and send the same values to the trackers."""
        if self.accelerator.is_main_process:
            self._append({"step": step, **{key: float(f"{value:.{DIGITS}g}") for key, value in values.items()}})
            self.shown |= {SHOWN[key]: f"{value:.4g}" for key, value in values.items() if key in SHOWN}
            if "peak_gib" in values:
                self.shown["GiB"] = f"{values['peak_gib']:.2f} of {values['predicted_gib']:.2f}"
            self.bar.set_postfix(self.shown, refresh=False)
        self.accelerator.log(values, step=step)

    def images(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Send the main process's pictures to the trackers; they are files already."""
        if not self.accelerator.is_main_process:
            return
        for tracker in self.accelerator.trackers:  # each has its own way to show arrays
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            for number, picture in enumerate(pictures):
                tracker.log_images({f"validation/{number:03d}": np.asarray(picture)[None]}, step=step, **options)

    def _append(self, row: dict[str, object]) -> None:
        append_lines(self.path, json.dumps(row))

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(message)

    def close(self) -> None:
        """Close the progress bar and the trackers."""
        self.bar.close()
        self.accelerator.end_training()


def _keep_until(path: Path, step: int) -> None:
    """Drop rows after `step`, since a resumed run repeats those steps.

    Step 0 begins an empty log.
    """
    lines = path.read_text().splitlines() if path.exists() and step else []
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # a killed run can leave an incomplete last line
        return math.inf


def check_tracker(config: Config) -> None:
    """Raise UserError if the tracker is not installed: accelerate would silently ignore it."""
    name = config.project.report_to
    if name is not None and importlib.util.find_spec(TRACKERS[name]) is None:
        raise UserError(f"project.report_to: {name} is not installed; pip install {name}, or use null")


def start_trackers(accelerator: Accelerator, config: Config) -> None:
    """Start the configured tracker, if any, and send it the config."""
    if config.project.report_to is not None:
        folder = accelerator.logging_dir
        Path(folder).mkdir(parents=True, exist_ok=True)  # or W&B chooses another one
        accelerator.init_trackers(
            config.project.tracker_project_name,
            config=dict(_flat(config.to_dict(), "")),
            init_kwargs={"wandb": {"dir": str(folder)}},
        )


def _flat(section: dict, prefix: str) -> Iterator[tuple[str, int | float | str]]:
    """Flatten nested sections to dotted keys; trackers accept numbers and texts only."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, int | float | str) else str(value)
