"""What is chosen on most of the samples, and held against the others: multipliers, shares of sources, guesses of log Z.

Symbols as in ``certificate``. λ maximises the dual less its bias and its own standard errors; from the pretrained
samples outwards, and from where the weights of one source vary least, whose slope of l over r is an estimate of the
multipliers that it is the optimum of.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from orchestrator.frontier.paths.sources import Subset
from orchestrator.frontier.paths.tails import FEWEST, HEAVY, effective, pareto_k

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_ROUNDS = 6
"""Times that shares and multipliers are found in turn."""
_WITHDRAWALS = 25
"""Times that multipliers are shortened until their weights are not heavy."""
_CAREFUL = 0.6
"""Pareto k at which they are: that of the held-out fold may be a little higher."""
_MARGIN = 5.0
"""Standard errors that a choice is held below its estimate: what lies further out has heavier tails than it shows."""
_SMALL = 0.02
"""Relative variance, and share, that make no difference."""
_LARGEST = 300.0
"""Exponent whose exponential still has a square."""
_STEEP = 6.0
"""By what power of e variance counts more where there is little else: beyond the samples a dual rises without end."""
_FARTHEST = 50.0
"""Nats per scale at which multipliers end."""


@dataclass(frozen=True, kw_only=True)
class HeldFold:
    """One fold, held against what the others chose."""

    tilt: FloatArray
    """λ ``[m]``, nats per scale."""
    shares: FloatArray
    """α ``[K]``"""
    guess: float
    """E_c a_c."""
    values: FloatArray
    """``[u]``, of each unit of the fold: its part of E_c[exp(−a_c) Ẑ_c]."""
    steadied: FloatArray
    """``[u]``, the same less what goes with the noise along the control, whose mean is 0."""
    units: IntArray
    """``[u]``, their numbers, rising."""
    unit_shares: FloatArray
    """``[u]``, the parts they would have if all weights were equal; they sum to 1."""

    @classmethod
    def fitted(cls, others: Subset, held: Subset, thresholds: FloatArray) -> "HeldFold":
        """Choose λ, α and a for scaled thresholds ``[m]`` on the other folds."""
        tilt, shares = _chosen(others, thresholds)
        for _ in range(_WITHDRAWALS):
            shares = shares_at(others, tilt, shares)
            if _bearable(others, tilt, shares):
                break
            tilt = 0.85 * tilt
        return cls.given(others, held, tilt, shares)

    @classmethod
    def given(
        cls, others: Subset, held: Subset, tilt: FloatArray, shares: FloatArray | None = None
    ) -> "HeldFold":
        """Choose α, unless given, and a for λ ``[m]`` on the other folds."""
        chosen = shares_at(others, tilt, None) if shares is None else shares
        guesses = _guesses(others, tilt, chosen)
        kept, betas = held.of(chosen)
        weights = np.exp(np.minimum(kept.log_weights(tilt) - guesses[kept.prompts], _LARGEST))
        steady = weights - _slopes_along(others, tilt, guesses)[kept.sources] * kept.noise
        prompts = held.shape[1]
        return cls(
            tilt=tilt,
            shares=chosen,
            guess=float(guesses.mean()),
            values=kept.per_unit(betas * weights) / prompts,
            steadied=kept.per_unit(betas * steady) / prompts,
            units=np.unique(kept.units),
            unit_shares=kept.per_unit(betas) / prompts,
        )


def _slopes_along(samples: Subset, tilt: FloatArray, guesses: FloatArray) -> FloatArray:
    """Slope ``[K]`` of each source's weights over Σ u·ε, a control variate; 0 where it is not known."""
    weights = np.exp(np.minimum(samples.log_weights(tilt) - guesses[samples.prompts], _LARGEST))
    count = samples.shape[0]
    sizes = np.maximum(np.bincount(samples.sources, minlength=count), 1)
    centred = weights - (np.bincount(samples.sources, weights, count) / sizes)[samples.sources]
    squares = np.bincount(samples.sources, samples.noise**2, count)
    along = np.bincount(samples.sources, centred * samples.noise, count)
    slopes: FloatArray = np.divide(along, squares, out=np.zeros(count), where=squares > 0)
    return slopes


def _chosen(samples: Subset, thresholds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """λ ``[m]`` and α ``[K]`` for the best careful dual value."""
    free = np.isfinite(thresholds)
    nothing = np.zeros(len(thresholds))
    best = (0.0, nothing, shares_at(samples, nothing, None))
    starts = [nothing]
    slopes = [
        (_careful(samples, slope, thresholds, _one(k, samples)), slope) for k, slope in _slopes(samples, free)
    ]
    if slopes:
        starts.append(max(slopes, key=lambda found: found[0])[1])
    for start in starts:
        tilt = start
        shares = shares_at(samples, tilt, None)
        before = -math.inf
        for _ in range(_ROUNDS):
            tilt, value = _ascended(samples, tilt, thresholds, shares, free)
            if value > best[0]:
                best = (value, tilt, shares)
            if value < before + 1e-3:
                break
            before = value
            shares = shares_at(samples, tilt, shares)
    return best[1], best[2]


def _one(source: int, samples: Subset) -> FloatArray:
    shares = np.zeros(samples.shape[0])
    shares[source] = 1.0
    return shares


def _slopes(samples: Subset, free: NDArray[np.bool_]) -> list[tuple[int, FloatArray]]:
    """Of every source with paths of its own the λ ``[m]`` at which log w varies least within prompts."""
    found = []
    for source in range(samples.shape[0]):
        rows = samples.sources == source
        if not samples.log_ratio[rows].any() or rows.sum() <= 4 * samples.rewards.shape[1]:
            continue
        prompts = samples.prompts[rows]
        counts = np.maximum(np.bincount(prompts, minlength=samples.shape[1]), 1)
        table = np.column_stack([samples.rewards[rows][:, free], samples.log_ratio[rows]])
        means = (
            np.stack([np.bincount(prompts, column, samples.shape[1]) for column in table.T], axis=1)
            / counts[:, None]
        )
        table = table - means[prompts]
        slope = np.zeros(len(free))
        slope[free] = np.maximum(np.linalg.lstsq(table[:, :-1], table[:, -1], rcond=1e-8)[0], 0.0)
        found.append((source, slope))
    return found


def _value(
    samples: Subset, betas: FloatArray, tilt: FloatArray, thresholds: FloatArray
) -> tuple[float, FloatArray]:
    """Careful dual value at λ ``[m]`` and its gradient: less its bias and a one-sided margin."""
    exponents = samples.log_weights(tilt) + np.log(betas)
    sizes = np.diff(samples.starts, append=len(exponents))
    top = np.maximum.reduceat(exponents, samples.starts)
    masses = np.exp(exponents - np.repeat(top, sizes))
    sums = samples.per_prompt(masses)
    parts = masses / np.repeat(sums, sizes)
    means = samples.per_prompt(parts[:, None] * samples.rewards)
    squares = parts**2
    prompts = len(sums)
    # Relative variance of Ẑ_c, above that of equal weights.
    noise = float(squares.sum() - (betas**2).sum()) / prompts
    bent = 2.0 * (
        samples.per_prompt(squares[:, None] * samples.rewards) - samples.per_prompt(squares)[:, None] * means
    ).mean(axis=0)
    noise = max(noise, 1e-9)
    margin, steep = _MARGIN * math.sqrt(noise / prompts), math.exp(_STEEP * noise)
    value = float(tilt @ thresholds) - float((top + np.log(sums)).mean()) - noise * steep - margin
    gradient = (
        thresholds - means.mean(axis=0) - bent * (steep * (1.0 + _STEEP * noise) + 0.5 * margin / noise)
    )
    return value, gradient


def _careful(samples: Subset, tilt: FloatArray, thresholds: FloatArray, shares: FloatArray) -> float:
    kept, betas = samples.of(shares)
    return _value(kept, betas, tilt, np.nan_to_num(thresholds, nan=0.0, neginf=0.0))[0]


def _ascended(
    samples: Subset, start: FloatArray, thresholds: FloatArray, shares: FloatArray, free: NDArray[np.bool_]
) -> tuple[FloatArray, float]:
    """Maximise the careful dual over λ >= 0 of the thresholds."""
    kept, betas = samples.of(shares)
    wanted = np.nan_to_num(thresholds, nan=0.0, neginf=0.0)

    def loss(point: FloatArray) -> tuple[float, FloatArray]:
        tilt = np.zeros(len(free))
        tilt[free] = point
        value, gradient = _value(kept, betas, tilt, wanted)
        return -value, -gradient[free]

    if not free.any():
        return start, 0.0
    ends = [(0.0, _FARTHEST)] * int(free.sum())
    solved = minimize(loss, start[free], jac=True, method="L-BFGS-B", bounds=ends)
    tilt = np.zeros(len(free))
    tilt[free] = solved.x
    return tilt, -float(solved.fun)


def shares_at(samples: Subset, tilt: FloatArray, before: FloatArray | None) -> FloatArray:
    """α ``[K]``, inversely to the variance of every source's own estimate; those with too heavy a tail have none."""
    count = samples.shape[0]
    guesses = _guesses(samples, tilt, np.ones(count) if before is None else before)
    ratios = np.exp(np.minimum(samples.log_weights(tilt) - guesses[samples.prompts], _LARGEST))
    worth, sizes = np.zeros(count), np.zeros(count)
    for source in range(count):
        own = ratios[samples.sources == source]
        if not len(own):
            continue
        sizes[source] = effective(own)
        spread = len(own) / max(sizes[source], 1e-300) - 1.0
        if sizes[source] >= FEWEST and pareto_k(own) <= HEAVY:
            worth[source] = len(own) / (spread + _SMALL)
    if not worth.any():
        worth[int(sizes.argmax())] = 1.0
    worth[worth < _SMALL * worth.max()] = 0.0
    shares: FloatArray = worth / worth.sum()
    return shares


def _bearable(samples: Subset, tilt: FloatArray, shares: FloatArray) -> bool:
    """Whether the weights of the mixture have a tail and a size that another fold may be expected to carry too."""
    kept, betas = samples.of(shares)
    guesses = _guesses(samples, tilt, shares)
    ratios = np.exp(np.minimum(kept.log_weights(tilt) - guesses[kept.prompts], _LARGEST))
    values, even = kept.per_unit(betas * ratios), kept.per_unit(betas)
    return effective(values) >= FEWEST and pareto_k(values / even) <= _CAREFUL


def _guesses(samples: Subset, tilt: FloatArray, shares: FloatArray) -> FloatArray:
    """Guess log Z_c ``[P]`` as far as the samples tell it, drawn together over prompts where they do not.

    First by the means of log w, which few samples tell well, up to a constant; then by what Ẑ_c says beyond them. Each
    is shrunk by the share of its spread over prompts that noise within prompts does not explain (James & Stein 1961).
    """
    kept, betas = samples.of(shares)
    logs = kept.log_weights(tilt)
    prompts = samples.shape[1]
    offsets = np.zeros(prompts)
    if prompts > 1:
        each = np.bincount(kept.sources, betas, samples.shape[0])
        means = np.bincount(kept.sources, betas * logs, samples.shape[0]) / np.maximum(each, 1e-300)
        centred = logs - means[kept.sources]
        offsets = kept.per_prompt(betas * centred)
        offsets *= _kept_share(offsets, _noise(kept, betas * (centred - offsets[kept.prompts])))
    scaled = logs - offsets[kept.prompts]
    top = float(scaled.max())
    parts = betas * np.exp(scaled - top)
    ratios = kept.per_prompt(parts)
    mean = float(ratios.mean())
    ratios = ratios / mean
    if prompts > 1:
        noise = _noise(kept, parts / mean - betas * ratios[kept.prompts])
        ratios = 1.0 + _kept_share(ratios - 1.0, noise) * (ratios - 1.0)
    guess: FloatArray = offsets + top + math.log(mean) + np.log(np.maximum(ratios, 1e-3))
    return guess


def _noise(samples: Subset, residuals: FloatArray) -> float:
    """Mean over prompts of the variance of a prompt's sum, from residuals of samples ``[n]``."""
    return float((samples.per_unit(residuals) ** 2).sum()) / samples.shape[1]


def _kept_share(values: FloatArray, noise: float) -> float:
    """Share of the spread of values ``[P]`` that noise of such a variance leaves."""
    spread = float(values.var(ddof=1))
    return max(0.0, 1.0 - noise / spread) if spread > 0 else 0.0
