"""How far a policy is from the optimum of given multipliers, from the density ratios of its own samples.

Symbols: c a prompt, i a sample of the policy p, l_i = log p/q of its path, v_i = λ'r_i − l_i, nats.

    KL(p ‖ p*) = E_c[ log Z_c − E_p(v | c) ],  Z_c = E_p[exp v | c],  p* ∝ q exp(λ'r):

0 where v is constant within every prompt, and about ½ Var(v | c) near it. The log of a mean over n samples is too small
by about Var / 2n; the jackknife over the samples of a prompt takes that away (Quenouille 1956).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def distance(rewards: ArrayLike, log_ratio: ArrayLike, prompts: ArrayLike | None, tilt: ArrayLike) -> float:
    """Estimate KL(p ‖ p*), nats, >= 0; NaN where no prompt has two samples.

    Args:
        rewards: ``[n, m]``, reward units.
        log_ratio: ``[n]``, nats.
        prompts: ``[n]``, any labels; None: one prompt for all. A prompt with one sample does not count.
        tilt: λ ``[m]``, nats per reward unit.
    """
    values = np.asarray(rewards, dtype=np.float64) @ np.asarray(tilt, dtype=np.float64) - np.asarray(
        log_ratio
    )
    labels = np.zeros(len(values)) if prompts is None else np.asarray(prompts)
    _, home, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found = [_of_prompt(values[home == index]) for index in np.flatnonzero(counts > 1)]
    return max(float(np.mean(found)), 0.0) if found else np.nan


def _of_prompt(values: FloatArray) -> float:
    """The same of one prompt, jackknifed; it may be a little below 0."""
    count, top = len(values), float(values.max())
    weights = np.exp(values - top)
    total = float(weights.sum())
    whole = np.log(total / count)
    without = np.log(np.maximum(total - weights, 1e-300) / (count - 1))
    return top + float(count * whole - (count - 1) * without.mean()) - float(values.mean())
