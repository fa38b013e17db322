import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from seg2any.diffusion import flow
from seg2any.system.errors import UserError


def test_noise_levels_are_the_unshifted_scheduler_timesteps():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    u = torch.rand(500, generator=torch.Generator().manual_seed(0))
    expected = scheduler.timesteps[(u * 1000).long()]
    torch.testing.assert_close(flow.noise_level(u) * 1000, expected)


def test_noise_level_stays_in_range_at_both_ends():
    s = flow.noise_level(torch.tensor([0.0, 1.0, 1 - 1e-7, -0.01, 1.01]))
    assert s.tolist() == pytest.approx([1.0, 0.001, 0.001, 1.0, 0.001])


@pytest.mark.parametrize("scheme", flow.SCHEMES)
def test_densities_and_weights_are_those_of_diffusers(scheme):
    weighting = flow.TimestepWeighting(scheme, logit_mean=0.3, logit_std=0.7, mode_scale=1.29)
    u = weighting.sample(64, torch.Generator().manual_seed(1))
    expected = compute_density_for_timestep_sampling(
        scheme, 64, logit_mean=0.3, logit_std=0.7, mode_scale=1.29, generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(u, expected)
    s = flow.noise_level(u)
    torch.testing.assert_close(weighting.loss_weight(s), compute_loss_weighting_for_sd3(scheme, s).expand(64))


def test_unknown_scheme_is_named():
    with pytest.raises(UserError, match="weighting_scheme is 'logit_norm'"):
        flow.TimestepWeighting("logit_norm")


@pytest.mark.parametrize("scale", [-1, flow.MOST_MODE])
def test_mode_keeps_u_in_its_range_up_to_the_ends_of_its_scale(scale):
    u = flow.TimestepWeighting("mode", mode_scale=scale).sample(2000, torch.Generator().manual_seed(0))
    assert u.min() >= -1e-6 and u.max() <= 1 + 1e-6
    for beyond in (scale * 1.05, math.nan):
        with pytest.raises(UserError, match="^mode_scale is .* -1 to 1.7519"):
            flow.TimestepWeighting("mode", mode_scale=beyond)


def test_path_runs_straight_from_image_to_noise():
    x0, noise = torch.randn(2, 3, 5, 7).unbind(0)
    ends = flow.interpolate(x0, noise, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(ends[0], x0[0]) and torch.equal(ends[1], noise[1])
    # Walking back from x_s along the velocity for the time s arrives at the image.
    s = torch.tensor([0.2, 0.5, 0.9])
    arrived = flow.interpolate(x0, noise, s) - s.view(3, 1, 1) * flow.velocity(x0, noise)
    torch.testing.assert_close(arrived, x0)


def test_loss_by_hand():
    prediction = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]], dtype=torch.bfloat16)
    target = torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]])
    assert flow.sample_losses(prediction, target).tolist() == [2.5, 5.0]
    assert flow.loss(prediction, target, torch.tensor([2.0, 1.0])).item() == 5.0


def test_logit_normal_median_is_the_sigmoid_of_its_mean():
    u = flow.TimestepWeighting("logit_normal", logit_mean=1.0).sample(20001, torch.Generator().manual_seed(2))
    assert u.median().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)
