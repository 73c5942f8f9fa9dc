"""Adapters between adapters: ``Σ w_k ΔW_k`` is itself a plain LoRA, of the ranks put together.

    ΔW_k = s_k B_k A_k      =>      Σ w_k ΔW_k = [w_1 s_1 B_1, w_2 s_2 B_2, …] [A_1; A_2; …]

Exact but for rounding: nothing is refitted.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainers.adapters.files import CONFIG, CONTROL
from trainers.adapters.reading import AdapterLayer, read_files
from trainers.adapters.writing import in_diffusers_format, matrices, network_of

if TYPE_CHECKING:
    from trainers.adapters.kohya import Matrix

BASE = "base_model_name_or_path"
"""Setting of peft that names what an adapter is for."""

Files = Mapping[str, bytes]


def interpolated(parts: Sequence[tuple[str, Files, float]]) -> dict[str, bytes]:
    """Return the files of ``Σ w_k ΔW_k``, in the diffusers format.

    Args:
        parts: Of each adapter its name, files and weight; what is left to 1 belongs to the pretrained model.

    Raises:
        ValueError: there is none, one is no plain LoRA, or they are of other bases or other layers; or a weight is not
            in (0, 1], or they sum to more than 1.
    """
    if not parts:
        raise ValueError("there is nothing to interpolate: give at least one adapter")
    weights = [weight for *_, weight in parts]
    if not all(0 < weight <= 1 for weight in weights) or sum(weights) > 1 + 1e-9:
        raise ValueError(
            f"weights are above 0 and sum to at most 1, got {', '.join(f'{weight:g}' for weight in weights)}"
        )
    read = [_read(name, files) for name, files, _ in parts]
    first = {update.layer: update for update in read[0]}
    for (name, files, _), updates in zip(parts, read, strict=True):
        _same(parts[0][0], first, name, updates)
        _same_base(parts[0], name, files)
    downs: dict[str, list[Matrix]] = {layer: [] for layer in first}
    ups: dict[str, list[Matrix]] = {layer: [] for layer in first}
    for (_, files, weight), updates in zip(parts, read, strict=True):
        for update, down, up in matrices(files, updates, weight):
            downs[update.layer].append(down)
            ups[update.layer].append(up)
    tensors: dict[str, Matrix] = {}
    ranks = {}
    for layer, update in first.items():
        tensors[update.down] = np.concatenate(downs[layer], axis=0)
        tensors[update.up] = np.concatenate(ups[layer], axis=1)
        ranks[layer] = len(tensors[update.down])
    return in_diffusers_format(tensors, network_of(read[0]), ranks, parts[0][1].get(CONFIG))


def _read(name: str, files: Files) -> tuple[AdapterLayer, ...]:
    if CONTROL in files:
        raise ValueError(
            f"{name} is the residual of a mixture, a network: a weighted sum of two is none, so only LoRAs interpolate"
        )
    try:
        return read_files(files)
    except ValueError as error:
        raise ValueError(f"{name} cannot be interpolated: {error}") from error


def _same(one: str, known: Mapping[str, AdapterLayer], other: str, updates: Sequence[AdapterLayer]) -> None:
    """Refuse adapters of other layers, or of layers of another shape."""
    found = {update.layer: update for update in updates}
    if lost := sorted(known.keys() ^ found.keys()):
        has = one if lost[0] in known else other
        raise ValueError(
            f"{one} and {other} adapt other layers, and only adapters of the same targets interpolate: {lost[0]} is "
            f"in {has} alone"
        )
    for layer, update in found.items():
        before = known[layer]
        if update.down_shape[1:] != before.down_shape[1:] or update.up_shape[:1] != before.up_shape[:1]:
            raise ValueError(
                f"{one} and {other} are of other bases: {layer} is {list(before.up_shape)} × {list(before.down_shape)} "
                f"and {list(update.up_shape)} × {list(update.down_shape)}"
            )


def _same_base(first: tuple[str, Files, float], name: str, files: Files) -> None:
    ours, theirs = (json.loads(each.get(CONFIG, b"{}")).get(BASE) for each in (first[1], files))
    if ours and theirs and ours != theirs:
        raise ValueError(f"{first[0]} and {name} are of other bases: {ours} and {theirs}")
