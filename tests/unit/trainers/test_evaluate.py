"""Evaluation: intervals that cover, the one-sided bound, noise that does not depend on the workers."""

import numpy as np
import pytest
import torch

from trainers.collective import Collective
from trainers.config import MixtureConfig
from trainers.duality.constraint import Constraint
from trainers.duality.lagrangian import KL
from trainers.evaluate import evaluate, feasible, interval
from trainers.models.mixture import ControlNetwork, MixtureModel
from trainers.rewards.analytic import Linear
from trainers.types import Evaluation

MODEL = MixtureModel(
    MixtureConfig(weights=(0.5, 0.5), means=((-1.0,), (1.0,)), covariances=(((0.3,),), ((0.5,),))),
    steps=3,
    eta=1.0,
)
REWARDS = {"x": Linear((1.0,))}


def antithetic_values(rng: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """``count`` standard normal values whose neighbours (0, 1), (2, 3), … have this correlation."""
    first, second = rng.normal(size=(2, count // 2))
    return np.stack([first, correlation * first + np.sqrt(1 - correlation**2) * second], axis=1).ravel()


@pytest.mark.parametrize("correlation", [-0.95, 0.0, 0.9])
def test_intervals_cover_at_their_rate(correlation: float) -> None:
    """Of 95 % intervals about 95 % hold the truth, whatever antithetic pairs have in common."""
    rng = np.random.default_rng(0)
    intervals = [interval(antithetic_values(rng, 400, correlation) + 0.3) for _ in range(4000)]
    covered = np.mean([i.low <= 0.3 <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_too_few_values_bound_nothing() -> None:
    bounds = interval(np.array([1.0]))
    assert (bounds.mean, bounds.low, bounds.high) == (1.0, -np.inf, np.inf)


@pytest.mark.parametrize(("sign", "scale"), [(1.0, 1.0), (-1.0, 4.0)])
def test_feasible_is_a_one_sided_95_percent_bound(sign: float, scale: float) -> None:
    """A trial whose true violation equals the tolerance passes 5 times in 100; well inside it always passes."""
    quantity = KL if sign > 0 else "r"
    constraint = Constraint(name="c", quantity=quantity, sign=sign, bound=2.0, scale=scale)
    rng = np.random.default_rng(0)

    def passes(violation: float) -> bool:
        values = 2.0 + sign * violation * scale + scale * antithetic_values(rng, 400, -0.5)
        sample = Evaluation(kl=values, rewards={"r": values}, seeds=np.arange(400))
        return feasible(sample, [constraint], tolerance=0.05)

    assert np.mean([passes(0.05) for _ in range(4000)]) == pytest.approx(0.05, abs=0.012)
    assert all(passes(-0.2) for _ in range(50))
    assert not any(passes(0.3) for _ in range(50))


def test_every_constraint_must_hold_and_none_holds_without_numbers() -> None:
    met = Constraint(name="met", quantity="a", sign=-1.0, bound=-1.0, scale=1.0)
    broken = Constraint(name="broken", quantity="b", sign=-1.0, bound=1.0, scale=1.0)
    values = 0.01 * np.random.default_rng(0).normal(size=100)
    sample = Evaluation(kl=values, rewards={"a": values, "b": values}, seeds=np.arange(100))
    assert feasible(sample, [], 0.05)
    assert feasible(sample, [met], 0.05)
    assert not feasible(sample, [met, broken], 0.05)
    lost = Evaluation(kl=values, rewards={"a": np.full(100, np.nan)}, seeds=np.arange(100))
    assert not feasible(lost, [met], 0.05)


class OneOf(Collective):
    """One worker of several that share nothing: what it would add to the sum."""

    def __init__(self, rank: int, world_size: int) -> None:
        """Be worker ``rank`` of ``world_size``."""
        super().__init__()
        self.rank, self.world_size = rank, world_size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value


@pytest.mark.parametrize("workers", [2, 3])
def test_a_sample_does_not_depend_on_the_number_of_workers(workers: int) -> None:
    network = ControlNetwork(MODEL, 4)
    torch.nn.init.constant_(network.leave.bias, 0.3)
    alone = evaluate(MODEL, network, REWARDS, samples=9000, seed=7, collective=Collective())
    parts = [
        evaluate(MODEL, network, REWARDS, samples=9000, seed=7, collective=OneOf(rank, workers))
        for rank in range(workers)
    ]
    assert np.array_equal(sum(part.rewards["x"] for part in parts), alone.rewards["x"])
    assert np.array_equal(sum(part.kl for part in parts), alone.kl)
    assert not np.array_equal(parts[0].kl, alone.kl)


@pytest.mark.parametrize("fewer", [1, 100, 5001])
def test_a_sample_does_not_depend_on_how_many_there_are(fewer: int) -> None:
    many = evaluate(MODEL, None, REWARDS, samples=9000, seed=7, collective=Collective())
    few = evaluate(MODEL, None, REWARDS, samples=fewer, seed=7, collective=Collective())
    assert len(few.rewards["x"]) == len(few.seeds) == fewer
    np.testing.assert_allclose(few.rewards["x"], many.rewards["x"][:fewer], rtol=1e-5, atol=1e-6)


def test_chunks_have_their_own_noise_and_seeds_their_own_samples() -> None:
    drawn = evaluate(MODEL, None, REWARDS, samples=8192, seed=7, collective=Collective()).rewards["x"]
    again = evaluate(MODEL, None, REWARDS, samples=8192, seed=7, collective=Collective()).rewards["x"]
    other = evaluate(MODEL, None, REWARDS, samples=8192, seed=5, collective=Collective()).rewards["x"]
    assert np.array_equal(drawn, again)
    assert len(np.unique(drawn)) > 8000
    assert len(np.intersect1d(drawn, other)) < 100
