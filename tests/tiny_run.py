"""Start training runs of a few seconds: train.py alone, under torchrun or under DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
DEEPSPEED = ("-m", "accelerate.commands.launch", "--config_file", str(REPOSITORY / "config" / "deepspeed_stage2.yaml"))


def arguments(model: Path, folder: Path) -> list[str]:
    """Return the command line of a run that uses every feature.

    These are accumulation, averaging, caption and condition dropout, LoRA dropout, and samples of the VAE's posterior.
    """
    return [
        *("--mixed_precision=no", "--resolution=64", f"--project.output_dir={folder / 'run'}"),
        *("--data.train.type=shapes", "--data.train.params={n_scenes: 11, entities: [1, 3]}"),
        f"--model.pretrained_model_name_or_path={model}",
        *("--model.hard_attn_block_range=[1,3]", "--model.rank=3", "--model.lora_alpha=6", "--model.lora_dropout=0.1"),
        *("--model.max_sequence_length=64", "--model.regional_max_sequence_length=12"),
        *("--trainer.train_batch_size=2", "--trainer.gradient_accumulation_steps=2", "--trainer.learning_rate=1e-2"),
        *("--trainer.gradient_checkpointing=false", "--trainer.ema_decay=0.5", "--trainer.caption_dropout=0.3"),
        *("--trainer.cond_dropout=0.3", "--trainer.max_train_steps=4", "--trainer.checkpointing_steps=2"),
        *("--trainer.log_steps=1", f"--trainer.cache_dir={folder / 'cache'}"),
    ]


def start(arguments: Sequence[str], launcher: str = "python") -> subprocess.Popen:
    """Start train.py as one process (`python`) or as two.

    The launchers of two are `torchrun` (DDP over gloo) and `deepspeed` (ZeRO-2 over gloo).
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable]
    if launcher == "torchrun":  # `accelerate launch --cpu --num_processes 2` would start one process only
        command += TORCHRUN
    elif launcher == "deepspeed":
        command += [*DEEPSPEED, "--num_processes=2", f"--main_process_port={free_port()}"]
    command += [str(REPOSITORY / "train.py"), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def fit(arguments: Sequence[str]):
    """Train in this process; return the trainer."""
    made = trainer(arguments)
    made.fit()
    return made


def trainer(arguments: Sequence[str]):
    """Build the trainer of a generation run."""
    from seg2any.training import config
    from seg2any.training.tasks.generation import Generation
    from seg2any.training.trainer import Trainer

    settings = config.load(arguments)
    return Trainer(settings, Generation(settings))


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for the process, check its exit status and return its stderr."""
    output, error = process.communicate(timeout=240)
    assert process.returncode == status, f"{output[-2000:]}\n{error[-4000:]}"
    return error


def forget_accelerate() -> None:
    """Reset accelerate's global state.

    It keeps the world size and precision of a process's first run, and forked processes inherit it.
    """
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(folder) if "loss" in row}


def machines(folder: Path) -> list[dict]:
    """Return what every start of the run logged about its machine and settings."""
    return [row["run"] for row in rows(folder) if "run" in row]


def note_batches(trainer) -> list[list[str]]:
    """Return a list that gets the samples' keys of every batch that the trainer takes."""
    batches, seen = trainer.batches, []

    def noted():
        for batch in batches:
            seen.append(batch.keys)
            yield batch

    trainer.batches = noted()
    return seen


def same(a, b):
    """Compare nested states bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
