"""Prompts of a spec: a shipped set, a text file or a list, resolved to texts when the spec is loaded.

The resolved spec carries the texts, so a trial depends on them only, not on where they were written.
"""

import importlib.resources
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

from orchestrator.spec.document import CONTROL, MAX_CHARACTERS
from orchestrator.spec.problems import Problem, raise_problems, shown, suggestion
from trainers.config import PromptsConfig

DIRECTORY = "directory"
"""Key of the validation context: the directory of the spec file, or None."""

MAX_PROMPTS = 10_000
MAX_LENGTH = 1_000
"""Characters of one prompt."""
MAX_TOTAL = 3 * MAX_CHARACTERS // 8
"""Characters of one list as it is written: both must fit into the resolved spec, which is read again."""

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
    for key in [key for key in PromptsConfig.model_fields if key in value]:
        written = value[key]
        if isinstance(written, str):
            try:
                resolved[key] = _named(written, directory)
            except _WrongPromptsError as error:
                problems.append(Problem(path=(key,), rule=str(error), value=written, hint=error.hint))
        elif isinstance(written, list):
            resolved[key] = tuple(written)
            if all(isinstance(text, str) for text in written):
                problems += _listed_mistakes(key, written)
        else:
            rule = "must be the name of a shipped set, the path of a text file, or a list of prompts"
            problems.append(Problem(path=(key,), rule=rule, value=written))
    if problems:
        raise_problems(problems)
    return resolved


def _listed_mistakes(key: str, texts: Sequence[str]) -> Iterator[Problem]:
    for index, rule in _mistakes(texts):
        if index is None:
            yield Problem(path=(key,), rule=rule)
        else:
            yield Problem(path=(key, index), rule=rule, value=texts[index])


def _mistakes(texts: Sequence[str]) -> Iterator[tuple[int | None, str]]:
    """Yield the rules that prompts break, with the index of the prompt or None for the list."""
    if len(texts) > MAX_PROMPTS:
        yield None, f"has {len(texts):,} prompts; at most {MAX_PROMPTS:,} are allowed"
        return
    if (total := _size(texts)) > MAX_TOTAL:
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


def _size(texts: Sequence[str]) -> int:
    """Return about how many characters a list takes in YAML: as many as in JSON, and quotes are doubled."""
    return len(json.dumps(texts)) + sum(text.count("'") for text in texts)


# Sets and files --------------------------------------------------------------------------------------


class _WrongPromptsError(Exception):
    """A name under which there are no prompts, or wrong ones."""

    def __init__(self, rule: str, hint: str = "") -> None:
        super().__init__(rule)
        self.hint = hint


def _named(name: str, directory: Path | None) -> tuple[str, ...]:
    """Return the prompts of a shipped set or a text file."""
    known = shipped_sets()
    if name in known:
        file = importlib.resources.files(_PACKAGE) / _FOLDER / f"{name}{_ENDING}"
        return tuple(file.read_text(encoding="utf-8").split("\n")[:-1])
    # A file beside the spec is found wherever the command is started.
    places = dict.fromkeys(folder / name for folder in (directory, Path()) if folder is not None)
    reasons = []
    for place in places:
        try:
            content = _content(place)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reasons.append(f"{place} ({getattr(error, 'strerror', None) or error})")
        else:
            return _prompts(content, str(place))
    rule = f"is neither a shipped set nor a text file: looked for {' and '.join(reasons)}"
    raise _WrongPromptsError(rule, suggestion(name, known, "shipped"))


def _content(path: Path) -> bytes:
    """Return the first bytes of a regular file, one more than it may have."""
    if path.exists() and not path.is_file():
        raise OSError(0, "not a file")
    with path.open("rb") as file:
        return file.read(MAX_CHARACTERS + 1)


def _prompts(content: bytes, source: str) -> tuple[str, ...]:
    """Return the prompts in a text: one per line, but for empty lines and those that begin with ``#``."""
    if len(content) > MAX_CHARACTERS:
        raise _WrongPromptsError(
            f"{source}: is larger than a file of prompts may be ({MAX_CHARACTERS:,} bytes)"
        )
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        bad = content.count(b"\n", 0, error.start) + 1
        raise _WrongPromptsError(f"{source}, line {bad}: is not text in UTF-8") from None
    numbered = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith("#")}
    if not numbered:
        raise _WrongPromptsError(f"{source}: has no prompts")
    for number, line in numbered.items():
        if control := CONTROL.search(line):
            raise _WrongPromptsError(f"{source}, line {number}: has the control character {control[0]!r}")
    numbers, prompts = [*numbered], tuple(numbered.values())
    for index, rule in _mistakes(prompts):
        where = source if index is None else f"{source}, line {numbers[index]}"
        raise _WrongPromptsError(f"{where}: {rule}")
    return prompts


def _schema() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH}
    named = {
        "type": "string",
        "minLength": 1,
        "description": "A shipped set, such as shapes or animals, or a text file with one prompt per line, "
        "looked for beside the spec and then in the working directory.",
    }
    listed = {
        "type": "array",
        "items": text,
        "minItems": 1,
        "maxItems": MAX_PROMPTS,
        "uniqueItems": True,
        "description": "The prompts themselves.",
    }
    properties = {key: {"anyOf": [named, listed]} for key in PromptsConfig.model_fields}
    return {
        "title": PromptsConfig.__name__,
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


Prompts = Annotated[PromptsConfig, BeforeValidator(_resolved), WithJsonSchema(_schema())]
