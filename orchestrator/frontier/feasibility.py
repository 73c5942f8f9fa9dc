"""Whether a measured violation is small enough, at 95 % confidence."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainers.config import BaselineStatistics, ConstraintConfig, EvaluationConfig

FloatArray = NDArray[np.float64]

ONE_SIDED = 1.6448536269514722
"""Standard errors to a one-sided 95 % bound."""
TWO_SIDED = 1.959963984540054
"""Standard errors to either end of a two-sided 95 % interval."""


def joint_deviations(asked: int) -> float:
    """Standard errors to one-sided bounds of so many figures that hold together at 95 %: Bonferroni's inequality.

    Of one figure it is ``ONE_SIDED``, which is what makes a trial feasible.
    """
    return -NormalDist().inv_cdf(0.05 / max(asked, 1))


def standard_error(low: ArrayLike, high: ArrayLike) -> FloatArray:
    """Standard error of the normal distribution whose two-sided 95 % interval this is.

    Intervals of few samples are Student's, those of a choice between states wider still (``trainers.estimates``): in
    what is made of this error they stay as wide.
    """
    return (np.asarray(high, dtype=np.float64) - np.asarray(low, dtype=np.float64)) / (2.0 * TWO_SIDED)


def upper_bound(violation: ArrayLike, error: ArrayLike) -> FloatArray:
    """One-sided 95 % upper bound of a violation, given its standard error."""
    return np.asarray(violation, dtype=np.float64) + ONE_SIDED * np.asarray(error, dtype=np.float64)


def tolerance(
    constraint: ConstraintConfig, evaluation: EvaluationConfig, baseline: BaselineStatistics
) -> float:
    """How far above 0 the bound of a violation may lie: reward units, or a share of the budget for a KL."""
    std = 1.0 if constraint.kind == "kl" else baseline.rewards[constraint.target].std
    return evaluation.allowance(constraint.kind, bound=1.0, std=std)
