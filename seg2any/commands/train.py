"""`train`, published as train.py: train Seg2Any's adapters, or what the config key `task` names."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from seg2any.system.allocator import keep_freed_memory, let_segments_grow
from seg2any.system.arguments import call_of
from seg2any.system.console import exit_status, plain_messages
from seg2any.system.threads import compute_on_all_cores
from seg2any.training.tasks.table import TASKS

USAGE = """\
usage: {program} CONFIG.yaml ... --section.key=value ...

Train Seg2Any's adapters, or another task:

{tasks}

    {call} config/seg2any_shapes.yaml --project.output_dir=runs/try --trainer.max_train_steps=100
    {call} config/seg2any_shapes.yaml --resume_from_checkpoint latest
    {call} config/seg2any_shapes.yaml --dry_run

Files and keys are applied from left to right, each over the ones before it; other keys keep their defaults.
"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command line and return the exit status.

    0 complete, 1 out of memory, 2 wrong input, 128 plus the number of the signal that stopped it: 130 Ctrl-C.
    """
    tasks = "\n".join(f"    --task={name:<{max(map(len, TASKS))}}  {row.text}" for name, row in TASKS.items())
    usage = USAGE.format(program=program, call=call_of(program), tasks=tasks)
    if not arguments:
        print(usage.strip(), file=sys.stderr)
        return 2
    if {"-h", "--help"} & {*arguments}:
        from seg2any.training.config import explained_defaults

        print(f"{usage}\nAll keys with their defaults:\n\n{explained_defaults()}")
        return 0
    advice = "if there is a checkpoint, go on with --resume_from_checkpoint=latest"
    return exit_status(program, lambda: run(list(arguments)), advice)


@plain_messages()
def run(arguments: list[str]) -> int:
    """Train, or describe the run; return 0, or 128 plus the signal that stopped it.

    Raises UserError.
    """
    from seg2any.training import config
    from seg2any.training.early import refuse_early

    settings = config.load(arguments)
    refuse_early(settings)
    let_segments_grow()
    compute_on_all_cores()
    from seg2any.training.tasks.choose import describe_task, make_task  # late: a typing mistake comes before torch
    from seg2any.training.trainer import Trainer

    if settings.dry_run:
        print(describe_task(settings))
        return 0
    trainer = Trainer(settings, make_task(settings))
    if trainer.accelerator.device.type == "cpu":
        keep_freed_memory()
    signal = trainer.fit()
    return 128 + signal if signal else 0
