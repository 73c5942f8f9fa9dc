"""All of a trial's state as files: safetensors and JSON, never pickles. A restored trial goes on bit for bit."""

import json
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

Files = dict[str, bytes]
_TENSORS, _STATE = "state.safetensors", "state.json"


def pack(tensors: dict[str, Tensor], state: dict[str, Any]) -> Files:
    """Return the files of a checkpoint. ``state`` is JSON; its floats survive exactly."""
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return {_TENSORS: save(contiguous), _STATE: json.dumps(state, allow_nan=True).encode()}


def unpack(files: Files) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and state of ``pack``'s files."""
    state: dict[str, Any] = json.loads(files[_STATE])
    return load(files[_TENSORS]), state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's tensors, named ``optimizer.PARAMETER.KEY`` by the parameter's number."""
    return {
        f"optimizer.{number}.{key}": torch.as_tensor(value)
        for number, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` returned; hyper-parameters stay the optimiser's own."""
    whole = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            entries.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": whole["param_groups"]})


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ``prefix.`` before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def stripped(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return those tensors that have the prefix, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
