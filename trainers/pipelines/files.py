"""Which files of a pipeline in diffusers format are its weights: the one place that says so, on disk and on the hub.

A component's weights are one file, or shards that an index names; of a variant such as ``fp16`` where one is asked for
and there, as diffusers takes them. All by names alone, relative to the pipeline: nothing is opened but an index.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from trainers.adapters.header import length_of
from trainers.pipelines.families import (
    FAMILIES,
    Family,
    family_of,
    left_out,
    stem_of,
    tokenizer_of,
    unknown_family,
)

INDEX = "model_index.json"

_SHOWN = 8


def variants(names: Collection[str], component: str) -> list[str]:
    """Return the variants of a component's weights that are there, the plain one not among them."""
    stem = stem_of(component)
    whole = re.compile(rf"{component}/{stem}\.([^./]+?)(?:-\d{{5}}-of-\d{{5}})?\.safetensors")
    return sorted({match[1] for name in names if (match := whole.fullmatch(name))})


def weights(
    names: Collection[str], component: str, variant: str | None, read: Callable[[str], bytes]
) -> list[str]:
    """Return the names of the files of a component's weights, the index of shards first.

    Args:
        names: Of all files of the pipeline.
        component: One with weights.
        variant: What is asked for; a component without it is taken plain.
        read: Returns the content of an index.

    Raises:
        ValueError: There are none that can be loaded, or a shard is missing; says what is there.
    """
    stem = stem_of(component)
    there = variants(names, component)
    mark = variant if variant in there else None
    plain = f"{component}/{stem}.{mark}.safetensors" if mark else f"{component}/{stem}.safetensors"
    index = f"{component}/{stem}.safetensors.index{f'.{mark}' if mark else ''}.json"
    # Where both are there, transformers loads the whole file, and diffusers the shards.
    order = (plain, index) if component.startswith("text_encoder") else (index, plain)
    found = next((name for name in order if name in names), None)
    if found == plain:
        return [plain]
    if found is not None:
        return [found, *_shards(names, component, found, read(found))]
    if there and variant is None:
        only = f"the {there[0]} variant is" if len(there) == 1 else f"the variants {', '.join(there)} are"
        raise ValueError(f"only {only} there: model.variant: {there[0]}")
    held = sorted(name.partition("/")[2] for name in names if name.startswith(f"{component}/"))
    raise ValueError(
        f"its {component} has no weights in safetensors, {plain.partition('/')[2]} (it holds: "
        f"{', '.join(held[:_SHOWN]) or 'nothing'})"
    )


def _shards(names: Collection[str], component: str, index: str, content: bytes) -> list[str]:
    """Return the shards that an index names.

    Raises:
        ValueError: One is missing, or the index is damaged.
    """
    try:
        shards = sorted({f"{component}/{shard}" for shard in json.loads(content)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of shards") from None
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise ValueError(
            f"lacks {missing[0]}, one of the {len(shards)} shards that {index} names"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
        )
    return shards


def names_mistake(names: Collection[str], variant: str | None, read: Callable[[str], bytes]) -> str | None:
    """Return the rule that the files of a pipeline break, or None."""
    if INDEX not in names:
        held = sorted({name.partition("/")[0] for name in names})
        return (
            f"is not a pipeline in diffusers format: it has no {INDEX} (it holds: "
            f"{', '.join(held[:_SHOWN]) or 'nothing'})"
        )
    content = read(INDEX)
    if content.strip() and _mapping(content) is None:
        return f"has a {INDEX} that is no mapping in JSON: it is damaged"
    index = _index(content)
    folders = {name.partition("/")[0] for name in names if "/" in name}
    family = family_of(index.get("_class_name"), folders)
    if family is None:
        return unknown_family(str(index["_class_name"]))
    weighted, components = _parts(family, index)
    if missing := [part for part in components if part not in folders]:
        return f"lacks the component(s) {', '.join(missing)}"
    if unnamed := [part for part in components if part in index and not _named(index[part])]:
        return f"has a {INDEX} that leaves out {', '.join(unnamed)}, which a pipeline of {family.name} needs"
    there = sorted({found for part in weighted for found in variants(names, part)})
    return _variant_mistake(names, variant, there) or _weights_mistake(names, weighted, variant, read)


def _named(entry: Any) -> bool:
    """Return whether an entry of an index names library and class of a component."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)


def _variant_mistake(names: Collection[str], variant: str | None, there: Collection[str]) -> str | None:
    """Return what keeps a variant from being read, or None."""
    if variant is not None and variant not in there:
        rule = f"has no files of the variant {variant!r}"
        return f"{rule}; there are: {', '.join(there)}" if there else f"{rule}, only plain ones"
    inner = {name: name.partition("/")[2] for name in names}
    dotless = sorted(name for name, file in inner.items() if file and "." not in file)
    if variant is not None and dotless:
        return (
            f"holds {dotless[0]}: diffusers fails at a name without a dot where a variant is asked for; remove it or "
            "rename it"
        )
    return None


def _weights_mistake(
    names: Collection[str], weighted: Collection[str], variant: str | None, read: Callable[[str], bytes]
) -> str | None:
    """Return what the weights lack, or None."""
    try:
        for part in weighted:
            weights(names, part, variant, read)
    except ValueError as error:
        return str(error)
    return None


def index_of(directory: Path) -> dict[str, Any]:
    """Return what a directory's index says; nothing where it cannot be read."""
    try:
        return _index((directory / INDEX).read_bytes())
    except OSError:
        return {}


def _index(content: bytes) -> dict[str, Any]:
    return _mapping(content) or {}


def _mapping(content: bytes) -> dict[str, Any] | None:
    """Return a mapping in JSON, or None for what is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _parts(family: Family, index: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the components with weights of a pipeline, and all of them: what it may leave out counts where it is."""
    extra = [part for part in family.optional if part not in left_out(family, index)]
    return [*family.weighted, *extra], [*family.components, *extra, *map(tokenizer_of, extra)]


def listed_mistake(names: Collection[str], variant: str | None) -> str | None:
    """Return the rule that a repository breaks by the names of its files, or None; shards are taken as whole."""
    if not any(name.endswith(".safetensors") for name in names):
        return None  # nothing was told, or there is nothing that loading would not name
    return names_mistake(names, variant, lambda _: b'{"weight_map": {}}')


def names_in(directory: Path) -> set[str]:
    """Return the names of the files of a pipeline in a directory, two levels deep.

    Raises:
        OSError: It cannot be read.
    """
    found = set()
    parts = {part for family in FAMILIES for part in (*family.components, *family.optional)}
    parts |= {tokenizer_of(part) for part in parts}
    for path in directory.iterdir():
        if path.is_dir() and path.name in parts:
            found |= {f"{path.name}/{inner.name}" for inner in path.iterdir()} or {f"{path.name}/"}
        else:
            found.add(path.name)
    return found


def directory_mistake(directory: Path, variant: str | None) -> str | None:
    """Return the rule that the files of a directory break, or None.

    Raises:
        OSError: It cannot be read.
    """
    rule = names_mistake(names_in(directory), variant, lambda name: (directory / name).read_bytes())
    if rule is not None:
        return rule
    for file in defining_files(directory, variant):
        if not file.is_file():
            kind = "a link that leads nowhere" if file.is_symlink() and not file.exists() else "no file"
            return f"holds {file.relative_to(directory)}, which is {kind}"
        if file.suffix == ".safetensors" and (rule := _content_mistake(file)) is not None:
            return f"holds {file.relative_to(directory)}, which {rule}"
    return _configs_mistake(directory)


def _content_mistake(file: Path) -> str | None:
    """Return what the header of a file of weights tells to be wrong with it, or None; the weights are not read."""
    try:
        with file.open("rb") as opened:
            whole = length_of(opened)
    except ValueError as error:
        return str(error)
    there = file.stat().st_size
    return f"is cut short: {whole - there} of its {whole} bytes are missing" if there < whole else None


def _configs_mistake(directory: Path) -> str | None:
    """Return what is wrong with the configurations that loading begins with, or None."""
    index = index_of(directory)
    family = family_of(index.get("_class_name"), {path.name for path in directory.iterdir() if path.is_dir()})
    assert family is not None, "told before"
    weighted, _ = _parts(family, index)
    for part, name in family.configs.items():
        if part != "scheduler" and part not in weighted:
            continue
        if not (directory / name).is_file():
            return f"lacks {name}, the configuration of its {part}"
        if _mapping((directory / name).read_bytes()) is None:
            return f"has a {name} that is no mapping in JSON: it is damaged"
    return None


def defining_files(directory: Path, variant: str | None) -> list[Path]:
    """Return the files that a pipeline consists of, sorted: those that loading it reads.

    Raises:
        OSError: The directory cannot be read.
        ValueError: It holds no whole pipeline.
    """
    names, index = names_in(directory), index_of(directory)
    found = {INDEX} & names
    family = family_of(index.get("_class_name"), {name.partition("/")[0] for name in names if "/" in name})
    if family is None:
        raise ValueError(unknown_family(str(index["_class_name"])))
    weighted, components = _parts(family, index)
    for part in components:
        inside = {name for name in names if name.startswith(f"{part}/")}
        settings = {name for name in inside if name.endswith((".json", ".txt", ".model"))}
        found |= {name for name in settings if ".safetensors.index" not in name and ".bin.index" not in name}
        if part in weighted:
            found |= set(weights(names, part, variant, lambda name: (directory / name).read_bytes()))
    return [directory / name for name in sorted(found)]
