"""TensorBoard and W&B, by accelerate: off unless project.report_to names one."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from seg2any.system.errors import UserError
from seg2any.training.config import Config

MODULES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_tracker(config: Config) -> None:
    """UserError if the tracker is not installed: accelerate would go on without it."""
    name = config.project.report_to
    if name is not None and importlib.util.find_spec(MODULES[name]) is None:
        raise UserError(f"project.report_to: {name} is not installed; pip install {name}, or use null")


def start_trackers(accelerator: Accelerator, config: Config) -> None:
    """Tell the tracker what the run is. Does nothing without one."""
    if config.project.report_to is not None:
        flat = config.to_dict()
        folder = accelerator.logging_dir
        Path(folder).mkdir(parents=True, exist_ok=True)  # or W&B chooses another one
        accelerator.init_trackers(
            config.project.tracker_project_name,
            config=dict(_flat(flat, "")),
            init_kwargs={"wandb": {"dir": str(folder)}},
        )


def _flat(section: dict, prefix: str):
    """Trackers take numbers and texts only."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, int | float | str) else str(value)


def show_images(accelerator: Accelerator, step: int, pictures: Sequence[Image.Image]) -> None:
    """On the main process; accelerate's trackers know their own way to show arrays."""
    for tracker in accelerator.trackers:
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        for number, picture in enumerate(pictures):
            tracker.log_images({f"validation/{number:03d}": np.asarray(picture)[None]}, step=step, **options)
