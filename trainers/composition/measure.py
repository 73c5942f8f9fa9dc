"""What a composition measures at given weights: how far it is from each of its models, and its rewards."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainers.composition.state import Ascent
from trainers.trial_io import TrialIO
from trainers.types import FloatArray, ImageArray


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is known of ``scores`` of networks, ``n`` rows, beside them."""

    kl: FloatArray | None
    """``[m, n]``, path-wise, nats; None where only a mean over samples is a KL."""
    seeds: NDArray[np.int64]
    """``[n]``, the number of the noise; of resampled particles, that of their last place."""
    prompts: tuple[str, ...] | None = None
    """``[n]``; None where the models have no prompts."""
    images: ImageArray | None = None
    """The first images, ``[shown, h, w, 3]``."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A composition at given weights. Standard errors beside means; ``m`` models, ``R`` rewards."""

    kl: FloatArray
    """``[m]``, nats, in the direction of the problem."""
    kl_error: FloatArray
    rewards: FloatArray
    """``[R]``, reward units."""
    reward_error: FloatArray
    curvature: FloatArray
    """``[m + R, m + R]``, minus the Hessian of the dual in weights and reward multipliers."""
    dual: float
    """Without offsets and thresholds, nats: ``−log Z`` or ``Σ λ_i KL_i``."""
    scores: FloatArray
    """``[R, n]`` of equally weighted samples."""
    degrees: float
    """Of freedom behind the standard errors."""
    effective_samples: float
    acceptance: float | None
    evaluations: float
    """Scores per sample, summed over the models; 0 where samples are exact."""
    log_ratio: FloatArray | None = None
    """``[m, n]``, nats: log density of each of these samples, or of its path, under the composition less that under
    each model; None where the composition's is known but for ``log Z``."""
    samples: Samples | None = None
    """Of networks."""


class Measure(Protocol):
    """What a solver asks of a composition."""

    estimator: str
    apart: float
    """Nats of the least KL beyond which models count as disjoint."""

    def __call__(
        self, weights: FloatArray, tilt: FloatArray, count: int, seed: int, *, held_out: bool = False
    ) -> Measured:
        """Measure the composition at ``weights`` ``[m]`` and reward multipliers ``tilt`` ``[R]``.

        Networks are asked for the training prompts, or for the held-out ones; mixtures have none.
        """


class Models(Protocol):
    """What is composed."""

    @property
    def measure(self) -> Measure:
        """What measures them together."""

    def extras(self, weights: FloatArray, measured: Measured, io: TrialIO, state: Ascent) -> dict[str, Any]:
        """Return further fields of the outcome at ``weights`` ``[m]``, where it was measured.

        What takes long of it keeps its progress in the state, and saves that.
        """
