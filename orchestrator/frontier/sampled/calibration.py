"""Samples of the pretrained model, reweighted to moments of its rewards that are known better than they show them.

Of an exact mixture mean and standard deviation are known in closed form; of a pipeline they may come from many more
samples. To second order the least KL is ½ (b − μ)'Σ⁻¹(b − μ), so they take most of the noise out of cheap thresholds.
Calibration by tilting: weights ∝ w exp(κ'φ) meet the known means of φ at least KL to w (Deville & Särndal 1992,
"Calibration estimators in survey sampling").
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.frontier.sampled.samples import Samples
from orchestrator.frontier.sampled.tilted import BlockSums, TiltedSamples

FloatArray = NDArray[np.float64]

FARTHEST = 6.0
"""Standard errors between known and sampled moments beyond which they are not of the same model."""


def calibrated(samples: Samples, means: ArrayLike, stds: ArrayLike | None = None) -> Samples:
    """Reweigh samples to known moments, averaged over the prompts.

    Args:
        samples: Of the pretrained model.
        means: ``[m]``, reward units.
        stds: ``[m]``, over all prompts; None: only the means are known.

    Raises:
        ValueError: The moments are not those of these samples' model, or are not numbers for each reward.
    """
    known = np.asarray(means, dtype=np.float64)
    features = samples.rewards
    if stds is not None:
        sigma = np.asarray(stds, dtype=np.float64)
        features = np.concatenate([features, (features - known) ** 2], axis=1)
        known = np.concatenate([known, sigma**2])
    if known.shape != features.shape[1:] or not np.isfinite(known).all():
        raise ValueError(f"known moments must be finite and one for each reward, got {known}")
    tilted = TiltedSamples(replace(samples, rewards=features))
    target = (known - tilted.center) / tilted.scale
    everything = np.arange(len(target))
    tilt = np.zeros(len(target))
    sums = tilted.block_sums(tilt, everything)
    error = np.sqrt(tilted.prompt_means(sums)[1].sum(axis=0)) / tilted.prompts
    if (np.abs(target) > FARTHEST * error + 1e-9).any():
        raise ValueError(
            f"moments {known} are not those of samples with {tilted.center}, of standard errors "
            f"{tilted.scale * error}"
        )
    for _ in range(50):
        here = tilted.plain(sums)
        if float(np.abs(target - here.gradient).max()) < 1e-10:
            break
        tilt = tilt + np.linalg.lstsq(here.hessian, target - here.gradient, rcond=1e-12)[0]
        sums = tilted.block_sums(tilt, everything)
    weights = tilted.shares(tilt)[0]
    return replace(
        samples,
        log_weights=np.log(weights),
        masses=weights,
        replicates=_replicates(tilted, sums, target),
    )


def _replicates(tilted: TiltedSamples, sums: BlockSums, target: FloatArray) -> FloatArray:
    """Factors ``[B, U]`` on the new weights, with which every replicate meets the target too, to first order."""
    factors = tilted.samples.replicates
    masses = sums.features[:, :1]
    values = sums.features[:, 1 : 1 + sums.count] / masses  # [U, k]
    missed = np.tile(-target, (len(factors), 1))
    offsets = np.empty_like(values)
    for first, size in zip(tilted.prompt_blocks, tilted.blocks, strict=True):
        blocks = slice(first, first + size)
        drawn = factors[:, blocks] @ masses[blocks]
        missed += factors[:, blocks] @ (masses[blocks] * values[blocks]) / drawn / tilted.prompts
        offsets[blocks] = values[blocks] - masses[blocks].T @ values[blocks]
    spread = (masses * offsets).T @ offsets / tilted.prompts
    slopes = np.linalg.lstsq(spread, missed.T, rcond=1e-12)[0]
    return np.maximum(factors * (1.0 - (offsets @ slopes).T), 0.0)
