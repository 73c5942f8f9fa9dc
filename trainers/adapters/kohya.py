"""What kohya's scripts call the layers of a network, and which of its own are several of diffusers' in one.

UNets, Qwen-Image and Z-Image have the names of diffusers with an underscore for every dot; FLUX.1 and FLUX.2 those of
their authors, where queries, keys and values are one layer. The update of such a layer is that of its parts side by
side: their ``A`` one above the other, their ``B`` along the diagonal, which diffusers takes apart again as it was.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.adapters.reading import AdapterLayer

Matrix = NDArray[np.float32]
Update = tuple[AdapterLayer, Matrix, Matrix]
"""A layer with its ``A`` and ``B``, of strength 1."""

BEFORE = "lora_unet_"
"""Begins every name, also those of transformers."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer of the authors' network, as parts of diffusers'."""

    name: str
    parts: tuple[str, ...]
    widths: tuple[int, ...] = (1,)
    """Outputs of each part, in inputs of the layer; of no account where there is one."""


_DOUBLE, _SINGLE = "transformer_blocks", "single_transformer_blocks"
_ATTENTION = (
    _Layer(name="img_attn_qkv", parts=("attn.to_q", "attn.to_k", "attn.to_v"), widths=(1, 1, 1)),
    _Layer(name="img_attn_proj", parts=("attn.to_out.0",)),
    _Layer(
        name="txt_attn_qkv",
        parts=("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        widths=(1, 1, 1),
    ),
    _Layer(name="txt_attn_proj", parts=("attn.to_add_out",)),
)
_FLUX_1: Mapping[str, Sequence[_Layer]] = {
    _DOUBLE: (
        *_ATTENTION,
        _Layer(name="img_mlp_0", parts=("ff.net.0.proj",)),
        _Layer(name="img_mlp_2", parts=("ff.net.2",)),
        _Layer(name="txt_mlp_0", parts=("ff_context.net.0.proj",)),
        _Layer(name="txt_mlp_2", parts=("ff_context.net.2",)),
        _Layer(name="img_mod_lin", parts=("norm1.linear",)),
        _Layer(name="txt_mod_lin", parts=("norm1_context.linear",)),
    ),
    _SINGLE: (
        _Layer(
            name="linear1",
            parts=("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            widths=(1, 1, 1, 4),
        ),
        _Layer(name="linear2", parts=("proj_out",)),
        _Layer(name="modulation_lin", parts=("norm.linear",)),
    ),
}
_FLUX_2: Mapping[str, Sequence[_Layer]] = {
    _DOUBLE: (
        *_ATTENTION,
        _Layer(name="img_mlp_0", parts=("ff.linear_in",)),
        _Layer(name="img_mlp_2", parts=("ff.linear_out",)),
        _Layer(name="txt_mlp_0", parts=("ff_context.linear_in",)),
        _Layer(name="txt_mlp_2", parts=("ff_context.linear_out",)),
    ),
    _SINGLE: (
        _Layer(name="linear1", parts=("attn.to_qkv_mlp_proj",)),
        _Layer(name="linear2", parts=("attn.to_out",)),
    ),
}
_BLOCKS = {_DOUBLE: "double_blocks", _SINGLE: "single_blocks"}
SCHEMES: Mapping[str, Mapping[str, Sequence[_Layer]]] = {
    "diffusers": {},
    "flux_1": _FLUX_1,
    "flux_2": _FLUX_2,
}
"""The layers of the authors in each kind of block, by whose names they are; none where they are diffusers'."""
_BLOCK = re.compile(rf"({_SINGLE}|{_DOUBLE})\.(\d+)\.(.+)")


def renamed(updates: Iterable[Update], scheme: str) -> Iterator[tuple[str, Matrix, Matrix]]:
    """Yield name, ``A`` and ``B`` of every layer as kohya's scripts have it.

    Args:
        updates: Of an adapter.
        scheme: One of ``SCHEMES``.

    Raises:
        ValueError: The format has no name for a layer.
    """
    blocks = SCHEMES[scheme]
    if not blocks:
        yield from ((BEFORE + update.layer.replace(".", "_"), down, up) for update, down, up in updates)
        return
    found: dict[str, tuple[_Layer, dict[str, tuple[Matrix, Matrix]]]] = {}
    for update, down, up in updates:
        match = _BLOCK.fullmatch(update.layer)
        layers = () if match is None else blocks[match[1]]
        layer = next((layer for layer in layers if match is not None and match[3] in layer.parts), None)
        if match is None or layer is None:
            raise ValueError(f"kohya's format has no name for the layer {update.layer}")
        name = f"{BEFORE}{_BLOCKS[match[1]]}_{match[2]}_{layer.name}"
        found.setdefault(name, (layer, {}))[1][match[3]] = (down, up)
    for name, (layer, parts) in found.items():
        yield (name, *_joined(layer, parts))


def _joined(layer: _Layer, parts: Mapping[str, tuple[Matrix, Matrix]]) -> tuple[Matrix, Matrix]:
    """Return the update of a layer that does what those of its parts do; one without an update has zeros."""
    if len(layer.parts) == 1:
        [only] = parts.values()
        return only
    rank = max(len(down) for down, _ in parts.values())
    inputs = next(down.shape[1] for down, _ in parts.values())
    outputs = [width * inputs for width in layer.widths]
    below = np.zeros((rank * len(outputs), inputs), dtype=np.float32)
    above = np.zeros((sum(outputs), len(below)), dtype=np.float32)
    for place, part in enumerate(layer.parts):
        if part in parts:
            down, up = parts[part]
            first, row = place * rank, sum(outputs[:place])
            below[first : first + len(down)] = down
            above[row : row + len(up), first : first + len(down)] = up
    return below, above
