"""What is wrong with a spec, and where: one record per problem, one error for all of them.

A problem knows its key path; the document knows where that path was written. Errors of pydantic become
problems here: tags that unions put into their locations are dropped, and the rule is said in words, with
the allowed names and the nearest one.
"""

import difflib
import json
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from orchestrator.errors import SpecError
from trainers.config import MISPLACED

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the root, as in ``constraints.0.at_least``."""

NO_VALUE = object()
"""Stands for the value of a key that is not there."""

CHOICE = "cdsweep_choice"
"""Type of the pydantic error of a union none of whose forms fits."""

_PROBLEMS = "cdsweep_problems"
_LONGEST_VALUE = 80
_PHRASES = {
    "string_type": "a string (put it in quotes)",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "a string that matches {pattern}",
    "string_too_long": "at most {max_length} characters long",
    "string_too_short": "at least {min_length} characters long",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place in a text, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One rule that a spec breaks."""

    path: KeyPath
    rule: str
    value: Any = NO_VALUE
    hint: str = ""
    """The nearest allowed name, or the allowed ones."""
    at_key: bool = False
    """The key is wrong, not its value."""
    meant: str | None = None
    """The key that was probably meant by a wrong one."""
    where: str = ""
    """The place, where it is known already; otherwise it is looked up by path."""

    def render(self, source: str) -> str:
        """Return file, place, key, value and rule as a block of two lines."""
        head = f"{source}{self.where}"
        if self.path:
            head += f": {dotted(self.path)}"
            if self.value is not NO_VALUE:
                head += f" = {shown(self.value)}"
        return f"{head}\n  {self.rule}{self.hint}"


def spec_error(source: str, problems: Iterable[Problem]) -> SpecError:
    """Return the error that lists ``problems``, a block for each."""
    return SpecError("\n".join(problem.render(source) for problem in problems))


def raise_problems(problems: Sequence[Problem]) -> NoReturn:
    """Raise ``problems`` inside a validator; their paths are relative to the validated value."""
    text = "; ".join(f"{dotted(p.path)}: {p.rule}{p.hint}" for p in problems)
    raise PydanticCustomError(_PROBLEMS, "{text}", {"text": text, "problems": tuple(problems)})


def refuse_twice(values: Iterable[Hashable], rule: str, shown: Sequence[Any] | None = None) -> None:
    """Raise a problem inside a validator at the first value that is there already, with what is to be shown of it."""
    seen: set[Hashable] = set()
    for index, value in enumerate(values):
        if value in seen:
            raise_problems(
                [Problem(path=(index,), rule=rule, value=value if shown is None else shown[index])]
            )
        seen.add(value)


def dotted(path: KeyPath) -> str:
    """Return a path the way ``--set`` takes it."""
    return ".".join(str(part) for part in path)


def shown(value: Any) -> str:
    """Return a value as JSON, shortened."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that ``name`` was probably meant to be."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower()[:100], by_lower, n=1)
    return by_lower[found[0]] if found else None


def suggestion(name: str, choices: Sequence[str], what: str = "allowed") -> str:
    """Return ``; did you mean …? (allowed: …)`` for a name that is none of ``choices``."""
    close = nearest(name, choices)
    asked = f"; did you mean {close!r}?" if close else ";"
    return f"{asked} {what}: {', '.join(choices) or 'none'}"


def translate(error: ValidationError, data: Any, model: type[BaseModel]) -> list[Problem]:
    """Return the problems that ``error`` found in ``data``, one for each path, in the order of the text."""
    problems: dict[KeyPath, Problem] = {}
    for details in error.errors(include_url=False):
        for problem in _problems_of(details, data, model):
            known = problems.get(problem.path)
            problems[problem.path] = problem if known is None else _either(known, problem)
    meant = {(*problem.path[:-1], problem.meant) for problem in problems.values() if problem.meant}
    # A misspelt required key is one problem, not an unknown key and a missing one.
    return [p for p in problems.values() if p.value is not NO_VALUE or p.path not in meant]


def checked_parameters(model: type[BaseModel], parameters: Any, path: KeyPath) -> dict[str, Any]:
    """Return parameters with their defaults written out, or raise their problems inside a validator.

    Args:
        model: What they must fit.
        parameters: Plain data.
        path: Where they stand in the validated value.
    """
    try:
        checked = model.model_validate_json(json.dumps(parameters))
    except ValidationError as error:
        raise_problems([_prefixed(path, problem) for problem in translate(error, parameters, model)])
    return checked.model_dump(mode="json")


def _problems_of(details: ErrorDetails, data: Any, model: type[BaseModel]) -> list[Problem]:
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    path = _clean(details["loc"], data)
    if kind == _PROBLEMS:
        nested: tuple[Problem, ...] = context["problems"]
        return [_prefixed(path, problem) for problem in nested]
    if kind == "missing":
        missing = str(details["loc"][-1])
        rule = f"the key {missing!r} is required"
        return [Problem(path=(*path, missing), rule=rule)]
    if kind == "extra_forbidden":
        name = str(path[-1])
        keys = allowed_keys(model, tuple(details["loc"][:-1]))
        rule, hint, meant = f"unknown key {name!r}", suggestion(name, keys), nearest(name, keys)
        return [Problem(path=path, rule=rule, value=value, hint=hint, at_key=True, meant=meant)]
    if kind == "too_short" and value:
        return []  # pydantic leaves out wrong items, which are problems already, before it counts
    if kind == CHOICE:
        return [_wrong_form(path, details["msg"], value, context.get("choices", "").split(", "))]
    return [_wrong_value(path, details)]


def _wrong_value(path: KeyPath, details: ErrorDetails) -> Problem:
    """Return the problem of a value of the wrong type or out of its range."""
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == MISPLACED:
        key = context["key"]
        written = value[key] if isinstance(value, dict) and key in value else NO_VALUE
        return Problem(path=(*path, key), rule=context["rule"], value=written, at_key=True)
    hint = ""
    if kind == "value_error":
        rule = str(context["error"])
    elif kind == "too_short":
        rule = "must not be empty"
    elif kind in _PHRASES:
        rule = "must be " + _PHRASES[kind].format(**context)
    else:
        rule = details["msg"].replace("Input should be", "must be")
    if kind == "literal_error" and isinstance(value, str):
        close = nearest(value, re.findall(r"'([^']*)'", context["expected"]))
        hint = f"; did you mean {close!r}?" if close else ""
    return Problem(path=path, rule=rule, value=value, hint=hint)


def _wrong_form(path: KeyPath, message: str, value: Any, choices: list[str]) -> Problem:
    """Return the problem of a value that has none of the forms of a union."""
    names = [str(key) for key in value] if isinstance(value, dict) else [value]
    for name in names:
        close = nearest(name, choices) if isinstance(name, str) else None
        if close and close != name:
            at_key = isinstance(value, dict)
            path = (*path, name) if at_key else path
            value = value[name] if at_key else value
            hint = f"; did you mean {close!r}?"
            return Problem(path=path, rule=message, value=value, hint=hint, at_key=at_key)
    return Problem(path=path, rule=message, value=value)


def _either(one: Problem, other: Problem) -> Problem:
    """Return one problem for two forms of a union, neither of which fits."""
    prefix = "must be "
    if not (one.rule.startswith(prefix) and other.rule.startswith(prefix)):
        return one
    rule = f"{one.rule}, or {other.rule.removeprefix(prefix)}"
    return Problem(path=one.path, rule=rule, value=one.value, hint=one.hint or other.hint)


def _prefixed(path: KeyPath, problem: Problem) -> Problem:
    return replace(problem, path=path + problem.path)


def _clean(location: Sequence[str | int], data: Any) -> KeyPath:
    """Return the keys and indices of ``location`` that are in ``data``; the rest are tags of unions."""
    path: list[str | int] = []
    for part in location:
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside:
            path.append(part)
            data = data[part]
    return tuple(path)


def allowed_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the keys that the mapping at ``location`` may have, read off the JSON Schema.

    A tag of a union that is the name of a model selects that model; where there is none, the keys of all
    forms count.
    """
    schema = model.model_json_schema()
    definitions: dict[str, Any] = schema.get("$defs", {})
    nodes = _forms(schema, definitions)
    for part in location:
        if part in definitions:
            nodes = [definitions[str(part)]]
            continue
        steps = [node["items"] for node in nodes if "items" in node and isinstance(part, int)]
        for node in nodes:
            step = node.get("properties", {}).get(part, node.get("additionalProperties"))
            steps += [step] if isinstance(step, dict) else []
        if steps:
            nodes = [form for step in steps for form in _forms(step, definitions)]
    return list(dict.fromkeys(key for node in nodes for key in node.get("properties", {})))


def _forms(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the alternatives of a schema, references followed."""
    if "$ref" in node:
        return _forms(definitions[node["$ref"].rpartition("/")[2]], definitions)
    alternatives = node.get("oneOf", node.get("anyOf", node.get("allOf")))
    if alternatives is None:
        return [node]
    return [form for alternative in alternatives for form in _forms(alternative, definitions)]
