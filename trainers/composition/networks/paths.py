"""How far a composition of chains is from each of its models, by sampling paths.

``PathProduct`` (AND) and ``PathSum`` (OR) measure networks: what is composed, and what is measured, are distributions
of paths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.composition.networks.chains import Chains
from trainers.composition.networks.groups import Part, PathMeasure
from trainers.composition.networks.judges import Judge
from trainers.composition.networks.particles import (
    covariances,
    followed_paths,
    grouped,
    resampled,
    weighted_paths,
)
from trainers.config import PARTICLES
from trainers.diffusion.path_kl import ESTIMATOR as PATH
from trainers.models.base import Draw

PATH_ENERGY = "path_energy"
PATH_MONTE_CARLO = "path_monte_carlo"

CORRECTED = "fkc"
DRIVERS = (CORRECTED, "score", "merged", "joint", "base", "student")
"""What moves a sample: ``Σ λ_i u_i`` with weights, or without; the two baselines, the pretrained model, a student."""


class PathProduct(PathMeasure):
    """``p ∝ Π q_i^{λ_i} exp(μ·r)``, prompt by prompt: the AND of the chains; or what stands in for it, uncorrected.

    With ``fkc`` the dual is ``−log Z``, a mean over prompts, and KLs are those of ``particles``. Any other driver is a
    chain with a control ``u`` of its own: ``KL_i = E Σ_k ½ |u − u_i|²``, estimator ``path``, dual ``Σ λ_i KL_i``.
    """

    def __init__(
        self, chains: Chains, judge: Judge, *, driver: str | int, particles: int = PARTICLES
    ) -> None:
        """Take what moves the samples.

        Args:
            chains: The models.
            judge: Of final samples.
            driver: One of ``DRIVERS``, or the number of a model, which is then sampled alone. Drivers with as many
                particles share prompts and noise, sample by sample.
            particles: Samples of a group.

        Raises:
            ValueError: No such driver, or too few particles.
        """
        super().__init__(chains, judge, particles)
        if driver not in (DRIVERS if isinstance(driver, str) else range(chains.count)):
            raise ValueError(
                f"a product is moved by one of {', '.join(DRIVERS)}, or by a model below {chains.count}, got {driver!r}"
            )
        if particles < (2 if driver == CORRECTED else 1):
            raise ValueError(f"groups of fkc need two particles, and others one, got {particles}")
        self._driver = driver
        self.estimator = PATH_ENERGY if driver == CORRECTED else PATH
        self.corrected = driver == CORRECTED
        self.keeps_kl = not self.corrected
        self.cost = 1.0 if driver in {CORRECTED, "score"} else 1.0 / chains.count

    def part(
        self, weights: Tensor, tilt: Tensor, draw: Draw, first: int, generators: Sequence[torch.Generator]
    ) -> Part:
        """Measure the groups of a draw."""
        del first
        if self.corrected:
            return self._weighted(weights, tilt, draw, generators)
        if tilt.any():
            raise ValueError(
                f"a tilt by rewards needs weighted samples, and those of {self._driver!r} are not: use fkc"
            )
        return self._even(weights, draw)

    def _weighted(
        self, weights: Tensor, tilt: Tensor, draw: Draw, generators: Sequence[torch.Generator]
    ) -> Part:
        particles = weighted_paths(self.chains, weights, draw, self.size, generators)
        images = self.chains.decode(particles.states)
        scores = self.scores(images, draw)
        bonus = torch.tensordot(tilt, scores, dims=1)
        particles.log_weights = particles.log_weights + bonus
        return Part(
            kl=particles.kl(torch.tensordot(weights, particles.logs, dims=1) + bonus),
            rewards=particles.means(scores),
            curvature=covariances(torch.cat([particles.logs, scores]), particles.shares),
            variance=particles.variance(),
            log_partition=particles.log_partition(),
            images=images,
            scores=scores,
            kept=resampled(particles.log_weights, generators),
        )

    def _even(self, weights: Tensor, draw: Draw) -> Part:
        """Move by one control; nothing is weighted."""
        driver = self._driver
        own = torch.eye(len(weights), dtype=weights.dtype)[driver] if isinstance(driver, int) else weights

        def control(step: int, state: Tensor, controls: Tensor) -> Tensor:
            if isinstance(driver, str) and driver != "score":
                return self.chains.control(driver, step, state, draw, weights.tolist())
            mixed: Tensor = torch.tensordot(own.to(controls), controls, dims=1)
            return mixed

        paths = followed_paths(self.chains, weights, control, draw, self.size)
        images = self.chains.decode(paths.states)
        scores = self.scores(images, draw)
        kl = 0.5 * torch.einsum("iign->ign", paths.products)
        groups, count = scores.shape[1], self.chains.count
        even = torch.full(scores.shape[1:], 1.0 / self.size, dtype=torch.float64)
        curvature = torch.zeros(groups, *(count + len(scores),) * 2, dtype=torch.float64)
        curvature[:, :count, :count] = paths.products.mean(dim=3).permute(2, 0, 1)
        curvature[:, count:, count:] = covariances(scores, even)
        return Part(
            kl=kl.mean(dim=2),
            rewards=scores.mean(dim=2),
            curvature=curvature,
            variance=even[:, 0],
            images=images,
            scores=scores,
            kept=torch.arange(self.size).expand(groups, -1),
            sample_kl=kl,
            sample_ratio=-paths.logs,
        )


class PathSum(PathMeasure):
    """``p = Σ λ_i q_i``, prompt by prompt: the OR of the chains. A sample picks a model, and is drawn by it alone.

    Every group has about as many samples of each model, and all models are asked along each path: with log densities
    ``L_j`` relative to the model that draws, ``KL(q_i‖p) = −E_{q_i} log Σ_j λ_j exp L_j``.
    """

    estimator = PATH_MONTE_CARLO

    def __init__(self, chains: Chains, judge: Judge, *, particles: int = PARTICLES) -> None:
        """Take the models, and the samples of a group: one of each model at least."""
        super().__init__(chains, judge, group_size(chains.count, particles))
        self.cost = 1.0 / chains.count

    def part(
        self, weights: Tensor, tilt: Tensor, draw: Draw, first: int, generators: Sequence[torch.Generator]
    ) -> Part:
        """Measure the groups of a draw; models take turns, from one group to the next."""
        assert not tilt.any(), "a sum of models is not tilted"
        batch, count = torch.arange(len(draw)), self.chains.count
        drawer = (first * self.size + batch) % count

        def control(step: int, state: Tensor, controls: Tensor) -> Tensor:
            del step
            own: Tensor = controls[drawer.to(state.device), batch.to(state.device)]
            return own

        paths = followed_paths(self.chains, weights, control, draw, self.size)
        images = self.chains.decode(paths.states)
        scores = self.scores(images, draw)
        total = torch.logsumexp(paths.logs + weights.clamp(min=1e-300).log()[:, None, None], dim=0)  # log p
        ratios = torch.exp(paths.logs - total)  # q_i / p
        own = grouped(torch.nn.functional.one_hot(drawer, count).T, self.size)
        own = own / own.sum(dim=2, keepdim=True)  # [m, G, n], of every model's own mean
        shares = torch.tensordot(weights, own, dims=1)  # of the composition's
        kl = -(own * total).sum(dim=2)
        return Part(
            kl=kl,
            noise=-(own * paths.drift).sum(dim=2),
            rewards=(scores * shares).sum(dim=2),
            curvature=torch.einsum("ign,jgn,gn->gij", ratios, ratios, shares),
            variance=shares.square().sum(dim=1),
            images=images,
            scores=scores,
            kept=resampled(shares.log(), generators),
            sample_ratio=total - paths.logs,
        )


def group_size(models: int, particles: int = PARTICLES) -> int:
    """Return the samples of a group of ``PathSum``."""
    return max(particles, models)
