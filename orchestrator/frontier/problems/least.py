"""The least KL at thresholds: one question to all that can answer it, in closed form, by quadrature, or from samples.

``problems.chosen`` chooses by the kind of model; whoever asks further need not know which it is.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trainers.config import BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]
Kind = Literal["proven", "estimated"]
"""Proven: the least KL is exact. Estimated: samples predict it."""
BoundKind = Literal["proven", "95%", "estimated"]
"""How sure a bound is. 95%: it holds at that confidence, whatever training did. Estimated: as far as training found the
optimum of its multipliers."""
SAID: dict[str, str] = {"proven": "proven", "95%": "holds at 95 %", "estimated": "estimated"}
"""How prose says it."""
Documents = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The solution of one constrained problem."""

    reachable: bool
    """False if no distribution within ``KL_LIMIT`` nats meets the constraints."""
    kl: float
    """Nats; infinite if not reachable, NaN if it cannot be computed."""
    rewards: Mapping[str, float]
    """Expected rewards at the optimum, of every reward of the problem, reward units."""
    multipliers: Mapping[str, float]
    """Price of each reward threshold: nats, or units of the objective, per reward unit."""
    tilt: Mapping[str, float]
    """λ of the optimal distribution q exp(λ'r) / Z, nats per reward unit; absent is 0."""
    kl_multiplier: float | None = None
    """Price of the KL budget, objective units per nat; None where the KL is the objective."""


class LeastKL(Protocol):
    """What trials are held against: exact for one model, unless a class says otherwise."""

    kind: ClassVar[Kind] = "proven"
    word: ClassVar[str] = "exact least KL"
    """How tables call it."""
    known: ClassVar[str] = "possible"
    """How a sentence ends that names it: the least KL ..."""
    line: ClassVar[bool] = False
    """Whether figures draw it against a reward."""

    @abstractmethod
    def least_kl(self, thresholds: Mapping[str, float]) -> Optimum:
        """The least KL of any policy with ``E[r] >= thresholds``.

        Args:
            thresholds: By reward name, absolute reward units; a reward that is absent is free.
        """

    @property
    def renewed(self) -> bool:
        """Whether it knows more than when the trials were stored."""
        return False

    def held(self, asked: Mapping[str, float], reached: Mapping[str, float]) -> dict[str, float]:  # noqa: ARG002 - some do
        """Return the thresholds that a trial is held against: what it reached, whatever it was asked for.

        Args:
            asked: Its own, by reward name.
            reached: Its rewards, as far as the sweep is after them.
        """
        return dict(reached)

    def forecast(self, configs: Sequence[TrialConfig], baseline: BaselineStatistics) -> dict[str, Any] | None:  # noqa: ARG002 - some do
        """Return the document of the preview again, from all that is known now; None where nothing is predicted."""
        return None

    def certified(self, configs: Sequence[TrialConfig], baseline: BaselineStatistics) -> Documents | None:  # noqa: ARG002 - some do
        """Return what is known of the least KL at thresholds of trials, at 95 % and in parts; None without samples."""
        return None

    def planes(self, names: Sequence[str], thresholds: FloatArray) -> tuple[FloatArray, FloatArray] | None:  # noqa: ARG002 - some do
        """Return planes below the least KL, together at 95 %: slopes ``[p, m]`` and offsets ``[p]``; None without.

        Args:
            names: Of the rewards ``[m]``.
            thresholds: ``[t, m]``, near which they are wanted, reward units; NaN where a reward is free.
        """
        return None

    def proven(self, thresholds: Mapping[str, float]) -> tuple[float, BoundKind] | None:
        """Return a lower bound on the least KL at thresholds, nats, and how sure it is; None without one.

        Args:
            thresholds: By reward name, reward units; a reward that is absent is free.
        """
        optimum = self.least_kl(thresholds)
        return (optimum.kl, "proven") if self.kind == "proven" and optimum.reachable else None
