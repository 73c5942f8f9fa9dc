"""Exact compositions against closed forms, scipy, Blahut-Arimoto, dense grids and their own dual."""

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize
from scipy.special import logsumexp

from orchestrator.frontier.problems.composition import ACCURACY, ExactComposition
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.frontier.problems.pools import GaussianProduct, MixtureProduct
from trainers.config import MixtureConfig, RewardConfig

Models = dict[str, MixtureConfig]


def mixture(weights: Any, means: Any, covariances: Any) -> MixtureConfig:
    return MixtureConfig(
        weights=tuple(float(weight) for weight in weights),
        means=tuple(tuple(map(float, mean)) for mean in means),
        covariances=tuple(tuple(tuple(map(float, row)) for row in matrix) for matrix in covariances),
    )


def gaussian(mean: Any, covariance: Any) -> MixtureConfig:
    return mixture([1.0], [mean], [covariance])


def linear(*direction: float, name: str = "linear") -> RewardConfig:
    return RewardConfig(name=name, kind="linear", parameters={"direction": direction})


def quadratic(*center: float, scale: float = 1.0, name: str = "quadratic") -> RewardConfig:
    return RewardConfig(name=name, kind="quadratic", parameters={"center": center, "scale": scale})


def random_models(seed: int, *, dimension: int, count: int = 3, components: int = 3) -> Models:
    rng = np.random.default_rng(seed)
    models = {}
    for name in "abcdef"[:count]:
        factors = 0.45 * rng.normal(size=(components, dimension, dimension))
        models[name] = mixture(
            rng.dirichlet(np.full(components, 3.0)),
            rng.uniform(-2, 2, (components, dimension)),
            factors @ factors.transpose(0, 2, 1) + 0.15 * np.eye(dimension),
        )
    return models


def moved(model: MixtureConfig, matrix: np.ndarray, shift: np.ndarray) -> MixtureConfig:
    """The distribution of Ax + b."""
    covariances = matrix @ np.array(model.covariances) @ matrix.T
    return mixture(
        np.array(model.weights),
        np.array(model.means) @ matrix.T + shift,
        0.5 * (covariances + covariances.transpose(0, 2, 1)),
    )


def gaussian_kl(mean: Any, covariance: Any, other: MixtureConfig) -> float:
    """KL(N ‖ other) of Gaussians."""
    far, wide = np.array(other.means[0]), np.array(other.covariances[0])
    ratio = np.linalg.solve(wide, covariance)
    shift = np.asarray(mean) - far
    value = np.trace(ratio) - len(far) - np.linalg.slogdet(ratio)[1] + shift @ np.linalg.solve(wide, shift)
    return float(0.5 * value)


def dense(models: Models, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Points ``[n, d]`` over all of the models, and their log masses ``[n, m]`` there."""
    dimension = next(iter(models.values())).dimension
    axis = np.arange(-14.0, 14.0 + step, step)
    points = np.stack(np.meshgrid(*[axis] * dimension, indexing="ij"), axis=-1).reshape(-1, dimension)
    columns = []
    for model in models.values():
        logs = []
        for weight, mean, covariance in zip(model.weights, model.means, model.covariances, strict=True):
            offset = points - np.array(mean)
            normal = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
            log_det = np.linalg.slogdet(2 * np.pi * np.array(covariance))[1]
            logs.append(math.log(weight) - 0.5 * (normal + log_det))
        columns.append(logsumexp(logs, axis=0))
    return points, np.stack(columns, axis=1) + dimension * math.log(step)


def dense_kl(log_q: np.ndarray, weights: np.ndarray, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """KLs ``[m]`` and log masses ``[n]`` of the composition on a dense grid."""
    if direction == "reverse":
        log_p = log_q @ weights
        log_p -= logsumexp(log_p)
        return np.exp(log_p) @ (log_p[:, None] - log_q), log_p
    log_p = logsumexp(log_q, b=weights, axis=1)
    return np.einsum("nm,nm->m", np.exp(log_q), log_q - log_p[:, None]), log_p


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_two_gaussians_of_equal_covariance_meet_half_way(dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    factor = rng.normal(size=(dimension, dimension))
    covariance = factor @ factor.T + np.eye(dimension)
    one, two = rng.normal(size=(2, dimension))
    problem = ExactComposition({"a": gaussian(one, covariance), "b": gaussian(two, covariance)}, "reverse")
    optimum = problem.optimum()
    squared = (one - two) @ np.linalg.solve(covariance, one - two)
    assert optimum.reachable
    assert optimum.reason is None
    assert optimum.weights == pytest.approx({"a": 0.5, "b": 0.5})
    assert optimum.kl == pytest.approx({"a": squared / 8, "b": squared / 8})
    assert optimum.radius == pytest.approx(squared / 8)
    assert optimum.multipliers == {}
    middle = problem.at({"a": 0.5, "b": 0.5})
    assert middle.mean == pytest.approx((one + two) / 2)
    assert middle.covariance == pytest.approx(covariance)


def test_equal_weights_leave_the_odd_one_out() -> None:
    """Two of three are alike: equal weights go to them, the optimum stands between."""
    models = {
        "left": gaussian([-2.0, 0.0], np.eye(2)),
        "also_left": gaussian([-2.0, 0.3], np.eye(2)),
        "right": gaussian([2.0, 0.0], np.eye(2)),
    }
    problem = ExactComposition(models, "reverse")
    equal = problem.at(dict.fromkeys(models, 1 / 3)).kl
    optimum = problem.optimum()
    assert equal["right"] > 1.5 * max(equal["left"], equal["also_left"])
    assert optimum.kl["right"] == pytest.approx(optimum.radius)
    assert optimum.kl["right"] == pytest.approx(max(optimum.kl["left"], optimum.kl["also_left"]))
    assert optimum.kl["right"] < equal["right"] / 1.5


def test_two_models_that_are_the_same_share_a_weight() -> None:
    same = gaussian([1.0], [[1.0]])
    models = {"a": same, "b": same, "c": gaussian([-1.0], [[1.0]])}
    for direction in ("reverse", "forward"):
        weights = ExactComposition(models, direction).optimum().weights
        assert weights == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5}, abs=1e-5)


def test_one_model_is_its_own_composition() -> None:
    for direction in ("reverse", "forward"):
        optimum = ExactComposition(random_models(0, dimension=1, count=1), direction, {"a": 0.3}).optimum()
        assert optimum.weights == {"a": 1.0}
        assert optimum.kl["a"] == pytest.approx(0.0, abs=1e-9)
        assert optimum.radius == pytest.approx(-0.3, abs=1e-9)


def test_offsets_shift_the_kls() -> None:
    """Equal unit covariances δ apart: KL_a = (1 − λ_a)² δ² / 2, so that the shift has a closed form."""
    models = {"a": gaussian([0.0], [[1.0]]), "b": gaussian([2.0], [[1.0]])}
    offsets = {"a": 0.5, "b": -0.1}
    optimum = ExactComposition(models, "reverse", offsets).optimum()
    assert optimum.kl["a"] - 0.5 == pytest.approx(optimum.radius, abs=1e-10)
    assert optimum.kl["b"] + 0.1 == pytest.approx(optimum.radius, abs=1e-10)
    # 2 (1 − λ)² − 2 λ² = 0.6 at λ = λ_a.
    assert optimum.weights["a"] == pytest.approx(0.5 - 0.6 / 4)
    alike = ExactComposition(models, "reverse", {"a": 3.0, "b": 3.0}).optimum()
    assert alike.weights == pytest.approx({"a": 0.5, "b": 0.5})
    assert alike.radius == pytest.approx(0.5 - 3.0)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_a_model_in_between_has_no_weight(direction: Any) -> None:
    models = {name: gaussian([mean], [[1.0]]) for name, mean in (("a", 0.0), ("b", 1.2), ("c", 2.0))}
    optimum = ExactComposition(models, direction).optimum()
    assert optimum.weights["b"] == 0.0
    assert optimum.kl["b"] < optimum.radius - 0.05
    assert optimum.kl["a"] == pytest.approx(optimum.kl["c"]) == pytest.approx(optimum.radius)


# ---------------------------------------------------------------------- independent solutions


@pytest.mark.parametrize("seed", range(4))
def test_gaussians_against_the_primal(seed: int) -> None:
    """Minimise u over means and covariances: the best p of a product is a Gaussian."""
    dimension = 2
    models = random_models(seed, dimension=dimension, components=1)
    offsets = {"a": 0.3, "b": 0.0, "c": -0.2}
    lower = np.tril_indices(dimension)

    def factor(variables: np.ndarray) -> np.ndarray:
        filled = np.zeros((dimension, dimension))
        filled[lower] = variables[dimension:-1]
        return filled

    def kls(variables: np.ndarray) -> np.ndarray:
        root = factor(variables)
        return np.array(
            [
                gaussian_kl(variables[:dimension], root @ root.T, q) - offsets[name]
                for name, q in models.items()
            ]
        )

    def slopes(variables: np.ndarray) -> np.ndarray:
        root = factor(variables)
        rows = []
        for q in models.values():
            precision = np.linalg.inv(q.covariances[0])
            of_root = precision @ root - np.linalg.inv(root).T
            of_mean = precision @ (variables[:dimension] - np.array(q.means[0]))
            rows.append(np.concatenate([-of_mean, -of_root[lower], [1.0]]))
        return np.array(rows)

    start = np.concatenate([np.zeros(dimension), np.eye(dimension)[lower], [30.0]])
    found = minimize(
        lambda variables: variables[-1],
        start,
        jac=lambda variables: np.eye(len(variables))[-1],
        method="SLSQP",
        constraints=[NonlinearConstraint(lambda v: v[-1] - kls(v), 0.0, np.inf, jac=slopes)],
        options={"ftol": 1e-10, "maxiter": 2000},
    ).x
    optimum = ExactComposition(models, "reverse", offsets).optimum()
    # However a line search ends: the largest KL of any Gaussian is at least the radius, and that of a good one near it.
    assert optimum.radius - 1e-9 <= kls(found).max() <= optimum.radius + 1e-6
    pool = ExactComposition(models, "reverse", offsets).at(optimum.weights)
    assert pool.mean == pytest.approx(found[:dimension], abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_mixtures_against_the_primal(seed: int) -> None:
    """Minimise u over probabilities on a grid: no dual, no product."""
    models = random_models(seed, dimension=1)
    _, log_q = dense(models, 0.12)
    log_q = log_q[log_q.max(axis=1) > -12]
    count = len(log_q)

    def kls(variables: np.ndarray) -> np.ndarray:
        p = variables[:count]
        return variables[-1] - p @ (np.log(p)[:, None] - log_q)

    def slopes(variables: np.ndarray) -> np.ndarray:
        p = variables[:count]
        return np.column_stack([-(np.log(p)[:, None] - log_q + 1.0).T, np.ones(log_q.shape[1])])

    flat = np.exp(log_q.mean(axis=1))
    found = minimize(
        lambda variables: variables[-1],
        np.append(flat / flat.sum(), 5.0),
        jac=lambda _: np.append(np.zeros(count), 1.0),
        method="SLSQP",
        bounds=[(1e-9, 1.0)] * count + [(0.0, None)],
        constraints=[
            LinearConstraint(np.append(np.ones(count), 0.0)[None], 1.0, 1.0),
            NonlinearConstraint(kls, 0.0, np.inf, jac=slopes),
        ],
        options={"ftol": 1e-11, "maxiter": 1000},
    )
    optimum = ExactComposition(models, "reverse").optimum()
    # It may end in a failed line search, a little infeasible: the radius of the p it found is what counts.
    p = found.x[:count] / found.x[:count].sum()
    radius = (p @ (np.log(p)[:, None] - log_q)).max()
    assert optimum.radius - 1e-5 <= radius <= optimum.radius + 1e-3


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("seed", range(4))
def test_mixtures_against_mirror_ascent(seed: int, direction: Any) -> None:
    """Exponentiated gradient on a dense grid; for sums at rate 1 it is Blahut-Arimoto, with offsets."""
    models = random_models(seed, dimension=1)
    offsets = np.array([0.1, 0.0, -0.05])
    _, log_q = dense(models, 0.01)
    weights = np.full(3, 1 / 3)
    for _ in range(2000):
        kl, _ = dense_kl(log_q, weights, direction)
        excess = kl - offsets
        if excess.max() - weights @ excess < 1e-13:
            break
        weights = weights * np.exp((0.3 if direction == "reverse" else 1.0) * (excess - excess.max()))
        weights /= weights.sum()
    assert excess.max() - weights @ excess < 1e-6  # the dual value from below, the radius from above
    optimum = ExactComposition(models, direction, dict(zip(models, offsets.tolist(), strict=True))).optimum()
    assert weights @ excess - 1e-6 <= optimum.radius <= excess.max() + 1e-6
    assert list(optimum.weights.values()) == pytest.approx(weights, abs=1e-3)
    assert list(optimum.kl.values()) == pytest.approx(kl, abs=1e-4)


def test_blahut_arimoto_in_two_dimensions() -> None:
    models = random_models(5, dimension=2, components=2)
    _, log_q = dense(models, 0.14)
    weights = np.full(3, 1 / 3)
    for _ in range(60):
        kl, _ = dense_kl(log_q, weights, "forward")
        weights = weights * np.exp(kl - kl.max())
        weights /= weights.sum()
    optimum = ExactComposition(models, "forward").optimum()
    assert weights @ kl - 1e-6 <= optimum.radius <= kl.max() + 1e-6
    assert list(optimum.weights.values()) == pytest.approx(weights, abs=1e-3)


# ---------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize(("dimension", "step"), [(1, 0.004), (2, 0.07)])
@pytest.mark.parametrize("seed", range(3))
def test_at_against_a_dense_grid(seed: int, dimension: int, step: float, direction: Any) -> None:
    models = random_models(seed, dimension=dimension)
    weights = np.random.default_rng(seed).dirichlet(np.ones(3))
    points, log_q = dense(models, step)
    kl, log_p = dense_kl(log_q, weights, direction)
    pool = ExactComposition(models, direction).at(dict(zip(models, weights.tolist(), strict=True)))
    mean = np.exp(log_p) @ points
    offset = points - mean
    assert list(pool.kl.values()) == pytest.approx(kl, abs=ACCURACY)
    assert pool.mean == pytest.approx(mean, abs=1e-5)
    assert pool.covariance == pytest.approx((np.exp(log_p)[:, None] * offset).T @ offset, abs=1e-5)


@pytest.mark.parametrize("ratio", [3.0, 10.0, 30.0])
def test_accuracy_where_mixtures_bend_sharply(ratio: float) -> None:
    """Narrow modes far apart under a small weight: their log density has a kink where the product has mass."""
    spikes = mixture([0.5, 0.5], [[-1.0], [1.0]], [[[ratio**-2]], [[ratio**-2]]])
    models = {"wide": gaussian([0.1], [[1.0]]), "spikes": spikes}
    _, log_q = dense(models, 0.001)
    for share in (0.0, 0.03, 0.1, 0.5, 1.0):
        kl, _ = dense_kl(log_q, np.array([1 - share, share]), "reverse")
        pool = ExactComposition(models, "reverse").at({"wide": 1 - share, "spikes": share})
        assert list(pool.kl.values()) == pytest.approx(kl, abs=ACCURACY)


@pytest.mark.parametrize("dimension", [1, 2])
def test_quadrature_against_the_closed_form(dimension: int) -> None:
    models = list(random_models(3, dimension=dimension, components=1).values())
    rewards = [linear(*[0.7] * dimension), quadratic(*[1.0] * dimension)]
    closed, summed = GaussianProduct(models, rewards), MixtureProduct(models, rewards, 0.5)
    weights = np.array([0.2, 0.5, 0.3])
    for tilt in ([0.0, 0.0], [2.0, 0.5], [0.0, 300.0]):
        one, two = (pool.moments(weights, np.array(tilt)) for pool in (closed, summed))
        for field in ("kl", "rewards", "curvature", "mean", "covariance"):
            assert getattr(one, field) == pytest.approx(getattr(two, field), abs=1e-9), field


def test_three_models_in_two_dimensions_are_quick() -> None:
    models = random_models(1, dimension=2)
    start = time.process_time()
    for direction in ("reverse", "forward"):
        ExactComposition(models, direction).optimum()
    assert time.process_time() - start < 2.0


# ---------------------------------------------------------------------- properties


@given(
    seed=st.integers(0, 10_000),
    components=st.integers(1, 3),
    direction=st.sampled_from(["reverse", "forward"]),
    offsets=st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_optimality(seed: int, components: int, direction: Any, offsets: list[float]) -> None:
    models = random_models(seed, dimension=1, components=components)
    shifts = dict(zip(models, offsets, strict=True))
    problem = ExactComposition(models, direction, shifts)
    optimum = problem.optimum()
    excess = {name: optimum.kl[name] - shifts[name] for name in models}
    assert min(optimum.weights.values()) >= 0.0
    assert sum(optimum.weights.values()) == pytest.approx(1.0, abs=1e-12)
    assert optimum.radius == max(excess.values())
    assert optimum.radius == pytest.approx(optimum.dual, abs=1e-5)
    assert sum(optimum.weights[name] * (optimum.radius - excess[name]) for name in models) < 1e-5
    # No other weights do better, and the dual at any weights is a lower bound.
    for weights in np.random.default_rng(seed).dirichlet(np.ones(3), 3):
        kl = problem.at(dict(zip(models, weights.tolist(), strict=True))).kl
        others = np.array([kl[name] - shifts[name] for name in models])
        assert weights @ others - 1e-6 <= optimum.radius <= others.max() + 1e-6


@given(
    seed=st.integers(0, 10_000),
    components=st.integers(1, 2),
    direction=st.sampled_from(["reverse", "forward"]),
    order=st.permutations(["a", "b", "c"]),
)
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_models_does_not_matter(
    seed: int, components: int, direction: Any, order: list[str]
) -> None:
    models = random_models(seed, dimension=1, components=components)
    one = ExactComposition(models, direction).optimum()
    two = ExactComposition({name: models[name] for name in order}, direction).optimum()
    assert two.kl == pytest.approx(dict(one.kl), abs=1e-5)
    assert two.weights == pytest.approx(dict(one.weights), abs=1e-3)


@given(
    seed=st.integers(0, 10_000),
    problem=st.sampled_from([("reverse", 1, 3), ("reverse", 1, 1), ("forward", 1, 2), ("reverse", 4, 1)]),
)
@settings(max_examples=40, deadline=None)
def test_coordinates_do_not_matter(seed: int, problem: tuple[Any, int, int]) -> None:
    direction, dimension, components = problem
    rng = np.random.default_rng(seed)
    models = random_models(seed, dimension=dimension, components=components)
    matrix = rng.normal(size=(dimension, dimension)) + 2.0 * np.eye(dimension)
    if abs(np.linalg.det(matrix)) < 0.1:
        matrix = 0.01 * np.eye(dimension)
    shift = 5.0 * rng.normal(size=dimension)
    one = ExactComposition(models, direction).optimum()
    two = ExactComposition(
        {name: moved(model, matrix, shift) for name, model in models.items()}, direction
    ).optimum()
    assert two.kl == pytest.approx(dict(one.kl), abs=1e-5)
    assert two.weights == pytest.approx(dict(one.weights), abs=1e-3)


def test_coordinates_do_not_matter_in_the_plane() -> None:
    models = random_models(2, dimension=2, components=2)
    matrix, shift = np.array([[30.0, 8.0], [-2.0, 0.5]]), np.array([100.0, -3.0])
    for direction in ("reverse", "forward"):
        one = ExactComposition(models, direction).optimum()
        two = ExactComposition(
            {name: moved(model, matrix, shift) for name, model in models.items()}, direction
        ).optimum()
        assert two.kl == pytest.approx(dict(one.kl), abs=1e-5)


# ---------------------------------------------------------------------- rewards


@pytest.mark.parametrize(("dimension", "components"), [(1, 3), (2, 2), (5, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_one_model_under_thresholds_is_an_exact_problem(seed: int, dimension: int, components: int) -> None:
    models = random_models(seed, dimension=dimension, components=components, count=1)
    rewards = [
        linear(*np.random.default_rng(seed).normal(size=dimension).tolist()),
        quadratic(*[0.5] * dimension, scale=0.5),
    ]
    exact = ExactProblem(models["a"], rewards)
    problem = ExactComposition(models, "reverse", rewards=rewards)
    both = exact.tilted_means({"linear": 0.8, "quadratic": 0.6})
    for thresholds in (both, {"linear": both["linear"]}, {"quadratic": both["quadratic"]}, {}):
        expected, optimum = exact.least_kl(thresholds), problem.optimum(thresholds)
        assert optimum.weights == {"a": 1.0}
        assert optimum.kl["a"] == pytest.approx(expected.kl, abs=1e-6)
        assert optimum.radius == optimum.kl["a"]
        assert optimum.multipliers == pytest.approx(dict(expected.multipliers), abs=1e-4)
        assert optimum.rewards == pytest.approx(dict(expected.rewards), abs=1e-5)


@given(seed=st.integers(0, 10_000), components=st.integers(1, 2), price=st.floats(0.1, 3.0))
@settings(max_examples=40, deadline=None)
def test_multipliers_are_prices(seed: int, components: int, price: float) -> None:
    models = random_models(seed, dimension=1, components=components)
    problem = ExactComposition(models, "reverse", rewards=[linear(1.0), quadratic(0.0)])
    wanted = {"linear": problem.at(problem.optimum().weights, {"linear": price}).rewards["linear"]}
    optimum = problem.optimum(wanted)
    assert optimum.rewards["linear"] == pytest.approx(wanted["linear"], abs=1e-5)
    assert set(optimum.multipliers) == {"linear"}
    assert optimum.radius == pytest.approx(optimum.dual, abs=1e-5)
    # The slope of the radius, which a change of the active models bends.
    step = 1e-2
    higher, lower = (problem.optimum({"linear": wanted["linear"] + s}).radius for s in (step, -step))
    assert (optimum.radius - lower) / step <= optimum.multipliers["linear"] + 1e-3
    assert (higher - optimum.radius) / step >= optimum.multipliers["linear"] - 1e-3


def test_a_threshold_that_is_met_anyway_is_free() -> None:
    models = random_models(0, dimension=2, components=1)
    problem = ExactComposition(models, "reverse", rewards=[linear(1.0, 0.0)])
    free = problem.optimum()
    loose = problem.optimum({"linear": free.rewards["linear"] - 0.1})
    assert loose.multipliers == {"linear": 0.0}
    assert loose.radius == pytest.approx(free.radius)
    assert loose.weights == pytest.approx(dict(free.weights))


@pytest.mark.parametrize("components", [1, 2])
def test_close_to_the_supremum_of_a_reward(components: int) -> None:
    """E‖x − c‖² = 2 / (2μ) to first order, whatever the models: the price is 1 / threshold."""
    models = random_models(0, dimension=2, components=components)
    problem = ExactComposition(models, "reverse", rewards=[quadratic(0.2, 0.0)])
    for gap in (1e-4, 1e-7):
        optimum = problem.optimum({"quadratic": -gap})
        assert optimum.multipliers["quadratic"] == pytest.approx(1 / gap, rel=1e-2)
        assert optimum.rewards["quadratic"] == pytest.approx(-gap, rel=1e-4)


# ---------------------------------------------------------------------- out of reach, and errors


@pytest.mark.parametrize("components", [1, 2])
def test_models_too_far_apart(components: int) -> None:
    def model(place: float) -> MixtureConfig:
        means = [[place], [place + 1.0]][:components]
        return mixture([1 / components] * components, means, [[[1.0]]] * components)

    near = ExactComposition({"a": model(0.0), "b": model(39.0)}, "reverse").optimum()
    assert near.reachable
    far = ExactComposition({"a": model(0.0), "b": model(60.0)}, "reverse").optimum()
    assert not far.reachable
    assert far.radius == math.inf
    assert set(far.kl.values()) == {math.inf}
    assert far.dual > 200.0
    assert far.reason is not None
    assert "more than 200 nats" in far.reason
    assert "a, b" in far.reason
    # A sum of them is never farther than log 2.
    assert ExactComposition({"a": model(0.0), "b": model(60.0)}, "forward").optimum().radius == pytest.approx(
        math.log(2)
    )


@pytest.mark.parametrize("components", [1, 2])
def test_thresholds_out_of_reach(components: int) -> None:
    models = random_models(0, dimension=1, components=components)
    rewards = [linear(1.0), linear(-1.0, name="back"), quadratic(0.0)]
    problem = ExactComposition(models, "reverse", rewards=rewards)
    far = problem.optimum({"linear": 500.0})
    assert not far.reachable
    assert far.reason is not None
    assert "linear >= 500" in far.reason
    supremum = problem.optimum({"quadratic": 0.0})
    assert not supremum.reachable
    assert supremum.reason is not None
    assert "supremum" in supremum.reason
    assert not problem.optimum({"linear": 1.0, "back": -0.9}).reachable
    assert problem.optimum({"linear": 1.0, "back": -1.0}).reachable


def test_weights_off_the_simplex() -> None:
    problem = ExactComposition(random_models(0, dimension=1), "reverse", rewards=[linear(1.0)])
    with pytest.raises(ValueError, match=r"must sum to 1, got 0\.9"):
        problem.at({"a": 0.5, "b": 0.4})
    with pytest.raises(ValueError, match=r"must be >= 0, got b: -0\.5"):
        problem.at({"a": 1.5, "b": -0.5})
    with pytest.raises(ValueError, match="got a: nan"):
        problem.at({"a": math.nan, "b": 1.0})
    with pytest.raises(ValueError, match="no model 'z' in this problem, only a, b, c"):
        problem.at({"z": 1.0})
    with pytest.raises(ValueError, match="no reward 'z' in this problem, only linear"):
        problem.at({"a": 1.0}, {"z": 1.0})
    with pytest.raises(ValueError, match=r"a tilt must be >= 0 and finite, got linear: -1"):
        problem.at({"a": 1.0}, {"linear": -1.0})
    assert problem.at({"a": 1.0}).kl["a"] == pytest.approx(0.0, abs=1e-9)


def test_what_is_not_supported() -> None:
    models = random_models(0, dimension=1)
    space = random_models(0, dimension=3, components=1)
    assert ExactComposition.supported(space, "reverse")
    unsupported: list[tuple[Models, Any, list[RewardConfig], str]] = [
        ({}, "reverse", [], "at least one model"),
        ({**models, "plane": gaussian([0, 0], np.eye(2))}, "reverse", [], r"a: 1, b: 1, c: 1, plane: 2"),
        (space, "forward", [], "sums take quadrature, in one or two dimensions, got 3"),
        (random_models(0, dimension=3), "reverse", [], "products of mixtures take quadrature"),
        (models, "reverse", [RewardConfig(name="clip", kind="clip")], "kind clip"),
        (models, "forward", [linear(1.0)], "rewards go with products"),
        (random_models(0, dimension=1, count=6, components=5), "reverse", [], "15625 choices"),
    ]
    for chosen, direction, rewards, message in unsupported:
        assert not ExactComposition.supported(chosen, direction, rewards)
        with pytest.raises(ValueError, match=message):
            ExactComposition(chosen, direction, rewards=rewards)
    with pytest.raises(ValueError, match="no model 'z'"):
        ExactComposition(models, "reverse", {"z": 0.1})
    with pytest.raises(ValueError, match="no reward 'linear' in this problem, it has none"):
        ExactComposition(models, "forward").optimum({"linear": 1.0})
    with pytest.raises(ValueError, match="has 2 coordinates, the model has 1"):
        ExactComposition(models, "reverse", rewards=[linear(1.0, 0.0)])
    with pytest.raises(ValueError, match="constant"):
        ExactComposition(models, "reverse", rewards=[linear(0.0)])
    apart = {"a": gaussian([0, 0], np.eye(2)), "b": gaussian([1e4, 1e4], np.eye(2))}
    with pytest.raises(ValueError, match="points, at most 2000000 are allowed"):
        ExactComposition(apart, "forward")
