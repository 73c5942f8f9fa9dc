"""Compositions of chains by sampling paths, against Gaussians in path space, where everything is exact."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from support.models.linear_chains import SHRUNK, LinearChains, PathGaussian, constant_chains, random_chains
from torch import Tensor

from orchestrator.frontier.problems.composition import ExactComposition
from trainers.composition.measure import Measure, Measured
from trainers.composition.networks.particles import weighted_paths
from trainers.composition.networks.paths import PathProduct, PathSum
from trainers.composition.solve import newton_target
from trainers.evaluate import SHOWN
from trainers.failures import OutOfMemory
from trainers.models.base import Draw
from trainers.types import FloatArray
from trainers.workers.collective import Collective, Shard

THIRDS = np.full(3, 1 / 3)
UNEVEN = np.array([0.2, 0.3, 0.5])


class Along:
    """Final states ``[batch, d]`` along directions ``[R, d]``; images count by their pixels."""

    def __init__(self, *directions: Sequence[float]) -> None:  # noqa: D107 - a stand-in
        self.directions = torch.tensor(directions, dtype=torch.float64).reshape(
            len(directions), -1 if directions else 1
        )
        self.count = len(directions)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None) -> Tensor:
        return self.directions @ samples.double().flatten(1)[:, : self.directions.shape[1]].T

    def mean(self, chains: LinearChains, paths: PathGaussian) -> FloatArray:
        return np.asarray(self.directions.numpy() @ chains.state(chains.steps) @ paths.mean)


NOTHING = Along()
BOTH = Along((1.0, 0.0), (0.6, -0.8))


def measure(
    problem: Measure,
    weights: FloatArray = UNEVEN,
    *,
    tilt: FloatArray | None = None,
    count: int = 16384,
    seed: int = 0,
    rewards: int = 2,
) -> Measured:
    return problem(weights, np.zeros(rewards) if tilt is None else tilt, count, seed)


def assert_within_error(measured: Measured, kl: FloatArray, rewards: FloatArray) -> None:
    assert np.abs((measured.kl - kl) / measured.kl_error).max() < 4
    assert np.abs((measured.rewards - rewards) / measured.reward_error).max() < 4
    assert (measured.kl_error / kl).max() < 0.05


def assert_is_a_log_ratio(found: Measured, kl: FloatArray, *, shared: int = 1) -> None:
    """Of equally weighted samples to each model: its mean the KL, and that of ``exp(−log p/q_i)`` 1."""
    assert found.log_ratio is not None
    for values, mean in ((found.log_ratio, kl), (np.exp(-found.log_ratio), 1.0)):
        error = values.std(axis=1) * np.sqrt(shared / values.shape[1])
        assert error.max() < 0.1
        assert np.abs((values.mean(axis=1) - mean) / error).max() < 4


def kls(p: PathGaussian, chains: LinearChains, prompt: str | None = None) -> FloatArray:
    return np.array([p.kl(q) for q in chains.models(prompt)])


# ---------------------------------------------------------------------- products


@pytest.mark.parametrize("seed", range(3))
def test_the_corrected_product_is_exact_within_its_error(seed: int) -> None:
    chains = random_chains(seed)
    exact = chains.product(UNEVEN)
    problem = PathProduct(chains, BOTH, driver="fkc", particles=32)
    found = measure(problem)
    assert problem.estimator == "path_energy"
    assert_within_error(found, kls(exact, chains), BOTH.mean(chains, exact))
    assert found.dual == pytest.approx(-exact.log_partition, abs=0.02)
    assert found.dual == pytest.approx(float(UNEVEN @ found.kl), abs=4 * float(found.kl_error.max()))
    assert found.evaluations == chains.evaluations
    assert found.samples is not None
    assert found.samples.kl is None
    assert found.log_ratio is None
    assert found.scores.mean(axis=1) == pytest.approx(found.rewards, abs=0.05)


def test_the_uncorrected_chain_is_exact_for_itself_and_visibly_not_the_product() -> None:
    chains = random_chains(4, steps=8, bend=0.35)
    problem = PathProduct(chains, BOTH, driver="score")
    found = measure(problem)
    chain, product = chains.chain(UNEVEN), chains.product(UNEVEN)
    assert problem.estimator == "path"
    assert_within_error(found, kls(chain, chains), BOTH.mean(chains, chain))
    assert found.dual > -product.log_partition  # Jensen
    assert np.abs((found.kl - kls(product, chains)) / found.kl_error).max() > 10
    assert np.abs((found.rewards - BOTH.mean(chains, product)) / found.reward_error).max() > 10
    assert found.effective_samples == pytest.approx(16384)
    corrected = measure(PathProduct(chains, BOTH, driver="fkc", particles=64))
    assert_within_error(corrected, kls(product, chains), BOTH.mean(chains, product))


def test_an_uncorrected_chain_knows_the_log_ratio_of_every_path() -> None:
    chains = random_chains(4, steps=4, spread=0.3)
    assert_is_a_log_ratio(
        measure(PathProduct(chains, BOTH, driver="score")), kls(chains.chain(UNEVEN), chains)
    )


def test_baselines_move_by_a_control_of_their_own() -> None:
    chains = random_chains(5)
    merged = measure(PathProduct(chains, BOTH, driver="merged"))
    exact = chains.chain(UNEVEN, factor=SHRUNK)
    assert_within_error(merged, kls(exact, chains), BOTH.mean(chains, exact))
    base = measure(PathProduct(chains, BOTH, driver="base"))
    exact = chains.chain(UNEVEN, factor=0.0)
    assert_within_error(base, kls(exact, chains), BOTH.mean(chains, exact))
    assert merged.evaluations == chains.evaluations / 3


@pytest.mark.parametrize("index", range(3))
def test_a_vertex_is_the_model_alone(index: int) -> None:
    chains = random_chains(6)
    vertex = np.eye(3)[index]
    alone = measure(PathProduct(chains, BOTH, driver=index), UNEVEN)
    model = chains.models()[index]
    others = [i for i in range(3) if i != index]
    assert alone.kl[index] == 0
    assert alone.kl[others] == pytest.approx(kls(model, chains)[others], rel=0.05)
    assert alone.evaluations == chains.evaluations / 3
    for driver in ("score", "fkc"):
        found = measure(PathProduct(chains, BOTH, driver=driver), vertex)
        assert found.rewards == pytest.approx(alone.rewards, abs=1e-6)
        assert found.kl[index] == pytest.approx(0.0, abs=1e-6)
        assert found.kl == pytest.approx(alone.kl, abs=4 * float(found.kl_error.max()))
        assert found.effective_samples == pytest.approx(16384)
        assert np.sort(found.scores, axis=1) == pytest.approx(np.sort(alone.scores, axis=1), abs=1e-5)


def test_constant_controls_weigh_every_path_alike() -> None:
    means = np.array([[0.0, 0.0], [2.0, 0.0], [0.5, 1.0]])
    chains = constant_chains(means, steps=4)
    found = measure(PathProduct(chains, NOTHING, driver="fkc"), rewards=0, count=64)
    centre = UNEVEN @ means
    squares = 0.5 * np.square(centre - means).sum(axis=1)
    assert found.kl == pytest.approx(squares, rel=1e-5)  # no noise at all
    assert found.dual == pytest.approx(UNEVEN @ squares, rel=1e-5)
    assert found.effective_samples == pytest.approx(64)
    score = measure(PathProduct(chains, NOTHING, driver="score"), rewards=0, count=64)
    assert score.kl == pytest.approx(squares, rel=1e-5)


def test_a_tilt_by_rewards() -> None:
    chains, tilt = random_chains(7), np.array([0.4, 0.2])
    exact = chains.product(UNEVEN, tilt=tilt @ BOTH.directions.numpy())
    found = measure(PathProduct(chains, BOTH, driver="fkc", particles=64), tilt=tilt)
    assert_within_error(found, kls(exact, chains), BOTH.mean(chains, exact))
    assert found.dual == pytest.approx(-exact.log_partition, abs=0.02)
    assert found.rewards[0] > BOTH.mean(chains, chains.product(UNEVEN))[0] + 10 * found.reward_error[0]
    with pytest.raises(ValueError, match="use fkc"):
        measure(PathProduct(chains, BOTH, driver="score"), tilt=tilt)


def test_every_prompt_has_a_product_of_its_own() -> None:
    chains = random_chains(8, prompts=3, spread=0.4)
    exact = [chains.product(UNEVEN, name) for name in chains.prompts or ()]
    found = PathProduct(chains, BOTH, driver="fkc", particles=32)(
        UNEVEN, np.zeros(2), 32 * 384, 0, held_out=True
    )
    expected = np.mean([kls(p, chains, n) for p, n in zip(exact, chains.prompts or (), strict=True)], axis=0)
    assert_within_error(found, expected, np.mean([BOTH.mean(chains, p) for p in exact], axis=0))
    assert found.dual == pytest.approx(-np.mean([p.log_partition for p in exact]), abs=0.03)
    assert found.samples is not None
    assert found.samples.prompts is not None
    assert found.samples.prompts[: 4 * 32] == ("p0",) * 32 + ("p1",) * 32 + ("p2",) * 32 + ("p0",) * 32


def test_stated_errors_are_those_of_repetition() -> None:
    chains = random_chains(9, steps=6)
    problem = PathProduct(chains, BOTH, driver="fkc")
    exact = chains.product(UNEVEN)
    runs = [measure(problem, count=1024, seed=seed) for seed in range(60)]
    truth = np.concatenate([kls(exact, chains), BOTH.mean(chains, exact)])
    means = np.stack([np.concatenate([run.kl, run.rewards]) for run in runs])
    errors = np.stack([np.concatenate([run.kl_error, run.reward_error]) for run in runs])
    scores = (means - truth) / errors
    assert np.sqrt(np.square(scores).mean(axis=0)) == pytest.approx(np.ones(5), abs=0.35)
    # Effective samples: as many independent ones of the product would leave the same error of a reward.
    final = chains.state(chains.steps) @ np.linalg.inv(exact.precision) @ chains.state(chains.steps).T
    direction = BOTH.directions.numpy()[0]
    needed = direction @ final @ direction / means[:, 3].var(ddof=1)
    assert np.mean([run.effective_samples for run in runs]) == pytest.approx(needed, rel=0.4)


def test_few_particles_are_corrected_for() -> None:
    chains = random_chains(1, steps=8, dimension=3)
    exact = chains.product(UNEVEN).log_partition
    groups, size = 4096, 8
    draw = chains.draw(groups, size, 0)
    generators = [torch.Generator().manual_seed(group) for group in range(groups)]
    particles = weighted_paths(chains, torch.tensor(UNEVEN), draw, size, generators)
    assert particles.resampled.mean() > 0.1
    plain = particles.log_mass + torch.logsumexp(particles.log_weights, dim=1) - np.log(size)
    corrected = particles.log_partition()
    error = float(corrected.std()) / np.sqrt(groups)
    assert float(plain.mean()) - exact < -6 * error
    assert abs(float(corrected.mean()) - exact) < 0.4 * abs(float(plain.mean()) - exact)
    assert float(corrected.std()) < 1.05 * float(plain.std())


def test_the_curvature_is_that_of_the_dual() -> None:
    chains = random_chains(10)
    found = measure(PathProduct(chains, BOTH, driver="fkc", particles=64))
    directions = BOTH.directions.numpy()

    def dual(weights: FloatArray, tilt: FloatArray) -> float:
        return -chains.product(weights, tilt=tilt @ directions).log_partition

    moves = [np.array([1, -1, 0, 0, 0]), np.array([0, 1, -1, 0, 0]), np.eye(5)[3], np.eye(5)[4]]
    for move in [*moves, moves[0] + moves[2], moves[1] + moves[3]]:
        step = 1e-3 * move
        values = [dual(UNEVEN + s * step[:3], s * step[3:]) for s in (-1, 0, 1)]
        expected = -(values[0] - 2 * values[1] + values[2]) / 1e-6
        assert move @ found.curvature @ move == pytest.approx(expected, rel=0.1)


# ---------------------------------------------------------------------- sums


def sum_pair() -> LinearChains:
    """One step in one dimension: the paths are Gaussians in the plane."""
    return LinearChains(
        np.array([0.5, -0.3, 0.2]).reshape(3, 1, 1, 1), np.array([-0.9, 1.1, 0.3]).reshape(3, 1, 1)
    )


def test_a_sum_is_exact_within_its_error() -> None:
    chains, judge = sum_pair(), Along((1.0,))
    exact = ExactComposition(chains.mixtures(), "forward").at(
        dict(zip(chains.mixtures(), UNEVEN.tolist(), strict=True))
    )
    problem = PathSum(chains, judge)
    found = measure(problem, rewards=1, count=65536)
    means = np.array([judge.mean(chains, q)[0] for q in chains.models()])
    assert problem.estimator == "path_monte_carlo"
    assert_within_error(found, np.array([*exact.kl.values()]), np.array([UNEVEN @ means]))
    assert found.dual == pytest.approx(UNEVEN @ found.kl)
    assert found.evaluations == 1.0
    # The equally weighted samples are those of the mixture.
    error = 2 * found.scores.std() / np.sqrt(found.effective_samples)
    assert found.scores.mean() == pytest.approx(UNEVEN @ means, abs=2 * error)
    alone = measure(problem, np.array([0.0, 1.0, 0.0]), rewards=1)
    assert alone.kl[1] == pytest.approx(0.0, abs=1e-9)
    assert alone.kl[0] == pytest.approx(kls(chains.models()[0], chains)[1], rel=0.05)
    assert alone.scores.mean() == pytest.approx(means[1], abs=0.05)


def test_two_models_and_many_steps_in_one_dimension_of_path_space() -> None:
    # Along the line through their means two Gaussians of equal covariance are N(±h, 1).
    chains, half = constant_chains(np.array([[-0.8], [0.8]]), steps=5), 0.8
    x = np.linspace(-12, 12, 40001)
    densities = np.exp(-0.5 * np.square(x[None] - np.array([[-half], [half]]))) / np.sqrt(2 * np.pi)
    weights = np.array([0.3, 0.7])
    expected = np.trapezoid(densities * np.log(densities / (weights @ densities)), x, axis=1)
    found = PathSum(chains, NOTHING)(weights, np.zeros(0), 32768, 0)
    assert np.abs((found.kl - expected) / found.kl_error).max() < 4
    backward = np.trapezoid((weights @ densities) * np.log((weights @ densities) / densities), x, axis=1)
    assert_is_a_log_ratio(found, backward, shared=4)  # samples of another model's density come several times
    ratios = densities / (weights @ densities)
    curvature = np.trapezoid((weights @ densities) * ratios[:, None] * ratios[None], x, axis=2)
    assert found.curvature == pytest.approx(curvature, rel=0.05)


@pytest.mark.parametrize("spread", [0.05, 0.15, 0.4])
def test_stated_errors_of_a_sum_are_those_of_repetition(spread: float) -> None:
    chains = random_chains(1, steps=8, dimension=3, spread=spread, bend=spread)
    problem = PathSum(chains, NOTHING)
    runs = [measure(problem, rewards=0, count=256, seed=seed) for seed in range(60)]
    means, errors = np.stack([run.kl for run in runs]), np.stack([run.kl_error for run in runs])
    long = measure(problem, rewards=0, count=65536, seed=1000)
    assert np.abs(means.mean(axis=0) - long.kl).max() < 4 * float((means.std(axis=0) / np.sqrt(60)).max())
    stated = np.sqrt(np.square(errors).mean(axis=0))
    assert means.std(axis=0, ddof=1) / stated == pytest.approx(np.ones(3), abs=0.4)
    if spread == 0.05:
        # The control variate: 256 plain samples would leave about 0.06 nats.
        assert stated.max() < 0.02


# ---------------------------------------------------------------------- the solver


def solve(problem: Measure, *, count: int = 1024, steps: int = 30) -> FloatArray:
    """Iterate as a composition trial does, and return the mean of the later weights."""
    weights, tilt = THIRDS, np.zeros(0)
    seen = []
    for step in range(steps):
        now = problem(weights, tilt, count, 100 + step)
        seen.append(weights)
        target, _, decrement = newton_target(weights, tilt, now.kl, now.curvature)
        damping = 1.0 / (1.0 + decrement) if decrement > 0.25 else 1.0
        weights = weights + damping * (target - weights)
    return np.asarray(np.mean(seen[steps // 2 :], axis=0))


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_a_product(seed: int) -> None:
    chains = random_chains(20 + seed, prompts=2 if seed == 2 else 0)
    best = solve(PathProduct(chains, NOTHING, driver="fkc"))
    assert best == pytest.approx(chains.best(), abs=0.03)


def test_weights_of_the_smallest_enclosing_ball() -> None:
    means = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 0.3]])  # the third lies inside the ball of the others
    chains = constant_chains(means, steps=3)
    assert solve(PathProduct(chains, NOTHING, driver="fkc"), count=64) == pytest.approx(
        [0.5, 0.5, 0.0], abs=1e-3
    )
    assert chains.best() == pytest.approx([0.5, 0.5, 0.0], abs=1e-3)


def test_weights_of_a_sum() -> None:
    chains = sum_pair()
    best = ExactComposition(chains.mixtures(), "forward").optimum({}).weights
    assert solve(PathSum(chains, NOTHING), count=2048) == pytest.approx([*best.values()], abs=0.03)


# ---------------------------------------------------------------------- bookkeeping


BUILT = [
    lambda chains: PathProduct(chains, BOTH, driver="fkc"),
    lambda chains: PathProduct(chains, BOTH, driver="score"),
    lambda chains: PathSum(chains, BOTH),
]


@pytest.mark.parametrize("build", BUILT)
def test_chunks_and_shares_change_nothing(build: Callable[[LinearChains], PathProduct | PathSum]) -> None:
    whole, chunked = (
        measure(build(random_chains(30, chunk=chunk, spread=0.5)), count=200) for chunk in (4096, 24)
    )
    assert whole.kl == pytest.approx(chunked.kl, rel=1e-5)
    assert whole.scores == pytest.approx(chunked.scores, abs=1e-5)
    if whole.log_ratio is not None:
        assert whole.log_ratio == pytest.approx(chunked.log_ratio, abs=1e-4)
    assert whole.samples is not None
    assert chunked.samples is not None
    assert whole.samples.seeds.tolist() == chunked.samples.seeds.tolist()
    problem = build(random_chains(30, chunk=24, spread=0.5))
    parts = [problem(UNEVEN, np.zeros(2), 200, 0, share=Shard(rank, 2)) for rank in range(2)]
    assert sum(part.scores for part in parts) == pytest.approx(chunked.scores)
    assert (
        np.abs(parts[0].scores).min(axis=0).astype(bool).sum() == 104
    )  # five chunks of nine, the last of one group


class Hungry(LinearChains):
    """Holds so many samples at a time."""

    limit = 8

    def controls(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        if len(state) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().controls(step, state, draw)


@pytest.mark.parametrize("build", BUILT)
@pytest.mark.parametrize("limit", [8, 20])
def test_where_memory_runs_out_fewer_groups_are_drawn_at_a_time(
    build: Callable[[LinearChains], PathProduct | PathSum], limit: int
) -> None:
    usual = random_chains(30, chunk=64, spread=0.5)
    hungry = Hungry(usual.matrices, usual.offsets, chunk=64)
    hungry.limit = limit
    problem = build(hungry)
    whole, found = measure(build(usual), count=200), measure(problem, count=200)
    assert found.kl == pytest.approx(whole.kl, rel=1e-5)
    assert found.rewards == pytest.approx(whole.rewards, rel=1e-5)
    assert found.scores == pytest.approx(whole.scores, abs=1e-5)
    assert found.samples is not None
    assert whole.samples is not None
    assert found.samples.seeds.tolist() == whole.samples.seeds.tolist()
    (note,) = problem.batches.notes(Collective())
    assert f"went on with {limit // 8 * 8}" in note


def test_a_group_that_does_not_fit_is_the_end() -> None:
    usual = random_chains(30, spread=0.5)
    hungry = Hungry(usual.matrices, usual.offsets)
    hungry.limit = 7
    with pytest.raises(OutOfMemory, match="out of memory in the composition"):
        measure(PathSum(hungry, BOTH), count=200)


def test_drivers_share_noise_and_prompts() -> None:
    chains = random_chains(31, prompts=2)
    runs = [measure(PathProduct(chains, BOTH, driver=d), count=64).samples for d in ("score", "base", 1)]
    for run in runs:
        assert run is not None
        assert runs[0] is not None
        assert run.seeds.tolist() == runs[0].seeds.tolist()
        assert run.prompts == runs[0].prompts
    means = [measure(PathProduct(chains, BOTH, driver=d), count=64).scores for d in ("score", "base")]
    assert np.corrcoef(means[0][0], means[1][0])[0, 1] > 0.5


def test_rows_belong_to_their_samples() -> None:
    class Pictures(LinearChains):
        def decode(self, state: Tensor) -> Tensor:
            return torch.sigmoid(state)[:, :, None, None].expand(-1, 3, 4, 5)

    chains = random_chains(32, dimension=1, spread=0.7)
    chains = Pictures(chains.matrices, chains.offsets)
    judge = Along((1.0,))
    for problem in (
        PathProduct(chains, judge, driver="fkc"),
        PathProduct(chains, judge, driver="score"),
        PathSum(chains, judge),
    ):
        found = measure(problem, rewards=1, count=60)
        assert found.samples is not None
        assert found.scores.shape == (1, 64)
        assert found.samples.images is not None
        assert found.samples.images.shape == (SHOWN, 4, 5, 3)
        assert found.samples.images[:, 0, 0, 0] == pytest.approx(255 * found.scores[0, :SHOWN], abs=0.51)
    score = measure(PathProduct(chains, judge, driver="score"), rewards=1, count=60)
    assert score.samples is not None
    assert score.samples.kl is not None
    assert score.samples.kl.mean(axis=1) == pytest.approx(score.kl)


def test_what_cannot_be_measured_is_refused() -> None:
    chains = random_chains(33)
    with pytest.raises(ValueError, match="fkc, score, merged, joint"):
        PathProduct(chains, BOTH, driver="ula")
    with pytest.raises(ValueError, match="below 3, got 3"):
        PathProduct(chains, BOTH, driver=3)
    with pytest.raises(ValueError, match="two particles"):
        PathProduct(chains, BOTH, driver="fkc", particles=1)
    with pytest.raises(ValueError, match="sum 1"):
        measure(PathProduct(chains, BOTH, driver="score"), np.array([0.5, 0.4, 0.2]))
    with pytest.raises(ValueError, match="sum 1"):
        measure(PathSum(chains, BOTH), np.array([1.2, -0.2, 0.0]))
    with pytest.raises(ValueError, match="no baseline 'joint'"):
        measure(PathProduct(chains, BOTH, driver="joint"), count=8)
