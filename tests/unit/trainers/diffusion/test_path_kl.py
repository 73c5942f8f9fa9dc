"""Path-wise KL in nats, against sums of Gaussian KLs."""

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from trainers.config import MixtureConfig
from trainers.diffusion.path_kl import path_kl_from_controls, path_kl_from_noise
from trainers.diffusion.schedule import cosine_alpha_bars, ddim_steps
from trainers.models.mixture import ControlNetwork, MixtureModel
from trainers.models.mixture_policy import MixturePolicy

STEPS, BATCH, DIMENSION = 12, 6, 3


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_both_forms_are_the_sum_of_the_steps_kls(eta: float) -> None:
    """Two noise predictions at the same states: means by DDIM's formula, then KLs by torch.distributions."""
    table = ddim_steps(cosine_alpha_bars(STEPS), eta)
    states, policy, reference = torch.randn(3, STEPS, BATCH, DIMENSION, dtype=torch.float64)
    expected = torch.zeros(BATCH, dtype=torch.float64)
    controls = []
    for k in range(STEPS):
        alpha_bar, previous, sigma = table.alpha_bar[k], table.alpha_bar_prev[k], float(table.sigma[k])
        steps = []
        for noise in (policy[k], reference[k]):
            clean = (states[k] - np.sqrt(1 - alpha_bar) * noise) / np.sqrt(alpha_bar)
            mean = np.sqrt(previous) * clean + np.sqrt(1 - previous - sigma**2) * noise
            steps.append(Independent(Normal(mean, sigma), 1))
        expected += kl_divergence(*steps)
        controls.append((steps[0].mean - steps[1].mean) / sigma)

    from_noise = path_kl_from_noise(policy, reference, table.kl_weights())
    from_controls = path_kl_from_controls(torch.stack(controls))
    assert from_noise.shape == from_controls.shape == (BATCH,)
    assert from_noise.dtype == from_controls.dtype == torch.float32
    torch.testing.assert_close(from_noise.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(from_controls.double(), expected, rtol=1e-5, atol=1e-5)


def test_noise_predictions_of_images_are_summed_over_every_dimension() -> None:
    policy, reference = torch.randn(2, 4, BATCH, 3, 5, 5)
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    expected = sum(
        w * (p - q).square().sum(dim=(1, 2, 3)) for w, p, q in zip(weights, policy, reference, strict=True)
    )
    torch.testing.assert_close(path_kl_from_noise(policy, reference, weights), expected)


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
