"""The frontier before any training, from samples of the pretrained model and their rewards.

For every row of thresholds b the corrected dual of ``tilted`` is maximised over λ >= 0:

    P(b) = max_λ λ'b − mean_c A_c^J(λ),    ∇P(b) = λ*(b)

1. Effective samples: prompt c has ESS_c = 1 / Σ p². As mean_c A_c has a variance near Σ (1/ESS_c − 1/n_c) / P², all
   prompts together are worth P² / Σ 1/ESS_c.
2. Intervals are percentiles of a bootstrap within each prompt. Prompts are taken as given: others would have
   another frontier.
3. Beyond the samples no reweighting of them meets b (the dual has no maximum), or one sample carries each prompt.

Samples know nothing of what they do not contain: the intervals are right where the effective size is large, and too
narrow where it is small. Trained policies pay more than P(b).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.frontier.sampled.dual import SampledDual, percentiles
from orchestrator.frontier.sampled.samples import Samples
from orchestrator.frontier.sampled.tilted import BEYOND, HARD, REACHABLE, TiltedSamples, Verdict

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PreviewPoint:
    """What a row of thresholds is predicted to cost."""

    kl: float
    """Least KL, nats; infinite beyond the samples."""
    kl_low: float
    """End of the two-sided 95 % interval. Beyond the samples: of what ``tilt`` proves by weak duality."""
    kl_high: float
    tilt: FloatArray
    """λ ``[m]``, nats per reward unit: prices of the thresholds, 0 for a reward without one.

    Beyond the samples it is a start, not a price: as far in the best direction as is not yet hard.
    """
    tilt_low: FloatArray
    """``[m]``, two-sided 95 % interval; NaN beyond the samples."""
    tilt_high: FloatArray
    rewards: FloatArray
    """``[m]``, expected under the tilt, reward units; also of rewards without a threshold."""
    ess: float
    """Effective samples, all prompts together."""
    least_ess: float
    """Those of the prompt that has fewest."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """What a KL budget is predicted to buy."""

    reward: float
    """Greatest expected objective, reward units; −inf if the thresholds alone cost more, NaN beyond the samples."""
    reward_low: float
    """Two-sided 95 % interval."""
    reward_high: float
    point: PreviewPoint
    """The thresholds, with ``reward`` as that of the objective: its KL is the budget. Divided by that of the
    objective, its tilt is the prices in units of the objective. Without ``reward`` the thresholds alone."""


def preview(
    samples: Samples, thresholds: ArrayLike, *, scale: ArrayLike | None = None
) -> tuple[PreviewPoint, ...]:
    """Predict the least KL for every row of thresholds.

    Args:
        samples: Of the pretrained model.
        thresholds: ``[T, m]``, absolute reward units; NaN or −inf where a reward is free.
        scale: ``[m]``, σ of the rewards, by default that of the samples; only the solver sees it.

    Raises:
        ValueError: Shapes that do not fit, an infinite threshold, a scale that is not positive.
    """
    tilted = scaled(samples, scale)
    points = []
    for row in threshold_rows(thresholds, len(tilted.scale)):
        dual = SampledDual(tilted, row)
        tilt, value, inside = dual.maximised(tilted.corrected)
        points.append(assessed(dual, tilt, value, inside=inside))
    return tuple(points)


def preview_within(
    samples: Samples,
    objective: int,
    budgets: ArrayLike,
    thresholds: ArrayLike,
    *,
    scale: ArrayLike | None = None,
) -> tuple[BudgetPoint, ...]:
    """Predict the greatest reward within a KL budget, for every row of budgets and thresholds.

    Args:
        samples: Of the pretrained model.
        objective: Index of the reward that is maximised.
        budgets: ``[T]``, nats, > 0.
        thresholds: ``[T, m]`` as in ``preview``; NaN or −inf for the objective.
        scale: ``[m]`` as in ``preview``.

    Raises:
        ValueError: As ``preview``; also for a budget that is not > 0, or a threshold on the objective.
    """
    tilted = scaled(samples, scale)
    rows = threshold_rows(thresholds, len(tilted.scale))
    limits = np.asarray(budgets, dtype=np.float64)
    if limits.shape != (len(rows),) or not (np.isfinite(limits) & (limits > 0)).all():
        raise ValueError(
            f"budgets must be finite numbers > 0, one for each of {len(rows)} rows, got {limits}"
        )
    if np.isfinite(rows[:, objective]).any():
        raise ValueError(f"reward {objective} is the objective, it cannot have a threshold as well")
    return tuple(_budget_point(tilted, objective, *each) for each in zip(limits, rows, strict=True))


def _budget_point(
    tilted: TiltedSamples, objective: int, budget: float, thresholds: FloatArray
) -> BudgetPoint:
    alone = SampledDual(tilted, thresholds)
    tilt, value, inside = alone.maximised(tilted.corrected)
    if not inside or value > (1.0 - 1e-6) * budget:
        point = assessed(alone, tilt, value, inside=inside)
        return BudgetPoint(reward=-np.inf, reward_low=-np.inf, reward_high=-np.inf, point=point)
    tilt, reward, inside = alone.greatest(objective, budget)
    target = thresholds.copy()
    target[objective] = tilted.center[objective] + tilted.scale[objective] * reward
    point = assessed(SampledDual(tilted, target), tilt, budget, inside=inside)
    if point.verdict == BEYOND:
        point = replace(point, kl_low=0.0)  # no reward, no threshold to prove a cost of
        return BudgetPoint(reward=np.nan, reward_low=np.nan, reward_high=np.nan, point=point)
    # Where other samples make the same reward cheaper by some nats, the budget buys that much more at its price.
    price = point.tilt[objective]
    return BudgetPoint(
        reward=float(target[objective]),
        reward_low=float(target[objective] - (point.kl_high - budget) / price),
        reward_high=float(target[objective] - (point.kl_low - budget) / price),
        point=point,
    )


def scaled(samples: Samples, scale: ArrayLike | None) -> TiltedSamples:
    """Samples with their rewards in units of ``scale``."""
    if scale is None:
        return TiltedSamples(samples)
    sigma = np.asarray(scale, dtype=np.float64)
    count = samples.rewards.shape[1]
    if sigma.shape != (count,) or not (np.isfinite(sigma) & (sigma > 0)).all():
        raise ValueError(f"scale must be {count} finite numbers > 0, got {sigma}")
    return TiltedSamples(samples, sigma)


def threshold_rows(thresholds: ArrayLike, count: int) -> FloatArray:
    """Thresholds as a table ``[T, count]``."""
    rows = np.asarray(thresholds, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != count:
        raise ValueError(f"thresholds must be a table [rows, {count} rewards], got the shape {rows.shape}")
    if (rows == np.inf).any():
        raise ValueError("a threshold is infinite: nothing reaches it")
    return rows


def assessed(dual: SampledDual, tilt: FloatArray, value: float, *, inside: bool) -> PreviewPoint:
    """Judge a maximum of the corrected dual, and put intervals around it.

    Args:
        dual: Of the row.
        tilt: λ ``[m]`` at the maximum, nats per scale.
        value: The maximum, nats.
        inside: Whether there is one.
    """
    tilted = dual.tilted
    ess = tilted.effective(tilt)
    verdict = tilted.verdict(tilt)
    if not inside or (verdict == HARD and not dual.maximised(tilted.plain)[2]):
        # The correction can have a maximum where the plain dual, a statement about these very samples, has none.
        verdict = BEYOND
    if verdict == BEYOND:
        tilt = supported(tilted, tilt)
    sums = tilted.block_sums(tilt, np.arange(len(tilt)))
    here = tilted.corrected(sums)
    proven, optima, changes = dual.replicates(tilt, sums)
    if verdict == BEYOND:
        value = float(dual.thresholds @ tilt[dual.bound]) - here.value
        kl, low, high = np.inf, percentiles(value + proven)[0], np.inf
        tilt_low = tilt_high = np.full(len(tilt), np.nan)
    else:
        kl = value
        low, high = percentiles(value + optima)
        tilt_low, tilt_high = percentiles(tilt + changes)
    return PreviewPoint(
        kl=_nats(kl),
        kl_low=_nats(low),
        kl_high=_nats(high),
        tilt=tilt / tilted.scale,
        tilt_low=tilt_low / tilted.scale,
        tilt_high=tilt_high / tilted.scale,
        rewards=tilted.center + tilted.scale * here.gradient,
        ess=float(len(ess) ** 2 / np.sum(1.0 / ess)),
        least_ess=float(ess.min()),
        verdict=verdict,
    )


def _nats(kl: float) -> float:
    """A KL is >= 0; the jackknife leaves 0 as 1e-13."""
    return float(kl) if kl > 1e-10 else 0.0


def supported(tilted: TiltedSamples, tilt: FloatArray) -> FloatArray:
    """The largest multiple of a tilt, at most itself, that is not hard."""
    length = 1.0
    while length > 1e-9 and tilted.verdict(length * tilt) != REACHABLE:
        length *= 0.5
    if length <= 1e-9:
        return np.zeros_like(tilt)
    step = 0.5 * length
    for _ in range(6 if length < 1.0 else 0):
        if tilted.verdict((length + step) * tilt) == REACHABLE:
            length += step
        step *= 0.5
    return length * tilt
