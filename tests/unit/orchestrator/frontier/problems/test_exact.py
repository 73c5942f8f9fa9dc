"""The exact frontier against quadrature, scipy, closed forms and the envelope theorem."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from scipy.special import logsumexp

from orchestrator.frontier.problems.exact import ExactProblem
from trainers.config import MixtureConfig, RewardConfig


def linear(*direction: float, name: str = "linear") -> RewardConfig:
    return RewardConfig(name=name, kind="linear", parameters={"direction": direction})


def quadratic(*center: float, scale: float = 1.0, name: str = "quadratic") -> RewardConfig:
    return RewardConfig(name=name, kind="quadratic", parameters={"center": center, "scale": scale})


def random_mixture(rng: np.random.Generator, dimension: int) -> MixtureConfig:
    count = int(rng.integers(1, 5))
    covariances = []
    for _ in range(count):
        factor = 0.45 * rng.normal(size=(dimension, dimension))
        matrix = factor @ factor.T + 0.08 * np.eye(dimension)
        covariances.append(tuple(map(tuple, matrix.tolist())))
    return MixtureConfig(
        weights=tuple(rng.dirichlet(np.full(count, 3.0)).tolist()),
        means=tuple(map(tuple, rng.uniform(-2, 2, (count, dimension)).tolist())),
        covariances=tuple(covariances),
    )


def random_problem(seed: int, dimension: int | None = None) -> tuple[MixtureConfig, list[RewardConfig]]:
    """A mixture in one to three dimensions, a linear and a quadratic reward."""
    rng = np.random.default_rng(seed)
    dimension = dimension or int(rng.integers(1, 4))
    direction = rng.normal(size=dimension)
    rewards = [
        linear(*(direction / np.linalg.norm(direction)).tolist()),
        quadratic(*rng.uniform(-1.5, 1.5, dimension).tolist(), scale=float(rng.uniform(0.2, 0.8))),
    ]
    return random_mixture(rng, dimension), rewards


def on_grid(mixture: MixtureConfig, rewards: list[RewardConfig]) -> tuple[np.ndarray, np.ndarray]:
    """Log masses ``[n]`` of the mixture on a fine grid, and the rewards there ``[n, m]``."""
    dimension = mixture.dimension
    axis = np.linspace(-12.0, 12.0, 20_001 if dimension == 1 else 881)  # at ±7 the tails are missed by 1e-5
    points = np.stack(np.meshgrid(*[axis] * dimension, indexing="ij"), axis=-1).reshape(-1, dimension)
    logs = []
    for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        offset = points - np.array(mean)
        precision = np.linalg.inv(covariance)
        logs.append(
            math.log(weight)
            - 0.5 * np.einsum("ni,ij,nj->n", offset, precision, offset)
            - 0.5 * np.linalg.slogdet(2 * np.pi * np.array(covariance))[1]
        )
    log_mass = logsumexp(logs, axis=0) + dimension * math.log(axis[1] - axis[0])
    columns = []
    for reward in rewards:
        if reward.kind == "linear":
            columns.append(points @ np.array(reward.parameters["direction"]))
        else:
            offset = points - np.array(reward.parameters["center"])
            columns.append(-reward.parameters["scale"] * (offset**2).sum(axis=1))
    return log_mass, np.stack(columns, axis=1)


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_moments_against_quadrature(seed: int, dimension: int) -> None:
    mixture, rewards = random_problem(seed, dimension)
    problem = ExactProblem(mixture, rewards)
    log_mass, values = on_grid(mixture, rewards)
    mass = np.exp(log_mass)
    baseline = problem.baseline()
    assert baseline.samples is None
    for index, name in enumerate(problem.names):
        mean = mass @ values[:, index]
        assert baseline.rewards[name].mean == pytest.approx(mean, abs=1e-9)
        assert baseline.rewards[name].std == pytest.approx(
            math.sqrt(mass @ (values[:, index] - mean) ** 2), rel=1e-8
        )
    multipliers = {"linear": 0.9, "quadratic": 1.7}
    tilted = log_mass + values @ np.array([0.9, 1.7])
    assert problem.log_partition(multipliers) == pytest.approx(logsumexp(tilted), abs=1e-9)
    expected = np.exp(tilted - logsumexp(tilted)) @ values
    assert list(problem.tilted_means(multipliers).values()) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_least_kl_against_scipy_on_a_grid(seed: int, dimension: int) -> None:
    mixture, rewards = random_problem(seed, dimension)
    problem = ExactProblem(mixture, rewards)
    log_mass, values = on_grid(mixture, rewards)
    if dimension == 1:  # two thresholds may contradict each other on a line
        wanted = {"linear": problem.baseline().rewards["linear"].mean + 0.7}
    else:
        wanted = problem.tilted_means({"linear": 1.1, "quadratic": 0.6})
    columns = values[:, [problem.names.index(name) for name in wanted]]
    bounds = np.array(list(wanted.values()))

    def negative_dual(multipliers: np.ndarray) -> float:
        return float(logsumexp(log_mass + columns @ multipliers) - multipliers @ bounds)

    found = minimize(
        negative_dual,
        np.full(len(bounds), 0.5),
        method="SLSQP",
        bounds=[(0, None)] * len(bounds),
        options={"ftol": 1e-14, "maxiter": 500},
    )
    optimum = problem.least_kl(wanted)
    assert optimum.kl == pytest.approx(-found.fun, abs=1e-7)
    assert list(optimum.multipliers.values()) == pytest.approx(found.x, abs=2e-3)


def test_least_kl_against_the_primal() -> None:
    """Minimise the KL over probabilities on a coarse grid directly: no dual, no exponential family."""
    mixture, rewards = random_problem(3, 1)
    log_mass, values = on_grid(mixture, rewards)
    keep = slice(None, None, 200)
    log_q = log_mass[keep] - logsumexp(log_mass[keep])
    reward = values[keep, 0]
    log_q, reward = log_q[log_q > -30], reward[log_q > -30]
    bound = float(np.exp(log_q) @ reward) + 0.5

    found = minimize(
        lambda p: float(p @ (np.log(np.maximum(p, 1e-300)) - log_q)),
        np.exp(log_q),
        jac=lambda p: np.log(np.maximum(p, 1e-300)) - log_q + 1.0,
        method="SLSQP",
        bounds=[(1e-15, 1.0)] * len(log_q),
        constraints=[
            LinearConstraint(np.ones((1, len(log_q))), 1.0, 1.0),
            LinearConstraint(reward[None, :], bound, np.inf),
        ],
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    assert ExactProblem(mixture, rewards).least_kl({"linear": bound}).kl == pytest.approx(found.fun, rel=2e-3)


def test_single_gaussian_closed_forms() -> None:
    gaussian = MixtureConfig(weights=(1.0,), means=((0.3, 0.0),), covariances=(((0.5, 0.0), (0.0, 2.0)),))
    problem = ExactProblem(gaussian, [linear(2.0, 0.0), quadratic(0.3, 0.0)])
    shift = problem.least_kl({"linear": 0.6 + 1.5})
    # Mean of 2x is 0.6, its variance 4 * 0.5: KL = Δ² / (2 var), λ = Δ / var.
    assert shift.kl == pytest.approx(1.5**2 / (2 * 2.0), abs=1e-12)
    assert shift.multipliers["linear"] == pytest.approx(1.5 / 2.0, abs=1e-9)
    # exp(−λ‖x − m‖²) narrows each variance v to v / (1 + 2λv).
    price = 0.7
    narrow = np.array([0.5, 2.0]) / (1 + 2 * price * np.array([0.5, 2.0]))
    kl = 0.5 * np.sum(narrow / [0.5, 2.0] - 1 - np.log(narrow / [0.5, 2.0]))
    optimum = problem.least_kl({"quadratic": -narrow.sum()})
    assert optimum.kl == pytest.approx(kl, abs=1e-12)
    assert optimum.multipliers["quadratic"] == pytest.approx(price, rel=1e-6)


@given(seed=st.integers(0, 10_000), first=st.floats(0, 3), second=st.floats(0, 3))
@settings(max_examples=60, deadline=None)
def test_gradient_of_the_log_partition(seed: int, first: float, second: float) -> None:
    problem = ExactProblem(*random_problem(seed))
    at = {"linear": first, "quadratic": second}
    means = problem.tilted_means(at)
    for name in problem.names:
        step = 1e-5
        higher = problem.log_partition(at | {name: at[name] + step})
        lower = problem.log_partition(at | {name: at[name] - step})
        assert (higher - lower) / (2 * step) == pytest.approx(means[name], rel=1e-6, abs=1e-6)


@given(seed=st.integers(0, 10_000), first=st.floats(0.05, 3), second=st.floats(0.05, 3))
@settings(max_examples=60, deadline=None)
def test_multipliers_are_recovered_and_are_prices(seed: int, first: float, second: float) -> None:
    problem = ExactProblem(*random_problem(seed))
    price = {"linear": first, "quadratic": second}
    rewards = problem.tilted_means(price)
    kl = sum(price[name] * rewards[name] for name in price) - problem.log_partition(price)
    optimum = problem.least_kl(rewards)
    assert optimum.reachable
    assert optimum.kl == pytest.approx(kl, abs=1e-8)
    for name, std in ((name, problem.baseline().rewards[name].std) for name in problem.names):
        step = 1e-4 * std
        slope = (
            problem.least_kl(rewards | {name: rewards[name] + step}).kl
            - problem.least_kl(rewards | {name: rewards[name] - step}).kl
        ) / (2 * step)
        assert slope == pytest.approx(optimum.multipliers[name], rel=1e-3, abs=1e-3)


@given(
    seed=st.integers(0, 10_000),
    ends=st.tuples(*[st.tuples(st.floats(0, 3), st.floats(0, 3))] * 2),
    share=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_least_kl_is_convex_and_rises(
    seed: int, ends: tuple[tuple[float, float], tuple[float, float]], share: float
) -> None:
    problem = ExactProblem(*random_problem(seed))
    one, two = (problem.tilted_means({"linear": first, "quadratic": second}) for first, second in ends)
    between = {name: share * one[name] + (1 - share) * two[name] for name in one}
    mixed = share * problem.least_kl(one).kl + (1 - share) * problem.least_kl(two).kl
    middle = problem.least_kl(between).kl
    assert middle <= mixed + 1e-8
    assert problem.least_kl({name: value - 0.1 for name, value in between.items()}).kl <= middle + 1e-9


def test_thresholds_below_the_baseline_cost_nothing() -> None:
    problem = ExactProblem(*random_problem(0))
    means = {name: statistics.mean for name, statistics in problem.baseline().rewards.items()}
    free = problem.least_kl({name: mean - 0.1 for name, mean in means.items()})
    assert free.kl == 0.0
    assert set(free.multipliers.values()) == {0.0}
    assert free.rewards == pytest.approx(means)
    assert problem.least_kl({}).kl == 0.0


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e6])
def test_a_quadratic_reward_cannot_reach_its_supremum(threshold: float) -> None:
    problem = ExactProblem(*random_problem(1))
    optimum = problem.least_kl({"quadratic": threshold})
    assert not optimum.reachable
    assert optimum.kl == math.inf


def test_thresholds_that_exclude_each_other() -> None:
    gaussian = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
    problem = ExactProblem(gaussian, [linear(1.0, name="right"), linear(-1.0, name="left")])
    assert problem.least_kl({"right": 1.0, "left": -1.0}).kl == pytest.approx(0.5)
    assert not problem.least_kl({"right": 1.0, "left": -0.9}).reachable


def test_far_out() -> None:
    gaussian = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
    problem = ExactProblem(gaussian, [linear(1.0), quadratic(0.0)])
    assert problem.least_kl({"linear": 19.9}).kl == pytest.approx(19.9**2 / 2, rel=1e-12)
    assert not problem.least_kl({"linear": 20.1}).reachable
    tight = problem.least_kl({"quadratic": -1e-6})
    assert tight.kl == pytest.approx(0.5 * (1e-6 - 1 - math.log(1e-6)), abs=1e-8)


@given(seed=st.integers(0, 10_000), budget=st.floats(0.01, 5), price=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_greatest_reward_inverts_least_kl(seed: int, budget: float, price: float) -> None:
    problem = ExactProblem(*random_problem(seed))
    others = {"quadratic": problem.tilted_means({"quadratic": price})["quadratic"]}
    best = problem.greatest_reward("linear", budget, others)
    cheapest = problem.least_kl(others)
    if cheapest.kl > budget:
        assert not best.reachable
        return
    assert best.reachable
    assert best.kl == pytest.approx(budget, abs=1e-8)
    assert problem.least_kl({**others, "linear": best.rewards["linear"]}).kl == pytest.approx(
        budget, abs=1e-8
    )
    assert best.rewards["linear"] >= cheapest.rewards["linear"] - 1e-9
    # The price of the budget is the inverse slope of the least KL.
    assert best.kl_multiplier is not None
    assert best.kl_multiplier == pytest.approx(1.0 / best.tilt["linear"])


def test_greatest_reward_of_a_gaussian() -> None:
    gaussian = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((4.0,),),))
    best = ExactProblem(gaussian, [linear(1.0)]).greatest_reward("linear", 0.5)
    assert best.rewards["linear"] == pytest.approx(2.0)  # σ √(2 KL)
    assert best.kl_multiplier == pytest.approx(2.0)  # σ / √(2 KL)


def test_what_is_not_supported() -> None:
    mixture, rewards = random_problem(0, 2)
    other = RewardConfig(name="clip", kind="clip")
    assert not ExactProblem.supported([*rewards, other])
    with pytest.raises(ValueError, match="kind clip"):
        ExactProblem(mixture, [other])
    with pytest.raises(ValueError, match="has 3 coordinates, the model has 2"):
        ExactProblem(mixture, [linear(1.0, 0.0, 0.0)])
    with pytest.raises(ValueError, match="constant"):
        ExactProblem(mixture, [linear(0.0, 0.0)])
    problem = ExactProblem(mixture, rewards)
    with pytest.raises(ValueError, match="no reward 'nothing'"):
        problem.least_kl({"nothing": 1.0})
    with pytest.raises(ValueError, match="budget"):
        problem.greatest_reward("linear", 0.0)
    with pytest.raises(ValueError, match="is the objective"):
        problem.greatest_reward("linear", 1.0, {"linear": 0.0})
