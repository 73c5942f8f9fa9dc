"""The dual of the frontier over samples of the pretrained model, with its bias corrected.

Symbols (Khalafi et al., arXiv 2508.19104, problem UR-A; P prompts, one for a model without prompts):

    r_i      rewards [m] of sample i, of weight w_i, which estimate E_q(x|c) 1 = 1 in each prompt
    A_c(λ)   log Σ_i w_i exp(λ'r_i) over the samples of prompt c, which estimates log E_q(x|c) exp(λ'r)
    p_i(λ)   share of sample i in the sum of its prompt
    d(λ)     λ'b − mean_c A_c(λ): the dual, whose maximum over λ >= 0 is the least KL

1. One λ, but a normalisation for each prompt: a policy chooses images, not prompts.
2. A_c is too small by about (1/ESS_c − 1/n_c) / 2, which does not average out over prompts and makes thresholds
   look expensive. The jackknife over the blocks u of a prompt, A_c^J = U A_c − (U − 1)/U Σ_u A_c,−u (Quenouille
   1956), removes the first order. The corrected dual is what is maximised: with only its maximum corrected the
   multipliers keep their bias (λ = 1.5 from 40 prompts of 16 samples: 1.71 instead of 2.31).
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.sampled.samples import Samples
from orchestrator.frontier.solvers.concave import Evaluation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Verdict = Literal["reachable", "hard: few samples reach it", "beyond the samples"]

REACHABLE: Final = "reachable"
HARD: Final = "hard: few samples reach it"
BEYOND: Final = "beyond the samples"

FEW = 100.0
"""Effective samples, all prompts together, below which a tilt is hard."""
FEW_OF_A_PROMPT = 8.0
"""The same of a typical prompt (harmonic mean), or half of what it has untilted: the jackknife takes some."""
ALONE = 2.0
"""Effective samples of a typical prompt below which one sample carries it."""


@dataclass(frozen=True, kw_only=True)
class BlockSums:
    """Sums at one λ over the samples of each block of p times 1, r, and the upper triangle of r r'."""

    features: FloatArray
    """``[U, K]``, K = 1 + q + q (q + 1) / 2."""
    count: int
    """q, the number of rewards."""
    log_partitions: FloatArray
    """``[P]``, A_c."""


class TiltedSamples:
    """Samples as a function of λ, in scaled rewards ``(r − center) / scale`` and λ in nats per scale."""

    def __init__(self, samples: Samples, scale: FloatArray | None = None) -> None:
        """Scale the rewards, by default to a standard deviation of 1 over all samples.

        Args:
            samples: Of the pretrained model.
            scale: ``[m]``, > 0, reward units, usually σ.
        """
        self.samples = samples
        self.prompts = len(samples.prompt_starts)
        weights = samples.masses
        self.center: FloatArray = weights @ samples.rewards / self.prompts
        if scale is None:
            spread = np.sqrt(weights @ (samples.rewards - self.center) ** 2 / self.prompts)
            # A constant reward is reached or not, at any scale.
            scale = np.where(spread > 1e-12 * np.abs(self.center), spread, 1.0)
        self.scale: FloatArray = scale
        self._rewards = (samples.rewards - self.center) / scale
        self._products: dict[tuple[int, ...], FloatArray] = {}
        self._counts = np.diff(samples.prompt_starts, append=len(weights))
        self.block_weights: FloatArray = np.add.reduceat(weights, samples.block_starts)
        """``[U]``, of the prompt's weight, by ``masses``."""
        self.prompt_blocks: IntArray = np.searchsorted(samples.block_starts, samples.prompt_starts)
        """``[P]``, the first block of each prompt."""
        self.drawn_weights: FloatArray = np.add.reduceat(
            samples.replicates * self.block_weights, self.prompt_blocks, axis=1
        )
        """``[B, P]``, of the prompts in each replicate."""
        self.greatest_kl = -float(np.minimum.reduceat(samples.log_weights, samples.prompt_starts).mean())
        """Nats, of any reweighting of the samples."""
        self.blocks: IntArray = np.diff(self.prompt_blocks, append=len(samples.block_starts))
        """``[P]``, their number."""
        self._untilted = _harmonic_mean(1.0 / np.add.reduceat(weights**2, samples.prompt_starts))

    def shares(self, point: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Shares p ``[n]`` and A_c ``[P]`` at λ ``[m]``."""
        exponents = self._rewards @ point + self.samples.log_weights
        top = np.maximum.reduceat(exponents, self.samples.prompt_starts)
        masses = np.exp(exponents - np.repeat(top, self._counts))
        sums = np.add.reduceat(masses, self.samples.prompt_starts)
        return masses / np.repeat(sums, self._counts), top + np.log(sums)

    def effective(self, point: FloatArray) -> FloatArray:
        """Effective sample size of every prompt ``[P]``, 1 / Σ p², at λ ``[m]``."""
        squares: FloatArray = np.add.reduceat(self.shares(point)[0] ** 2, self.samples.prompt_starts)
        return 1.0 / squares

    def verdict(self, point: FloatArray) -> Verdict:
        """Whether the samples support an estimate at λ ``[m]``."""
        typical = _harmonic_mean(self.effective(point))
        if typical < min(ALONE, 0.9 * self._untilted):
            return BEYOND
        if typical < min(FEW_OF_A_PROMPT, 0.5 * self._untilted) or typical * self.prompts < FEW:
            return HARD
        return REACHABLE

    def block_sums(self, point: FloatArray, free: IntArray) -> BlockSums:
        """Sum over blocks at λ ``[m]``; ``free`` ``[q]`` says which rewards are summed."""
        shares, log_partitions = self.shares(point)
        features = shares[:, None] * self._features(tuple(free.tolist()))
        if len(features) > len(self.block_weights):
            features = np.add.reduceat(features, self.samples.block_starts)
        return BlockSums(features=features, count=len(free), log_partitions=log_partitions)

    def plain(self, sums: BlockSums) -> Evaluation:
        """Mean over the prompts of A_c, with gradient and Hessian in the λ of the rewards summed."""
        means, covariances = _moments(np.add.reduceat(sums.features, self.prompt_blocks), sums.count)
        return Evaluation(
            value=float(sums.log_partitions.mean()),
            gradient=means.mean(axis=0),
            hessian=covariances.mean(axis=0),
        )

    def corrected(self, sums: BlockSums) -> Evaluation:
        """The same of the jackknifed A_c.

        The Hessian is kept above a quarter of the plain one: where few samples carry a prompt the jackknife
        is not convex.
        """
        totals = np.add.reduceat(sums.features, self.prompt_blocks)
        plain_means, plain_covariances = _moments(totals, sums.count)
        left = np.repeat(totals, self.blocks, axis=0) - sums.features  # without block u
        left[:, 0] = np.maximum(left[:, 0], 1e-12)
        means, covariances = _moments(left, sums.count)
        added = np.log(left[:, 0]) - np.log1p(-self.block_weights)  # A_c,−u − A_c
        whole = self.blocks / self.prompts  # U / P, [P]
        parts = np.repeat((1.0 - 1.0 / self.blocks) / self.prompts, self.blocks)  # (U − 1) / (U P), [U]
        return Evaluation(
            value=float(sums.log_partitions.mean() - parts @ added),
            gradient=whole @ plain_means - parts @ means,
            hessian=_at_least(
                np.tensordot(whole, plain_covariances, 1) - np.tensordot(parts, covariances, 1),
                0.25 * plain_covariances.mean(axis=0),
            ),
        )

    def prompt_means(self, sums: BlockSums) -> tuple[FloatArray, FloatArray]:
        """Jackknifed tilted rewards of each prompt ``[P, q]``, and the jackknife's variance of each."""
        totals = np.add.reduceat(sums.features, self.prompt_blocks)[:, : 1 + sums.count]
        left = np.repeat(totals, self.blocks, axis=0) - sums.features[:, : 1 + sums.count]
        without = left[:, 1:] / np.maximum(left[:, :1], 1e-12)
        count = self.blocks[:, None]
        average = np.add.reduceat(without, self.prompt_blocks) / count
        spread = np.add.reduceat((without - np.repeat(average, self.blocks, axis=0)) ** 2, self.prompt_blocks)
        means = count * totals[:, 1:] / totals[:, :1] - (count - 1) * average
        return means, spread * (count - 1) / count

    def widening(self, sums: BlockSums) -> float:
        """Standard error of mean_c A_c by the jackknife, over that by linearisation."""
        shares = sums.features[:, 0]
        factors = np.repeat(1.0 - 1.0 / self.blocks, self.blocks)
        added = np.log1p(-np.minimum(shares, 1.0 - 1e-12)) - np.log1p(-self.block_weights)
        means = np.add.reduceat(added, self.prompt_blocks) / self.blocks
        jackknife = float(factors @ (added - np.repeat(means, self.blocks)) ** 2)
        linear = float((shares - self.block_weights) ** 2 @ (1.0 / factors))
        return math.sqrt(jackknife / linear) if linear > 0 else 1.0

    def _features(self, free: tuple[int, ...]) -> FloatArray:
        """1, r, and the upper triangle of r r' of every sample; the thresholds of a plan share it."""
        if free not in self._products:
            rewards = self._rewards[:, free]
            rows, columns = np.triu_indices(len(free))
            self._products[free] = np.column_stack(
                [np.ones(len(rewards)), rewards, rewards[:, rows] * rewards[:, columns]]
            )
        return self._products[free]


def _harmonic_mean(values: FloatArray) -> float:
    return 1.0 / float(np.mean(1.0 / values))


def _moments(sums: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Means ``[.., q]`` and covariances ``[.., q, q]`` from sums ``[.., K]``."""
    scaled = sums[..., 1:] / sums[..., :1]
    means = scaled[..., :count]
    rows, columns = np.triu_indices(count)
    second = np.empty((*means.shape, count))
    second[..., rows, columns] = scaled[..., count:]
    second[..., columns, rows] = scaled[..., count:]
    return means, second - means[..., :, None] * means[..., None, :]


def _at_least(matrix: FloatArray, floor: FloatArray) -> FloatArray:
    """The symmetric matrix ``[q, q]`` with its eigenvalues relative to ``floor`` raised to at least 1."""
    root = np.linalg.cholesky(floor + 1e-12 * np.eye(len(floor)))
    relative = np.linalg.solve(root, np.linalg.solve(root, matrix).T)
    values, vectors = np.linalg.eigh(0.5 * (relative + relative.T))
    basis = root @ vectors
    raised: FloatArray = (basis * np.maximum(values, 1.0)) @ basis.T
    return raised
