"""What a job asks of its composition, in arrays; ``m`` models, ``R`` rewards."""

import numpy as np

from trainers.composition.solve import gap
from trainers.composition.state import Ascent
from trainers.config import TrialJob
from trainers.types import FloatArray


class Terms:
    """Offsets and thresholds, and what they make of weights, multipliers and measurements."""

    def __init__(self, job: TrialJob) -> None:
        """Take a job whose model is a composition."""
        composition = job.config.model.composition
        assert composition is not None, "a composition"
        self.job, self.composition = job, composition
        self.names = [model.name for model in composition.models]
        self.rewards = [reward.name for reward in job.config.rewards]
        self.offsets = np.array([composition.offsets.get(name, 0.0) for name in self.names])
        bounds = {c.target: job.thresholds[c.name] for c in job.config.constraints}
        self.bounds = np.array([bounds.get(name, -np.inf) for name in self.rewards])
        """``[R]``; −∞ for rewards that are only measured."""

    def start(self) -> Ascent:
        """Return the weights to begin with: those of a weighted trial, or equal ones."""
        if self.job.config.method == "weighted":
            weights = np.array([self.job.config.weights.get(name, 0.0) for name in self.names])
        else:
            weights = np.full(len(self.names), 1.0 / len(self.names))
        return Ascent(weights=weights, tilt=np.zeros(len(self.rewards)))

    def shortfall(self, rewards: FloatArray) -> FloatArray:
        """Return ``b − E[r]``, ``[R]``; −∞ where there is no threshold."""
        return np.asarray(self.bounds - rewards)

    def residual(self, state: Ascent) -> float:
        """Return the KKT residual over the window, of means."""
        last = self.job.config.convergence.window
        short = self.shortfall(state.mean("rewards", last))
        bounded = np.isfinite(short)
        scales = np.array([self.job.baseline.rewards[name].std for name in self.rewards])
        kl = state.mean("kl", last)
        # Relative below a nat: models that are near one another are held as equally near as others.
        parts = [gap(state.mean("weights", last), kl - self.offsets) / min(1.0, max(float(kl.max()), 1e-3))]
        if bounded.any():
            scaled = short[bounded] / scales[bounded]
            slack = np.abs(state.mean("tilt", last)[bounded] * short[bounded])
            parts += [float(np.maximum(scaled, 0.0).max()), float(slack.max())]
        return max(parts)

    def violations(self, rewards: FloatArray) -> dict[str, float]:
        """Return ``b − E[r]`` of the thresholds, by constraint."""
        means = dict(zip(self.rewards, rewards.tolist(), strict=True))
        return {c.name: self.job.thresholds[c.name] - means[c.target] for c in self.job.config.constraints}

    def multipliers(self, weights: FloatArray, tilt: FloatArray) -> dict[str, float]:
        """Return weights by model, and multipliers by constraint."""
        prices = dict(zip(self.rewards, tilt.tolist(), strict=True))
        constrained = {c.name: prices[c.target] for c in self.job.config.constraints}
        return dict(zip(self.names, weights.tolist(), strict=True)) | constrained
