"""Annealed Hamiltonian samplers of a product: underdamped without a Metropolis test, and Hamiltonian Monte Carlo.

Per level, after the reverse step (``langevin.AnnealedSampler``), velocities are partly refreshed,
``v ← γ v + √(1 − γ²) ε``, and states follow leapfrog steps of ``H = −log π_t(x) + ½|v|²`` (Du et al. 2023, arXiv
2302.11552). Step sizes follow the level as those of Langevin do, ``η² = 2 δ``.

Without densities the Metropolis test integrates the score along the leapfrog path by the trapezoid rule. Together
with the kinetic energy that sum telescopes, to ``log ratio = η²/8 (|s|² − |s'|²)`` of the path's ends: all of the
leapfrog's error where scores are linear; elsewhere it misses what is of third order in a step's length.

The bias that is left is that of ``langevin``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.diffusion.langevin import AnnealedSampler, Chains, metropolis, step_size
from trainers.diffusion.products import Product, gaussian_noise


def leapfrog(
    product: Product, level: int, chains: Chains, velocity: Tensor, *, size: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return states, constituents' scores and velocities after ``steps`` leapfrog steps of length ``size``."""
    states, scores = chains.states, chains.scores
    for _ in range(steps):
        half = velocity + 0.5 * size * product.combine(scores)
        states = states + size * half
        scores = product.scores(level, states)
        velocity = half + 0.5 * size * product.combine(scores)
    return states, scores, velocity


def refresh(product: Product, velocity: Tensor, persistence: float, generator: torch.Generator) -> Tensor:
    """Return ``γ v + √(1 − γ²) ε``."""
    noise = gaussian_noise(len(velocity), product.dimension, generator, product.dtype)
    return persistence * velocity + math.sqrt(1 - persistence**2) * noise


@dataclass(frozen=True, kw_only=True)
class AnnealedUha(AnnealedSampler):
    """Underdamped Langevin by leapfrog steps, unadjusted; velocities outlive their level."""

    moves: int = 3
    """Per level."""
    leapfrog_steps: int = 1
    """Of every move."""
    step: float = 0.2
    """``c``, below 1."""
    persistence: float = 0.8
    """``γ``, of a velocity from move to move."""
    name: str = "uha"

    def move(self, product: Product, level: int, chains: Chains, generator: torch.Generator) -> None:
        """Take leapfrog steps from partly refreshed velocities."""
        size = math.sqrt(2 * step_size(product, level, chains, self.step, adjusted=False))
        for _ in range(self.moves):
            velocity = refresh(product, chains.velocity, self.persistence, generator)
            chains.states, chains.scores, chains.velocity = leapfrog(
                product, level, chains, velocity, size=size, steps=self.leapfrog_steps
            )


@dataclass(frozen=True, kw_only=True)
class AnnealedHmc(AnnealedSampler):
    """Hamiltonian Monte Carlo."""

    moves: int = 1
    """Per level."""
    leapfrog_steps: int = 3
    """Of every move."""
    step: float = 0.2
    """``c``, where densities decide or nothing does."""
    line_step: float = 0.1
    """``c``, where the line integral does."""
    persistence: float = 0.0
    """``γ``: 0 draws new velocities for every move."""
    metropolis: bool = True
    """Accept or reject; False takes every proposal, with the steps of ``uha``."""
    use_density: bool = True
    """Accept by densities where all constituents have them, else by the line integral of the score."""
    name: str = "hmc"

    def move(self, product: Product, level: int, chains: Chains, generator: torch.Generator) -> None:
        """Propose where a leapfrog path ends, and accept or reject it."""
        exact = self.use_density and product.has_density
        step = self.step if exact or not self.metropolis else self.line_step
        size = math.sqrt(2 * step_size(product, level, chains, step, adjusted=self.metropolis))
        for _ in range(self.moves):
            chains.velocity = refresh(product, chains.velocity, self.persistence, generator)
            states, scores, velocity = leapfrog(
                product, level, chains, chains.velocity, size=size, steps=self.leapfrog_steps
            )
            if not self.metropolis:
                chains.states, chains.scores, chains.velocity = states, scores, velocity
                continue
            if exact:
                kinetic = 0.5 * (chains.velocity.square() - velocity.square()).sum(dim=1)
                potential = product.log_density(level, states) - product.log_density(level, chains.states)
                log_ratio = potential + kinetic
            else:
                here, there = product.combine(chains.scores), product.combine(scores)
                log_ratio = size**2 / 8 * (here.square() - there.square()).sum(dim=1)
            metropolis(chains, log_ratio, states, scores, velocity, generator)
