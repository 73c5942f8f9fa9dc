"""Path-wise KL between two samplers that share their noise, in nats.

``KL(p(x_{0:T}) ‖ q(x_{0:T})) = E_p Σ_t ‖μ_p − μ_q‖² / (2 σ_t²)``, summed over dimensions (never averaged),
one value per sample, in float32. It bounds the KL of the final samples from above (data processing). A mean may be a
function of all states before it: the sum is exact for chains with a memory too.
"""

from torch import Tensor

ESTIMATOR = "path"


def path_kl_from_controls(controls: Tensor) -> Tensor:
    """Return ``½ Σ_t ‖u_t‖²``, ``[batch]``, for controls ``[K, batch, d]``.

    A control is the shift of a step's mean in units of its noise: of ``σ_t``, or of a root of the covariance.
    """
    return 0.5 * controls.float().square().sum(dim=(0, 2))


def log_ratio_from_controls(controls: Tensor, shifts: Tensor) -> Tensor:
    """Return ``log p/q`` of paths that were drawn with shifts ``v = u + ε``, ``[batch]``, nats.

    ``Σ_t u_t·v_t − ½ ‖u_t‖²``, with controls and shifts ``[K, batch, d]``; its gradient is that of the controls at the
    states that were visited.
    """
    return (controls * shifts).sum(dim=(0, 2)) - path_kl_from_controls(controls)


def along_noise(controls: Tensor, noise: Tensor) -> Tensor:
    """Return ``Σ_t u_t·ε_t``, ``[batch]``, without gradients: what a path's log ratio has beside its KL.

    A path that was drawn by ``x ← μ_q + σ (u + ε)`` has the density ratio ``log p/q = Σ_t (½ ‖u_t‖² + u_t·ε_t)``, the
    mean of which is the KL.

    Args:
        controls: ``[K, batch, d]``.
        noise: That of the same steps, ``[K, batch, …]``.
    """
    return (controls.detach().float() * noise.flatten(start_dim=2).float()).sum(dim=(0, 2))
