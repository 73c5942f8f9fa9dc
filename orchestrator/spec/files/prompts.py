"""Prompts of a spec: a shipped set, a file or a list, resolved to texts and metadata when the spec is loaded.

The resolved spec carries them, so a trial depends on them only, not on where they were written.
"""

import importlib.resources
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

from orchestrator.spec.files.prompt_files import PromptTable, WrongPromptsError, column_mistakes, read_prompts
from orchestrator.spec.text.document import MAX_CHARACTERS
from orchestrator.spec.text.problems import Problem, raise_problems, shown, suggestion
from trainers.config import Metadata, PromptsConfig

DIRECTORY = "directory"
"""Key of the validation context: the directory of the spec file, or None."""

MAX_PROMPTS = 10_000
MAX_LENGTH = 1_000
"""Characters of one prompt."""
MAX_TOTAL = 3 * MAX_CHARACTERS // 8
"""Characters of one list as it is written: both must fit into the resolved spec, which is read again."""

MAX_CELLS = 40_000
"""Values of metadata of one list, for the same reason."""

_SETS = ("train", "evaluate")
_METADATA = "_metadata"
_PACKAGE, _FOLDER, _ENDING = "trainers.models.embedded", "prompts", ".txt"


def shipped_sets() -> list[str]:
    """Return the names of the shipped prompt sets."""
    folder = importlib.resources.files(_PACKAGE) / _FOLDER
    names = [file.name for file in folder.iterdir()]
    return sorted(name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING))


def _resolved(value: Any, info: ValidationInfo) -> Any:
    """Return the section with texts in place of names; what has another form is left to its own error."""
    if not isinstance(value, dict):
        return value
    directory = (info.context or {}).get(DIRECTORY)
    problems: list[Problem] = []
    resolved = dict(value)
    for key in [key for key in _SETS if key in value]:
        written = value[key]
        if isinstance(written, str):
            problems += _put_named(resolved, key, directory)
        elif isinstance(written, list):
            problems += _put_listed(resolved, key)
        else:
            rule = "must be the name of a shipped set, the path of a file of prompts, or a list of prompts"
            problems.append(Problem(path=(key,), rule=rule, value=written))
    if problems:
        raise_problems(problems)
    return resolved


def _put_named(section: dict[str, Any], key: str, directory: Path | None) -> Iterator[Problem]:
    """Put what a set or file holds in place of its name."""
    name, beside = section[key], key + _METADATA
    try:
        table = _named(name, directory)
    except WrongPromptsError as error:
        yield Problem(path=(key,), rule=str(error), value=name, hint=error.hint)
        return
    if beside in section:
        yield Problem(path=(beside,), rule="goes with a list of prompts: a file has its own", at_key=True)
    section[key] = table.prompts
    if table.metadata:
        section[beside] = table.metadata


def _put_listed(section: dict[str, Any], key: str) -> Iterator[Problem]:
    """Put tuples in place of lists."""
    texts, beside = section[key], key + _METADATA
    section[key] = tuple(texts)
    if isinstance(metadata := section.get(beside), dict):
        section[beside] = {
            name: tuple(values) if isinstance(values, list) else values for name, values in metadata.items()
        }
        for rule in column_mistakes(metadata):
            yield Problem(path=(beside,), rule=rule)
    if all(isinstance(text, str) for text in texts):
        yield from _listed_mistakes(key, texts)


def _listed_mistakes(key: str, texts: Sequence[str]) -> Iterator[Problem]:
    for index, rule in _mistakes(texts):
        if index is None:
            yield Problem(path=(key,), rule=rule)
        else:
            yield Problem(path=(key, index), rule=rule, value=texts[index])


def _mistakes(texts: Sequence[str], metadata: Metadata | None = None) -> Iterator[tuple[int | None, str]]:
    """Yield the rules that prompts break, with the index of the prompt or None for the list."""
    if len(texts) > MAX_PROMPTS:
        yield None, f"has {len(texts):,} prompts; at most {MAX_PROMPTS:,} are allowed"
        return
    if metadata and (cells := len(texts) * len(metadata)) > MAX_CELLS:
        yield None, f"has {cells:,} cells of metadata; at most {MAX_CELLS:,} are allowed"
        return
    if (total := _size(texts, metadata)) > MAX_TOTAL:
        yield None, f"has {total:,} characters in all; at most {MAX_TOTAL:,} are allowed"
        return
    seen: set[str] = set()
    for index, text in enumerate(texts):
        if not text.strip():
            yield index, "a prompt must not be empty"
        elif len(text) > MAX_LENGTH:
            yield index, f"a prompt has at most {MAX_LENGTH:,} characters, got {len(text):,}"
        elif text in seen:
            yield index, f"the prompt {shown(text)} is there twice"
        seen.add(text)


def _size(texts: Sequence[str], metadata: Metadata | None = None) -> int:
    """Return about how many characters a list takes in YAML: as many as in JSON, and quotes are doubled."""
    written = json.dumps(texts) + (json.dumps(metadata) if metadata else "")
    return len(written) + written.count("'")


# Sets and files --------------------------------------------------------------------------------------


def _named(name: str, directory: Path | None) -> PromptTable:
    """Return the prompts of a shipped set or a file."""
    known = shipped_sets()
    if name in known:
        file = importlib.resources.files(_PACKAGE) / _FOLDER / f"{name}{_ENDING}"
        return read_prompts(file.read_bytes(), file.name)
    # A file beside the spec is found wherever the command is started.
    places = dict.fromkeys(folder / name for folder in (directory, Path()) if folder is not None)
    reasons = []
    for place in places:
        try:
            content = _content(place)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reasons.append(f"{place} ({getattr(error, 'strerror', None) or error})")
        else:
            return _checked(read_prompts(content, str(place)), str(place))
    rule = f"is neither a shipped set nor a file: looked for {' and '.join(reasons)}"
    raise WrongPromptsError(rule, suggestion(name, known, "shipped"))


def _content(path: Path) -> bytes:
    """Return the first bytes of a regular file, one more than it may have."""
    if path.exists() and not path.is_file():
        raise OSError(0, "not a file")
    with path.open("rb") as file:
        return file.read(MAX_CHARACTERS + 1)


def _checked(table: PromptTable, source: str) -> PromptTable:
    """Return a table whose prompts break no rule."""
    for index, rule in _mistakes(table.prompts, table.metadata):
        where = source if index is None else f"{source}, line {table.lines[index]}"
        raise WrongPromptsError(f"{where}: {rule}")
    return table


def _schema() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH}
    named = {
        "type": "string",
        "minLength": 1,
        "description": "A shipped set, such as shapes or animals, or a file, looked for beside the spec and then in "
        "the working directory: a text with one prompt per line, .jsonl with the key prompt, .csv or .tsv with the "
        "column prompt. Other keys and columns are metadata.",
    }
    listed = {
        "type": "array",
        "items": text,
        "minItems": 1,
        "maxItems": MAX_PROMPTS,
        "uniqueItems": True,
        "description": "The prompts themselves.",
    }
    metadata = {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": ["string", "null"]}},
        "description": "Of listed prompts, by column one value for each; a file has its own.",
    }
    documented = PromptsConfig.model_fields
    properties: dict[str, Any] = {
        key: {"anyOf": [named, listed], "description": documented[key].description} for key in _SETS
    }
    properties |= {key + _METADATA: metadata for key in _SETS}
    return {
        "title": PromptsConfig.__name__,
        "type": "object",
        "properties": properties,
        "required": [*_SETS],
        "additionalProperties": False,
    }


Prompts = Annotated[PromptsConfig, BeforeValidator(_resolved), WithJsonSchema(_schema())]
