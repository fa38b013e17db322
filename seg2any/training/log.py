"""What a run says: a progress bar for people, log.jsonl for programs, the trackers of accelerate if asked for."""

from __future__ import annotations

import json
import time
from pathlib import Path

from accelerate import Accelerator
from tqdm.auto import tqdm

from seg2any.files import atomic_write


class RunLog:
    """Rows of numbers by optimizer step. Only the main process writes."""

    def __init__(self, path: Path, accelerator: Accelerator, first_step: int, last_step: int):
        self.path, self.accelerator = path, accelerator
        self.bar = tqdm(
            total=last_step, initial=first_step, unit="step", disable=not accelerator.is_main_process, smoothing=0.05
        )
        self._since = time.monotonic()
        if accelerator.is_main_process:
            _keep_until(path, first_step)

    def step(self) -> None:
        self.bar.update()

    def rate(self, amount: float) -> float:
        """`amount` per second since the last call."""
        now = time.monotonic()
        rate, self._since = amount / max(now - self._since, 1e-9), now
        return rate

    def row(self, step: int, **values: float) -> None:
        if self.accelerator.is_main_process:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **{k: _rounded(v) for k, v in values.items()}}) + "\n")
            self.bar.set_postfix({**dict(_shown(self.bar.postfix)), **{k: f"{v:.4g}" for k, v in values.items()}})
        self.accelerator.log(values, step=step)

    def say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            self.bar.write(message)

    def close(self) -> None:
        self.bar.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop rows after `step`: they belong to steps that a resumed run takes again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in (kept if step else [])))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _shown(postfix: str | None) -> list[tuple[str, str]]:
    return [tuple(item.split("=", 1)) for item in (postfix or "").split(", ") if "=" in item]
