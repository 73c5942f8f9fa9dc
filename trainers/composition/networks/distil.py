"""One adapter that samples like a composition, at the cost of one model.

Symbols: ``u_θ`` the student's control, ``u_i`` those of the models, ``ū = Σ λ_i u_i``, ``ε`` the noise of a step, ``w``
a path's weight with mean 1 over its group.

* reverse (AND): the student minimises ``KL(p*‖p_θ) = E_{p*} Σ_k ½ |u_θ − (ū + ε)|² + const`` for the composition
  ``p*``. Paths are drawn by ``ū`` and weighted, so this is ``E Σ_k w ½ |u_θ − ū|² − (w − 1) ε·u_θ``: unweighted, the
  noise has mean zero at every state, and leaving out ``ε·u_θ`` itself is a control variate. Uncorrected, ``w = 1``.
* forward (OR): the weighted denoising loss ``Σ_i λ_i KL(q_i‖p_θ)``, where ``KL(q_i‖p_θ) = E_{q_i} Σ_k ½ |u_θ − u_i|²``.
  The dual step goes by the same figures: ``λ ← Π_Δ[λ + η (KL_i − o_i)]``.

Every step of a path is a regression of its own, so no gradient passes through the chain.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainers.composition.networks.chains import Chains
from trainers.config import DistillationConfig
from trainers.duality.projection import project_simplex
from trainers.failures import Diverged
from trainers.models.base import Draw
from trainers.types import FloatArray
from trainers.workers.memory import Batches

_DUAL_RATE = 0.01
"""Of a forward student, per KL in units of their mean. At 0.05 the weights ran ahead of it, from corner to corner."""
_SMOOTHING = 0.9
"""Of the divergences that drive the dual step."""
_CLIP = 1.0
_GROUP = 8
"""Samples of one prompt, at most."""


class TeachingChains(Chains, Protocol):
    """Chains beside which a student can be trained."""

    def student_parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""

    def student_control(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        """Return ``u_θ``, ``[batch, d]``, with gradients to the student's parameters."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A trained student."""

    weights: FloatArray
    """``λ`` at the end, ``[m]``; as given where the direction is reverse."""
    losses: tuple[float, ...]
    """Of every step, nats."""


def distil(
    chains: TeachingChains,
    weights: FloatArray,
    config: DistillationConfig,
    *,
    direction: str,
    corrected: bool,
    offsets: FloatArray,
    seed: int,
) -> Distilled:
    """Train the student on paths of the composition.

    Args:
        chains: The models, and the student beside them.
        weights: ``λ``, ``[m]``.
        config: Steps, batch and learning rate.
        direction: ``reverse`` or ``forward``.
        corrected: Weigh the paths of a reverse composition.
        offsets: ``o``, ``[m]``, nats; of the forward dual step.
        seed: Of the noise and the prompts.

    Raises:
        Diverged: the gradient stopped being finite.
    """
    optimizer = torch.optim.Adam(chains.student_parameters(), lr=config.learning_rate)
    size = math.gcd(config.batch, _GROUP)
    losses = []
    excess: FloatArray | None = None
    smooth: FloatArray | None = None
    for step in range(config.steps):
        falling = 0.5 * (1.0 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * falling
        batch_seed = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
        optimizer.zero_grad(set_to_none=True)
        if direction == "reverse":
            draw = chains.draw(config.batch // size, size, batch_seed)
            losses.append(_product_backward(chains, draw, weights, size, corrected=corrected))
        else:
            each = max(1, config.batch // chains.count)
            draws = [chains.draw(each, 1, batch_seed + i) for i in range(chains.count)]
            kls = np.array([_model_backward(chains, d, i, weights[i]) for i, d in enumerate(draws)])
            losses.append(float(weights @ kls))
            excess = kls - offsets
        norm = torch.nn.utils.clip_grad_norm_(chains.student_parameters(), _CLIP)
        if not (torch.isfinite(norm) and math.isfinite(losses[-1])):
            raise Diverged(
                f"distillation diverged at step {step + 1}: gradient norm {float(norm):.3g}, {losses[-1]:.3g} nats "
                f"apart. A smaller distillation.learning_rate (now {config.learning_rate:g}), or training.precision: "
                "fp32, often helps."
            )
        optimizer.step()
        if excess is not None:
            smooth = excess if smooth is None else _SMOOTHING * smooth + (1.0 - _SMOOTHING) * excess
            relative = smooth / max(float(np.abs(smooth).mean()), 1e-9)
            weights = project_simplex(weights + _DUAL_RATE * falling * (relative - relative.mean()))
    return Distilled(weights=weights, losses=tuple(losses))


def _product_backward(
    chains: TeachingChains, draw: Draw, weights: FloatArray, size: int, *, corrected: bool
) -> float:
    """Add the gradient of one batch of the product's paths; returns ``E w Σ ½ |u_θ − ū|²``, nats."""
    states, means, path_weights = _teach(chains, draw, weights, size)
    if not corrected:
        path_weights = torch.ones_like(path_weights)
    total = 0.0
    for step, (state, mean) in enumerate(zip(states, means, strict=True)):
        control = chains.student_control(step, state, draw)
        gap = 0.5 * (control - mean).square().sum(dim=1)
        noise = draw.noise[step + 1].flatten(1)
        pull = (path_weights - 1.0) * (noise * control).sum(dim=1)
        loss = (path_weights * gap - pull).mean()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call] # torch's
        total += float((path_weights * gap.detach()).mean())
    return total


@torch.no_grad()
def _teach(
    chains: TeachingChains, draw: Draw, weights: FloatArray, size: int
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return states and controls ``ū`` of every step, and the weights of the paths, ``[batch]``, mean 1 in a group."""
    state = draw.noise[0]
    shares = state.new_tensor(weights)
    states, means = [], []
    logs = torch.zeros(len(draw), dtype=torch.float64, device=state.device)
    for step in range(chains.steps):
        controls = chains.controls(step, state, draw)  # [m, batch, d]
        mean = torch.einsum("m,mbd->bd", shares, controls)
        spread = (controls - mean).square().sum(dim=2)  # [m, batch]
        logs -= 0.5 * (shares @ spread).double()
        states.append(state)
        means.append(mean)
        state = chains.advance(step, state, mean, draw.noise[step + 1])
    path_weights = torch.softmax(logs.reshape(-1, size), dim=1).flatten() * size
    return states, means, path_weights.to(state.dtype)


def _model_backward(chains: TeachingChains, draw: Draw, model: int, weight: float) -> float:
    """Add the gradient of ``λ_i KL(q_i‖p_θ)`` on paths of model i; returns the KL, nats."""
    state, kl = draw.noise[0], 0.0
    for step in range(chains.steps):
        with torch.no_grad():
            target = chains.control(model, step, state, draw, ())
        gap = 0.5 * (chains.student_control(step, state, draw) - target).square().sum(dim=1).mean()
        if gap.requires_grad:
            (weight * gap).backward()  # type: ignore[no-untyped-call] # torch's
        kl += float(gap.detach())
        with torch.no_grad():
            state = chains.advance(step, state, target, draw.noise[step + 1])
    return kl


@torch.no_grad()
def student_kls(chains: TeachingChains, count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return ``KL(q_i‖p_θ)`` of a forward student on held-out prompts, and its standard error, ``[m]`` each, nats.

    Args:
        chains: The models, and the student beside them.
        count: Samples of every model, on the same noise.
        seed: Of the noise.
    """

    def measured(first: int, last: int) -> Tensor:
        draw = chains.draw(last - first, 1, seed, first=first, held_out=True)
        kl = torch.zeros(chains.count, len(draw), dtype=torch.float64)
        for model in range(chains.count):
            state = draw.noise[0]
            for step in range(chains.steps):
                control = chains.control(model, step, state, draw, ())
                gap = control - chains.student_control(step, state, draw)
                kl[model] += 0.5 * gap.square().sum(dim=1).double().cpu()
                state = chains.advance(step, state, control, draw.noise[step + 1])
        return kl

    rows = torch.cat(list(Batches(chains.chunk, "the composition")(count, measured)), dim=1).numpy()
    return rows.mean(axis=1), rows.std(axis=1, ddof=1) / math.sqrt(rows.shape[1])
