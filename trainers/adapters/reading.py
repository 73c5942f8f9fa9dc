"""Reading an adapter without its matrices: which layers it updates, and how strongly.

Names of tensors are peft's (``unet.LAYER.lora_A.weight``, with or without a prefix), older ones of diffusers
(``LAYER.lora.down.weight``, ``….processor.to_q_lora.down.weight``) and kohya's
(``lora_unet_LAYER_WITH_UNDERSCORES.lora_down.weight``).

The strength ``alpha / rank`` of a layer is what its own ``.alpha`` says, else what the file's metadata say, else what
``adapter_config.json`` beside it says, else 1: the order of diffusers.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from trainers.adapters.files import CONFIG, WEIGHTS, defining_files
from trainers.adapters.forms import settings_refusal, tensor_refusal
from trainers.adapters.header import STATED, Header, header_of, read_header

_TENSOR = re.compile(
    r"^(?P<layer>.+?)(?:\.(?:(?P<down>lora_A(?:\.default)?\.weight|lora\.down\.weight|lora_down\.weight)"
    r"|(?P<up>lora_B(?:\.default)?\.weight|lora\.up\.weight|lora_up\.weight)"
    r"|(?P<alpha>alpha))"
    r"|_lora\.(?:(?P<old_down>down\.weight)|(?P<old_up>up\.weight)))$"
)
NETWORKS = ("unet.", "transformer.")
"""One stands before the keys of a network's settings, as before names of its tensors."""
_PREFIXES = re.compile(r"^(base_model\.model\.)?(unet\.|transformer\.)?")
_KOHYA = "lora_unet_"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayer:
    """The update ``alpha / rank · B A`` of one layer."""

    layer: str
    """Its name in the UNet; kohya's has an underscore for every dot."""
    kohya: bool
    """Whether it is such a name."""
    down: str
    """Name of ``A``, ``[rank, in, …]``."""
    up: str
    """Name of ``B``, ``[out, rank, …]``."""
    down_shape: tuple[int, ...]
    up_shape: tuple[int, ...]
    alpha: float
    """Rank times the strength."""

    @property
    def rank(self) -> int:
        """Of the update."""
        return self.down_shape[0]

    @property
    def strength(self) -> float:
        """What ``B A`` is multiplied by."""
        return self.alpha / self.rank


def read_adapter(directory: Path) -> tuple[AdapterLayer, ...]:
    """Read what an adapter in a directory is.

    Raises:
        OSError: A file cannot be read.
        ValueError: There is none, or it is no plain LoRA of a UNet; says why.
    """
    header = header_of(directory)
    weights, *beside = defining_files(directory)
    return _read(header, beside[0].read_bytes() if beside else None, weights.name)


def read_files(files: Mapping[str, bytes]) -> tuple[AdapterLayer, ...]:
    """Read what an adapter in memory is, as ``read_adapter`` does.

    Raises:
        ValueError: As there.
    """
    if WEIGHTS not in files:
        raise ValueError(f"an adapter needs {WEIGHTS}, got {', '.join(sorted(files)) or 'nothing'}")
    try:
        header = read_header(BytesIO(files[WEIGHTS]))
    except ValueError as error:
        raise ValueError(f"{WEIGHTS} {error}") from None
    return _read(header, files.get(CONFIG), WEIGHTS)


def _read(header: Header, beside: bytes | None, name: str) -> tuple[AdapterLayer, ...]:
    if not header.shapes:
        raise ValueError(f"{name} has no matrices")
    if (refusal := tensor_refusal(header.shapes)) is not None:
        raise ValueError(f"{name} {refusal}")
    metadata = f"the metadata of {name}"
    stated = {
        key.partition(".")[2]: value
        for key, value in _settings(header.metadata.get(STATED), metadata).items()
        if key.startswith(NETWORKS)
    }
    if STATED in header.metadata and not stated:
        raise ValueError(f"{metadata} has settings, and none of a UNet or transformer")
    config = _settings(beside, CONFIG)
    for settings, place in ((stated, metadata), (config, CONFIG)):
        if (refusal := settings_refusal(settings)) is not None:
            raise ValueError(f"{place} says {refusal}")
    if any(tensor.endswith(".alpha") for tensor in header.shapes):
        return tuple(_layers(header, {}, "", name))
    return tuple(_layers(header, stated, metadata, name) if stated else _layers(header, config, CONFIG, name))


def _layers(header: Header, settings: Mapping[str, Any], place: str, name: str) -> Iterable[AdapterLayer]:
    """Yield the layers of a file.

    Raises:
        ValueError: A tensor has no place in a plain LoRA, or settings and matrices do not go together.
    """
    parts: dict[str, dict[str, str]] = {}
    for tensor in sorted(header.shapes):
        match = _TENSOR.match(tensor)
        if match is None:
            raise ValueError(f"{name} is not a plain LoRA adapter of a UNet: it holds {tensor}")
        part = next(key for key in ("down", "up", "alpha", "old_down", "old_up") if match[key])
        found = parts.setdefault(_layer(match["layer"], old=part.startswith("old_")), {})
        if found.setdefault(part.removeprefix("old_"), tensor) != tensor:
            raise ValueError(
                f"{name} has {tensor} and {found[part.removeprefix('old_')]}, which are the same matrix"
            )
    for layer, found in parts.items():
        if missing := [part for part in ("down", "up") if part not in found]:
            only = next(iter(found.values()))
            raise ValueError(f"{name} has {only} without the {missing[0]} matrix that belongs to it")
        down, up = header.shapes[found["down"]], header.shapes[found["up"]]
        if len(down) < 2 or len(up) < 2 or down[0] != up[1] or not down[0]:
            raise ValueError(
                f"{name}: {found['down']} {list(down)} and {found['up']} {list(up)} are not [rank, in] and [out, rank]"
            )
        rank = down[0]
        alpha = (
            header.scalars.get(found["alpha"], math.nan)
            if "alpha" in found
            else _alpha(settings, layer, rank, place)
        )
        if not math.isfinite(alpha):
            raise ValueError(f"{name}: the alpha of {layer} is no finite number")
        yield AdapterLayer(
            layer=layer.removeprefix(_KOHYA),
            kohya=layer.startswith(_KOHYA),
            down=found["down"],
            up=found["up"],
            down_shape=down,
            up_shape=up,
            alpha=alpha,
        )


def _layer(written: str, *, old: bool) -> str:
    """Return the name of a layer without prefixes, and as it is called today."""
    name = _PREFIXES.sub("", written)
    if ".processor." in name:  # before attention processors were layers
        name, old = name.replace(".processor.", "."), True
    # A layer of its own in single blocks of FLUX.2.
    return f"{name}.0" if old and name.endswith(".to_out") else name


def _alpha(settings: Mapping[str, Any], layer: str, rank: int, place: str) -> float:
    """Return ``rank · strength`` as peft has it.

    Raises:
        ValueError: The settings cannot be read, or are of other matrices.
    """
    stated = _of(settings, "rank_pattern", "r", layer, place)
    if stated is not None and stated != rank:
        raise ValueError(f"{place} says that the rank of {layer} is {stated:g}, and it is {rank}")
    alpha = _of(settings, "alpha_pattern", "lora_alpha", layer, place)
    if alpha is None:
        if settings.get("use_rslora"):
            raise ValueError(f"{place} says use_rslora and not lora_alpha")
        return float(rank)
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _of(settings: Mapping[str, Any], pattern: str, default: str, layer: str, place: str) -> float | None:
    """Return the number for a layer: of the first expression that ends its name, as peft has it.

    Raises:
        ValueError: It is none, or an expression is not regular.
    """
    expressions = settings.get(pattern) or {}
    if not isinstance(expressions, dict):
        raise ValueError(f"{place}: {pattern} is not a mapping")  # noqa: TRY004 - of what was read, not of an argument
    value, key = settings.get(default), default
    for expression, number in expressions.items():
        try:
            ends = re.match(rf"(.*\.)?({expression})$", layer)
        except re.error as error:
            raise ValueError(f"{place}: {pattern} has {expression!r}: {error}") from None
        if ends:
            value, key = number, f"{pattern} of {expression}"
            break
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{place}: {key} is {value!r}, which is no number")
    return None if value is None else float(value)


def _settings(text: str | bytes | None, place: str) -> dict[str, Any]:
    """Return settings in JSON.

    Raises:
        ValueError: It is no mapping in JSON.
    """
    if text is None:
        return {}
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{place} is not a mapping in JSON")  # noqa: TRY004 - as above
    return settings
