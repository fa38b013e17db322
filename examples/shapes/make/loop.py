"""Train the frozen parts of the embedded model with Muon, AdamW and EMA.

`train.py` trains Seg2Any's adapters. This loop exists because no published FLUX is small enough for a laptop.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.provenance import circumstances


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
    ema = {name: p.detach().clone() for name, p in parameters.items()}
    start = _restore(output / "state.safetensors", parameters, ema, optimizers)
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
                _update_ema(ema, parameters, min(settings.ema_decay, (1 + step) / (10 + step)))
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            if step % settings.log_every == 0:
                row = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "lr": rate, **figures}
                log.write(json.dumps(row | {"seconds": round(time.time() - began, 1)}) + "\n")
                log.flush()
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
                _save(output / "state.safetensors", parameters, ema, optimizers, step + 1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(ema[name])


def build_optimizers(parameters: dict[str, nn.Parameter], settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """Build AdamW, and Muon for the matrices that `settings.muon` names.

    Muon is scaled to the RMS of AdamW's updates, so both use one learning rate.
    """
    matrices = {n: p for n, p in parameters.items() if p.ndim == 2 and any(part in n for part in settings.muon)}
    others = [p for n, p in parameters.items() if n not in matrices]
    optimizers = [torch.optim.AdamW(others, settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)]
    if matrices:
        muon = torch.optim.Muon(
            matrices.values(), settings.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    return optimizers


def lr_factor(step: int, settings: LoopSettings) -> float:
    """Compute the learning-rate factor: linear warm-up, then half a cosine to `final_lr`."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def _update_ema(ema: dict[str, Tensor], parameters: dict[str, Tensor], decay: float) -> None:
    torch._foreach_lerp_(list(ema.values()), [p.detach() for p in parameters.values()], 1 - decay)


def _save(path: Path, parameters: dict, ema: dict, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    tensors = {}
    for name, parameter in parameters.items():
        tensors |= {f"model/{name}": parameter.detach(), f"ema/{name}": ema[name]}
        state = next((o.state[parameter] for o in optimizers if parameter in o.state), {})
        tensors |= {f"optimizer.{key}/{name}": value for key, value in state.items()}
    with atomic_write(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": str(step)})


def _restore(path: Path, parameters: dict, ema: dict, optimizers: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    with safe_open(path, "pt") as state, torch.no_grad():
        step, states = int(state.metadata()["step"]), defaultdict(dict)
        for key in state.keys():  # noqa: SIM118 (not a dict)
            kind, name = key.split("/", 1)
            if kind.startswith("optimizer."):
                states[name][kind.removeprefix("optimizer.")] = state.get_tensor(key)
        missing = [name for name in parameters if f"model/{name}" not in state.keys()]  # noqa: SIM118
        if missing:
            raise UserError(f"{path}: belongs to another model ({missing[0]} is missing); choose another --output_dir")
        for name, parameter in parameters.items():
            parameter.copy_(state.get_tensor(f"model/{name}"))
            ema[name].copy_(state.get_tensor(f"ema/{name}"))
        for optimizer in optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = next(n for n, p in parameters.items() if p is parameter)
                if name in states:
                    optimizer.state[parameter] = states[name]
    return step
