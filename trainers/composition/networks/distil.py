"""One adapter that samples like a composition, at the cost of one model.

Symbols: ``u_θ`` the student's control, ``u_i`` those of the models, ``ū = Σ λ_i u_i``, ``ε`` the noise of a step, ``w``
a path's weight with mean 1 over its group.

* reverse (AND): the student minimises ``KL(p*‖p_θ) = E_{p*} Σ_k ½ |u_θ − (ū + ε)|² + const`` for the composition
  ``p*``. Paths are drawn by ``ū`` and weighted, so this is ``E Σ_k w ½ |u_θ − ū|² − (w − 1) ε·u_θ``: unweighted, the
  noise has mean zero at every state, and leaving out ``ε·u_θ`` itself is a control variate. Uncorrected, ``w = 1``.
* forward (OR): the weighted denoising loss ``Σ_i λ_i KL(q_i‖p_θ)``, where ``KL(q_i‖p_θ) = E_{q_i} Σ_k ½ |u_θ − u_i|²``.
  The dual step goes by the same figures: ``λ ← Π_Δ[λ + η (KL_i − o_i)]``.

A student that is a function of ``λ`` is asked for weights spread over the simplex, its ends included: one for every
group of paths, so that the paths of one product are weighted among themselves. There is no dual step then.

Every step of a path is a regression of its own, so no gradient passes through the chain.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainers.composition.networks.chains import Chains, at_weights
from trainers.composition.networks.progress import NOT_KEPT, Progress
from trainers.config import DistillationConfig
from trainers.duality.projection import project_simplex
from trainers.duality.spread import even_simplex, to_the_ends
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
        """Return ``u_θ``, ``[batch, d]``, with gradients to the student's parameters.

        A student that is a function of the weights is asked at those of the draw (``at_weights``).
        """


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
    spread: bool = False,
    progress: Progress = NOT_KEPT,
) -> Distilled:
    """Train the student on paths of the composition.

    Args:
        chains: The models, and the student beside them.
        weights: ``λ``, ``[m]``.
        config: Steps, batch and learning rate.
        direction: ``reverse`` or ``forward``.
        corrected: Weigh the paths of a reverse composition.
        offsets: ``o``, ``[m]``, nats; of the forward dual step.
        seed: Of the noise and the prompts, and of weights that are spread.
        spread: Ask for weights all over the simplex in place of ``weights``; the student is a function of them.
        progress: Keeps the state now and then, and puts it back.

    Raises:
        Diverged: the gradient stopped being finite.
    """
    optimizer = torch.optim.Adam(chains.student_parameters(), lr=config.learning_rate)
    # Only paths that are weighted among themselves need to be of one product.
    size = 1 if spread and not (corrected and direction == "reverse") else math.gcd(config.batch, _GROUP)
    shift = float(np.random.default_rng(seed).uniform())
    losses: list[float] = []
    smooth: FloatArray | None = None
    if (kept := progress.restored(optimizer, chains.student_parameters())) is not None:
        losses, weights = kept["losses"], np.array(kept["weights"])
        smooth = None if kept["smooth"] is None else np.array(kept["smooth"])
    for step in range(len(losses), config.steps):
        excess: FloatArray | None = None
        falling = 0.5 * (1.0 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * falling
        batch_seed = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
        optimizer.zero_grad(set_to_none=True)
        groups = config.batch // size if direction == "reverse" else max(1, config.batch // chains.count)
        shares = np.tile(weights, (groups, 1))  # [groups, m]
        if spread:
            shares = to_the_ends(even_simplex(step * groups, (step + 1) * groups, chains.count, shift))
        if direction == "reverse":
            draw = chains.draw(groups, size, batch_seed)
            asked = np.repeat(shares, size, axis=0)
            losses.append(_product_backward(chains, draw, asked, size, corrected=corrected))
        else:
            draws = [chains.draw(groups, 1, batch_seed + i) for i in range(chains.count)]
            found = [_model_backward(chains, draw, i, shares) for i, draw in enumerate(draws)]
            losses.append(sum(weighted for weighted, _ in found))
            excess = None if spread else np.array([kl for _, kl in found]) - offsets
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
        known = {
            "losses": losses,
            "weights": weights.tolist(),
            "smooth": None if smooth is None else smooth.tolist(),
        }
        progress.keep(step + 1, optimizer, chains.student_parameters(), known)
    return Distilled(weights=weights, losses=tuple(losses))


def _product_backward(
    chains: TeachingChains, draw: Draw, weights: FloatArray, size: int, *, corrected: bool
) -> float:
    """Add the gradient of one batch of paths of products, of weights ``[batch, m]``; returns ``E w Σ ½ |u_θ − ū|²``."""
    draw = at_weights(draw, weights)
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
    shares = state.new_tensor(weights.T)  # [m, batch]
    states, means = [], []
    logs = torch.zeros(len(draw), dtype=torch.float64, device=state.device)
    for step in range(chains.steps):
        controls = chains.controls(step, state, draw)  # [m, batch, d]
        mean = torch.einsum("mb,mbd->bd", shares, controls)
        spread = (controls - mean).square().sum(dim=2)  # [m, batch]
        logs -= 0.5 * (shares * spread).sum(dim=0).double()
        states.append(state)
        means.append(mean)
        state = chains.advance(step, state, mean, draw.noise[step + 1])
    path_weights = torch.softmax(logs.reshape(-1, size), dim=1).flatten() * size
    return states, means, path_weights.to(state.dtype)


def _model_backward(
    chains: TeachingChains, draw: Draw, model: int, weights: FloatArray
) -> tuple[float, float]:
    """Add the gradient of ``λ_i KL(q_i‖p_θ)`` on paths of model i, at weights ``[batch, m]``.

    Returns that, and the KL itself, nats.
    """
    draw = at_weights(draw, weights)
    state, weighted, kl = draw.noise[0], 0.0, 0.0
    own = state.new_tensor(weights[:, model])
    for step in range(chains.steps):
        with torch.no_grad():
            target = chains.control(model, step, state, draw, ())
        gap = 0.5 * (chains.student_control(step, state, draw) - target).square().sum(dim=1)
        loss = (own * gap).mean()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call] # torch's
        weighted += float(loss.detach())
        kl += float(gap.detach().mean())
        with torch.no_grad():
            state = chains.advance(step, state, target, draw.noise[step + 1])
    return weighted, kl


@torch.no_grad()
def student_kls(
    chains: TeachingChains, weights: FloatArray, count: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Return ``KL(q_i‖p_θ)`` of a forward student on held-out prompts, and its standard error, ``[m]`` each, nats.

    Args:
        chains: The models, and the student beside them.
        weights: ``λ``, ``[m]``, of a student that is a function of them.
        count: Samples of every model, on the same noise.
        seed: Of the noise.
    """

    def measured(first: int, last: int) -> Tensor:
        draw = at_weights(chains.draw(last - first, 1, seed, first=first, held_out=True), weights)
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
