"""Files of prompts: a text with one per line, JSON Lines, CSV and TSV.

A table has its prompts in the column ``prompt``, whatever the case of its letters; the others are metadata, kept as
text. Nothing is left out but empty lines, and what can hardly be meant as one of these formats is refused.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from orchestrator.spec.text.document import CONTROL, MAX_CHARACTERS
from orchestrator.spec.text.problems import nearest
from trainers.config import Metadata

ENDINGS = ".txt (one prompt per line), .jsonl, .csv or .tsv (with a key or column 'prompt')"
MAX_NAME = 100
"""Characters of the name of a column."""
RESERVED = frozenset({"trial_id", "prompt", "seed", "kl", "log_ratio"})
"""Columns of ``evaluations/`` that metadata stands beside; so are those with one of these beginnings."""
RESERVED_BEGINNINGS = ("reward_", "reference_")

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHERS = frozenset({".json", ".ndjson", ".yaml", ".yml", ".parquet", ".xlsx", ".xls", ".gz", ".zip"})
_PROMPT = "prompt"
_HALVES = tuple(map(chr, range(0xD800, 0xE000)))
"""Surrogates; JSON of two makes one character, and one that is left has no place in UTF-8."""
_NO_TEXT = re.compile(f"{CONTROL.pattern}|[{_HALVES[0]}-{_HALVES[-1]}]")


class WrongPromptsError(Exception):
    """A name under which there are no prompts, or wrong ones."""

    def __init__(self, rule: str, hint: str = "") -> None:
        """Take the rule, and what was probably meant."""
        super().__init__(rule)
        self.hint = hint


@dataclass(frozen=True, kw_only=True)
class PromptTable:
    """What a file holds, a row for each prompt."""

    prompts: tuple[str, ...]
    lines: tuple[int, ...]
    """Where each row begins, from 1."""
    metadata: Metadata = field(default_factory=dict)


def read_prompts(content: bytes, source: str) -> PromptTable:
    """Return the prompts of a file; its ending says how it is read.

    Raises:
        WrongPromptsError: It is none of these formats, or breaks its own; names file, line and rule.
    """
    if len(content) > MAX_CHARACTERS:
        raise WrongPromptsError(
            f"{source}: is larger than a file of prompts may be ({MAX_CHARACTERS:,} bytes)"
        )
    ending = PurePath(source).suffix.lower()
    if ending in _OTHERS:
        raise WrongPromptsError(f"{source}: a file of prompts is {ENDINGS}, not {ending}")
    text = _decoded(content, source).replace("\r\n", "\n")
    reader: Callable[[str, str], PromptTable] = _text
    if ending in _DELIMITERS:
        reader = _table
    elif ending == ".jsonl":
        reader = _json_lines
    table = reader(text, source)
    if not table.prompts:
        raise WrongPromptsError(f"{source}: has no prompts")
    for row, number in enumerate(table.lines):
        for cell in (table.prompts[row], *(values[row] or "" for values in table.metadata.values())):
            if wrong := _NO_TEXT.search(cell):
                what = "half of a character" if wrong[0] in _HALVES else "the control character"
                raise WrongPromptsError(f"{source}, line {number}: has {what} {wrong[0]!r}")
    for rule in column_mistakes(table.metadata):
        raise WrongPromptsError(f"{source}: {rule}")
    return table


def column_mistakes(names: Iterable[str]) -> Iterator[str]:
    """Yield the rules that names of metadata break."""
    seen: dict[str, str] = {}
    for name in names:
        lower = name.lower()
        if not name.strip() or len(name) > MAX_NAME or _NO_TEXT.search(name):
            yield f"the name of a column is 1 to {MAX_NAME} characters of text, not {name[:MAX_NAME]!r}"
        elif lower in RESERVED or lower.startswith(RESERVED_BEGINNINGS):
            yield f"the column {name!r} is called like one of the results, which metadata stands beside: rename it"
        elif lower in seen:
            yield f"the columns {seen[lower]!r} and {name!r} cannot be told apart: rename one"
        seen[lower] = name


def _decoded(content: bytes, source: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise WrongPromptsError(f"{source}: is not text in UTF-8 but, it seems, in UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = content.count(b"\n", 0, error.start) + 1
        raise WrongPromptsError(f"{source}, line {bad}: is not text in UTF-8") from None


# A line each -----------------------------------------------------------------------------------------


def _text(text: str, source: str) -> PromptTable:
    rows = {number: line for number, row in enumerate(text.split("\n"), 1) if (line := row.strip())}
    for place, (number, line) in enumerate(rows.items()):
        other = _other_format(line, first=place == 0)
        if other:
            rule = f"{other}; a file of prompts is {ENDINGS}: name it by what it is"
            raise WrongPromptsError(f"{source}, line {number}: {rule}")
    return PromptTable(prompts=tuple(rows.values()), lines=tuple(rows))


def _other_format(line: str, *, first: bool) -> str:
    """Say what a line of a text is if it is hardly a prompt, or nothing."""
    if "\t" in line:
        return "has a tab, as tables have"
    if first and _PROMPT in [cell.strip(' "').lower() for cell in line.split(",")]:
        return "is the header of a table"
    if line[0] in "[{":
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            # The first line of an indented document is a bracket alone.
            return "is JSON" if first and len(line) == 1 else ""
        return "is JSON"
    return ""


# Tables ----------------------------------------------------------------------------------------------


def _table(text: str, source: str) -> PromptTable:
    delimiter = _DELIMITERS[PurePath(source).suffix.lower()]
    try:
        numbered = _rows(text, source, delimiter, csv.QUOTE_MINIMAL)
    except WrongPromptsError:
        # TSV has no quoting of its own, and prompts begin with a quoted word (PartiPrompts); doubled quotes are CSV's.
        if delimiter != "\t" or '""' in text:
            raise
        numbered = _rows(text, source, delimiter, csv.QUOTE_NONE)
    lines, rows = [number for number, _ in numbered], [row for _, row in numbered]
    if not rows:
        return PromptTable(prompts=(), lines=())
    names = [name.strip() for name in rows[0]]
    for number, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            quoting = "; a cell with a comma stands in quotes" if delimiter == "," else ""
            rule = f"has {len(row)} cells, and the header has {len(names)}{quoting}"
            raise WrongPromptsError(f"{source}, line {number}: {rule}")
    chosen = _prompt_among(names, "column", source)
    for rule in column_mistakes([name for place, name in enumerate(names) if place != chosen]):
        raise WrongPromptsError(f"{source}, line {lines[0]}: {rule}")
    for number, row in zip(lines, rows, strict=True):
        if any("\t" in cell and "\n" in cell for cell in row):
            rule = "a cell in quotes goes over several lines with tabs: a quote that begins a cell and does not end it"
            raise WrongPromptsError(f"{source}, line {number}: {rule}")
    columns = [tuple(row[place] for row in rows[1:]) for place in range(len(names))]
    return PromptTable(
        prompts=tuple(cell.strip() for cell in columns[chosen]),
        lines=tuple(lines[1:]),
        metadata={name: columns[place] for place, name in enumerate(names) if place != chosen},
    )


def _rows(text: str, source: str, delimiter: str, quoting: Literal[0, 3]) -> list[tuple[int, list[str]]]:
    """Return the rows of a table that are not empty, with the line where each begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows, begin = [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((begin, row))
            begin = reader.line_num + 1
    except csv.Error as error:
        rule = f"{error}; a cell that begins with a quote ends with one, and has two for every quote in it"
        raise WrongPromptsError(f"{source}, line {begin}: {rule}") from None
    return rows


def _json_lines(text: str, source: str) -> PromptTable:
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows[number] = _json_object(line, f"{source}, line {number}")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not rows:
        return PromptTable(prompts=(), lines=())
    chosen = names[_prompt_among(names, "key", source)]
    for number, row in rows.items():
        if not isinstance(row.get(chosen), str):
            found = f"is {json.dumps(row[chosen])[:80]}" if chosen in row else "is not there"
            rule = f"the value of {chosen!r} must be a string, and {found}"
            raise WrongPromptsError(f"{source}, line {number}: {rule}")
    return PromptTable(
        prompts=tuple(row[chosen].strip() for row in rows.values()),
        lines=tuple(rows),
        metadata={
            name: tuple(_as_text(row.get(name)) for row in rows.values()) for name in names if name != chosen
        },
    )


def _json_object(line: str, place: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
            raise WrongPromptsError(f"{place}: the key {twice!r} is there twice")
        return found

    try:
        row = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise WrongPromptsError(f"{place}: is not JSON: {reason}") from None
    if not isinstance(row, dict):
        raise WrongPromptsError(f"{place}: must be a JSON object with the key 'prompt'")
    return row


def _as_text(value: Any) -> str | None:
    """Return a value of JSON as text: strings as they are, anything but null as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _prompt_among(names: Sequence[str], what: str, source: str) -> int:
    """Return the place of the prompts.

    Raises:
        WrongPromptsError: None of the names is theirs, or several are.
    """
    places = [place for place, name in enumerate(names) if name.strip().lower() == _PROMPT]
    shown = ", ".join(name[:MAX_NAME] for name in names[:8]) + (", …" if len(names) > 8 else "")
    if not places:
        close = nearest(_PROMPT, names)
        hint = "" if close is None else f"; is it {close!r}? Rename it"
        raise WrongPromptsError(f"{source}: has no {what} 'prompt' (it has: {shown})", hint)
    if len(places) > 1:
        raise WrongPromptsError(f"{source}: has more than one {what} 'prompt' (it has: {shown})")
    return places[0]
