"""An upper bound on the least KL, from the same path weights: the best mixture of the policies that drew the samples.

Symbols as in ``certificate``; k is a policy, R_k its rewards, K_k its path KL:

    g_k(λ)   E_c E_k[l − λ'r] = K_k − λ'R_k, the Lagrangian of policy k: minus the mean of log w
    U(b)     min over mixtures v of Σ v_k K_k with Σ v_k R_k >= b, which is max over λ >= 0 of λ'b + min_k g_k(λ)

1. With λ the price of b, ``P(b) <= λ'b + g_k(λ)`` for every policy. So if at this one λ no g_k is above its upper end
   ĝ_k + z s_k(λ), then max_λ [λ'b + min_k (ĝ_k(λ) + z s_k(λ))] is at least P(b), whichever policies a mixture takes:
   the bound is simultaneous over policies, by Bonferroni's inequality, and needs not be over rewards.
2. s_k is the standard error of the mean of log w, which falls to 0 as the policy nears the optimum of λ: far smaller
   than those of K_k and λ'R_k are together.
3. s_k is convex in λ, the maximum has many pieces. With s_k(λ) <= s_k(μ) + Σ_j |λ_j − μ_j| e_kj, e the standard errors
   of rewards, it is a linear program in each orthant around μ, a guess of the price; the largest of them is at least
   the maximum, whatever μ is.
4. Σ u·ε along a path has the mean 0 and goes with the rewards that the policy was trained for; it is taken out of all
   means by regression, which leaves errors a half to a fifth as large. So are the rewards of the pretrained model on
   the same noise, which go with the policy's at 0.9 and more, where it has other samples of the prompts besides: their
   means are known from those, with an error that counts.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.special import stdtrit

from orchestrator.frontier.paths.sources import PathSamples, Pool
from orchestrator.frontier.paths.units import UnitTable

FloatArray = NDArray[np.float64]

_NEGLIGIBLE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The best mixture at thresholds."""

    upper: float
    """One-sided upper bound of the least KL, nats; infinite where no mixture is sure to reach the thresholds."""
    estimate: float
    """KL of the best mixture of the estimates, nats; infinite where none reaches them."""
    probabilities: FloatArray
    """``[K]``, of the policies in that mixture; NaN without one."""


class Mixtures:
    """Policies that can be mixed, by their samples."""

    def __init__(self, samples: Sequence[PathSamples], *, confidence: float = 0.95) -> None:
        """Take means and covariances of rewards and log ratios.

        Args:
            samples: One entry for each policy, each with at least two units; the pretrained model among them.
            confidence: Of a bound at one row of thresholds.

        Raises:
            ValueError: See ``paths``; also for a policy with a single unit.
        """
        pool = Pool.of(samples)
        self.scale = np.maximum(pool.rewards.std(axis=0), 1e-300)
        self.center = pool.rewards.mean(axis=0)
        rewards = (pool.rewards - self.center) / self.scale
        tables = [UnitTable.of(pool.subset(pool.sources == k, rewards)) for k in range(pool.count)]
        own = next(
            (table for table in tables if not table.values[:, -1].any()), None
        )  # the pretrained model's
        figures = [table.means(None if table is own else own) for table in tables]
        self.means: FloatArray = np.array([mean for mean, _, _ in figures])
        """``[K, m + 1]``, of the scaled rewards and of log p/q."""
        self._covariances = np.array([covariance for _, covariance, _ in figures])
        """``[K, m + 1, m + 1]``, of these means."""
        measured = max(int(self._covariances.any(axis=(1, 2)).sum()), 1)
        freedom = np.array([units - 1 for _, _, units in figures])
        if freedom.min() < 1:
            raise ValueError(
                f"source {int(freedom.argmin())} has a single independent unit, its error is not known"
            )
        self._deviations: FloatArray = np.asarray(-stdtrit(freedom, (1.0 - confidence) / measured))
        """``[K]``, standard errors to bounds that hold together."""

    @property
    def rewards(self) -> FloatArray:
        """Means ``[K, m]`` of the policies' rewards, reward units."""
        found: FloatArray = self.center + self.scale * self.means[:, :-1]
        return found

    def at(self, thresholds: ArrayLike, prices: ArrayLike | None = None) -> Mixed:
        """Bound the least KL with ``E[r] >= thresholds`` from above.

        Args:
            thresholds: b ``[m]``, reward units; NaN or −inf where a reward is free.
            prices: A guess of their prices ``[m]``, nats per reward unit, by default those of the estimates' mixture.
        """
        row = np.asarray(thresholds, dtype=np.float64)
        free = np.isfinite(row)
        wanted = ((row - self.center) / self.scale)[free]
        estimate, found, probabilities = self._solved(wanted, free, None)
        guess = found if prices is None else (np.asarray(prices, dtype=np.float64) * self.scale)[free]
        if not np.isfinite(guess).all():
            return Mixed(upper=np.inf, estimate=estimate, probabilities=probabilities)
        upper, _, _ = self._solved(wanted, free, guess)
        return Mixed(upper=max(upper, 0.0), estimate=max(estimate, 0.0), probabilities=probabilities)

    def _solved(
        self, wanted: FloatArray, free: NDArray[np.bool_], guess: FloatArray | None
    ) -> tuple[float, FloatArray, FloatArray]:
        """Step 3 around a guess ``[q]``, or without errors: the value, λ ``[q]`` and the mixture ``[K]``."""
        rewards, ratios = self.means[:, :-1][:, free], self.means[:, -1]
        count, size = rewards.shape
        best = (-np.inf, np.full(size, np.nan), np.full(count, np.nan))
        if guess is None:
            corners: list[tuple[int, ...]] = [(1,) * size]
            around, spread, slopes = np.zeros(size), np.zeros(count), np.zeros_like(rewards)
        else:
            corners = list(itertools.product((-1, 1), repeat=size))
            around = guess
            spread = self._deviations * self._error(guess, free)
            variances = np.diagonal(self._covariances, axis1=1, axis2=2)[:, :-1][:, free]
            slopes = self._deviations[:, None] * np.sqrt(np.maximum(variances, 0.0))  # rounding
        for corner in corners:
            signs = np.array(corner, dtype=np.float64)
            bent = slopes * signs
            ends = [
                (low, None) if sign > 0 else (0.0, low)
                for low, sign in zip(around.tolist(), corner, strict=True)
            ]
            solved = linprog(
                np.append(-wanted, -1.0),
                A_ub=np.column_stack([rewards - bent, np.ones(count)]),
                b_ub=ratios + spread - bent @ around,
                bounds=[*ends, (None, None)],
            )
            if solved.x is None:  # unbounded: out of reach; it is never empty
                return np.inf, np.full(size, np.nan), np.full(count, np.nan)
            value = float(np.append(wanted, 1.0) @ solved.x)
            if value > best[0]:
                best = (value, solved.x[:-1], -np.asarray(solved.ineqlin.marginals))
        value, prices, probabilities = best
        probabilities = np.where(probabilities < _NEGLIGIBLE, 0.0, probabilities)
        return value, prices, probabilities / probabilities.sum()

    def _error(self, guess: FloatArray, free: NDArray[np.bool_]) -> FloatArray:
        """Standard errors ``[K]`` of the means of log w at λ."""
        along = np.zeros(self.means.shape[1])
        along[:-1][free] = guess
        along[-1] = -1.0
        errors: FloatArray = np.sqrt(np.maximum(along @ self._covariances @ along, 0.0))
        return errors
