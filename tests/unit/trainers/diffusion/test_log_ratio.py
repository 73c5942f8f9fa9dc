"""The density ratio of a path: against Gaussians over whole paths, and what it averages to."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from trainers.config import MixtureConfig
from trainers.evaluate import evaluate
from trainers.models.base import Policy, Rollout, Start
from trainers.models.mixture import MixtureModel
from trainers.models.mixture_policy import MixturePolicy
from trainers.problem import run_trial
from trainers.rewards.analytic import Linear
from trainers.testing import gaussian_job, mixture_policy
from trainers.trial_io import LocalTrialIO
from trainers.types import FloatArray
from trainers.workers.collective import Collective

STEPS, COUNT = 5, 20_000
GAUSSIANS = {
    "line": MixtureConfig(weights=(1.0,), means=((0.5,),), covariances=(((2.0,),),)),
    "plane": MixtureConfig(weights=(1.0,), means=((0.5, -1.0),), covariances=(((2.0, 0.6), (0.6, 0.5)),)),
}


class LinearControl(torch.nn.Module):
    """``u_t = A_t z + c_t``, in place of the network."""

    def __init__(self, dimension: int) -> None:
        """Draw ``A`` ``[K, d, d]`` and ``c`` ``[K, d]``."""
        super().__init__()
        rng = np.random.default_rng(3)
        self.matrices = torch.tensor(0.2 * rng.normal(size=(STEPS, dimension, dimension)))
        self.offsets = torch.tensor(0.3 * rng.normal(size=(STEPS, dimension)))

    def conditioning(self, tilt: Tensor | None = None) -> tuple[()]:
        """Return nothing: steps are told by their numbers, and there is one optimum alone."""
        del tilt
        return ()

    def forward(self, inputs: Tensor, conditioning: tuple[()], step: int) -> Tensor:
        del conditioning
        return inputs[:, : self.offsets.shape[1]] @ self.matrices[step].T + self.offsets[step]


def paths(policy: MixturePolicy, drawn: Rollout) -> FloatArray:
    """Return the states of every path in a row, ``[n, (K + 1) d]``."""
    assert drawn.inputs is not None
    states = [state[:, : policy.model.dimension] for state in (*drawn.inputs, drawn.final)]
    return np.concatenate([state.detach().numpy() for state in states], axis=1)


def law(policy: MixturePolicy, control: LinearControl | None) -> multivariate_normal:
    """Return the Gaussian of a path of the chain: its steps are linear, and their means read off at points."""
    model, d = policy.model, policy.model.dimension
    start = np.zeros((d, (STEPS + 1) * d))
    start[:, :d] = np.eye(d)
    mean, maps = [np.zeros(d)], [start]
    points = torch.cat([torch.zeros(1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)])
    for step in range(STEPS):
        _, reached, roots = model.step(step, points)
        root = roots[0].numpy()
        offset = reached[0].numpy()
        slope = (reached[1:] - reached[:1]).numpy().T
        if control is not None:
            slope = slope + root @ control.matrices[step].numpy()
            offset = offset + root @ control.offsets[step].numpy()
        after = slope @ maps[-1]
        after[:, (step + 1) * d : (step + 2) * d] += root
        mean.append(slope @ mean[-1] + offset)
        maps.append(after)
    whole = np.concatenate(maps)
    return multivariate_normal(np.concatenate(mean), whole @ whole.T)


@pytest.fixture(params=GAUSSIANS)
def policy(request: pytest.FixtureRequest) -> MixturePolicy:
    model = MixtureModel(GAUSSIANS[request.param], steps=STEPS, eta=1.0, dtype=torch.float64)
    return MixturePolicy(model, LinearControl(model.dimension))  # type: ignore[arg-type] # a stand-in


def test_it_is_that_of_gaussians_over_whole_paths(policy: MixturePolicy) -> None:
    """Joint densities by scipy, of the states alone; what they are ratios of averages to 1 and to the KL."""
    drawn = policy.rollout(policy.draw(COUNT, 0), keep=True)
    ours = law(policy, policy.network)  # type: ignore[arg-type] # a stand-in
    other = law(policy, None)
    states = paths(policy, drawn)
    expected = ours.logpdf(states) - other.logpdf(states)
    assert not drawn.log_ratio.requires_grad
    np.testing.assert_allclose(drawn.log_ratio.numpy(), expected, rtol=1e-5, atol=1e-4)

    apart = ours.mean - other.mean
    precision = np.linalg.inv(other.cov)
    kl = 0.5 * (np.trace(precision @ ours.cov) - len(apart) + apart @ precision @ apart)
    kl += 0.5 * (np.linalg.slogdet(other.cov)[1] - np.linalg.slogdet(ours.cov)[1])
    assert kl > 0.2
    for values, mean in (
        (drawn.log_ratio, kl),
        (drawn.path_kl, kl),
        (torch.exp(-drawn.log_ratio), 1.0),
    ):
        pairs = values.detach().double().numpy().reshape(-1, 2).mean(axis=1)
        assert pairs.mean() == pytest.approx(mean, abs=4 * pairs.std() / np.sqrt(len(pairs)))


def test_the_reference_and_a_control_of_zero_have_none() -> None:
    policy = mixture_policy()
    drawn = policy.rollout(policy.draw(64, 1), reference=True)
    assert torch.equal(drawn.log_ratio, torch.zeros(64))
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.zero_()
    assert torch.equal(policy.rollout(policy.draw(64, 1)).log_ratio, torch.zeros(64))


def test_a_path_from_a_state_on_the_way_has_the_ratio_of_its_own_steps(policy: MixturePolicy) -> None:
    draw = policy.draw(8, 0)
    whole = policy.rollout(draw, keep=True)
    states = torch.tensor(paths(policy, whole)).reshape(8, STEPS + 1, -1)
    rest = policy.rollout(draw, start=Start(step=2, state=states[:, 2]))
    single = [
        policy.rollout(draw, start=Start(step=step, state=states[:, step])).log_ratio for step in (1, 2, 3)
    ]
    torch.testing.assert_close(rest.log_ratio, single[1])
    controls = policy.network(states[:, 1], (), 1)  # type: ignore[arg-type] # a stand-in
    first = 0.5 * controls.square().sum(dim=1) + (controls * draw.noise[2]).sum(dim=1)
    torch.testing.assert_close((single[0] - single[1]).double(), first, rtol=1e-4, atol=1e-5)


def weighted(policy: Policy, price: float, *, reference: bool = False) -> tuple[float, float]:
    """Return the mean of ``exp(λ'r − log p/q)``, and its error."""
    found = evaluate(
        policy, {"x": Linear((1.0,))}, samples=16384, seed=5, collective=Collective(), reference=reference
    )
    assert found.log_ratio is not None
    weights = np.exp(price * found.rewards["x"] - found.log_ratio).reshape(-1, 2).mean(axis=1)
    return float(weights.mean()), float(weights.std(ddof=1) / np.sqrt(len(weights)))


@pytest.mark.parametrize("price", [0.0, 0.5, 1.0])
def test_path_weights_average_to_the_partition_function_of_the_chain(price: float) -> None:
    """Of a mixture of two, whatever was trained: here nothing, at random parameters."""
    policy = mixture_policy()
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.mul_(0.7)
    (ours, error), (exact, spread) = (weighted(policy, price, reference=of) for of in (False, True))
    assert error < 0.1 * exact
    assert ours == pytest.approx(exact, abs=4 * np.hypot(error, spread) + 1e-9)
    if price == 0.0:
        assert ours != exact == 1.0


@pytest.mark.parametrize("steps", [3, 12])
def test_few_steps_of_training_give_the_exact_partition_function(steps: int) -> None:
    """``Z(λ) = exp(λ²/2)`` of ``N(0, 1)`` and reward x; the chain of one Gaussian draws it exactly."""
    job = gaussian_job(
        {},
        weights={"x": 1.0},
        sampling={"steps": 8},
        training={"steps": steps, "batch_per_worker": 256, "width": 8, "learning_rate": 0.05},
        evaluation={"every": 1, "images": 4096, "baseline_images": 1024},
    )
    outcome = run_trial(job, LocalTrialIO())
    assert outcome.kl is not None
    assert 0.005 < outcome.kl.mean < 2.0
    found = outcome.evaluation
    assert found is not None
    assert found.log_ratio is not None
    spreads = []
    for price in (0.3, 0.7, 1.0):
        logs = price * found.rewards["x"] - found.log_ratio
        weights = np.exp(logs).reshape(-1, 2).mean(axis=1)
        error = weights.std(ddof=1) / np.sqrt(len(weights))
        assert weights.mean() == pytest.approx(np.exp(price**2 / 2), abs=4 * error)
        spreads.append(logs.var())
    if steps > 3:  # nearer to the optimum of its own multiplier than to others
        assert spreads[-1] < np.var(1.0 * found.rewards["x"])
