"""The exact frontier of Gaussian-mixture problems, in closed form and in any dimension.

Symbols (Khalafi et al., arXiv 2508.19104, problem UR-A):

    q       sum_k w_k N(m_k, S_k)                 the pretrained mixture
    r_i(x)  d_i'x − ½ (x − a_i)'A_i(x − a_i)      a linear or concave quadratic reward
    λ       multipliers, >= 0, nats per reward unit
    Z(λ)    E_q exp(λ'r)                          so that p_λ = q exp(λ'r) / Z(λ)

1. A Gaussian times the exponential of a quadratic is a Gaussian again: component k of p_λ has precision
   Q_k = S_k⁻¹ + Σ λ_i A_i and mean μ_k = Q_k⁻¹ (S_k⁻¹ m_k + Σ λ_i (d_i + A_i a_i)), and its mass is
   log z_k = log w_k + λ'r(μ_k) − ½ (μ_k − m_k)'S_k⁻¹(μ_k − m_k) − ½ log det Q_k S_k.
2. ∇ log Z = E_{p_λ}[r] and ∇² log Z = Cov_{p_λ}[r], both closed form.
3. The least KL under E[r] >= b is P(b) = max_{λ >= 0} λ'b − log Z(λ), a smooth concave problem in as many
   variables as there are thresholds; its maximiser is the price, ∇P(b) = λ*(b).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.problems.least import LeastKL, Optimum
from orchestrator.frontier.solvers.concave import Evaluation, maximise
from trainers.config import (
    BaselineStatistics,
    LinearParameters,
    MixtureConfig,
    QuadraticParameters,
    RewardConfig,
    RewardStatistics,
)

FloatArray = NDArray[np.float64]

KL_LIMIT = 200.0
"""Nats beyond which a threshold counts as out of reach: a sample of q that good has odds of e^-200."""
MULTIPLIER_LIMIT = 1e9
"""Nats per σ beyond which a threshold counts as out of reach: it stands at the reward's supremum."""


@dataclass(frozen=True, kw_only=True)
class _Tilted:
    """Moments of the tilted mixture."""

    log_partition: float
    means: FloatArray
    """``[m]``, expected rewards."""
    covariance: FloatArray
    """``[m, m]``, of the rewards."""


class ExactProblem(LeastKL):
    """A Gaussian mixture and its linear and quadratic rewards."""

    line = True

    def __init__(self, mixture: MixtureConfig, rewards: Sequence[RewardConfig]) -> None:
        """Prepare the closed forms.

        Args:
            mixture: The pretrained model.
            rewards: Linear and quadratic rewards.

        Raises:
            ValueError: A reward is of another kind, of another dimension, or constant under the model.
        """
        if not self.supported(rewards):
            kinds = sorted({reward.kind for reward in rewards} - {"linear", "quadratic"})
            raise ValueError(
                f"no closed form for rewards of kind {', '.join(kinds)}, only linear and quadratic"
            )
        self.mixture, self.rewards = mixture, tuple(rewards)
        self.names = tuple(reward.name for reward in rewards)
        self._log_weights = np.log(mixture.weights)  # [C]
        self._means = np.array(mixture.means)  # [C, d]
        covariances = np.array(mixture.covariances)  # [C, d, d]
        self._precisions = np.linalg.inv(covariances)
        self._log_dets = np.linalg.slogdet(covariances)[1]
        self._natural = _matvec(self._precisions, self._means)
        forms = [reward_form(reward, mixture.dimension) for reward in rewards]
        dimension = mixture.dimension
        self._directions = np.array([form[0] for form in forms]).reshape(-1, dimension)  # [m, d]
        self._curvatures = np.array([form[1] for form in forms]).reshape(
            -1, dimension, dimension
        )  # [m, d, d]
        self._centers = np.array([form[2] for form in forms]).reshape(-1, dimension)  # [m, d]
        self._pulls = self._directions + _matvec(self._curvatures, self._centers)
        start = self._tilted(np.zeros(len(forms)))
        self._baseline_means = start.means
        self._stds = np.sqrt(np.diag(start.covariance))
        for name, std in zip(self.names, self._stds, strict=True):
            if not std > 0:
                raise ValueError(
                    f"reward {name!r} is constant under the model: no threshold can be set on it"
                )

    @staticmethod
    def supported(rewards: Sequence[RewardConfig]) -> bool:
        """Whether every reward has a closed form."""
        return all(reward.kind in {"linear", "quadratic"} for reward in rewards)

    def baseline(self) -> BaselineStatistics:
        """Exact mean and standard deviation of every reward under the pretrained mixture."""
        return BaselineStatistics(
            rewards={
                name: RewardStatistics(mean=float(mean), std=float(std))
                for name, mean, std in zip(self.names, self._baseline_means, self._stds, strict=True)
            },
            samples=None,
        )

    def log_partition(self, multipliers: Mapping[str, float]) -> float:
        """``log E_q exp(λ'r)``, nats; multipliers are nats per reward unit, and absent ones 0."""
        return self._tilted(self._vector(multipliers)).log_partition

    def tilted_means(self, multipliers: Mapping[str, float]) -> dict[str, float]:
        """Expected rewards under ``q exp(λ'r) / Z``: the gradient of ``log_partition``."""
        return self._named(self._tilted(self._vector(multipliers)).means)

    def least_kl(self, thresholds: Mapping[str, float]) -> Optimum:
        """The least KL of any distribution with ``E[r] >= thresholds``.

        Args:
            thresholds: By reward name, absolute reward units; a reward that is absent is free.

        Returns:
            The optimum; its KL is the dual value, so a lower bound even before the last digit.
        """
        value, tilt, reachable = self._dual(thresholds)
        return Optimum(
            reachable=reachable,
            kl=max(value, 0.0) if reachable else math.inf,
            rewards=self._named(self._tilted(tilt).means),
            multipliers={name: float(tilt[self._index(name)]) for name in thresholds},
            tilt=self._named(tilt),
        )

    def greatest_reward(
        self, objective: str, kl_budget: float, thresholds: Mapping[str, float] | None = None
    ) -> Optimum:
        """The greatest expected reward within a KL budget and under thresholds on other rewards.

        It is the largest t with P(t, b) <= budget. P is convex and every dual value is a tangent below
        it, so Newton's steps from above (also from where P is infinite) fall onto it without overshoot.

        Args:
            objective: Name of the reward.
            kl_budget: Nats, > 0 and below ``KL_LIMIT``.
            thresholds: By reward name, without the objective; absolute reward units.

        Returns:
            The optimum, with ``multipliers`` in units of the objective per reward unit; not reachable if
            the thresholds alone cost more than the budget.
        """
        if not 0 < kl_budget < KL_LIMIT:
            raise ValueError(f"a KL budget must lie between 0 and {KL_LIMIT:g} nats, got {kl_budget:g}")
        others = dict(thresholds or {})
        if objective in others:
            raise ValueError(f"{objective!r} is the objective, it cannot have a threshold as well")
        index = self._index(objective)
        least = self.least_kl(others)
        if not least.reachable or least.kl > kl_budget:
            return replace(least, reachable=False, kl=math.inf)

        step = float(self._stds[index])
        target = least.rewards[objective] + step
        value, tilt, _ = self._dual({**others, objective: target})
        while value <= kl_budget:
            step *= 2.0
            target += step
            value, tilt, _ = self._dual({**others, objective: target})
        for _ in range(200):
            excess, price = value - kl_budget, float(tilt[index])
            # A price of 0: the other thresholds alone decide, at the limit of what doubles resolve.
            if excess < 1e-11 * (1.0 + kl_budget) or price <= 0 or target - excess / price >= target:
                break
            target -= excess / price
            value, tilt, _ = self._dual({**others, objective: target})
        price = float(max(tilt[index], 1e-300))
        return Optimum(
            reachable=True,
            kl=min(value, kl_budget),
            rewards=self._named(self._tilted(tilt).means) | {objective: target},
            multipliers={name: float(tilt[self._index(name)]) / price for name in others},
            tilt=self._named(tilt),
            kl_multiplier=1.0 / price,
        )

    def _dual(self, thresholds: Mapping[str, float]) -> tuple[float, FloatArray, bool]:
        """Maximise λ'b − log Z: value in nats, λ ``[m]``, and whether the maximum is within the limits."""
        index = np.array([self._index(name) for name in thresholds], dtype=np.intp)
        bounds = np.array(list(thresholds.values()), dtype=np.float64)
        scale = self._stds[index]  # the solver works in nats per σ

        def multipliers(point: FloatArray) -> FloatArray:
            vector = np.zeros(len(self.names))
            vector[index] = point / scale
            return vector

        def dual(point: FloatArray) -> Evaluation:
            tilted = self._tilted(multipliers(point))
            return Evaluation(
                value=float((point / scale) @ bounds) - tilted.log_partition,
                gradient=(bounds - tilted.means[index]) / scale,
                hessian=-tilted.covariance[np.ix_(index, index)] / np.outer(scale, scale),
            )

        point, value, inside = maximise(
            dual, np.zeros(len(index)), value_limit=KL_LIMIT, point_limit=MULTIPLIER_LIMIT
        )
        return value, multipliers(point), inside

    def _tilted(self, multipliers: FloatArray) -> _Tilted:
        """Closed forms of step 1 and 2; multipliers ``[m]``, nats per reward unit."""
        curvature = np.tensordot(multipliers, self._curvatures, 1)  # [d, d]
        precisions = self._precisions + curvature  # Q, [C, d, d]
        covariances = np.linalg.inv(precisions)
        centers = _matvec(covariances, self._natural + multipliers @ self._pulls)  # μ, [C, d]

        offsets = centers[:, None] - self._centers  # [C, m, d]
        bent = np.einsum("mij,cmj->cmi", self._curvatures, offsets)
        peaks = centers @ self._directions.T - 0.5 * np.einsum("cmi,cmi->cm", offsets, bent)  # r(μ), [C, m]
        shifts = centers - self._means
        travelled = np.einsum("ci,cij,cj->c", shifts, self._precisions, shifts)
        log_masses = (
            self._log_weights
            + peaks @ multipliers
            - 0.5 * (travelled + np.linalg.slogdet(precisions)[1] + self._log_dets)
        )
        top = log_masses.max()
        log_partition = float(top + np.log(np.exp(log_masses - top).sum()))
        masses = np.exp(log_masses - log_partition)

        products = np.einsum("mij,cjk->cmik", self._curvatures, covariances)  # A_i C_k
        conditional = peaks - 0.5 * np.einsum("cmii->cm", products)  # E[r | k]
        means = masses @ conditional
        slopes = self._directions - bent  # ∇r(μ), [C, m, d]
        within = np.einsum("cmi,cij,cnj->cmn", slopes, covariances, slopes)
        within += 0.5 * np.einsum("cmij,cnji->cmn", products, products)
        between = conditional - means
        covariance = np.einsum("c,cmn->mn", masses, within) + (masses[:, None] * between).T @ between
        return _Tilted(log_partition=log_partition, means=means, covariance=covariance)

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"no reward {name!r} in this problem, only {', '.join(self.names)}")
        return self.names.index(name)

    def _vector(self, values: Mapping[str, float]) -> FloatArray:
        vector = np.zeros(len(self.names))
        for name, value in values.items():
            vector[self._index(name)] = value
        return vector

    def _named(self, vector: FloatArray) -> dict[str, float]:
        return dict(zip(self.names, vector.tolist(), strict=True))


def reward_form(reward: RewardConfig, dimension: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return direction ``[d]``, curvature ``[d, d]`` and center ``[d]`` of a linear or quadratic reward.

    Raises:
        ValueError: It has another dimension.
    """
    nothing = np.zeros(dimension)
    if reward.kind == "linear":
        direction = np.array(LinearParameters.model_validate(_tuples(reward)).direction)
        form = direction, np.zeros((dimension, dimension)), nothing
    else:
        quadratic = QuadraticParameters.model_validate(_tuples(reward))
        form = nothing, 2.0 * quadratic.scale * np.eye(dimension), np.array(quadratic.center)
    for vector in (form[0], form[2]):
        if len(vector) != dimension:
            raise ValueError(
                f"reward {reward.name!r} has {len(vector)} coordinates, the model has {dimension}"
            )
    return form


def _tuples(reward: RewardConfig) -> dict[str, object]:
    """Parameters with lists, as JSON has them, made tuples, as the strict records want them."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in reward.parameters.items()
    }


def _matvec(matrices: FloatArray, vectors: FloatArray) -> FloatArray:
    product: FloatArray = np.einsum("...ij,...j->...i", matrices, vectors)
    return product
