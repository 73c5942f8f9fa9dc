"""The variance-preserving noise schedule and the Gaussian steps of its stochastic samplers.

Symbols: ``ᾱ`` alpha_bar at the start of a step (noisier), ``ᾱ_prev`` at its end. Step k = 0 is the noisiest.
"""

from dataclasses import dataclass

import numpy as np

from trainers.types import FloatArray

_FINAL_ALPHA_BAR = 1.0 - 1e-4
_FIRST_ALPHA_BAR = 1e-5


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """Coefficients of K sampling steps, each array ``[K]``, in sampling order.

    A step draws ``x_prev ~ N(from_state · x + from_clean · x̂_0, σ²)`` where ``x̂_0`` is the denoised sample.
    ``sigma`` is the DDIM standard deviation ``η √β̃``.

    The steps are a chain: each begins at the level at which the one before ended, so that the network is told the level
    that its state has.

    Raises:
        ValueError: they are not, or a step does not end at a cleaner level than it began.
    """

    alpha_bar: FloatArray
    alpha_bar_prev: FloatArray
    from_state: FloatArray
    from_clean: FloatArray
    sigma: FloatArray

    def __post_init__(self) -> None:
        """Check the levels."""
        _check_chain(self.alpha_bar, self.alpha_bar_prev)

    def kl_weights(self) -> FloatArray:
        """Return ``w_t = c_t² / (2 σ_t²)``, ``[K]``, nats per squared difference of noise predictions.

        ``c_t = √(1 − ᾱ_prev − σ²) − √(ᾱ_prev (1 − ᾱ) / ᾱ)`` is the factor of the noise prediction in the mean.
        """
        noise_factor = np.sqrt(_kept(self.alpha_bar_prev, self.sigma)) - np.sqrt(
            self.alpha_bar_prev * (1.0 - self.alpha_bar) / self.alpha_bar
        )
        return noise_factor**2 / (2.0 * self.sigma**2)


def cosine_alpha_bars(steps: int) -> FloatArray:
    """Return ``ᾱ`` at the ``K + 1`` grid points of a cosine schedule, clean to noisy, strictly falling.

    ``ᾱ = cos²(angle)`` at equal angles (Nichol & Dhariwal 2021) from 1 − 1e-4 to 1e-5: the last step has noise,
    so that the path-wise KL is finite, and the first starts memoryless.
    """
    first, final = np.arccos(np.sqrt([_FIRST_ALPHA_BAR, _FINAL_ALPHA_BAR]))
    return np.asarray(np.cos(np.linspace(final, first, steps + 1)) ** 2)


def ddim_steps(alpha_bars: FloatArray, eta: float) -> StepTable:
    """Return the steps of DDIM over a grid of ``K + 1`` noise levels, clean to noisy.

    Raises:
        ValueError: ``eta`` is 0 (the path-wise KL would be infinite) or outside (0, 1].
    """
    return gaussian_steps(alpha_bars[:0:-1].copy(), alpha_bars[-2::-1].copy(), eta)


def gaussian_steps(alpha_bar: FloatArray, alpha_bar_prev: FloatArray, eta: float) -> StepTable:
    """Return the steps of DDIM with noise ``η`` (Song et al. 2021, eqs. 12 and 16) from one level to the next.

    Args:
        alpha_bar: ``[K]``, at the start of each step.
        alpha_bar_prev: ``[K]``, at its end, larger and less than 1.
        eta: Noise as a fraction of the ancestral one.

    Raises:
        ValueError: ``eta`` is 0 (the path-wise KL would be infinite) or outside (0, 1], or the levels are no chain.
    """
    if not 0.0 < eta <= 1.0:
        raise ValueError(f"eta must be in (0, 1], got {eta}; at 0 the path-wise KL is infinite")
    _check_chain(alpha_bar, alpha_bar_prev)
    sigma = eta * np.sqrt((1.0 - alpha_bar_prev) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_prev))
    from_state = np.sqrt(_kept(alpha_bar_prev, sigma) / (1.0 - alpha_bar))
    return StepTable(
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        from_state=from_state,
        from_clean=np.sqrt(alpha_bar_prev) - np.sqrt(alpha_bar) * from_state,
        sigma=sigma,
    )


def _kept(alpha_bar_prev: FloatArray, sigma: FloatArray) -> FloatArray:
    """Return the variance ``1 − ᾱ_prev − σ²`` of old noise after a step: 0, but for rounding, after none but noise."""
    return np.maximum(1.0 - alpha_bar_prev - sigma**2, 0.0)


def _check_chain(before: FloatArray, after: FloatArray) -> None:
    """Refuse levels ``ᾱ`` at the start and the end of steps that are no chain.

    Raises:
        ValueError: says which.
    """
    if before.shape != after.shape or not ((before >= 0.0) & (before < after) & (after <= 1.0)).all():
        raise ValueError(
            "every step must end at a cleaner level than it begins, within [0, 1], got alpha_bar "
            f"{before.tolist()} and alpha_bar_prev {after.tolist()}"
        )
    (broken,) = np.nonzero(after[:-1] != before[1:])
    if broken.size:
        step = int(broken[0])
        raise ValueError(
            f"step {step} ends at alpha_bar {after[step]:.6g} and step {step + 1} begins at "
            f"{before[step + 1]:.6g}: the network would be told another level than its state has"
        )
