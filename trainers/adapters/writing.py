"""Writing adapters so that every tool reads the same strength: folded into the matrices, with alpha equal to the rank.

Tools differ in where they look for alpha: in keys of the file, in its metadata, in a file beside it, or nowhere, in
which case it is the rank. Where it is the rank, all of them agree.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import safetensors.numpy

from trainers.adapters.files import CONFIG, WEIGHTS
from trainers.adapters.header import STATED
from trainers.adapters.kohya import Matrix, renamed
from trainers.adapters.reading import NETWORKS, AdapterLayer, read_files


def folded(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return an adapter of this package's own with ``alpha / rank`` multiplied into ``B``; any other file as it is.

    Args:
        files: With ``pytorch_lora_weights.safetensors``, in float32 and in peft's names.

    Raises:
        ValueError: It is no adapter, or no plain LoRA.
    """
    updates = read_files(files)
    if all(update.alpha == update.rank for update in updates):
        return dict(files)
    tensors: dict[str, Matrix] = {}
    for update, down, up in matrices(files, updates):
        tensors |= {update.down: down, update.up: up}
    ranks = {update.layer: update.rank for update in updates}
    return {**files, **in_diffusers_format(tensors, network_of(updates), ranks, files.get(CONFIG))}


def in_diffusers_format(
    tensors: dict[str, Matrix], network: str, ranks: Mapping[str, int], settings: bytes | None
) -> dict[str, bytes]:
    """Return matrices as diffusers and peft read them, with alpha equal to the rank.

    Args:
        tensors: By peft's names.
        network: What stands before these, such as ``unet.``.
        ranks: By layer.
        settings: Of peft, whose other keys stay.
    """
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {layer: one for layer, one in ranks.items() if one != rank}
    config = {"peft_type": "LORA", **json.loads(settings or b"{}"), "use_rslora": False}
    config |= {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others}
    stated = json.dumps({f"{network}{key}": value for key, value in config.items()}, indent=2, sort_keys=True)
    return {
        WEIGHTS: _packed(tensors, {"format": "pt", STATED: stated}),
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }


def in_kohya_format(files: Mapping[str, bytes], scheme: str = "diffusers") -> dict[str, bytes]:
    """Return an adapter as kohya's scripts write it and ComfyUI reads it, without peft's settings beside it.

    Args:
        files: Of the adapter.
        scheme: Whose names of layers its family takes there, of ``kohya.SCHEMES``.

    Raises:
        ValueError: It is no adapter, or no plain LoRA, or of a layer without a name there.
    """
    tensors = {}
    ranks = set()
    for name, down, up in renamed(matrices(files, read_files(files)), scheme):
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = np.array(len(down), dtype=np.float32)
        ranks.add(str(len(down)))
    metadata = {"format": "pt", "ss_network_module": "networks.lora"}
    if len(ranks) == 1:
        metadata |= dict.fromkeys(("ss_network_dim", "ss_network_alpha"), ranks.pop())
    return {name: content for name, content in files.items() if name != CONFIG} | {
        WEIGHTS: _packed(tensors, metadata)
    }


def network_of(updates: Sequence[AdapterLayer]) -> str:
    """Return what stands before the names of an adapter's tensors."""
    return next((each for each in NETWORKS if updates[0].down.startswith(each)), NETWORKS[0])


def ordered(weights: bytes) -> bytes:
    """Return a file of safetensors with its header in order: equal adapters are equal files."""
    size = int.from_bytes(weights[:8], "little")
    header = json.dumps(json.loads(weights[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format's alignment
    return len(header).to_bytes(8, "little") + header + weights[8 + size :]


def matrices(
    files: Mapping[str, bytes], updates: Sequence[AdapterLayer], weight: float = 1.0
) -> Iterator[tuple[AdapterLayer, Matrix, Matrix]]:
    """Yield ``A`` and ``weight · alpha / rank · B`` of every layer, rounded once."""
    tensors = safetensors.numpy.load(files[WEIGHTS])
    for update in updates:
        up = tensors[update.up].astype(np.float64) * (weight * update.strength)
        yield update, tensors[update.down].astype(np.float32), up.astype(np.float32)


def _packed(tensors: dict[str, Matrix], metadata: dict[str, str]) -> bytes:
    return ordered(safetensors.numpy.save(tensors, metadata))
