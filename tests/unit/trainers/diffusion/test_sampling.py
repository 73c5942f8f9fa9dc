"""Rollouts: a constant control on a Gaussian chain, whose law is known."""

import numpy as np
import pytest
import torch

from trainers.config import MixtureConfig
from trainers.diffusion.sampling import rollout
from trainers.models.mixture import ControlNetwork, MixtureModel, antithetic_noise

MODEL = MixtureModel(
    MixtureConfig(weights=(1.0,), means=((0.5,),), covariances=(((2.0,),),)),
    steps=16,
    eta=1.0,
    dtype=torch.float64,
)


def constant_control(model: MixtureModel, value: float) -> ControlNetwork:
    network = ControlNetwork(model, 4)
    torch.nn.init.constant_(network.leave.bias, value)
    return network


def test_a_constant_drift_shifts_the_mean_and_costs_its_gaussian_kl() -> None:
    """The chain of one Gaussian is linear, so the shift of each step is carried by the product of the later slopes."""
    noise = antithetic_noise(MODEL, 512, seed=0)
    moved = rollout(MODEL, constant_control(MODEL, 0.3), noise)
    still = rollout(MODEL, None, noise)
    table, variance = MODEL.table, 1.0  # whitened
    gain = np.sqrt(table.alpha_bar) * variance / (table.alpha_bar * variance + 1 - table.alpha_bar)
    slopes = table.from_state + table.from_clean * gain
    sigmas = [float(MODEL.step(k, torch.zeros(1, 1, dtype=torch.float64))[2]) for k in range(MODEL.steps)]
    shift = 0.0
    for slope, sigma in zip(slopes, sigmas, strict=True):
        shift = slope * shift + 0.3 * sigma
    difference = (moved.samples - still.samples).detach()
    torch.testing.assert_close(difference, torch.full_like(difference, shift * np.sqrt(2.0)))
    torch.testing.assert_close(moved.path_kl.detach(), torch.full((512,), 0.5 * 16 * 0.3**2))
    assert moved.path_kl.shape == (512,)


def test_a_network_of_zeros_is_the_reference() -> None:
    noise = antithetic_noise(MODEL, 64, seed=1)
    policy, reference = rollout(MODEL, ControlNetwork(MODEL, 4), noise), rollout(MODEL, None, noise)
    torch.testing.assert_close(policy.samples, reference.samples, rtol=0, atol=0)
    assert policy.path_kl.abs().max() == 0
    assert reference.path_kl.tolist() == [0.0] * 64


def test_gradients_reach_the_first_state_through_the_references_prediction() -> None:
    """With a detached reference the slope would be the product of ``from_state`` alone."""
    noise = antithetic_noise(MODEL, 2, seed=0).requires_grad_()
    (slope,) = torch.autograd.grad(rollout(MODEL, None, noise).samples[0, 0], noise)
    step = 1e-4
    ends = []
    for sign in (1, -1):
        moved = noise.detach().clone()
        moved[0, 0, 0] += sign * step
        ends.append(float(rollout(MODEL, None, moved).samples[0, 0]))
    assert float(slope[0, 0, 0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_what_was_seen_is_kept_on_request_only() -> None:
    noise = antithetic_noise(MODEL, 8, seed=0)
    network = constant_control(MODEL, 0.1)
    kept, bare = rollout(MODEL, network, noise, keep=True), rollout(MODEL, network, noise)
    assert kept.inputs is not None
    assert kept.shifts is not None
    assert kept.inputs.shape == (16, 8, 2)
    torch.testing.assert_close(kept.shifts.detach(), noise[1:] + 0.1)
    assert bare.inputs is bare.shifts is None
