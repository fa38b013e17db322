"""Train the base of the embedded model with Muon, which `train.py` does not offer.

The average, the optimizer state and the state file are those of `seg2any.training`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.shapes.make.muon import Muon
from seg2any.system.errors import UserError
from seg2any.system.provenance import circumstances
from seg2any.training.optimizer import Average, OptimizerState, Trainable
from seg2any.training.state_file import DamagedState, read_state, write_state


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a run.

    warmup, save_every, log_every  numbers of steps
    final_lr                       learning rate of the last step, as a fraction of `learning_rate`
    ema_decay                      decay of the moving average of the weights, per step
    clip                           largest norm of the gradient
    muon                           parts of names: matrices with one of them are trained by Muon, all else by AdamW
    """

    output_dir: str
    steps: int
    learning_rate: float
    warmup: int = 100
    final_lr: float = 0.02
    ema_decay: float = 0.998
    clip: float = 1.0
    save_every: int = 250
    log_every: int = 10
    seed: int = 0
    muon: tuple[str, ...] = ()


def run(model: nn.Module, loss_at: Callable[[int], tuple[Tensor, dict[str, float]]], settings: LoopSettings) -> None:
    """Minimise `loss_at(step)` (loss, numbers to log); leave `model` with its EMA weights.

    A run continues from `output_dir/state.safetensors` if that exists, so batches must depend on `step` only.
    Raises UserError if the file belongs to another model.
    """
    output = Path(settings.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = build_optimizers(parameters, settings)
    average = Average(list(parameters.values()), settings.ema_decay)
    state = {"parameters": Trainable(parameters), "average": average}
    for optimizer in optimizers:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {name: p for name, p in parameters.items() if id(p) in own}
        state[type(optimizer).__name__] = OptimizerState(optimizer, named, is_sharded=False)
    file = output / "state.safetensors"
    start = _restore(file, state)
    began = time.time()
    bar = tqdm(range(start, settings.steps), initial=start, total=settings.steps, desc=output.name)
    with open(output / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"settings": asdict(settings), "start": start} | circumstances("cpu")) + "\n")
        for step in bar:
            torch.manual_seed(settings.seed * 1_000_003 + step)
            rate = settings.learning_rate * lr_factor(step, settings)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            loss, figures = loss_at(step)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
            if torch.isfinite(norm):
                for optimizer in optimizers:
                    optimizer.step()
                average.update()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            if step % settings.log_every == 0:
                row = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "lr": rate, **figures}
                log.write(json.dumps(row | {"seconds": round(time.time() - began, 1)}) + "\n")
                log.flush()
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
                write_state(file, {name: item.state_dict() for name, item in state.items()} | {"step": step + 1})
    average.replace()


def build_optimizers(parameters: dict[str, nn.Parameter], settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """Build AdamW, and Muon for the matrices that `settings.muon` names.

    Muon is scaled to the RMS of AdamW's updates, so both use one learning rate.
    """
    matrices = {n: p for n, p in parameters.items() if p.ndim == 2 and any(part in n for part in settings.muon)}
    others = [p for n, p in parameters.items() if n not in matrices]
    optimizers = [torch.optim.AdamW(others, settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)]
    if matrices:
        optimizers.append(Muon(matrices.values(), settings.learning_rate))
    return optimizers


def lr_factor(step: int, settings: LoopSettings) -> float:
    """Compute the learning-rate factor: linear warm-up, then half a cosine to `final_lr`."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def _restore(path: Path, state: dict[str, Trainable | Average | OptimizerState]) -> int:
    """Load the state of an earlier run, if any, and return its next step. Raises UserError."""
    if not path.exists():
        return 0
    try:
        saved = read_state(path)
        for name, item in state.items():
            item.load_state_dict(saved[name])
        return saved["step"]
    except (DamagedState, KeyError, RuntimeError, UserError) as error:
        raise UserError(f"{path}: is not the state of this training ({error}); choose another --output_dir") from error
