"""Both primal estimators against a finite-difference gradient, and the exact optimum of a Gaussian."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers.config import MixtureConfig
from trainers.diffusion.sampling import rollout
from trainers.duality.lagrangian import Coefficients
from trainers.models.mixture import ControlNetwork, MixtureModel, antithetic_noise
from trainers.primal.base import PrimalEstimator
from trainers.primal.log_variance import LogVariance
from trainers.primal.reward_backprop import RewardBackprop
from trainers.rewards.analytic import Linear, Quadratic

MODEL = MixtureModel(
    MixtureConfig(weights=(0.4, 0.6), means=((-1.0,), (1.0,)), covariances=(((0.3,),), ((0.5,),))),
    steps=5,
    eta=1.0,
    dtype=torch.float64,
)
REWARDS = {"linear": Linear((1.0,)), "quadratic": Quadratic((0.5,), 0.3)}
COEFFICIENTS = Coefficients(kl=1.6, rewards={"linear": 0.9, "quadratic": 0.5})
CHUNKS, CHUNK = 24, 8192


def trained_a_little() -> ControlNetwork:
    network = ControlNetwork(MODEL, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def lagrangian(network: ControlNetwork, noise: Tensor) -> float:
    with torch.no_grad():
        drawn = rollout(MODEL, network, noise)
    value = COEFFICIENTS.kl * drawn.path_kl.double().mean()
    for name, weight in COEFFICIENTS.rewards.items():
        value -= weight * REWARDS[name](drawn.samples).mean()
    return float(value)


def gradient(estimator: PrimalEstimator, network: ControlNetwork, noise: Tensor) -> np.ndarray:
    loss = estimator(MODEL, network, REWARDS, COEFFICIENTS, noise, Tensor.detach).loss
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]).numpy()


def finite_difference(network: ControlNetwork, noise: Tensor, step: float = 1e-2) -> np.ndarray:
    """Central differences of the Lagrangian on common random numbers, parameter by parameter."""
    slopes = []
    for parameter in network.parameters():
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            centre, ends = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = centre + sign * step
                ends.append(lagrangian(network, noise))
            flat[i] = centre
            slopes.append((ends[0] - ends[1]) / (2 * step))
    return np.array(slopes)


def test_backpropagation_is_the_finite_difference_on_the_same_noise() -> None:
    network, noise = trained_a_little(), antithetic_noise(MODEL, 1024, seed=0)
    exact = gradient(RewardBackprop(), network, noise)
    assert np.abs(exact).max() > 0.3
    np.testing.assert_allclose(exact, finite_difference(network, noise), atol=2e-4)


def test_log_variance_is_the_same_gradient_up_to_the_weight_of_the_kl() -> None:
    """Different estimators on different noise: they agree within the standard error of their means over chunks."""
    network = trained_a_little()

    def chunks(estimator: PrimalEstimator, first: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.stack(
            [
                gradient(estimator, network, antithetic_noise(MODEL, CHUNK, seed=first + c))
                for c in range(CHUNKS)
            ]
        )
        return rows.mean(axis=0), rows.std(axis=0, ddof=1) / np.sqrt(CHUNKS)

    backprop, backprop_error = chunks(RewardBackprop(), 0)
    log_variance, error = chunks(LogVariance(), 1000)
    difference = COEFFICIENTS.kl * log_variance - backprop
    scores = difference / np.hypot(COEFFICIENTS.kl * error, backprop_error)
    assert np.abs(scores).max() < 4.5
    assert np.sqrt(np.mean(scores**2)) < 1.8  # and not all of them at the edge
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(backprop)


class Controls(nn.Module):
    """Stands in for a network: one constant control per step."""

    def __init__(self, values: np.ndarray) -> None:
        """Hold ``[K]`` controls."""
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values)[:, None, None])

    def conditioning(self) -> tuple[Tensor, Tensor]:
        return self.values, self.values

    def forward(self, inputs: Tensor, conditioning: tuple[Tensor, Tensor], step: int | None = None) -> Tensor:
        controls = conditioning[0] if step is None else conditioning[0][step]
        return controls + torch.zeros_like(inputs[..., :1])


@pytest.fixture
def optimum() -> Callable[[float], tuple[MixtureModel, Controls]]:
    """The optimal controls of ``q = N(0, 1)`` under the tilt ``exp(λ x)``.

    The chain is linear with slopes ``s_k``, so the value of a state is linear too, and
    ``u_k = σ_k λ Π_{j > k} s_j``.
    """

    def build(tilt: float) -> tuple[MixtureModel, Controls]:
        gaussian = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
        model = MixtureModel(gaussian, steps=12, eta=1.0, dtype=torch.float64)
        slopes = model.table.from_state + model.table.from_clean * np.sqrt(model.table.alpha_bar)
        later = np.append(np.cumprod(slopes[::-1])[::-1][1:], 1.0)
        origin = torch.zeros(1, 1, dtype=torch.float64)
        sigmas = np.array([float(model.step(k, origin)[2]) for k in range(model.steps)])
        return model, Controls(sigmas * tilt * later)

    return build


@pytest.mark.parametrize("tilt", [0.5, 1.5])
def test_log_variance_vanishes_at_the_exact_optimum(
    optimum: Callable[[float], tuple[MixtureModel, Controls]], tilt: float
) -> None:
    model, controls = optimum(tilt)
    noise = antithetic_noise(model, 4096, seed=0)
    coefficients = Coefficients(kl=1.0, rewards={"x": tilt})
    estimate = LogVariance()(model, controls, {"x": Linear((1.0,))}, coefficients, noise, Tensor.detach)
    # What is left is the first state's share, √ᾱ_T of x_0, which no control can move.
    forgotten = 0.5 * tilt**2 * model.table.alpha_bar[0]
    assert float(estimate.loss.detach()) == pytest.approx(forgotten, rel=0.1)
    assert forgotten < 2e-5
    (slope,) = torch.autograd.grad(estimate.loss, list(controls.parameters()))
    assert float(slope.abs().max()) < 1e-3 * tilt
    # There the policy is N(λ, 1), at a KL of λ²/2, and a wrong tilt does not vanish.
    assert float(estimate.rewards["x"].mean()) == pytest.approx(tilt, rel=0.02)
    assert float(estimate.path_kl.mean()) == pytest.approx(tilt**2 / 2, rel=0.02)
    wrong = Coefficients(kl=1.0, rewards={"x": tilt + 0.2})
    off = LogVariance()(model, controls, {"x": Linear((1.0,))}, wrong, noise, Tensor.detach)
    assert float(off.loss.detach()) == pytest.approx(0.5 * 0.2**2, rel=0.1)


def test_backpropagation_vanishes_at_the_exact_optimum(
    optimum: Callable[[float], tuple[MixtureModel, Controls]],
) -> None:
    model, controls = optimum(1.0)
    noise = antithetic_noise(model, 256, seed=0)
    coefficients = Coefficients(kl=1.0, rewards={"x": 1.0})
    estimate = RewardBackprop()(model, controls, {"x": Linear((1.0,))}, coefficients, noise, Tensor.detach)
    (slope,) = torch.autograd.grad(estimate.loss, list(controls.parameters()))
    assert float(slope.abs().max()) < 1e-5
