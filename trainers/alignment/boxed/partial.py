"""What the first samples of a look tell of all of them, by looks that were whole: they share their noise.

Double sampling with regressors (Cochran 1977, Sampling Techniques, sections 12.6 and 12.7). Of the look ``y`` the first
``m`` of ``n`` samples are known, of whole looks nearby ``x`` all:

    mean  ȳ_m + β'(x̄_n − x̄_m),    variance  Var(β'x) / n + Var(y − β'x) / m

On the embedded pipeline two looks tell 99.1 % of the variance of the KL between them and 99.6 % of that of a reward, so
an eighth of the samples is as good as all: the second part is a fourteenth of the first.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trainers.types import Evaluation, FloatArray

_EACH = 8
"""Samples for every number that is fitted, at least."""
_COLLINEAR = 1e-6


def completed(part: Evaluation, whole: Sequence[Evaluation]) -> Evaluation | None:
    """Return what a whole look should show, from the first of its samples; None where too few are known.

    Its columns are no scores of samples: their mean is the estimate, and their spread that of its error, so that
    ``evaluate.estimate`` takes them like any other.

    Args:
        part: Of the first ``m`` samples.
        whole: Of all ``n``, at least one look.
    """
    kl = filled(part.kl, [one.kl for one in whole])
    rewards = {
        name: filled(values, [one.rewards[name] for one in whole]) for name, values in part.rewards.items()
    }
    known = {name: values for name, values in rewards.items() if values is not None}
    if kl is None or len(known) < len(rewards):
        return None
    return replace(whole[0], kl=kl, log_ratio=None, velocity=None, rewards=known)


def filled(part: FloatArray, whole: Sequence[FloatArray]) -> FloatArray | None:
    """Return ``[n]`` values with the mean of the regression, and over ``√n`` the spread of its error.

    They are what is fitted, and at the first samples the residuals beside it, ``n / m`` as large. A sample with a gap
    in some look counts nowhere.

    Args:
        part: ``[m]``, of the first samples.
        whole: ``[n]`` each.
    """
    controls = np.stack(whole, axis=1)  # [n, k]
    known = np.asarray(np.isfinite(controls).all(axis=1))
    there = known[: len(part)] & np.isfinite(part)
    count = int(there.sum())
    if count < _EACH * (1 + controls.shape[1]):
        return None
    values, near = part[there], controls[: len(part)][there]
    level, centre = values.mean(), near.mean(axis=0)
    slope, _, rank, _ = np.linalg.lstsq(near - centre, values - level, rcond=_COLLINEAR)
    rest = values - level - (near - centre) @ slope
    apart = controls[known].mean(axis=0) - centre
    spread = np.linalg.pinv(near - centre, rcond=_COLLINEAR).T @ apart
    # What fitting hides of the residuals, and what the slopes' own errors add where the first samples differ.
    stretch = np.sqrt((1.0 + count * (spread @ spread)) * (count - 1) / (count - 1 - rank))
    found = np.full(len(controls), np.nan)
    found[known] = level + (controls[known] - centre) @ slope
    found[: len(part)][there] += known.sum() / count * stretch * rest
    return found
