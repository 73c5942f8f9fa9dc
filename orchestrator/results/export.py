"""Adapters and figures leave a sweep as plain files."""

import re
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import StorageError, UsageError
from orchestrator.results.formats import Format
from orchestrator.spec import hub_id
from trainers.adapters.files import CARD, CONTROL, FRONTIER_LORA, MULTIPLIERS
from trainers.adapters.reading import read_files
from trainers.adapters.writing import folded, in_kohya_format, network_of
from trainers.pipelines.families import STABLE_DIFFUSION, Family, kohya_refusal

_BASE_MODEL = re.compile(r"(?<=\A---\n)base_model: (.*)\n")


def exported(files: Mapping[str, bytes], form: Format, family: Family | None) -> dict[str, bytes]:
    """Return the files of an adapter as they leave a sweep: the strength in the matrices, and no path in the card.

    Args:
        files: Of the adapter.
        form: Whose names its tensors are given.
        family: Of the pipeline; None where it is not known, as of a model on the hub: then the adapter's names tell
            those with a UNet.

    Raises:
        StorageError: What is stored is no adapter.
        UsageError: The format is one of plain LoRAs, and it is none; or it has no names for the family.
    """
    if form is not Format.diffusers and (what := _no_plain_lora(files)) is not None:
        raise UsageError(what.format(why=f"is no plain LoRA: --format {form.value} has no names for it"))
    if CONTROL in files:
        return dict(files)
    try:
        if FRONTIER_LORA in files:
            written = dict(files)
        elif form is Format.diffusers:
            written = folded(files)
        else:
            family = family or _by_names(files)
            if family is None or family.kohya is None:
                raise UsageError(str(kohya_refusal(family)))
            written = in_kohya_format(files, family.kohya)
    except ValueError as error:
        raise StorageError(f"the adapter cannot be exported: {error}") from error
    if CARD in written:
        written[CARD] = _BASE_MODEL.sub(_hub_line, written[CARD].decode(), count=1).encode()
    return written


def _no_plain_lora(files: Mapping[str, bytes]) -> str | None:
    """Return what an adapter is that is no plain LoRA, with a place for ``why``; None for one that is."""
    if CONTROL in files:
        return "the residual of a mixture {why}"
    if FRONTIER_LORA not in files:
        return None
    if MULTIPLIERS in files:
        return "an adapter for many thresholds {why}; --at-least REWARD=VALUE gives a plain one"
    return "an adapter for all weights of a composition {why}; --multiplier MODEL=WEIGHT gives a plain one"


def _by_names(files: Mapping[str, bytes]) -> Family | None:
    """Return Stable Diffusion, whose names those of every UNet are, or None for an adapter of a transformer."""
    return STABLE_DIFFUSION if network_of(read_files(files)) == f"{STABLE_DIFFUSION.network}." else None


def _hub_line(line: re.Match[str]) -> str:
    """Return the line of a card that names the base, or nothing where it is no id of the hub."""
    return line[0] if hub_id(line[1]) is not None else ""


def write_adapter(files: Mapping[str, bytes], directory: str) -> list[str]:
    """Write files into a directory that is new, empty, or has them already; returns their paths.

    Raises:
        UsageError: The directory holds something else.
        StorageError: It cannot be written.
    """
    if other := others_in(directory, files):
        raise UsageError(f"{directory} is not empty: it holds {', '.join(other[:5])}; choose a new directory")
    return write_files(files, directory)


def others_in(directory: str, files: Mapping[str, bytes]) -> list[str]:
    """Return the names of the files in a directory that are not these; of one that is not there, none.

    Raises:
        StorageError: It cannot be read, or is a file.
    """
    target = Path(directory)
    if target.is_file():
        raise StorageError(f"cannot write {directory}: it is a file")
    try:
        there = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else []
        names = {p: p.relative_to(target).as_posix() for p in there}
        return [name for p, name in names.items() if name not in files or p.read_bytes() != files[name]]
    except OSError as error:
        raise StorageError(f"cannot read {directory}: {error.strerror or error}") from error


def write_files(files: Mapping[str, bytes], directory: str) -> list[str]:
    """Write files into a directory, each in one piece, in place of what has their names; returns their paths.

    Raises:
        StorageError: It cannot be written.
    """
    target = Path(directory)
    try:
        for name, data in files.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(data)
            part.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror or error}") from error
    return [str(target / name) for name in sorted(files)]
