"""Path-wise KL in nats, against sums of Gaussian KLs."""

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from trainers.config import MixtureConfig
from trainers.diffusion.path_kl import path_kl_from_controls
from trainers.diffusion.schedule import cosine_alpha_bars, ddim_steps
from trainers.models.mixture import ControlNetwork, MixtureModel
from trainers.models.mixture_policy import MixturePolicy

STEPS, BATCH, DIMENSION = 12, 6, 3


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_it_is_the_sum_of_the_steps_kls(eta: float) -> None:
    """Two noise predictions at the same states: means by DDIM's formula, then KLs by torch.distributions."""
    alpha_bars = cosine_alpha_bars(STEPS)
    table = ddim_steps(alpha_bars, eta)
    states, policy, reference = torch.randn(3, STEPS, BATCH, DIMENSION, dtype=torch.float64)
    expected = torch.zeros(BATCH, dtype=torch.float64)
    controls, by_gain = [], torch.zeros(BATCH, dtype=torch.float64)
    for k in range(STEPS):
        alpha_bar, previous, noise = alpha_bars[STEPS - k], alpha_bars[STEPS - k - 1], float(table.noise[k])
        steps, guesses = [], []
        for predicted in (policy[k], reference[k]):
            guesses.append((states[k] - np.sqrt(1 - alpha_bar) * predicted) / np.sqrt(alpha_bar))
            mean = np.sqrt(previous) * guesses[-1] + np.sqrt(1 - previous - noise**2) * predicted
            steps.append(Independent(Normal(mean, noise), 1))
        expected += kl_divergence(*steps)
        controls.append((steps[0].mean - steps[1].mean) / noise)
        by_gain += 0.5 * table.gain(k) ** 2 * (guesses[0] - guesses[1]).square().sum(dim=1)

    found = path_kl_from_controls(torch.stack(controls))
    assert found.shape == (BATCH,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_gain, expected)


def test_at_full_noise_a_step_weighs_what_it_gains_in_snr() -> None:
    alpha_bars = cosine_alpha_bars(STEPS)
    snr = alpha_bars[::-1] / (1 - alpha_bars[::-1])
    table = ddim_steps(alpha_bars, 1.0)
    np.testing.assert_allclose([table.gain(k) ** 2 for k in range(STEPS)], np.diff(snr))


def test_the_rollouts_log_ratio_is_that_of_its_trajectory_densities() -> None:
    """Densities of whole trajectories by torch.distributions; their mean log-ratio is the KL (``E ε·u = 0``)."""
    torch.manual_seed(0)
    model = MixtureModel(
        MixtureConfig(weights=(0.3, 0.7), means=((-1.0,), (1.0,)), covariances=(((0.2,),), ((0.4,),))),
        steps=10,
        eta=1.0,
        dtype=torch.float64,
    )
    network = ControlNetwork(model, 8)
    torch.nn.init.normal_(network.leave.weight, std=0.3)
    policy = MixturePolicy(model, network)
    with torch.no_grad():
        drawn = policy.rollout(policy.draw(20_000, 0), keep=True)
        assert drawn.inputs is not None
        assert drawn.shifts is not None
        log_ratio = torch.zeros(20_000, dtype=torch.float64)
        conditioning = network.conditioning()
        for step in range(model.steps):
            _, reference, root = model.step(step, drawn.inputs[step][:, :1])
            sigma = root[:, :, 0]
            moved = reference + sigma * network(drawn.inputs[step], conditioning, step)
            after = reference + sigma * drawn.shifts[step]
            if step + 1 < model.steps:  # the trajectory that was kept is the one whose density is taken
                torch.testing.assert_close(after, drawn.inputs[step + 1][:, :1])
            log_ratio += (Normal(moved, sigma).log_prob(after) - Normal(reference, sigma).log_prob(after))[
                :, 0
            ]
    torch.testing.assert_close(drawn.log_ratio.double(), log_ratio, rtol=1e-5, atol=1e-4)
    error = float((log_ratio - drawn.path_kl).std() / np.sqrt(20_000))
    assert float(drawn.path_kl.mean()) > 0.3
    assert float(log_ratio.mean()) == pytest.approx(float(drawn.path_kl.mean()), abs=4 * error)
