"""Stochastic rollouts of policy and reference on the same noise.

A step draws ``z ← μ_q(z) + R_q(z) (u(z) + ε)`` with ``R_q R_qᵀ`` the covariance that policy and reference share;
with ``u = 0`` it is the reference. The path-wise KL is ``½ Σ_t ‖u_t‖²`` per sample (``path_kl``).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.diffusion.path_kl import path_kl_from_controls
from trainers.models.mixture import ControlNetwork, MixtureModel


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One batch of trajectories."""

    samples: Tensor
    """``[batch, d]``, decoded."""
    path_kl: Tensor
    """``[batch]``, nats; zeros for the reference."""
    inputs: Tensor | None = None
    """What the network saw, ``[K, batch, 2 d]``."""
    shifts: Tensor | None = None
    """``u + ε`` of every step, ``[K, batch, d]``: the realised residual in units of the step's noise."""


def rollout(
    model: MixtureModel, network: ControlNetwork | None, noise: Tensor, *, keep: bool = False
) -> Rollout:
    """Sample from the policy, or from the reference where ``network`` is None.

    Gradients flow through the whole chain, the reference's own prediction included, unless the caller
    switches them off.

    Args:
        model: The frozen model.
        network: The trainable residual.
        noise: ``[K + 1, batch, d]``; the first is the initial state.
        keep: Return the states and shifts too.
    """
    conditioning = None if network is None else network.conditioning()
    state, controls, inputs, shifts = noise[0], [], [], []
    for step in range(model.steps):
        clean, mean, root = model.step(step, state)
        shift = noise[step + 1]
        if network is not None and conditioning is not None:
            seen = torch.cat([state, clean], dim=1)
            control = network(seen, conditioning, step)
            shift = control + shift
            controls.append(control)
            if keep:
                inputs.append(seen)
                shifts.append(shift)
        state = mean + (root @ shift[:, :, None])[:, :, 0]
    return Rollout(
        samples=model.decode(state),
        path_kl=path_kl_from_controls(torch.stack(controls)) if controls else torch.zeros(len(state)),
        inputs=torch.stack(inputs) if keep else None,
        shifts=torch.stack(shifts) if keep else None,
    )
