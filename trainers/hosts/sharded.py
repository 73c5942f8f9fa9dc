"""A trial whose workers hold the frozen network between them, each a part of every block (FSDP2).

Adapters, optimisers and samples are what they are without: only where the frozen weights lie is another. Every block is
put together on all workers when one of them needs it, and taken apart after; so all must ask for it equally often.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trainers.config import TrialConfig
from trainers.hosts.alone import Host
from trainers.models.base import Policy
from trainers.models.build import build_policy
from trainers.models.pipeline import load_parts
from trainers.models.pipeline_policy import Beside


class ShardedHost(Host):
    """Splits the network among the workers of the default process group."""

    in_step = True

    def policy(self, config: TrialConfig, device: str) -> Policy:
        """Return the trial's policy; its network is never whole on the device.

        Raises:
            ValueError: the model cannot be used; says why.
        """
        training = config.training
        parts = load_parts(config.model, training.precision, device, split=True, offload=training.offload)
        policy = build_policy(config, device, beside=Beside(parts=parts))
        split(parts.network, parts.device)
        return policy


def split(network: nn.Module, device: torch.device) -> None:
    """Split the frozen parameters of a network among the workers, block by block; what is trained each has whole."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    trained = {parameter for parameter in network.parameters() if parameter.requires_grad}
    blocks = blocks_of(network)
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh, ignored_params=trained & set(module.parameters()))
    for block in blocks:
        _Apart(block)
    for parameter in trained:
        parameter.data = parameter.data.to(device)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the parts of a network that are put together one by one; all else is put together as a whole."""
    return [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]


class _Apart:
    """Takes a block apart after every forward pass that found it so, also after one in the backward pass.

    What checkpointing computes again FSDP2 leaves whole until the backward pass of that block is over. Where one
    checkpoint is around the whole network, that is the whole network on every worker.
    """

    def __init__(self, block: nn.Module) -> None:
        """Stand around FSDP2's own hooks."""
        self._found = False
        block.register_forward_pre_hook(self._before, prepend=True)
        block.register_forward_hook(self._after)

    def _before(self, block: nn.Module, _: object) -> None:
        self._found = any(isinstance(parameter, DTensor) for parameter in block.parameters())

    def _after(self, block: nn.Module, *_: object) -> None:
        if self._found:  # else it is whole because its gradients are computed now
            block.reshard()  # type: ignore[operator] # of FSDPModule
