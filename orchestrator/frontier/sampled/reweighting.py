"""Samples of finished trials join those of the pretrained model: multistate reweighting.

Symbols (Shirts & Chodera 2008, "Statistically optimal analysis of samples from multiple equilibrium states"; per
prompt, whose index is left out):

    λ_k     multipliers that trial k found; λ_0 = 0 is the pretrained model q
    p_k     q exp(λ_k'r) / Z_k, what its N_k samples are taken to be drawn from
    f_k     −log Z_k
    w_i     1 / Σ_k N_k exp(f_k + λ_k'r_i), over the samples of all states

1. f maximises Σ_k N_k f_k − Σ_i log Σ_k N_k exp(f_k + λ_k'r_i), concave: then every state's weights
   exp(f_k + λ_k'r_i) w_i sum to 1, and Σ_i w_i h(r_i) / Σ_i w_i estimates E_q h(r) from all samples at once.
2. Newton's steps, shortened to log(1 + β) / β of their length where β is their spread, converge from anywhere
   (Sun & Tran-Dinh 2019, "Generalized self-concordant functions").
3. A bootstrap replicate draws from all samples of a prompt and solves for its own f.

It assumes that training reached the tilted optimum of its multipliers. Often it did not (a chain of few steps, a
small adapter), so a trial joins only if its mean rewards are those that the others predict for its λ_k. Trials far out
are checked after nearer ones have joined; one that nothing reaches cannot be checked and stays out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.frontier.sampled.samples import REPLICATES, Samples, SampleTable, resampled
from orchestrator.frontier.sampled.tilted import REACHABLE, TiltedSamples

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Standing = Literal["joined", "not the tilt of its multipliers", "too far to check"]

JOINED: Final = "joined"
CONTRADICTED: Final = "not the tilt of its multipliers"
UNCHECKED: Final = "too far to check"

DEVIATION = 3.5
"""Standard errors between found and predicted rewards above which a trial stays out: by chance 1 in 2,000."""


@dataclass(frozen=True, kw_only=True)
class TrialSamples:
    """Evaluation samples of a finished trial."""

    rewards: ArrayLike
    """``[N, m]``, reward units."""
    multipliers: ArrayLike
    """λ ``[m]``, nats per reward unit; the weights of a trial with fixed weights."""
    prompts: ArrayLike | None = None
    """``[N]``, labels as of the pretrained model."""
    units: ArrayLike | None = None
    """``[N]``, see ``pretrained_samples``."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Whether a trial is the tilt of its multipliers."""

    standing: Standing
    found: FloatArray
    """``[m]``, mean rewards of its samples over its prompts."""
    predicted: FloatArray
    """``[m]``, by the samples that had joined before."""
    error: FloatArray
    """``[m]``, standard error of the difference."""

    @property
    def deviation(self) -> float:
        """Largest difference in standard errors."""
        return float(np.max(np.abs(self.found - self.predicted) / self.error))


def joined_samples(
    rewards: ArrayLike,
    trials: Sequence[TrialSamples],
    prompts: ArrayLike | None = None,
    *,
    units: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> tuple[Samples, tuple[Check, ...]]:
    """Weigh the samples of the pretrained model and of the trials that pass, as samples of the former.

    Args:
        rewards: ``[n, m]`` of the pretrained model; with ``prompts`` and ``units`` as in ``pretrained_samples``.
        trials: Their order does not matter.
        prompts: ``[n]``
        units: ``[n]``
        seed: Of the replicates.
        replicates: Their number; they take 8 bytes for each sample.

    Returns:
        The samples, and a check for every trial.

    Raises:
        ValueError: As ``pretrained_samples``; also for multipliers below 0, or a prompt that the pretrained model
            has no samples of.
    """
    own = SampleTable.checked(rewards, prompts, units)
    tables = [SampleTable.checked(trial.rewards, trial.prompts, trial.units) for trial in trials]
    tilts = [_tilt(trial, table, own) for trial, table in zip(trials, tables, strict=True)]
    pool = _Pool(own)
    checks: dict[int, Check] = {}
    waiting = list(range(len(trials)))
    while True:
        tilted = TiltedSamples(pool.samples())
        checks |= {k: _check(tilted, pool.labels, tables[k], tilts[k]) for k in waiting}
        passed = [k for k in waiting if checks[k].standing == JOINED]
        if not passed:
            break
        for k in passed:
            pool.add(tables[k], tilts[k])
        waiting = [k for k in waiting if checks[k].standing == UNCHECKED]
    return pool.samples(replicates, seed), tuple(checks[k] for k in range(len(trials)))


def _tilt(trial: TrialSamples, table: SampleTable, own: SampleTable) -> FloatArray:
    """The multipliers ``[m]`` of a trial that fits the pretrained model's samples."""
    tilt = np.asarray(trial.multipliers, dtype=np.float64)
    count = own.rewards.shape[1]
    if table.rewards.shape[1] != count or tilt.shape != (count,):
        raise ValueError(
            f"the pretrained model has {count} rewards, a trial {table.rewards.shape[1]} and multipliers of the "
            f"shape {tilt.shape}"
        )
    if not (np.isfinite(tilt) & (tilt >= 0)).all():
        raise ValueError(f"multipliers must be finite and >= 0, got {tilt}")
    unknown = np.setdiff1d(table.prompts, own.prompts)
    if len(unknown):
        raise ValueError(f"a trial has samples of prompt {unknown[0]}, the pretrained model has none")
    return tilt


def _check(tilted: TiltedSamples, labels: IntArray, trial: SampleTable, tilt: FloatArray) -> Check:
    """Compare a trial with what its multipliers predict.

    Args:
        tilted: The samples that have joined.
        labels: ``[P]``, of their prompts.
        trial: Its samples, perhaps not of all prompts.
        tilt: Its multipliers ``[m]``, nats per reward unit.
    """
    point = tilt * tilted.scale
    means, variances = tilted.prompt_means(tilted.block_sums(point, np.arange(len(tilt))))
    prompts = np.searchsorted(labels, trial.prompts)
    counts = np.bincount(prompts, minlength=len(labels))
    covered = counts > 0
    each = 1.0 / (counts[prompts] * covered.sum())  # weight of a sample in the mean over its prompts
    values = (trial.rewards - tilted.center) / tilted.scale
    units = np.unique(np.stack([prompts, trial.units]), axis=1, return_inverse=True)[1].reshape(-1)
    # Around the prediction, which is their mean if the trial is its tilt: this needs no second sample of a prompt.
    residuals = np.zeros((units.max() + 1, len(tilt)))
    np.add.at(residuals, units, each[:, None] * (values - means[prompts]))
    variance = (residuals**2).sum(axis=0) + variances[covered].sum(axis=0) / covered.sum() ** 2
    check = Check(
        standing=JOINED,
        found=tilted.center + tilted.scale * (each @ values),
        predicted=tilted.center + tilted.scale * means[covered].mean(axis=0),
        error=tilted.scale * np.maximum(np.sqrt(variance), 1e-12),
    )
    if tilted.verdict(point) != REACHABLE:
        return replace(check, standing=UNCHECKED)
    return check if check.deviation <= DEVIATION else replace(check, standing=CONTRADICTED)


class _Pool:
    """Samples of several states."""

    def __init__(self, pretrained: SampleTable) -> None:
        self._tables = [pretrained]
        self._tilts = [np.zeros(pretrained.rewards.shape[1])]
        self.labels: IntArray = np.unique(pretrained.prompts)
        """``[P]``, of the prompts."""

    def add(self, table: SampleTable, tilt: FloatArray) -> None:
        """Add a state with its multipliers ``[m]``."""
        self._tables.append(table)
        self._tilts.append(tilt)

    def samples(self, replicates: int = 0, seed: int = 0) -> Samples:
        """Weigh them all as samples of the pretrained model."""
        states = np.repeat(np.arange(len(self._tables)), [len(table.rewards) for table in self._tables])
        everything = SampleTable(
            rewards=np.concatenate([table.rewards for table in self._tables]),
            prompts=np.concatenate([table.prompts for table in self._tables]),
            units=np.concatenate([table.units for table in self._tables]),
        )
        # Equal numbers of different states are different units.
        _, units = np.unique(np.stack([states, everything.units]), axis=1, return_inverse=True)
        everything = replace(everything, units=units.reshape(-1))
        order = everything.order()
        states, table = states[order], everything.sorted()
        exponents = (table.rewards - table.rewards.mean(axis=0)) @ np.stack(self._tilts).T
        rng = np.random.default_rng(seed)
        log_weights, factors = [], []
        for part, rank in zip(table.slices(), table.unit_ranks(), strict=True):
            solver = _Reweighting(exponents[part], states[part])
            weights = solver.log_weights(np.ones((1, len(rank))))[0]
            counts = resampled(int(rank.max()) + 1, replicates, rng)[:, rank]
            log_weights.append(weights)
            factors.append(counts * np.exp(solver.log_weights(counts) - weights))
        return Samples(
            rewards=table.rewards,
            log_weights=np.concatenate(log_weights),
            prompt_starts=table.starts,
            block_starts=np.arange(len(states)),
            replicates=np.concatenate(factors, axis=1),
        )


class _Reweighting:
    """Steps 1 and 2 for one prompt."""

    def __init__(self, exponents: FloatArray, states: IntArray) -> None:
        """Take λ_k'r_i ``[n, K]`` and the state that each sample was drawn from ``[n]``."""
        present, states = np.unique(states, return_inverse=True)
        exponents = exponents[:, present]
        self._top = exponents.max(axis=1)
        self._ratios = np.exp(exponents - self._top[:, None])  # [n, K]
        self._drawn = np.eye(len(present))[states]
        self._products = (self._ratios[:, :, None] * self._ratios[:, None, :]).reshape(len(states), -1)

    def log_weights(self, counts: FloatArray) -> FloatArray:
        """Log w ``[B, n]``, weights summing to 1, where sample i counts ``[B, n]`` times."""
        numbers = counts @ self._drawn  # N, [B, K]
        size = numbers.shape[1]
        offsets = np.zeros_like(numbers)  # f
        absent = np.where(numbers > 0, 0.0, 1.0)[:, :, None] * np.eye(size)
        for _ in range(200 if size > 1 else 0):
            scaled, density = self._densities(numbers, offsets)
            expected = scaled * ((counts / density) @ self._ratios)
            gradient = numbers - expected
            if float(np.abs(gradient).max(initial=0.0)) < 1e-9 * counts.shape[1]:
                break
            overlap = (counts / density**2 @ self._products).reshape(-1, size, size)
            hessian = expected[:, :, None] * np.eye(size) - overlap * scaled[:, :, None] * scaled[:, None, :]
            # f is free up to a constant, and where a replicate has no sample of a state.
            ridge = np.full((size, size), 1.0) + 1e-12 * counts.shape[1] * np.eye(size)
            step = np.linalg.solve(hessian + absent + ridge, gradient[:, :, None])[:, :, 0]
            spread = np.maximum(np.ptp(step, axis=1, keepdims=True), 1e-12)
            offsets += np.log1p(spread) / spread * step
        _, density = self._densities(numbers, offsets)
        logs = -np.log(density) - self._top
        top = logs.max(axis=1, keepdims=True)
        normalised: FloatArray = logs - top - np.log(np.exp(logs - top).sum(axis=1, keepdims=True))
        return normalised

    def _densities(self, numbers: FloatArray, offsets: FloatArray) -> tuple[FloatArray, FloatArray]:
        """N_k exp(f_k) ``[B, K]`` up to a factor, and Σ_k N_k exp(f_k + λ_k'r_i) ``[B, n]`` up to the same."""
        scaled = numbers * np.exp(offsets - offsets.max(axis=1, keepdims=True))
        return scaled, scaled @ self._ratios.T
