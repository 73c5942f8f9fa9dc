"""A lower bound on the least KL that holds whatever training did, with a stated confidence.

Symbols (c: prompt, P of them; k: source; i: sample; λ >= 0, nats per reward unit):

    l_i        log p/q of the path that sample i was drawn along, by the policy of its source
    w_i(λ)     exp(λ'r_i − l_i): E_p[w | c] = E_q[exp(λ'r) | c] = Z_c(λ), exactly, for any policy p
    D(λ)       λ'b − E_c log Z_c(λ) <= P(b), the least path KL with E[r] >= b: weak duality
    Ẑ_c        Σ_k α_k mean of w over the samples of source k: unbiased for shares α on the simplex (multiple
               importance sampling without the other policies' ratios on a path)
    a_c        a guess of log Z_c

1. log is concave, so E_c log Z_c <= E_c a_c + log E_c[exp(−a_c) Z_c] for any a, with equality at a_c = log Z_c. What is
   estimated is E_c[exp(−a_c) Z_c], linear in Z_c: few samples of a prompt make no bias, a wrong guess only a loss of
   about half the variance of its error.
2. λ, α and a come from the other folds of the samples (a fold has whole units of noise, of all sources), so that they
   are constants to the fold they are held against; folds are averaged, which log E over folds bounds once more. So are
   several divisions into folds: a bound should not hang on which samples happened to choose for which.
3. The mean over all folds is that of a positive, skewed figure: with its tail smoothed by a generalised Pareto
   distribution, its upper end is Hall's (1992, "On the removal of skewness by transformation"), as much wider as
   Student's is with the degrees of freedom that the fourth moment leaves. Of log-normal weights it fails at 2 to 7 %
   whatever their variance, where the normal one does at 6 to 20 %. Σ u·ε, of mean 0, is taken out first, as far as
   weights go with it.
4. Where the tail is heavy (Pareto k above 0.7) or fewer than 30 samples count, the mean and its error are not to be
   trusted, and there is no bound. A source is left out by the same rule, judged on the other folds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from orchestrator.frontier.paths.held import HeldFold
from orchestrator.frontier.paths.sources import PathSamples, Pool, Subset
from orchestrator.frontier.paths.tails import FEWEST, HEAVY, effective, pareto_k, smoothed

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FOLDS = 4
"""At most; as many as the prompt with fewest units has, if less."""
DIVISIONS = 3
_FEW_UNITS = 400
"""Below, one division: of few samples a fold now and then chooses multipliers that the others do not bear, and one such
fold among many leaves no bound."""
CONFIDENCE = 0.95
_TOGETHER = math.sqrt(2.0)
"""By how much errors are taken larger than within folds. Each fold chooses multipliers for the others: where weights
are all but equal nothing else moves them, errors of folds then go together, and their mean has twice the variance."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What samples prove of the least path KL at thresholds."""

    lower: float
    """Nats, >= 0: the least KL is at least this, at the confidence; 0 where nothing more is proven."""
    estimate: float
    """The same bound without its margin of confidence, nats; below 0 where the samples prove nothing."""
    tilt: FloatArray
    """λ ``[m]`` that it is the dual value of, the mean over folds, nats per reward unit."""
    log_partition: float
    """Upper bound of E_c log Z_c(λ), at the same confidence, nats: ``tilt @ b − log_partition`` bounds the least KL
    at ``b``; infinite where there is no bound."""
    ess: float
    """Effective samples of the weights, all prompts and sources together."""
    pareto_k: float
    """Shape of their tail; −inf where they are all but equal."""
    shares: FloatArray
    """α ``[K]``, of the sources, the mean over folds."""
    confidence: float
    reason: str | None = None
    """Why there is no bound; None where there is one."""

    @property
    def carried(self) -> bool:
        """Whether the samples carry a bound."""
        return self.reason is None

    @property
    def kind(self) -> str:
        """How sure it is, as results say it: ``95%``."""
        return f"{self.confidence:.0%}"


def certificate(
    samples: Sequence[PathSamples], thresholds: ArrayLike, *, confidence: float = CONFIDENCE
) -> Certificate:
    """Bound the least path KL with ``E[r] >= thresholds`` from below, at a one-sided confidence.

    It holds for any policies that drew the samples, on the chain that they share, over the prompts of the samples.

    Args:
        samples: One entry for each source; the pretrained model, if it is among them, without ``log_ratio``.
        thresholds: b ``[m]``, absolute reward units; NaN or −inf where a reward is free.
        confidence: Of this one row of thresholds.

    Raises:
        ValueError: Samples or thresholds do not fit, or a prompt has fewer than two independent units.
    """
    return Certifier(samples).certificate(thresholds, confidence=confidence)


class Certifier:
    """Samples that are asked about several thresholds."""

    def __init__(self, samples: Sequence[PathSamples], *, seed: int = 0) -> None:
        """Sort the samples into folds.

        Args:
            samples: See ``certificate``.
            seed: Of the divisions into folds.

        Raises:
            ValueError: See ``certificate``.
        """
        self._pool = pool = Pool.of(samples)
        few = int(pool.unit_counts.argmin())
        if pool.unit_counts[few] < 2:
            raise ValueError(
                f"prompt {pool.labels[few]} has a single independent unit; multipliers and bound need one each"
            )
        self.center: FloatArray = pool.rewards.mean(axis=0)
        spread = pool.rewards.std(axis=0)
        self.scale: FloatArray = np.where(spread > 1e-12 * np.abs(self.center), spread, 1.0)
        self._rewards = (pool.rewards - self.center) / self.scale
        self.folds = min(FOLDS, int(pool.unit_counts[few]))
        generator = np.random.default_rng(seed)
        divisions = DIVISIONS if pool.unit_counts.sum() >= _FEW_UNITS else 1
        self._divisions = [_dealt(pool, self.folds, generator) for _ in range(divisions)]

    def certificate(self, thresholds: ArrayLike, *, confidence: float = CONFIDENCE) -> Certificate:
        """See ``certificate``."""
        row = np.asarray(thresholds, dtype=np.float64)
        if row.shape != self.center.shape or (row == np.inf).any():
            raise ValueError(f"thresholds must be {len(self.center)} numbers below infinity, got {row}")
        scaled = (row - self.center) / self.scale
        parts = [HeldFold.fitted(others, held, scaled) for others, held in self._halves()]
        return self._summed(parts, scaled, confidence)

    def at(self, tilts: ArrayLike, *, confidence: float = CONFIDENCE) -> list[Certificate]:
        """Bound E_c log Z_c from above at multipliers ``[T, m]``, nats per reward unit, chosen without these samples.

        ``lower`` and ``estimate`` are of no thresholds, and 0.
        """
        rows = np.asarray(tilts, dtype=np.float64) * self.scale
        return [
            self._summed(
                [HeldFold.given(others, held, tilt) for others, held in self._halves()], None, confidence
            )
            for tilt in rows
        ]

    def _halves(self) -> Iterator[tuple[Subset, Subset]]:
        """For every fold of every division the samples of all other folds, and its own."""
        for division in self._divisions:
            for fold in range(self.folds):
                held = division == fold
                yield self._pool.subset(~held, self._rewards), self._pool.subset(held, self._rewards)

    def _summed(self, parts: Sequence[HeldFold], scaled: FloatArray | None, confidence: float) -> Certificate:
        """Put the folds together: steps 2 to 4."""
        tilt = np.mean([part.tilt for part in parts], axis=0)
        guess = float(np.mean([part.guess for part in parts]))
        values, steadied, shares = _per_unit(parts)
        ratios = values / shares
        mean, upper = upper_mean(shares * smoothed(steadied / shares), shares, confidence)
        size, shape = effective(values), pareto_k(ratios)
        reason = None
        if size < FEWEST:
            reason = f"no overlap: {size:.0f} effective samples, {FEWEST:.0f} are needed"
        elif not shape <= HEAVY:
            reason = f"heavy tail: Pareto k {shape:.2f} of the weights, at most {HEAVY:g}"
        elif not np.isfinite(upper):
            reason = "the mean of the weights has no upper end at this confidence"
        # λ'(b − center) − log E exp(λ'(r − center)) is the same for every center.
        wanted = np.nan_to_num(scaled, nan=0.0, neginf=0.0) if scaled is not None else np.zeros_like(tilt)
        dual = float(tilt @ wanted) - guess
        known = scaled is not None
        lower = dual - math.log(upper) if reason is None else -math.inf
        shift = float(tilt @ (self.center / self.scale))
        return Certificate(
            lower=max(lower, 0.0) if known else 0.0,
            estimate=dual - math.log(mean) if known else 0.0,
            tilt=tilt / self.scale,
            log_partition=guess + math.log(upper) + shift if reason is None else math.inf,
            ess=size,
            pareto_k=shape,
            shares=np.mean([part.shares for part in parts], axis=0),
            confidence=confidence,
            reason=reason,
        )


def _per_unit(parts: Sequence[HeldFold]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Values, steadied values and shares ``[u]`` of every unit, the mean over the folds of all divisions."""
    units, places = np.unique(np.concatenate([part.units for part in parts]), return_inverse=True)

    def summed(figures: list[FloatArray]) -> FloatArray:
        found: FloatArray = np.bincount(places, np.concatenate(figures), len(units)) / len(parts)
        return found

    return (
        summed([part.values for part in parts]),
        summed([part.steadied for part in parts]),
        summed([part.unit_shares for part in parts]),
    )


def upper_mean(values: FloatArray, shares: FloatArray, confidence: float) -> tuple[float, float]:
    """Estimate a mean that independent figures add up to, and bound it from above: step 3.

    Args:
        values: ``[u]``, >= 0, whose sum is the estimate.
        shares: ``[u]``, of the figures' expectations in it; they sum to 1.
        confidence: One-sided.

    Returns:
        The mean and its upper bound, which is infinite where the figures are too few or too skewed for one.
    """
    mean = float(values.sum())
    if not mean > 0:
        return mean, mean
    # In units of the mean: powers of weights far out are more than a float holds.
    offsets = values / mean - shares
    count = len(values)
    squares = offsets**2
    variance = float(squares.sum()) * count / max(count - 1, 1)
    if variance <= 1e-24:
        return mean, mean
    skewness = float((offsets**3).sum()) / variance**1.5
    # Variance of the variance, from the fourth moment: Satterthwaite's degrees of freedom.
    noise = float((squares**2).sum()) / variance**2 - 1.0 / count
    freedom = min(2.0 / max(noise, 1e-12), count - 1.0)
    if freedom < 1.0:
        return mean, math.inf
    normal = float(ndtri(1.0 - confidence))
    quantile = normal
    if abs(skewness) > 1e-8:
        root = float(np.cbrt(max(1.0 + skewness * (normal - skewness / 6.0), 0.0)))
        quantile = min(3.0 / skewness * (root - 1.0), normal)  # to the careful side
    quantile *= float(stdtrit(freedom, 1.0 - confidence)) / normal
    upper = mean * (1.0 - _TOGETHER * quantile * math.sqrt(variance))
    return mean, upper if upper > 0 else math.inf


def _dealt(pool: Pool, folds: int, generator: np.random.Generator) -> IntArray:
    """The fold of every sample ``[n]``: units are dealt within each prompt, so that every fold has some of every one.

    In a random order, so that no pattern of the noise falls together with the folds; each prompt begins with another
    fold, so that leftovers are spread.
    """
    first = np.flatnonzero(np.diff(pool.units, prepend=-1))
    home = pool.prompts[first]
    order = np.lexsort((generator.random(len(home)), home))
    turns = np.empty(len(home), dtype=np.int64)
    turns[order] = np.arange(len(home)) - np.searchsorted(home, home)  # sorted by prompt, as units are
    return (turns + home)[pool.units] % folds
