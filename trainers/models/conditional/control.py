"""The residual of a mixture as a file of safetensors."""

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from trainers.adapters.files import CONTROL


def control_file(parameters: Mapping[str, nn.Parameter], tilts: int) -> dict[str, bytes]:
    """Return the file of a residual: its parameters by name, and how many tilts it takes."""
    tensors = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
    return {CONTROL: save(tensors, {"format": "cdsweep control", "tilts": str(tilts)})}


def load_control(parameters: Mapping[str, nn.Parameter], data: bytes) -> None:
    """Give parameters the values of a file of the same form.

    Raises:
        ValueError: it is no such file, or of another form.
    """
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{CONTROL} is no file of safetensors: {error}") from error
    shapes = [{n: tuple(t.shape) for n, t in found.items()} for found in (tensors, parameters)]
    if shapes[0] != shapes[1]:
        other = sorted(n for n in {*tensors, *parameters} if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"{CONTROL} is of another residual: "
            + ", ".join(f"{n} has {shapes[0].get(n)}, not {shapes[1].get(n)}" for n in other)
        )
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(f"{CONTROL} holds numbers that are not finite")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
