"""Means of what a policy's samples show, with errors that what is known besides has made smaller.

Symbols: y figures of a policy, c controls, ȳ and c̄ their means over its units, d̄ an independent estimate of E[c], V its
covariance, S that of ȳ and c̄:

    estimate    ȳ − B'(c̄ − d̄),  B = (S_cc + V)⁻¹ S_cy
    covariance  S_yy − S_yc (S_cc + V)⁻¹ S_cy

the regression that is best with an unsure mean of the controls (control variates; V = 0 where it is known).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.paths.sources import Subset

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitTable:
    """What one source shows in each of its independent units."""

    values: FloatArray
    """``[u, m + 1]``, of rewards and of log p/q, the mean over the samples of a unit."""
    noise: FloatArray
    """``[u]``, of Σ u·ε, whose mean is 0."""
    prompts: IntArray
    """``[u]``"""
    units: IntArray
    """``[u]``, rising: numbers of the noise, the same in all sources."""

    @classmethod
    def of(cls, samples: Subset) -> "UnitTable":
        """Take the samples of one source."""
        table = np.column_stack([samples.rewards, samples.log_ratio, samples.noise])
        first = np.flatnonzero(np.diff(samples.units, prepend=-1))
        values = np.add.reduceat(table, first) / np.diff(first, append=len(table))[:, None]
        return cls(
            values=values[:, :-1],
            noise=values[:, -1],
            prompts=samples.prompts[first],
            units=samples.units[first],
        )

    def means(self, pretrained: "UnitTable | None" = None) -> tuple[FloatArray, FloatArray, int]:
        """Means over prompts ``[m + 1]``, their covariance, and the degrees of freedom of the errors plus one.

        Args:
            pretrained: Units of the pretrained model. Those with the same noise as these are controls, if it has two
                others of each prompt, to know their mean.
        """
        size = self.values.shape[1]
        columns, known, unsure = [self.values, self.noise[:, None]], np.zeros(1), np.zeros((1, 1))
        if pretrained is not None and (others := self._others(pretrained)) is not None:
            places = np.searchsorted(pretrained.units, self.units)
            columns.append(pretrained.values[places, :-1])
            mean, spread = _mean(others.values[:, :-1], others.prompts)
            known = np.append(known, mean)
            unsure = np.pad(spread, ((1, 0), (1, 0)))
        mean, spread = _mean(np.column_stack(columns), self.prompts)
        controls = spread[size:, size:] + unsure
        moving = np.diagonal(controls) > 0
        among = spread[:size, size:][:, moving]
        slopes = np.linalg.lstsq(controls[np.ix_(moving, moving)], among.T, rcond=None)[0]  # [c, m + 1]
        return (
            mean[:size] - (mean[size:] - known)[moving] @ slopes,
            spread[:size, :size] - among @ slopes,
            len(self.units) - int(moving.sum()),
        )

    def _others(self, pretrained: "UnitTable") -> "UnitTable | None":
        """Units of the pretrained model that are not among these; None where they tell no mean of these prompts."""
        if not np.isin(self.units, pretrained.units, assume_unique=True).all():
            return None
        rest = ~np.isin(pretrained.units, self.units, assume_unique=True)
        rest &= np.isin(pretrained.prompts, self.prompts)
        prompts, counts = np.unique(pretrained.prompts[rest], return_counts=True)
        if len(prompts) < len(self._own_prompts) or counts.min(initial=2) < 2:
            return None
        return UnitTable(
            values=pretrained.values[rest],
            noise=pretrained.noise[rest],
            prompts=pretrained.prompts[rest],
            units=pretrained.units[rest],
        )

    @cached_property
    def _own_prompts(self) -> IntArray:
        return np.unique(self.prompts)


def _mean(values: FloatArray, prompts: IntArray) -> tuple[FloatArray, FloatArray]:
    """Mean over prompts ``[k]`` of values ``[u, k]``, and its covariance.

    Prompts are strata where each has two units; else the spread between them counts too.
    """
    home = np.unique(prompts, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(home)
    if counts.min() < 2:
        mean: FloatArray = values.mean(axis=0)
        residuals = (values - mean) / np.sqrt(len(values) * max(len(values) - 1.0, 1.0))
    else:
        means = np.stack([np.bincount(home, column) for column in values.T], axis=1) / counts[:, None]
        mean = means.mean(axis=0)
        residuals = (values - means[home]) / np.sqrt(counts * (counts - 1.0))[home, None] / len(counts)
    return mean, residuals.T @ residuals
