"""Where a trial computes: alone in its process, or beside others of the same base."""

from torch import Tensor

from trainers.config import TrialConfig
from trainers.models.base import Policy
from trainers.models.build import build_policy


class Host:
    """Gives a trial its policy and its gradients; this one has nobody else."""

    in_step = False
    """Whether the trial's workers hold parts of its network, which all must then ask equally often."""

    def policy(self, config: TrialConfig, device: str) -> Policy:
        """Return the trial's policy with a fresh residual.

        Raises:
            ValueError: the model cannot be used; says why.
        """
        return build_policy(config, device)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        loss.backward()  # type: ignore[no-untyped-call] # torch's
