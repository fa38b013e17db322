"""Record how an image was made besides its recipe: what may change its last bits, but not what it shows.

Sums are rounded in another order with other threads, in another batch, in tiles or by other kernels. `replay` repeats
these; a run that looks for finished images ignores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from seg2any.generate.choices import Machine
from seg2any.generate.options import Options
from seg2any.generate.plan import Job
from seg2any.generate.recipe import MADE, check_recipe_fits
from seg2any.system.provenance import machine_name

FLAGS = ("fold", "memory", "vae_tiling", "compile")  # recorded unless they have their defaults


def with_circumstances(jobs: Sequence[Job], options: Options, machine: Machine) -> tuple[Job, ...]:
    """Return the jobs of one batch; their recipes say how they are made.

    Raises UserError for a recipe that the format of an image cannot hold.
    """
    members = [{"name": job.layout.report.name, "sha256": job.layout.digest, "seed": job.seed} for job in jobs]
    shared = {
        "processor": machine_name(machine.device),
        **({"threads": torch.get_num_threads()} if machine.device.type == "cpu" else {}),
        **{name: getattr(options, name) for name in FLAGS if getattr(options, name) != getattr(Options(), name)},
    }
    told = [
        replace(job, recipe={**job.recipe, MADE: {**shared, **_place(members, number)}})
        for number, job in enumerate(jobs)
    ]
    for job in told:
        check_recipe_fits(job.recipe, job.path)
    return tuple(told)


def _place(members: Sequence[Mapping], number: int) -> dict:
    """Record the batch of an image and its place there; an image that was alone has none."""
    return {"batch": list(members), "place": number} if len(members) > 1 else {}
