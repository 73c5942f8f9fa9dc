"""Averages over the workers of a trial."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Shard:
    """One of several processes that do not talk: it leaves sums to whoever gets all parts."""

    def __init__(self, rank: int, world_size: int) -> None:
        """Take the part that is this process's."""
        self.rank, self.world_size = rank, world_size

    in_step = False
    """Whether all workers must ask the network equally often."""

    def sum(self, value: Tensor) -> Tensor:
        """Return this part."""
        return value


class Collective:
    """The workers that share each optimiser step; alone, every operation is the identity.

    Reductions give every worker the same bits, so multipliers computed from them are identical.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, device: str = "cpu", *, in_step: bool = False
    ) -> None:
        """Join the default process group.

        Args:
            rank: Of this worker.
            world_size: Members that the group must have.
            device: This worker's own.
            in_step: Whether all workers must ask the network equally often, for they hold parts of it.

        Raises:
            RuntimeError: several workers without an initialised process group.
        """
        if world_size > 1 and not (dist.is_initialized() and dist.get_world_size() == world_size):
            raise RuntimeError(f"{world_size} workers need a torch.distributed process group of that size")
        self.rank, self.world_size, self.in_step = rank, world_size, in_step
        # NCCL reduces what is on a GPU, gloo what is on the CPU.
        nccl = world_size > 1 and dist.get_backend() == "nccl"
        self._device = torch.device(device if nccl else "cpu")

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over workers of a tensor, without gradient."""
        if self.world_size == 1:
            return value.detach()
        total = value.detach().to(self._device, copy=True)
        dist.all_reduce(total)
        return total.to(value.device)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over workers of a tensor, without gradient."""
        return self.sum(value) / self.world_size

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over workers, in one message."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean(torch.cat([g.flatten() for g in gradients]))
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate ``[n, …]`` of every worker in order of rank; ``n`` must be equal."""
        if self.world_size == 1:
            return values
        mine = values.to(self._device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine)
        return torch.cat(parts).to(values.device)
