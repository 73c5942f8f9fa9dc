"""The header of a file of safetensors: the names and shapes of its tensors, and what it says of itself, in JSON."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trainers.adapters.files import weights_file

STATED = "lora_adapter_metadata"
"""Key of the metadata under which diffusers writes peft's settings."""

_LONGEST = 100_000_000  # bytes, as the format's own reader has it
_SCALARS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "U8": "<B"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file holds."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the tensors by name."""
    metadata: Mapping[str, str]
    """What the file says of itself."""
    scalars: Mapping[str, float]
    """The values of the tensors with one element."""


def header_of(directory: Path) -> Header:
    """Read the header of an adapter's weights.

    Raises:
        OSError: They cannot be read.
        ValueError: There is no file of weights, or it is no file of safetensors.
    """
    weights = weights_file(directory)
    try:
        with weights.open("rb") as file:
            return read_header(file)
    except ValueError as error:
        raise ValueError(f"{weights.name} {error}") from None


def read_header(file: BinaryIO) -> Header:
    """Read the header of an open file, and the values of tensors with one element.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file of safetensors.
    """
    with _as_one_error():
        entries, start = _entries(file)
        metadata = entries.pop("__metadata__", {})
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
        scalars = {
            name: _scalar(file, start, entry)
            for name, entry in entries.items()
            if math.prod(shapes[name]) == 1
        }
        return Header(shapes=shapes, metadata=dict(metadata), scalars=scalars)


def length_of(file: BinaryIO) -> int:
    """Return how many bytes an open file has by its header: one that is cut short has fewer.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file of safetensors.
    """
    with _as_one_error():
        entries, start = _entries(file)
        entries.pop("__metadata__", None)
        return start + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)


@contextmanager
def _as_one_error() -> Iterator[None]:
    """Say of whatever goes wrong with a header that it is none."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        raise ValueError("is not in the format of safetensors") from None


def _entries(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return what the header says, by tensor, and where their values begin."""
    size = int.from_bytes(file.read(8), "little")
    if not 0 < size <= _LONGEST:
        raise ValueError
    return json.loads(file.read(size)), 8 + size


def _scalar(file: BinaryIO, start: int, entry: Mapping[str, Any]) -> float:
    first, last = entry["data_offsets"]
    file.seek(start + first)
    content = file.read(last - first)
    if entry["dtype"] == "BF16":  # the upper half of a float
        return float(struct.unpack("<f", b"\0\0" + content)[0])
    if entry["dtype"] not in _SCALARS:
        return math.nan  # of a type that no number of an adapter has
    return float(struct.unpack(_SCALARS[entry["dtype"]], content)[0])
