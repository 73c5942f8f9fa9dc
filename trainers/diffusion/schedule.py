"""Noise levels, and the Gaussian steps of stochastic samplers between them.

Symbols: ``x_t = α_t x_0 + σ_t ε`` at noise level t; a step goes from level t to the cleaner level s. Step k = 0 is the
noisiest. ``SNR = (α/σ)²``. Nothing here divides by α, which may be 0 at the first level.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from trainers.types import FloatArray

_FINAL_ALPHA_BAR = 1.0 - 1e-4
_FIRST_ALPHA_BAR = 1e-5


@dataclass(frozen=True, kw_only=True)
class Levels:
    """``K + 1`` noise levels in sampling order, noisiest first: each but the last begins the step after it.

    Raises:
        ValueError: A level is not cleaner than the one before.
    """

    alpha: FloatArray
    """``[K + 1]``, the share of the clean sample; 0 at most at the first."""
    sigma: FloatArray
    """``[K + 1]``, that of the noise; 0 at most at the last."""

    def __post_init__(self) -> None:
        """Check their order, by cross-multiplication: an SNR may be infinite."""
        alpha, sigma = self.alpha, self.sigma
        cleaner = alpha[:-1] * sigma[1:] < alpha[1:] * sigma[:-1] if alpha.shape == sigma.shape else None
        if cleaner is None or len(alpha) < 2 or min(alpha.min(), sigma.min()) < 0 or not cleaner.all():
            raise ValueError(
                "every step must end at a cleaner level than it begins, got alpha "
                f"{alpha.tolist()} and sigma {sigma.tolist()}"
            )

    @classmethod
    def variance_preserving(cls, alpha_bars: FloatArray) -> "Levels":
        """Return ``(√ᾱ, √(1 − ᾱ))``, noisiest first.

        Raises:
            ValueError: They are not within [0, 1], or do not rise.
        """
        if not ((alpha_bars >= 0.0) & (alpha_bars <= 1.0)).all():
            raise ValueError(f"alpha_bar must be within [0, 1], got {alpha_bars.tolist()}")
        return cls(alpha=np.sqrt(alpha_bars), sigma=np.sqrt(1.0 - alpha_bars))

    @classmethod
    def flow(cls, times: FloatArray) -> "Levels":
        """Return ``(1 − t, t)``, noisiest first, t falling from at most 1.

        Raises:
            ValueError: It does not.
        """
        return cls(alpha=1.0 - times, sigma=times)

    def ratios(self) -> FloatArray:
        """Return ``r = √(SNR_t / SNR_s)`` of every step, ``[K]``, in [0, 1)."""
        ratios: FloatArray = self.alpha[:-1] * self.sigma[1:] / (self.alpha[1:] * self.sigma[:-1])
        return ratios


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """Coefficients of K sampling steps, each array ``[K]``, in sampling order.

    A step draws ``x_s = A x + B x̂ + C ε``, where ``x̂`` is the denoised sample. In a step of second order it is
    ``x̂_0 + κ (x̂_0 − x̂_0')``, extrapolated from the guess ``x̂_0'`` of the step before (2M of Lu et al. 2022,
    arXiv 2211.01095, and for η = 1 its stochastic form): no further call of a network.
    """

    levels: Levels
    from_state: FloatArray
    """A"""
    from_clean: FloatArray
    """B"""
    noise: FloatArray
    """C; 0 at most in the last step."""
    extrapolation: FloatArray
    """κ; 0 in a step of first order."""

    @property
    def steps(self) -> int:
        """K."""
        return len(self.noise)

    def gain(self, step: int) -> float:
        """Return ``B / C``: a step's control, the shift of its mean in units of its noise, per shift of ``x̂``.

        For η = 1 its square is ``SNR_s − SNR_t``.
        """
        assert self.noise[step] > 0, (
            "in a step without noise policy and reference agree: there the adapter rests"
        )
        return float(self.from_clean[step] / self.noise[step])

    def extrapolated(self, step: int, guess: Tensor, before: Tensor | None) -> Tensor:
        """Return ``x̂``, or the same of anything that is linear in guesses.

        Args:
            step: Number of the step, from 0.
            guess: ``x̂_0`` of this step.
            before: Of the step before; None where there is none: the step is then of first order.
        """
        factor = float(self.extrapolation[step])
        return guess if before is None or factor == 0.0 else guess + factor * (guess - before)

    def mean(self, step: int, state: Tensor, clean: Tensor) -> Tensor:
        """Return ``A x + B x̂``."""
        return float(self.from_state[step]) * state + float(self.from_clean[step]) * clean

    def noised(self, step: int, clean: Tensor, noise: Tensor) -> Tensor:
        """Return clean samples noised to the start of a step, ``α x_0 + σ ε``."""
        return float(self.levels.alpha[step]) * clean + float(self.levels.sigma[step]) * noise


def cosine_alpha_bars(steps: int) -> FloatArray:
    """Return ``ᾱ`` at the ``K + 1`` grid points of a cosine schedule, clean to noisy, strictly falling.

    ``ᾱ = cos²(angle)`` at equal angles (Nichol & Dhariwal 2021) from 1 − 1e-4 to 1e-5: the last step has noise,
    so that the path-wise KL is finite, and the first starts memoryless.
    """
    first, final = np.arccos(np.sqrt([_FIRST_ALPHA_BAR, _FINAL_ALPHA_BAR]))
    return np.asarray(np.cos(np.linspace(final, first, steps + 1)) ** 2)


def ddim_steps(alpha_bars: FloatArray, eta: float, order: int = 1) -> StepTable:
    """Return ``gaussian_steps`` over a variance-preserving grid of ``K + 1`` levels ``ᾱ``, clean to noisy."""
    return gaussian_steps(Levels.variance_preserving(alpha_bars[::-1].copy()), eta, order)


def gaussian_steps(levels: Levels, eta: float, order: int = 1) -> StepTable:
    """Return the steps of DDIM with noise ``η`` (Song et al. 2021, eqs. 12 and 16) from one level to the next.

    At η = 1 they are memoryless, whatever the levels: the state keeps ``A = (σ_s / σ_t) r`` and the noise is
    ``C = σ_s √(1 − r²)``, ``r = √(SNR_t / SNR_s)``; in between ``B = α_s − α_t A``.

    Second order has ``κ = h / (2 h')`` with ``h = ½ ln (SNR_s / SNR_t)`` of a step and ``h'`` of the one before, at
    most 1. The first step has none before it, a step after one from pure noise has ``h'`` infinite, and the last one
    is of first order.

    Args:
        levels: Of the chain.
        eta: Noise as a fraction of the ancestral one.
        order: 1 or 2.

    Raises:
        ValueError: ``eta`` is 0 (the path-wise KL would be infinite), outside (0, 1], or not 1 with second order.
    """
    if not 0.0 < eta <= 1.0:
        raise ValueError(f"eta must be in (0, 1], got {eta}; at 0 the path-wise KL is infinite")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    if order == 2 and eta != 1.0:
        raise ValueError(f"eta must be 1 with steps of order 2, got {eta}")
    ratios, after = levels.ratios(), levels.sigma[1:]
    kept = np.sqrt((1.0 - eta**2) + eta**2 * ratios**2)
    from_state = after / levels.sigma[:-1] * kept
    return StepTable(
        levels=levels,
        from_state=from_state,
        from_clean=levels.alpha[1:] - levels.alpha[:-1] * from_state,
        noise=eta * after * np.sqrt(1.0 - ratios**2),
        extrapolation=_extrapolation(ratios) if order == 2 else np.zeros(len(ratios)),
    )


def _extrapolation(ratios: FloatArray) -> FloatArray:
    """Return ``κ`` of every step, from ``h = −ln r``, infinite where the SNR begins at 0."""
    with np.errstate(divide="ignore"):
        spans = -np.log(ratios)
    factors = np.zeros(len(ratios))
    factors[1:-1] = np.minimum(spans[1:-1] / (2.0 * spans[:-2]), 1.0)
    return factors
