"""Several Markov chains on one noise: what composing networks needs of them.

Model ``i`` steps by ``x ← a_k x + σ_k (u_i(x) + ε)``; all share ``a_k`` and ``σ_k``. So along one path the densities of
two models differ by their *controls* ``u`` alone: ``log q_i(path) = −½ Σ_k |ε_k + u_k − u_{i,k}|² + const`` for a path
that was moved by ``u``, and ``KL(p‖q_i) = E_p Σ_k ½ |u − u_i|²`` for a chain ``p`` with control ``u``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from trainers.models.base import Draw
from trainers.types import FloatArray


class Chains(Protocol):
    """``m`` models that sample in ``K`` steps from the same noise."""

    @property
    def count(self) -> int:
        """Models m."""

    @property
    def steps(self) -> int:
        """Gaussian steps K."""

    @property
    def chunk(self) -> int:
        """Samples that are drawn at a time, as long as the memory holds them."""

    @property
    def evaluations(self) -> float:
        """Network evaluations of one sample when every model is asked in every step."""

    def draw(self, groups: int, size: int, seed: int, *, first: int = 0, held_out: bool = False) -> Draw:
        """Return noise and prompts of ``groups · size`` samples; the samples of a group share their prompt.

        Args:
            groups: How many; group ``g`` has the prompt ``first + g`` modulo their number of ``in_turn`` where
                ``held_out``, else one of a random order of the training prompts.
            size: Samples of a group.
            seed: Of the noise, and of the order of the prompts.
            first: Number of the first group: groups with other numbers have other noise.
            held_out: Use the held-out prompts.
        """

    def controls(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        """Return ``u_i`` of all models, ``[m, batch, d]``, float32."""

    def control(
        self, driver: str | int, step: int, state: Tensor, draw: Draw, weights: Sequence[float]
    ) -> Tensor:
        """Return the control of one chain, ``[batch, d]``: of a model by its number, or of a baseline by its name.

        Args:
            driver: A model's number, ``base`` (the pretrained model), ``merged`` (one network with the weighted sum of
                the adapters), or ``joint`` (one prompt that names all concepts).
            step: Number of the step, from 0.
            state: ``[batch, …]``.
            draw: Of the batch.
            weights: ``λ``, of ``merged``, and of a student that is a function of them.

        Raises:
            ValueError: these models have no such baseline.
        """

    def advance(self, step: int, state: Tensor, control: Tensor, noise: Tensor) -> Tensor:
        """Return ``a x + σ (u + ε)``, ``[batch, …]``."""

    def decode(self, state: Tensor) -> Tensor:
        """Return the samples of final states: images ``[batch, 3, h, w]`` in [0, 1]."""


def at_weights(draw: Draw, weights: FloatArray) -> Draw:
    """Return a draw whose samples ask a student for weights ``[batch, m]``, or ``[m]`` for all."""
    noise = draw.noise
    asked = torch.as_tensor(weights, dtype=noise.dtype, device=noise.device)
    return replace(draw, tilt=asked.expand(len(draw), asked.shape[-1]))
