"""Means with their standard errors, and how far few samples let the truth be from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from trainers.config import TrialConfig
from trainers.types import FloatArray, Interval

Strata = NDArray[np.int64]

_CONFIDENCE = 0.95
_FITTED = 3
"""Degrees of freedom from which a slope takes one: of two it would leave a bound twice as far."""
_FEW_GROUPS = 8
"""Groups from which it is fitted how much of a noise to subtract."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, and what is known of its error.

    Quantiles are Student's: with the spread of four samples a normal one-sided 95 % bound misses 10 times in 100.
    """

    mean: float
    error: float
    """Standard error; infinite where it cannot be told."""
    degrees: float = np.inf
    """Degrees of freedom behind the standard error."""
    looks: int = 1
    """Candidates from which one is chosen by looking at the same samples: each has its share of the errors
    (Bonferroni), so that a choice is right as often as a single look."""

    def interval(self) -> Interval:
        """Return the two-sided 95 % interval."""
        half = self._deviations((1.0 - _CONFIDENCE) / 2.0) * self.error
        return Interval(mean=self.mean, low=self.mean - half, high=self.mean + half)

    def margin(self) -> float:
        """Return how far the one-sided 95 % bound lies beyond the mean."""
        return self._deviations(1.0 - _CONFIDENCE) * self.error

    def _deviations(self, tail: float) -> float:
        """Return standard errors to the quantile of a tail."""
        return float(stdtrit(self.degrees, 1.0 - tail / self.looks))


def complete(
    config: TrialConfig, rewards: Mapping[str, FloatArray], asked: Sequence[str] | None
) -> tuple[dict[str, FloatArray], list[str] | None]:
    """Return rewards ``over_all_prompts`` of the samples that ``without_gaps`` leaves, and their prompts, ``[n]`` each.

    Shares of groups are of the prompts that are left: of a group whose scores can be missing they may be fewer.
    """
    kept = without_gaps(list(over_all_prompts(config, rewards, asked).values()), asked)
    left = None if asked is None else [asked[row] for row in kept]
    return over_all_prompts(config, {name: column[kept] for name, column in rewards.items()}, left), left


def without_gaps(columns: Sequence[FloatArray], labels: Sequence[object] | None) -> NDArray[np.intp]:
    """Return the places of samples that no column ``[n]`` has a NaN of.

    Where a label has a single one left of several, that is left out too: it tells nothing of the spread of its label.
    """
    there = np.logical_not(np.isnan(np.stack(columns)).any(axis=0))
    if labels is None or there.all():
        return np.flatnonzero(there)
    _, places = np.unique([repr(label) for label in labels], return_inverse=True)
    before, after = np.bincount(places), np.bincount(places, weights=there)
    alone = (after == 1) & (before > 1)
    return np.flatnonzero(there & ~alone[places])


def over_all_prompts(
    config: TrialConfig,
    rewards: Mapping[str, FloatArray],
    asked: Sequence[str] | None,
    *,
    known: Iterable[str] | None = None,
    centres: Mapping[str, float] | None = None,
) -> dict[str, FloatArray]:
    """Return rewards ``[n]``, with those of a group of prompts spread over all of them.

    Of all prompts a share ``s`` is in the group. ``m + (r − m) / s`` there and ``m`` elsewhere, for any ``m``, has over
    all prompts alike the mean that ``r`` has over the group: a reward like any other, linear in the policy. So tilts,
    path weights and bounds need to know nothing of groups, and a multiplier is the price of the group's own mean.

    Args:
        config: Of the trial; other columns than its rewards stay as they are.
        rewards: By name, as they are stored: NaN outside the group.
        asked: Prompts of the samples, ``[n]``; None for a model without.
        known: All prompts that count alike; by default those of the samples.
        centres: ``m`` by reward; by default 0.
    """
    found = dict(rewards)
    for reward in config.rewards:
        if reward.where is None or reward.name not in found:
            continue
        assert config.prompts is not None, "groups are of prompts"
        assert asked is not None, "groups are of prompts"
        members = config.prompts.group(reward.where)
        share = float(np.mean([prompt in members for prompt in dict.fromkeys(known or asked)]))
        centre = (centres or {}).get(reward.name, 0.0)
        within = np.array([prompt in members for prompt in asked])
        found[reward.name] = np.where(within, centre + (found[reward.name] - centre) / (share or 1.0), centre)
    return found


def intervals(
    names: Sequence[str], means: FloatArray, errors: FloatArray, degrees: float
) -> dict[str, Interval]:
    """Return two-sided 95 % intervals of means ``[f]`` with standard errors ``[f]``, by name."""
    return {
        name: Estimate(mean=float(mean), error=float(error), degrees=degrees).interval()
        for name, mean, error in zip(names, means, errors, strict=True)
    }


def between_groups(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return means ``[f]`` over groups ``[G, f]``, and their standard errors; unbounded for one group."""
    means, count = values.mean(axis=0), len(values)
    if count < 2:
        return means, np.full_like(means, np.inf)
    return means, values.std(axis=0, ddof=1) / np.sqrt(count)


def without_noise(values: FloatArray, noise: FloatArray) -> FloatArray:
    """Return values ``[G, f]`` without the part that follows their noise ``[G, f]``, which has expectation 0.

    How much of the noise, 0 to 1, is fitted for each group on the others, so nothing is biased; few groups subtract
    nothing. On linear chains the errors of a sum's KLs became 5, 1.9 and 1 times smaller at 0.1, 1 and 1.5 nats (256
    samples). Subtracting all of it, they grew 50 times at 1.5 nats, near the most there is (log m).
    """
    count = len(values)
    if count < _FEW_GROUPS:
        return values
    others = (values.sum(axis=0) - values) / (count - 1)
    along = (noise * values).sum(axis=0) - noise * values - (noise.sum(axis=0) - noise) * others
    squares = np.square(noise).sum(axis=0) - np.square(noise)
    factors = np.divide(along, squares, out=np.zeros_like(along), where=squares > 0)
    return np.asarray(values - np.clip(factors, 0.0, 1.0) * noise)


def stratified(values: FloatArray, strata: Strata) -> Estimate:
    """Estimate the mean of values ``[n]`` over strata ``[n]`` of equal weight: only the spread within them counts."""
    mean, count = _mean(values, strata)
    centred, degrees = _within(values, strata)
    return Estimate(mean=mean, error=float(np.sqrt(centred @ centred / degrees / count)), degrees=degrees)


def controlled(values: FloatArray, strata: Strata, known: FloatArray, known_strata: Strata) -> Estimate:
    """Estimate the mean of values with a control variate that is known on the same samples and on more.

    Double sampling with a fitted slope (Cochran 1977, Sampling Techniques, §12.6): of values ``y`` and control ``x``,
    ``ȳ − β (x̄_n − x̄_N)`` with the regression's ``β``. A fixed slope of 1 widens the interval where the correlation is
    below ½; the fitted one costs a degree of freedom. The variance is that of the regression at ``x̄_N`` and
    ``β² Var(x) / N``. It is given the degrees of freedom of the first part, the fewer: with those of the sum
    (Satterthwaite's) 7 of 100 one-sided bounds missed, and not 5, at 4 of 64 samples.

    Args:
        values: ``y``, ``[n]``.
        strata: Of the values, ``[n]``.
        known: ``x``, ``[N]``, N > n; the first n on the samples of the values.
        known_strata: ``[N]``.
    """
    mean, count = _mean(values, strata)
    there, _ = _mean(known[: len(values)], strata)
    everywhere, known_count = _mean(known, known_strata)
    rest, degrees = _within(values, strata)
    control, _ = _within(known[: len(values)], strata)
    everything, more = _within(known, known_strata)
    squares = float(control @ control)
    if degrees < _FITTED or squares <= 0:
        return stratified(values, strata)
    slope, degrees = float(control @ rest) / squares, degrees - 1
    rest = rest - slope * control
    apart = there - everywhere
    variance = rest @ rest / degrees * (1.0 / count + apart**2 / squares)
    variance += slope**2 * (everything @ everything) / more / known_count
    return Estimate(mean=mean - slope * apart, error=float(np.sqrt(variance)), degrees=degrees)


def _mean(values: FloatArray, strata: Strata) -> tuple[float, float]:
    """Return the mean over strata of equal weight, and of how many values of equal weight it has the variance.

    Some strata have a value more than others where their number does not divide that of the values.
    """
    _, places = np.unique(strata, return_inverse=True)
    counts = np.bincount(places)
    return float((np.bincount(places, values) / counts).mean()), len(counts) / float((1.0 / counts).mean())


def _within(values: FloatArray, strata: Strata) -> tuple[FloatArray, int]:
    """Return values without the means of their strata, and how many of them are free."""
    _, places = np.unique(strata, return_inverse=True)
    counts = np.bincount(places)
    centred: FloatArray = values - (np.bincount(places, values) / counts)[places]
    return centred, len(values) - len(counts)
