"""How heavy the tail of weights is, and how many samples they are worth.

Symbols (Zhang & Stephens 2009, "A new and efficient estimation method for the generalized Pareto distribution";
Vehtari et al. 2024, "Pareto smoothed importance sampling"):

    x_1 <= … <= x_M   exceedances of the largest M = min(S / 5, 3 √S) of S weights over the next smaller one
    k                 shape: moments below 1 / k exist. Above ½ the variance is infinite, above 0.7 means are not to be
                      trusted at any usual number of samples.

1. θ_j = 1 / x_M + (1 − √(m / (j − ½))) / (3 x_⌊M/4 + ½⌋), j = 1 … m = 30 + √M, are candidates of −k / scale.
2. k(θ) = mean log(1 − θ x), profile log-likelihood M (log(−θ / k) − k − 1).
3. The mean of θ under the likelihood, and k there, drawn a little to ½ where M is small.
4. Smoothed, the M largest weights are what their ranks would be of that distribution: one that happens to be huge, or
   to be missing, counts for less.
"""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

HEAVY = 0.7
"""Pareto k above which a mean of weights is not to be trusted."""
FEWEST = 30.0
"""Effective samples below which neither it nor its error is."""
_LEAST_TAIL = 5
"""Weights that make a tail."""


def effective(weights: FloatArray) -> float:
    """(Σ w)² / Σ w² of weights ``[n]``, >= 0; 0 without any."""
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def pareto_k(weights: FloatArray) -> float:
    """Shape of the upper tail of weights ``[n]``; −inf where there is none: equal weights, as of a constant."""
    found = _tail(weights)
    return found if isinstance(found, float) else _fitted(found)[0]


def smoothed(weights: FloatArray) -> FloatArray:
    """Weights ``[n]`` with their upper tail smoothed: step 4."""
    over = _tail(weights)
    if isinstance(over, float):
        return weights
    shape, scale = _fitted(over)
    size = len(over)
    ranks = (np.arange(size) + 0.5) / size
    largest = np.argsort(weights, kind="stable")[-size:]
    found = weights.copy()
    cut = float(weights[largest[-1]] - over[-1])
    found[largest] = cut + scale * (
        np.expm1(-shape * np.log1p(-ranks)) / shape if abs(shape) > 1e-9 else -np.log1p(-ranks)
    )
    return found


def _tail(weights: FloatArray) -> FloatArray | float:
    """Rising exceedances ``[M]``, > 0; infinite where weights are too few for a tail, −inf where they are equal."""
    count = len(weights)
    size = int(min(0.2 * count, 3.0 * math.sqrt(count)))
    if size < _LEAST_TAIL:
        return math.inf
    ordered = np.sort(weights)
    over = ordered[-size:] - ordered[-size - 1]
    if over[-1] <= 1e-10 * max(float(np.abs(ordered[-1])), 1e-300):
        return -math.inf
    risen: FloatArray = np.maximum(over, 1e-12 * over[-1])
    return risen


def _fitted(over: FloatArray) -> tuple[float, float]:
    """Steps 1 to 3: k and the scale, of rising exceedances ``[M]``."""
    size = len(over)
    candidates = 30 + int(math.sqrt(size))
    places = np.arange(1, candidates + 1) - 0.5
    quarter = over[int(size / 4 + 0.5) - 1]
    thetas = 1.0 / over[-1] + (1.0 - np.sqrt(candidates / places)) / (3.0 * quarter)
    thetas = thetas[np.abs(thetas) > 1e-300]
    shapes = np.log1p(-thetas[:, None] * over).mean(axis=1)
    likelihood = size * (np.log(-thetas / shapes) - shapes - 1.0)
    shares = np.exp(likelihood - likelihood.max())
    theta = float(shares @ thetas / shares.sum())
    shape = float(np.log1p(-theta * over).mean())
    return (size * shape + 10 * 0.5) / (size + 10), -shape / theta
