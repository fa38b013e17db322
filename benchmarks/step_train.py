"""Time the transformer's share of a training step: forward and backward pass with gradient checkpointing.

The published scheme and ours train the same weights in turn, with adapters in fp32 over a frozen base, as `train.py`
does. Both keep the masks of the one batch; noise, optimizer, encoders and reading are left out. A whole step
of the training loop is measured by `benchmarks.train_step`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.clock import Ratio, in_turn
from benchmarks.step_schemes import GUIDANCE, PUBLISHED, ROUTED, SIZES, Case, Given, Models, base_of
from benchmarks.train_sizes import ROWS, as_published, random_transformer
from seg2any.bases.base import Condition
from seg2any.diffusion import flow
from seg2any.system.errors import UserError
from seg2any.training.tasks.flow_matching import Velocity

MOST_DIFFERENCE = 0.02  # relative difference of gradients that rounding to bfloat16 explains


def measure_training(
    name: str, case: Case, rounds: int, clock: str, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, object]:
    """Measure both schemes at the size `name`, print a line and return the row.

    Raises UserError if their gradients differ.
    """
    size = SIZES[name]
    network = random_transformer(size, ROWS[1].config(size, case.side), torch.device(device), dtype)
    given = Given(Models(size, *[network] * 3), case, torch.device(device), torch.float32)
    published = functools.partial(as_published, torch.device(device), dtype)
    works = {
        PUBLISHED: functools.partial(train, network, given, given.condition(), published),
        ROUTED: functools.partial(train, network, given, given.condition(), contextlib.nullcontext),
    }
    expected, found = (work() for work in works.values())
    if not (difference := float((found - expected).norm() / expected.norm())) < MOST_DIFFERENCE:
        raise UserError(f"training: gradients differ by {difference:.1%} from the published scheme's; report this")
    seconds = in_turn(works, rounds, device, clock)
    ratio = Ratio.of(seconds[PUBLISHED], seconds[ROUTED])
    print(f"training's transformer, {name}, {case.side} px, {case.n_entities} entities: published / ours {ratio}")
    return {"size": name, "side": case.side, "n_entities": case.n_entities, "seconds": seconds}


def train(
    network: nn.Module,
    given: Given,
    condition: Condition,
    scheme: Callable[[], contextlib.AbstractContextManager],
) -> torch.Tensor:
    """Run forward and backward pass; return the gradient of all adapters as one vector."""
    velocity = Velocity(base_of(network), GUIDANCE)
    x0, noise = given.latents(), given.tensor(*given.latents().shape, seed=4)
    s = torch.full((len(x0),), 0.5, device=x0.device)
    with scheme():
        prediction = velocity(flow.interpolate(x0, noise, s), s, condition)
        flow.loss(prediction, flow.velocity(x0, noise), torch.ones_like(s)).backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    network.zero_grad()
    return gradient
