"""The file of an adapter with gates: beside the tensors of a plain LoRA those of its form.

Each layer has ``NAME.lora_A.weight`` and ``NAME.lora_B.weight`` as diffusers has them, and ``NAME.gates.weight``. At a
tilt ``t`` (nats per σ of each reward in the metadata's ``rewards``) the plain LoRA is

    lora_B = lora_B * (gates @ (t / reference) ** power)

Loaded as it stands it would be an adapter of no tilt. diffusers refuses a file with a name that has no ``lora`` in it.
"""

import json
from collections.abc import Mapping, Sequence

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trainers.adapters.files import CONFIG, FRONTIER_LORA, WEIGHTS
from trainers.adapters.reading import read_files
from trainers.adapters.writing import ordered
from trainers.models.conditional.form import Form
from trainers.models.conditional.price_gates import GATES

FORMAT, _EARLIER = "cdsweep frontier lora 2", "cdsweep frontier lora 1"
_DOWN, _UP = ".lora_A.", ".lora_B."


def gated_file(
    plain: Mapping[str, bytes], form: Form, layers: Sequence[str], rewards: Sequence[str]
) -> dict[str, bytes]:
    """Return the file of an adapter.

    Args:
        plain: Its matrices as the files of a plain LoRA, in the format of diffusers.
        form: Its gates.
        layers: ``[L]``, names of the layers in the order of the gates.
        rewards: ``[R]``, that act.
    """
    tensors = safetensors.torch.load(plain[WEIGHTS])
    found, known = form.stored()
    for update in read_files(plain):
        place = layers.index(update.layer)
        for name, whole in found.items():
            tensors[_named(update.down, name)] = whole[place].detach().float().cpu().contiguous()
    said = {"format": FORMAT, "rewards": json.dumps(list(rewards)), **known}
    return {FRONTIER_LORA: ordered(safetensors.torch.save(tensors, said))}


def parted(data: bytes, form: Form, layers: Sequence[str], rewards: Sequence[str]) -> dict[str, bytes]:
    """Give a form its gates from such a file; returns the matrices as a plain LoRA's file.

    Raises:
        ValueError: it is no such file, or of another adapter; says why.
    """
    try:
        tensors = safetensors.torch.load(data)
        known = _metadata(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{FRONTIER_LORA} is no file of safetensors: {error}") from error
    if known.get("format") == _EARLIER:
        known["format"] = FORMAT
        tensors = {key.replace(".lora_G.", f".{GATES}."): tensor for key, tensor in tensors.items()}
    if known.get("format") != FORMAT or known.get("rewards") != json.dumps(list(rewards)):
        raise ValueError(
            f"{FRONTIER_LORA} is of another adapter: format {known.get('format')!r} with the rewards "
            f"{known.get('rewards')}, not {FORMAT!r} with {json.dumps(list(rewards))}"
        )
    gates = {key: tensor for key, tensor in tensors.items() if not (_DOWN in key or _UP in key)}
    plain = {WEIGHTS: safetensors.torch.save({k: t for k, t in tensors.items() if k not in gates})}
    places = {update.layer: update.down for update in read_files(plain)}
    if set(places) != set(layers):
        raise ValueError(f"{FRONTIER_LORA} is of other layers than this adapter's {len(layers)}")
    names = {key.rsplit(".", 2)[1] for key in gates}
    try:
        whole = {n: torch.stack([gates[_named(places[layer], n)] for layer in layers]) for n in names}
        form.load(whole, known)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{FRONTIER_LORA} does not fit: {error}") from error
    return plain


def folded_files(plain: Mapping[str, bytes], gates: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return the plain LoRA that one is with gates ``[rank]`` for each layer on its columns."""
    tensors = safetensors.torch.load(plain[WEIGHTS])
    for update in read_files(plain):
        up = tensors[update.up]
        columns = gates[update.layer].detach().double().cpu().view(1, -1, *[1] * (up.ndim - 2))
        tensors[update.up] = (up.double() * columns).float().contiguous()
    weights = safetensors.torch.save(tensors, _metadata(plain[WEIGHTS]))
    return {**plain, WEIGHTS: ordered(weights), CONFIG: plain[CONFIG]}


def _named(down: str, name: str) -> str:
    """Return what a tensor of the form is called beside a layer's ``A``."""
    return down.replace(_DOWN, f".{name}.")


def _metadata(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    known: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    return known
