"""Exact compositions of Gaussian mixtures: what tests and frontiers of composed models are judged by.

Symbols (Khalafi et al., arXiv 2508.19104, problem UR-C), for models q_1, .., q_m with offsets o_i, nats:

    reverse (AND)   min_p u   s.t.   KL(p ‖ q_i) <= u + o_i,  E_p[r_j] >= b_j    p* = Π q_i^λ_i exp(μ'r) / Z
    forward (OR)    min_p u   s.t.   KL(q_i ‖ p) <= u + o_i                      p* = Σ λ_i q_i
    λ               on the simplex, >= 0 with sum 1; μ >= 0, nats per reward unit

1. The dual of the first is −log Z(λ, μ) − λ'o + μ'b, that of the second Σ λ_i KL(q_i ‖ p_λ) − λ'o. Both are concave,
   and both are the Lagrangian λ'(KL − o) + μ'(b − E[r]) at their own p; that is how they are computed.
2. Up to a constant, which does not matter on the simplex, their gradient is (KL − o, b − E[r]).
3. At the optimum every model with λ_i > 0 is at KL_i − o_i = u, and no other is farther: u is the information radius
   (Sibson 1969), and of the second problem without offsets the capacity that Blahut and Arimoto's iteration finds.

Single Gaussians compose by products in closed form in any dimension. Mixtures, and sums of any kind, take
quadrature: in one or two dimensions, with KLs exact to ``ACCURACY``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.problems.exact import KL_LIMIT, MULTIPLIER_LIMIT
from orchestrator.frontier.problems.least import LeastKL, Optimum
from orchestrator.frontier.problems.pools import (
    GaussianProduct,
    MixtureProduct,
    MixtureSum,
    Pool,
    PoolMoments,
)
from orchestrator.frontier.solvers.concave import Evaluation
from orchestrator.frontier.solvers.simplex import maximise_on_simplex
from trainers.config import MixtureConfig, RewardConfig

FloatArray = NDArray[np.float64]
Direction = Literal["reverse", "forward"]

ACCURACY = 1e-4
"""Nats: bound on the error of every KL."""
FINENESS = 0.5
"""Spacing of the first grid, in standard deviations of the narrowest Gaussian; halved until KLs stand still."""
CHANGE = 1e-6
"""Largest change of a KL (nats) that counts as standing still."""
CHOICES_LIMIT = 10_000
"""Choices of one component from every model, of a product."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A composition at given weights."""

    kl: Mapping[str, float]
    """Nats, by model, in the direction of the problem: KL(p ‖ q_i) of products, KL(q_i ‖ p) of sums."""
    rewards: Mapping[str, float]
    """Expected rewards, of every reward of the problem, reward units."""
    mean: FloatArray
    """``[d]``"""
    covariance: FloatArray
    """``[d, d]``"""


@dataclass(frozen=True, kw_only=True)
class CompositionOptimum:
    """The solution of one composition problem."""

    weights: Mapping[str, float]
    """λ by model, on the simplex; 0 for a model that is nearer than the radius anyway."""
    kl: Mapping[str, float]
    """Nats, by model, in the direction of the problem; infinite if not reachable."""
    radius: float
    """u, the largest KL_i − offset_i, nats; infinite if not reachable."""
    dual: float
    """Nats, at most the least radius; where it is reachable, the difference is the duality gap."""
    rewards: Mapping[str, float]
    """Expected rewards at the optimum, of every reward of the problem, reward units."""
    multipliers: Mapping[str, float]
    """μ, the price of each reward threshold, nats per reward unit."""
    reachable: bool
    """False if no distribution has a radius within ``KL_LIMIT`` nats."""
    reason: str | None = None
    """Why it is not reachable."""


class ExactComposition(LeastKL):
    """Gaussian mixtures, to be composed."""

    word = "exact least maximum"

    def __init__(
        self,
        models: Mapping[str, MixtureConfig],
        direction: Direction,
        offsets: Mapping[str, float] | None = None,
        rewards: Sequence[RewardConfig] = (),
    ) -> None:
        """Prepare the composition.

        Args:
            models: By name, all in the same dimension.
            direction: ``reverse`` for products (AND), ``forward`` for sums (OR).
            offsets: Nats by which a model may be farther than the others; absent is 0.
            rewards: Linear and quadratic ones, for thresholds on a product.

        Raises:
            ValueError: The problem is not supported, or an offset names no model.
        """
        obstacle = _obstacle(models, direction, rewards)
        if obstacle is not None:
            raise ValueError(obstacle)
        self.names = tuple(models)
        self.reward_names = tuple(reward.name for reward in rewards)
        self._offsets = self._vector(offsets or {}, self.names, "model")
        configs = list(models.values())
        first: Pool
        if direction == "forward":
            first = MixtureSum(configs, FINENESS)
        elif _single(models):
            first = GaussianProduct(configs, rewards)
        else:
            first = MixtureProduct(configs, rewards, FINENESS)
        self._pools = [first]
        """Each twice as fine as the one before."""
        self._least: dict[tuple[tuple[str, float], ...], Optimum] = {}

    @staticmethod
    def supported(
        models: Mapping[str, MixtureConfig], direction: Direction, rewards: Sequence[RewardConfig] = ()
    ) -> bool:
        """Whether there is an exact solution.

        Products of single Gaussians: in any dimension. Products of mixtures, and sums even of single
        Gaussians: in one or two dimensions. Rewards: linear and quadratic, on products only. The constructor
        says what is amiss.
        """
        return _obstacle(models, direction, rewards) is None

    def at(self, weights: Mapping[str, float], tilt: Mapping[str, float] | None = None) -> Composition:
        """The composition at given weights.

        Args:
            weights: λ by model, on the simplex; absent is 0.
            tilt: μ by reward, nats per reward unit, >= 0; absent is 0.

        Raises:
            ValueError: The weights are off the simplex, a tilt is negative, or a name is unknown.
        """
        shares = self._vector(weights, self.names, "model")
        for name, share in weights.items():
            if not share >= 0:
                raise ValueError(f"weights must be >= 0, got {name}: {share:g}")
        if not abs(shares.sum() - 1.0) <= 1e-6:
            raise ValueError(f"weights must sum to 1, got {shares.sum():.6g}")
        prices = self._vector(tilt or {}, self.reward_names, "reward")
        for name, price in (tilt or {}).items():
            if not 0 <= price < math.inf:
                raise ValueError(f"a tilt must be >= 0 and finite, got {name}: {price:g}")
        level, shares = 0, shares / shares.sum()
        moments = self._pools[0].moments(shares, prices)
        while (finer := self._pool(level + 1)) is not None:
            level, coarse = level + 1, moments
            moments = finer.moments(shares, prices)
            if _stands(coarse, moments):
                break
        return Composition(
            kl=_named(self.names, moments.kl),
            rewards=_named(self.reward_names, moments.rewards),
            mean=moments.mean,
            covariance=moments.covariance,
        )

    def optimum(self, thresholds: Mapping[str, float] | None = None) -> CompositionOptimum:
        """The distribution nearest to all models.

        Args:
            thresholds: ``E[r] >= b`` by reward name, absolute reward units; a reward that is absent is free.

        Raises:
            ValueError: A name is unknown, or the quadrature would take too many points.
        """
        wanted = dict(thresholds or {})
        self._vector(wanted, self.reward_names, "reward")  # refuses unknown names
        level = 0
        while True:
            weights, tilt, inside = self._solve(self._pools[level], wanted)
            moments = self._pools[level].moments(weights, tilt)
            finer = self._pool(level + 1) if inside else None
            if finer is None:
                break
            coarse, moments = moments, finer.moments(weights, tilt)
            if _stands(coarse, moments):
                break
            level += 1
        excess = moments.kl - self._offsets
        missing = self._vector(wanted, self.reward_names, "reward") - moments.rewards
        dual = float(weights @ excess + tilt @ missing)
        assert not inside or abs(excess.max() - dual) <= ACCURACY, "the ascent stopped short of the optimum"
        prices = _named(self.reward_names, tilt)
        return CompositionOptimum(
            weights=_named(self.names, weights),
            kl=_named(self.names, moments.kl if inside else np.full(len(self.names), math.inf)),
            radius=float(excess.max()) if inside else math.inf,
            dual=dual,
            rewards=_named(self.reward_names, moments.rewards),
            multipliers={name: prices[name] for name in wanted},
            reachable=inside,
            reason=None if inside else self._reason(dual, wanted),
        )

    def least_kl(self, thresholds: Mapping[str, float]) -> Optimum:
        """Return the optimum by its largest KL to a model, the objective of every trial; each is solved once.

        Its KL is NaN where quadrature would take too many points, and then it may be reachable.

        Args:
            thresholds: As of ``optimum``.
        """
        key = tuple(sorted(thresholds.items()))
        if key not in self._least:
            self._vector(thresholds, self.reward_names, "reward")  # refuses unknown names
            try:
                found = self.optimum(thresholds)
            except ValueError:  # too many points of quadrature
                self._least[key] = Optimum(reachable=True, kl=math.nan, rewards={}, multipliers={}, tilt={})
            else:
                self._least[key] = Optimum(
                    reachable=found.reachable,
                    kl=max(found.kl.values()),
                    rewards=found.rewards,
                    multipliers=found.multipliers,
                    tilt=found.multipliers,
                )
        return self._least[key]

    def held(self, asked: Mapping[str, float], reached: Mapping[str, float]) -> dict[str, float]:
        """Return its thresholds, or what it reached where that is lower: a shortfall does not look like skill."""
        return {name: min(bound, reached.get(name, math.inf)) for name, bound in asked.items()}

    def _solve(self, pool: Pool, thresholds: Mapping[str, float]) -> tuple[FloatArray, FloatArray, bool]:
        """Maximise the dual: weights ``[m]``, tilt ``[n]``, and whether the maximum is within the limits."""
        count = len(self.names)
        index = np.array([self.reward_names.index(name) for name in thresholds], dtype=np.intp)
        bounds = np.array(list(thresholds.values()), dtype=np.float64)
        # The solver works in nats per standard deviation at equal weights.
        start = pool.moments(np.full(count, 1.0 / count), np.zeros(len(self.reward_names)))
        scale = np.concatenate([np.ones(count), np.sqrt(np.diag(start.curvature)[count + index])])
        used = np.concatenate([np.arange(count), count + index])

        def split(point: FloatArray) -> tuple[FloatArray, FloatArray]:
            tilt = np.zeros(len(self.reward_names))
            tilt[index] = (point / scale)[count:]
            return point[:count] / point[:count].sum(), tilt

        def dual(point: FloatArray) -> Evaluation:
            moments = pool.moments(*split(point))
            gradient = np.concatenate([moments.kl - self._offsets, bounds - moments.rewards[index]]) / scale
            return Evaluation(
                value=float(point @ gradient),
                gradient=gradient,
                hessian=-moments.curvature[np.ix_(used, used)] / np.outer(scale, scale),
            )

        point, inside = maximise_on_simplex(
            dual, count, len(index), value_limit=KL_LIMIT, point_limit=MULTIPLIER_LIMIT
        )
        return *split(point), inside

    def _pool(self, level: int) -> Pool | None:
        if level == len(self._pools):
            finer = self._pools[-1].finer()
            if finer is None:
                return None
            self._pools.append(finer)
        return self._pools[level]

    def _reason(self, dual: float, thresholds: Mapping[str, float]) -> str:
        if dual <= KL_LIMIT:
            return (
                f"a threshold stands at the supremum of its reward ({_listed(thresholds)}): "
                f"its price exceeds {MULTIPLIER_LIMIT:g} nats per σ"
            )
        conditions = f" with {_listed(thresholds)}" if thresholds else ""
        return (
            f"every distribution{conditions} is more than {KL_LIMIT:g} nats farther than its offset from one of "
            f"{', '.join(self.names)}: the least radius is at least {dual:.6g}"
        )

    @staticmethod
    def _vector(values: Mapping[str, float], names: tuple[str, ...], noun: str) -> FloatArray:
        vector = np.zeros(len(names))
        for name, value in values.items():
            if name not in names:
                known = f"only {', '.join(names)}" if names else "it has none"
                raise ValueError(f"no {noun} {name!r} in this problem, {known}")
            vector[names.index(name)] = value
        return vector


def _obstacle(
    models: Mapping[str, MixtureConfig], direction: Direction, rewards: Sequence[RewardConfig]
) -> str | None:
    """What stands in the way of an exact solution."""
    if not models:
        return "a composition needs at least one model"
    dimensions = {name: model.dimension for name, model in models.items()}
    kinds = sorted({reward.kind for reward in rewards} - {"linear", "quadratic"})
    closed = direction == "reverse" and _single(models)
    if len(set(dimensions.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in dimensions.items())
        obstacle = f"the models have different dimensions ({listed})"
    elif kinds:
        obstacle = f"no closed form for rewards of kind {', '.join(kinds)}, only linear and quadratic"
    elif direction == "forward" and rewards:
        obstacle = "rewards go with products (reverse): a sum under thresholds is no mixture of the models"
    elif (dimension := max(dimensions.values())) > 2 and not closed:
        obstacle = (
            f"{'sums' if direction == 'forward' else 'products of mixtures'} take quadrature, in one or two "
            f"dimensions, got {dimension}; only products of single Gaussians are solved in any dimension"
        )
    elif direction == "reverse" and (choices := _choices(models)) > CHOICES_LIMIT:
        obstacle = (
            f"the product has {choices} choices of one component from every model, at most {CHOICES_LIMIT} "
            "are allowed"
        )
    else:
        return None
    return obstacle


def _choices(models: Mapping[str, MixtureConfig]) -> int:
    return math.prod(len(model.weights) for model in models.values())


def _single(models: Mapping[str, MixtureConfig]) -> bool:
    return _choices(models) == 1


def _stands(coarse: PoolMoments, fine: PoolMoments) -> bool:
    return float(np.abs(coarse.kl - fine.kl).max()) <= CHANGE * (
        1.0 + float(np.abs(fine.kl).max()) / KL_LIMIT
    )


def _named(names: tuple[str, ...], vector: FloatArray) -> dict[str, float]:
    return dict(zip(names, vector.tolist(), strict=True))


def _listed(thresholds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} >= {bound:g}" for name, bound in thresholds.items())
