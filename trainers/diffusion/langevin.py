"""Annealed Langevin samplers of a product, without and with a Metropolis test, and the annealing that all MCMC shares.

At every level the states take one reverse step (``products.reverse_step``) and then Langevin moves
``x' = x + δ s + √(2δ) ε`` that leave ``π_t`` of that level (nearly) unchanged (Du et al. 2023, arXiv 2302.11552).

Step sizes follow the level. With a Metropolis test ``δ = c / h``, ``h = E|s|² / d`` the mean precision of ``π_t``, over
the chains of the batch and fixed for the moves of a level: chains still move at the clean end. Without one
``δ = c √((1 − ᾱ) / h)``: the error of the moves, of relative order ``δ / 2v`` in the variance v, shrinks towards the
clean end. (Steps of ``c (1 − ᾱ)`` shrink too fast: the last levels hardly moved, and the mean of a Gaussian product
was 0.08 off at 4 moves.) Moves are stable for precisions up to ``4 h / c²``.

Metropolis needs ``log π_t(x') − log π_t(x)``. Where every constituent has a density it is exact. Else it is the line
integral of the score from x to x' by the trapezoid rule, ``½ (s + s') · (x' − x)``, as Du et al. do, here with no
evaluation beyond those of the move. It is exact where scores are linear, elsewhere its error is of third order in
``x' − x``: at c = 0.5 the variance of a mixture product came out 0.12 too small, at 0.1 about 0.03. A network's
score need not be the gradient of anything; then there is no density for the integral to differ from.

Bias that is left: without Metropolis that of finite steps; with and without, the moves of a level are few, and
what the levels before got wrong is only partly forgotten. Chains do not change modes below the noise level that
separates these, so a mode's mass is that of the level where they part. ``benchmarks/product_samplers.py`` has figures.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.diffusion.noised import NoisedDensity
from trainers.diffusion.products import Product, ProductSamples, gaussian_noise, reverse_step
from trainers.types import FloatArray


@dataclass(kw_only=True)
class Chains:
    """The chains of a batch at one level."""

    states: Tensor
    """``[n, d]``."""
    scores: Tensor
    """Of the constituents at the states, ``[m, n, d]``."""
    velocity: Tensor
    """``[n, d]``, standard normal in equilibrium."""
    acceptance: list[Tensor]
    """``[n]`` of every proposal so far."""


@dataclass(frozen=True, kw_only=True)
class AnnealedSampler(ABC):
    """A reverse step and a move per level, from noise to the clean end. A sampler adds its settings and its move."""

    name: str

    def __call__(
        self,
        models: Sequence[NoisedDensity],
        weights: FloatArray,
        count: int,
        generator: torch.Generator,
    ) -> ProductSamples:
        """Draw ``count`` samples, each from a chain of its own."""
        product = Product(models, weights)
        states = product.prior(count, generator)
        chains = Chains(
            states=states,
            scores=product.scores(product.levels, states),
            velocity=gaussian_noise(count, product.dimension, generator, product.dtype),
            acceptance=[],
        )
        for level in range(product.levels, 0, -1):
            chains.states = reverse_step(product, level, chains.states, chains.scores, generator).states
            chains.scores = product.scores(level - 1, chains.states)
            self.move(product, level - 1, chains, generator)
        return ProductSamples(
            name=self.name,
            samples=reverse_step(product, 0, chains.states, chains.scores, generator).states,
            log_weights=torch.zeros(count, dtype=product.dtype, device=states.device),
            acceptance=torch.stack(chains.acceptance).mean(dim=0) if chains.acceptance else None,
            effective_samples=float(count),
            evaluations=float(product.evaluations),
            log_partition=None,
        )

    @abstractmethod
    def move(self, product: Product, level: int, chains: Chains, generator: torch.Generator) -> None:
        """Move the chains in place; their scores are those of the new states."""


def step_size(product: Product, level: int, chains: Chains, factor: float, *, adjusted: bool) -> float:
    """Return ``δ`` of a level: ``c / h`` where a Metropolis test follows, ``c √((1 − ᾱ) / h)`` where none does."""
    precision = float(product.combine(chains.scores).square().mean())
    return (
        factor / precision
        if adjusted
        else factor * math.sqrt((1 - float(product.alpha_bars[level])) / precision)
    )


def metropolis(
    chains: Chains,
    log_ratio: Tensor,
    states: Tensor,
    scores: Tensor,
    velocity: Tensor,
    generator: torch.Generator,
) -> None:
    """Accept the proposed states, scores and velocities with probability ``min(1, exp(log_ratio))``, ``[n]`` each."""
    probability = torch.nan_to_num(log_ratio, nan=-math.inf).clamp(max=0).exp()
    chains.acceptance.append(probability)
    uniform = torch.rand(
        len(probability), generator=generator, dtype=probability.dtype, device=probability.device
    )
    accepted = (uniform < probability)[:, None]
    chains.states = torch.where(accepted, states, chains.states)
    chains.scores = torch.where(accepted, scores, chains.scores)
    chains.velocity = torch.where(accepted, velocity, -chains.velocity)


@dataclass(frozen=True, kw_only=True)
class AnnealedUla(AnnealedSampler):
    """Unadjusted Langevin."""

    moves: int = 4
    """Per level."""
    step: float = 0.4
    """``c``, below 1."""
    name: str = "ula"

    def move(self, product: Product, level: int, chains: Chains, generator: torch.Generator) -> None:
        """Take Langevin steps."""
        size = step_size(product, level, chains, self.step, adjusted=False)
        for _ in range(self.moves):
            noise = gaussian_noise(len(chains.states), product.dimension, generator, product.dtype)
            drift = size * product.combine(chains.scores)
            chains.states = chains.states + drift + math.sqrt(2 * size) * noise
            chains.scores = product.scores(level, chains.states)


@dataclass(frozen=True, kw_only=True)
class AnnealedMala(AnnealedSampler):
    """Metropolis-adjusted Langevin."""

    moves: int = 3
    """Per level."""
    step: float = 0.4
    """``c``, where densities decide."""
    line_step: float = 0.1
    """``c``, where the line integral does: longer steps cost more accuracy there than they bring."""
    use_density: bool = True
    """Accept by densities where all constituents have them, else by the line integral of the score."""
    name: str = "mala"

    def move(self, product: Product, level: int, chains: Chains, generator: torch.Generator) -> None:
        """Propose Langevin steps, and accept or reject each."""
        exact = self.use_density and product.has_density
        size = step_size(product, level, chains, self.step if exact else self.line_step, adjusted=True)
        for _ in range(self.moves):
            score = product.combine(chains.scores)
            noise = gaussian_noise(len(score), product.dimension, generator, product.dtype)
            proposal = chains.states + size * score + math.sqrt(2 * size) * noise
            scores = product.scores(level, proposal)
            there = product.combine(scores)
            jump = proposal - chains.states
            if exact:
                gain = product.log_density(level, proposal) - product.log_density(level, chains.states)
            else:
                gain = 0.5 * ((score + there) * jump).sum(dim=1)
            back = (jump + size * there).square().sum(dim=1) / (4 * size)
            log_ratio = gain + 0.5 * noise.square().sum(dim=1) - back
            metropolis(chains, log_ratio, proposal, scores, chains.velocity, generator)
