"""How well the least KL is known at thresholds, and what each nat that is not known is made of.

Symbols as in ``certificate`` and ``mixtures``; v is the best mixture of the estimates, P̂ the least KL as the samples
estimate it:

    gap        U(b) − L(b)                     both bounds at 95 %
    few        Σ v_k P̂(R_k) − P̂(b)             what mixing costs, where a single policy as good as those would be at b
    training   Σ v_k (K_k − P̂(R_k))            how far the policies are from the optimum at the rewards they reached
    rest       (U − Σ v_k K_k) + (P̂(b) − L)    the confidence of both bounds

``K_k − P̂(R_k) = E_c[log Ẑ_c − E_k log w]`` at the multipliers of R_k: about half the variance of log w, and 0 only
where log w is constant. It is measured against all laws of paths: what a policy with Gaussian steps on this chain, and
without a say in x_T, can never reach is in it. The three parts sum to the gap; each alone may be below 0 by its noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.frontier.paths.certificate import CONFIDENCE, Certificate, Certifier
from orchestrator.frontier.paths.mixtures import Mixed, Mixtures
from orchestrator.frontier.paths.sources import PathSamples

FloatArray = NDArray[np.float64]
Part = Literal["few_trials", "training", "rest"]


@dataclass(frozen=True, kw_only=True)
class CertifiedGap:
    """Both bounds at one row of thresholds, and the parts of their distance; nats."""

    proof: Certificate
    """The lower bound."""
    mixed: Mixed
    """The upper bound; infinite where no mixture is sure to reach the thresholds: then the rest is infinite, too."""
    least: float
    """P̂(b), nats."""
    few_trials: float
    """NaN where not even the estimates of a mixture reach them."""
    training: float

    @property
    def gap(self) -> float:
        """Upper minus lower bound, >= 0: at most so much more than necessary is paid."""
        return max(self.mixed.upper - self.proof.lower, 0.0)

    @property
    def rest(self) -> float:
        """What the other parts leave."""
        return self.gap - self.few_trials - self.training

    @property
    def largest(self) -> Part | None:
        """The largest part; None where nothing reaches the thresholds."""
        if np.isnan(self.few_trials):
            return None
        parts: tuple[tuple[float, Part], ...] = (
            (self.few_trials, "few_trials"),
            (self.training, "training"),
            (self.rest, "rest"),
        )
        return max(parts)[1]


class Gaps:
    """Samples that are asked how well the least KL is known."""

    def __init__(
        self,
        samples: Sequence[PathSamples],
        *,
        predict: Callable[[FloatArray], float] | None = None,
        confidence: float = CONFIDENCE,
    ) -> None:
        """Take the pretrained model's samples and those of trials.

        Args:
            samples: One entry for each source.
            predict: P̂ at thresholds ``[m]``, NaN where a reward is free; infinite where it is not known. There, and by
                default, it is the lower bound without its margin.
            confidence: Of each bound.

        Raises:
            ValueError: See ``certificate`` and ``mixtures``.
        """
        self._samples, self._confidence, self._predict = samples, confidence, predict
        self.certifier = Certifier(samples)
        self._reached: dict[tuple[int, tuple[bool, ...]], float] = {}
        """Least KL at the rewards of each source, by those that have a threshold."""

    @cached_property
    def mixtures(self) -> Mixtures:
        """The policies, to be mixed."""
        return Mixtures(self._samples, confidence=self._confidence)

    def at(self, thresholds: ArrayLike) -> CertifiedGap:
        """Bound the least KL at thresholds ``[m]``, reward units; NaN or −inf where a reward is free."""
        row = np.asarray(thresholds, dtype=np.float64)
        proof = self.certifier.certificate(row, confidence=self._confidence)
        mixed = self.mixtures.at(row, proof.tilt)
        least = self._least(np.where(np.isfinite(row), row, np.nan), proof)
        if not np.isfinite(mixed.estimate):
            return CertifiedGap(proof=proof, mixed=mixed, least=least, few_trials=np.nan, training=np.nan)
        shares = mixed.probabilities
        members = np.flatnonzero(shares > 0)
        own = float(shares[members] @ [self._least_of(int(k), np.isfinite(row)) for k in members])
        return CertifiedGap(
            proof=proof,
            mixed=mixed,
            least=least,
            few_trials=own - least,
            training=mixed.estimate - own,
        )

    def _least(self, row: FloatArray, proof: Certificate | None = None) -> float:
        """P̂ at thresholds ``[m]``, nats."""
        found = np.inf if self._predict is None else self._predict(row)
        if not np.isfinite(found):
            found = (self.certifier.certificate(row) if proof is None else proof).estimate
        return max(found, 0.0)

    def _least_of(self, source: int, free: NDArray[np.bool_]) -> float:
        """Least KL at the rewards that a policy reached, of those that have a threshold; an estimate, nats."""
        key = source, tuple(free.tolist())
        if key not in self._reached:
            row = np.where(free, self.mixtures.rewards[source], np.nan)
            self._reached[key] = self._least(row)
        return self._reached[key]
