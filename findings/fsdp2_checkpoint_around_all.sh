#!/usr/bin/env bash
# torch 2.13.0: with one activation checkpoint around a model whose blocks are split by fully_shard, all blocks are whole at once.
#
# fully_shard frees a block's parameters after its forward pass and gathers them again for its backward pass, so that one block is
# whole at a time. torch.utils.checkpoint around each block keeps to that. Expected: a checkpoint around all blocks, which computes the
# same forward pass again, does too. Seen: what is gathered while the checkpoint computes again is kept until the backward pass of its
# block, because a forward pass within a backward pass is taken for one of its own block alone; so every worker has the whole model.
#
# Output seen:
#   no checkpoint: at most 1 of 6 blocks are whole
#   a checkpoint around each block: at most 1 of 6 blocks are whole
#   one checkpoint around all: at most 6 of 6 blocks are whole
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > seen.py <<'PY'
import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

BLOCKS = 6


class Network(nn.Module):
    def __init__(self, each):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(BLOCKS))
        self.each = each

    def forward(self, value):
        for block in self.blocks:
            value = checkpoint(block, value, use_reentrant=False) if self.each else block(value)
        return value


def most(each, around):
    network = Network(each)
    mesh, seen = init_device_mesh("cpu", (dist.get_world_size(),)), []
    for module in (*network.blocks, network):
        fully_shard(module, mesh=mesh)

    def look(*_):
        seen.append(sum(not isinstance(next(block.parameters()), DTensor) for block in network.blocks))

    for block in network.blocks:
        block.register_forward_hook(look)
        block.register_full_backward_hook(look)
    value = torch.randn(4, 32, requires_grad=True)
    found = checkpoint(network, value, use_reentrant=False) if around else network(value)
    found.sum().backward()
    return max(seen)


def work(rank, store):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    cases = {"no checkpoint": (False, False), "a checkpoint around each block": (True, False), "one checkpoint around all": (False, True)}
    found = {name: most(*case) for name, case in cases.items()}
    if rank == 0:
        for name, count in found.items():
            print(f"{name}: at most {count} of {BLOCKS} blocks are whole")
        assert found["one checkpoint around all"] == BLOCKS and max(list(found.values())[:2]) < BLOCKS, "changed"
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
PY
OMP_NUM_THREADS=1 venv/bin/python seen.py "$folder/store"
