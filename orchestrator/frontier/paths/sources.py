"""Samples of a policy with the density ratio of their paths: what certificates and exact reweighting are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.frontier.paths.table import SampleTable

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PathSamples:
    """Evaluation samples of one model, a source: of the pretrained one, of a trial, of an adapter from elsewhere."""

    rewards: ArrayLike
    """``[n, m]``, reward units."""
    log_ratio: ArrayLike | None = None
    """``[n]``, nats: ``log p/q = Σ ½‖u‖² + u·ε`` of each sample's own path. None for the pretrained model, where it is
    0. Neither normalised nor clipped: ``exp(−log_ratio)`` has the mean 1."""
    path_kl: ArrayLike | None = None
    """``[n]``, nats: ``Σ ½‖u‖²`` of the path, where it is known: ``log_ratio − path_kl = Σ u·ε`` has the mean 0."""
    prompts: ArrayLike | None = None
    """``[n]``, any integer labels, the same in all sources; None: one prompt for all."""
    units: ArrayLike | None = None
    """``[n]``, numbers of the noise. Samples of a prompt with the same number depend on each other, in one source as
    antithetic pairs do, and in several as those of the same noise do. None: all samples of a source are independent,
    and row i of every source has the same noise."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """All samples of all sources, sorted by prompt and unit."""

    rewards: FloatArray
    """``[n, m]``, reward units."""
    log_ratio: FloatArray
    """``[n]``, nats."""
    noise: FloatArray
    """``[n]``, Σ u·ε, nats: of mean 0 over the samples of a source; 0 where it is not known."""
    sources: IntArray
    """``[n]``, which drew it, from 0."""
    prompts: IntArray
    """``[n]``, numbered from 0."""
    labels: IntArray
    """``[P]``, of the prompts, as given."""
    units: IntArray
    """``[n]``, numbered from 0 over all prompts."""
    ranks: IntArray
    """``[n]``, of the unit within its prompt, from 0."""
    count: int
    """Sources."""

    @classmethod
    def of(cls, sources: Sequence[PathSamples]) -> "Pool":
        """Gather the samples.

        Raises:
            ValueError: There are none, a table is of a wrong shape or not finite, or sources differ in their rewards.
        """
        if not sources:
            raise ValueError("there are no samples")
        tables = [SampleTable.checked(source.rewards, source.prompts, source.units) for source in sources]
        widths = {table.rewards.shape[1] for table in tables}
        if len(widths) > 1:
            raise ValueError(f"all sources have the same rewards, got {sorted(widths)} of them")
        ratios = [
            _column("log_ratio", source.log_ratio, len(table.rewards))
            for source, table in zip(sources, tables, strict=True)
        ]
        noises = [
            ratio - (ratio if source.path_kl is None else _column("path_kl", source.path_kl, len(ratio)))
            for source, ratio in zip(sources, ratios, strict=True)
        ]
        whole = SampleTable(
            rewards=np.concatenate([table.rewards for table in tables]),
            prompts=np.concatenate([table.prompts for table in tables]),
            units=np.concatenate([table.units for table in tables]),
        )
        order = whole.order()
        table = whole.sorted()
        labels, prompts = np.unique(table.prompts, return_inverse=True)
        new = np.diff(table.units, prepend=table.units[0]) != 0
        new |= np.diff(prompts, prepend=0) != 0
        new[0] = False
        units = np.cumsum(new)
        first = units[np.searchsorted(prompts, np.arange(len(labels)))]
        return cls(
            rewards=table.rewards,
            log_ratio=np.concatenate(ratios)[order],
            noise=np.concatenate(noises)[order],
            sources=np.repeat(np.arange(len(tables)), [len(each.rewards) for each in tables])[order],
            prompts=prompts.reshape(-1).astype(np.int64),
            labels=labels,
            units=units.astype(np.int64),
            ranks=(units - first[prompts]).astype(np.int64),
            count=len(tables),
        )

    @property
    def unit_counts(self) -> IntArray:
        """Independent units of each prompt, ``[P]``."""
        last = np.append(np.flatnonzero(np.diff(self.prompts)), len(self.prompts) - 1)
        counts: IntArray = self.ranks[last] + 1
        return counts

    def subset(self, rows: NDArray[np.bool_], rewards: FloatArray) -> "Subset":
        """Some samples, with rewards ``[n, m]`` of all in another scale."""
        return Subset(
            rewards=rewards[rows],
            log_ratio=self.log_ratio[rows],
            noise=self.noise[rows],
            sources=self.sources[rows],
            prompts=self.prompts[rows],
            units=self.units[rows],
            shape=(self.count, len(self.labels)),
        )


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Some samples of the pool, in its order; every prompt has one."""

    rewards: FloatArray
    """``[n, m]``, scaled."""
    log_ratio: FloatArray
    noise: FloatArray
    sources: IntArray
    prompts: IntArray
    units: IntArray
    shape: tuple[int, int]
    """Sources K and prompts P."""

    @cached_property
    def counts(self) -> IntArray:
        """Samples of each source and prompt, ``[K, P]``."""
        flat = np.bincount(
            self.sources * self.shape[1] + self.prompts, minlength=self.shape[0] * self.shape[1]
        )
        return flat.reshape(self.shape)

    @cached_property
    def starts(self) -> IntArray:
        """First sample of each prompt, ``[P]``."""
        return np.searchsorted(self.prompts, np.arange(self.shape[1])).astype(np.int64)

    def log_weights(self, tilt: FloatArray) -> FloatArray:
        """λ'r − log_ratio, ``[n]``."""
        return self.rewards @ tilt - self.log_ratio

    def of(self, shares: FloatArray) -> "tuple[Subset, FloatArray]":
        """Samples of sources with a share ``[K]``, and β ``[n]``: Ẑ_c = Σ_i β_i w_i, and Σ β is 1 in each prompt."""
        present = np.where(self.counts > 0, shares[:, None], 0.0)
        missing = present.sum(axis=0) <= 0
        # A prompt that none of them has takes what there is.
        present[:, missing] = (self.counts > 0)[:, missing]
        present /= present.sum(axis=0)
        each = (present / np.maximum(self.counts, 1))[self.sources, self.prompts]
        rows = each > 0
        if rows.all():
            return self, each
        kept = Subset(
            rewards=self.rewards[rows],
            log_ratio=self.log_ratio[rows],
            noise=self.noise[rows],
            sources=self.sources[rows],
            prompts=self.prompts[rows],
            units=self.units[rows],
            shape=self.shape,
        )
        return kept, each[rows]

    def per_prompt(self, values: FloatArray) -> FloatArray:
        """Sums ``[P]``, or ``[P, ..]``, of values of samples."""
        summed: FloatArray = np.add.reduceat(values, self.starts)
        return summed

    def per_unit(self, values: FloatArray) -> FloatArray:
        """Sums of values ``[n]`` over the samples of each unit that there is."""
        first = np.flatnonzero(np.diff(self.units, prepend=-1))
        summed: FloatArray = np.add.reduceat(values, first)
        return summed


def _column(name: str, values: ArrayLike | None, count: int) -> FloatArray:
    """A figure of every sample ``[n]``, 0 where it is None."""
    found = np.zeros(count) if values is None else np.asarray(values, dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ValueError(
            f"{name} must be one finite number for each of {count} samples, got the shape {found.shape} with "
            f"{int((~np.isfinite(found)).sum())} that are not finite"
        )
    return found
