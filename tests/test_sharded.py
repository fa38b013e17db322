"""FSDP2 and the routing of adapters: a model in two parts computes what the whole one does."""

import torch
import torch.distributed as dist

from tests import forked
from tests.tiny_flux import adapted, condition, run, sample


def gradients(model, rank):
    """Of a loss on this process's own samples, by parameter."""
    output = run(model, condition([sample(10 * rank + n) for n in range(2)]))
    output.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def compare(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    whole, parts = adapted(), adapted()
    for model in (whole, parts):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    expected = gradients(whole, rank)
    for gradient in expected.values():
        dist.all_reduce(gradient)
        gradient /= 2
    mesh = init_device_mesh("cpu", (2,))
    for block in [*parts.transformer_blocks, *parts.single_transformer_blocks, parts]:
        fully_shard(block, mesh=mesh)
    found = gradients(parts, rank)
    assert found.keys() == expected.keys() and len(found) > 50
    for name, gradient in found.items():
        assert gradient.to_local().numel() < gradient.numel(), "each process holds a part"
        torch.testing.assert_close(gradient.full_tensor(), expected[name], rtol=1e-6, atol=1e-7)
    dist.destroy_process_group()


def test_fully_sharded_blocks_give_the_gradients_of_the_whole_model(tmp_path):
    log = tmp_path / "log.txt"
    assert forked.run(compare, log, 2) == [0, 0], log.read_text()[-4000:]
