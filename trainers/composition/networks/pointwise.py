"""Point-wise KL between the samples of a composition of networks and its models, by their scores.

``KL ≈ ½ ∫ β E |s̄ − s_i|² dt`` with ``s̄ = Σ λ_j s_j``, along the forward noising of the composition's samples
(``diffusion.pointwise_kl``). For two networks it is the KL of their final samples, up to the discretisation by the
sampler's own few levels. For a composition ``s̄`` is not the score of its noised samples, so this is the estimate that
the paper uses, beside the path-wise one, and no bound.
"""

import math

import numpy as np
import torch
from torch import Tensor

from trainers.composition.networks.pipelines import PipelineChains
from trainers.diffusion.pointwise_kl import pointwise_weights
from trainers.models.base import Draw
from trainers.types import FloatArray
from trainers.workers.memory import Batches

_NOISE = 3_000_017


@torch.no_grad()
def pointwise_kls(
    chains: PipelineChains, weights: FloatArray, count: int, seed: int, *, driver: str | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return the KL to every model and its standard error, ``[m]`` each, nats.

    Args:
        chains: The models.
        weights: ``λ``, ``[m]``.
        count: Samples, each noised once to every level.
        seed: Of the samples and of the noise.
        driver: A baseline, whose own samples and scores stand for the composition's; None: ``Σ λ_j u_j``.
    """
    shares = torch.tensor(weights)

    def composed(step: int, state: Tensor, draw: Draw, controls: Tensor) -> Tensor:
        if driver is not None:
            return chains.control(driver, step, state, draw, weights.tolist())
        mixed: Tensor = torch.einsum("m,mbd->bd", shares.to(controls), controls)
        return mixed

    levels = chains.alpha_bars  # from noise to clean
    order = np.argsort(-levels)
    factors = np.empty(len(levels))
    factors[order] = pointwise_weights(levels[order])

    def measured(first: int, last: int) -> Tensor:
        draw = chains.draw(last - first, 1, seed, first=first, held_out=True)
        state = draw.noise[0]
        for step in range(chains.steps):
            control = composed(step, state, draw, chains.controls(step, state, draw))
            state = chains.advance(step, state, control, draw.noise[step + 1])
        fresh = chains.draw(len(draw), 1, seed + _NOISE, first=first, held_out=True).noise
        total = torch.zeros(chains.count, len(draw), dtype=torch.float64)
        for step, level in enumerate(levels):
            noised = math.sqrt(level) * state + math.sqrt(1.0 - level) * fresh[step]
            controls = chains.controls(step, noised, draw)
            apart = controls - composed(step, noised, draw, controls)
            scale = float(factors[step] * chains.score_scale[step] ** 2)
            total += scale * apart.square().sum(dim=2).double().cpu()
        return total

    rows = torch.cat(list(Batches(chains.chunk, "the composition")(count, measured)), dim=1).numpy()
    return rows.mean(axis=1), rows.std(axis=1, ddof=1) / math.sqrt(rows.shape[1])
