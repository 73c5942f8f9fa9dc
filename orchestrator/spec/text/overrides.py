"""``--set key.path=value``: changes of a spec from the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.spec.text.document import parse_value
from orchestrator.spec.text.problems import KeyPath, Problem, shown, spec_error


@dataclass(slots=True, kw_only=True)
class Overrides:
    """Which parts of the data come from the command line."""

    texts: dict[KeyPath, str] = field(default_factory=dict)
    """What was written after ``--set``, by the path that it set."""

    def text_for(self, path: KeyPath) -> str | None:
        """Return the override that the value at ``path`` comes from, if any."""
        while path:
            if path in self.texts:
                return self.texts[path]
            path = path[:-1]
        return None

    def add(self, path: KeyPath, text: str) -> None:
        """Note that ``path``, with all below it, now comes from ``text``."""
        self.texts = {known: value for known, value in self.texts.items() if known[: len(path)] != path}
        self.texts[path] = text


def apply(data: Any, overrides: Sequence[str], source: str) -> Overrides:
    """Change ``data`` in place, the first override first.

    Args:
        data: The spec as a mapping.
        overrides: Each ``key.path=value``, the value in YAML, an item of a list by its number from 0.
        source: What messages call the spec.

    Raises:
        SpecError: An override cannot be read, or leads nowhere.
    """
    applied = Overrides()
    for text in overrides:
        where = f"{source}, --set {_printable(text)}"
        keys, equals, value = text.partition("=")
        if not equals or not all(keys.split(".")):
            rule = "an override must look like key.path=value, such as training.steps=100"
            raise spec_error(where, [Problem(path=(), rule=rule)])
        named = keys.split(".")
        path = _set(data, named, parse_value(value, where, tuple(named)), where)
        applied.add(path, _printable(text))
    return applied


def _printable(text: str) -> str:
    """Return ``text`` short enough and plain enough for a message."""
    return text[:100].encode("utf-8", "backslashreplace").decode()


def _set(data: Any, keys: list[str], value: Any, where: str) -> KeyPath:
    """Set the value at ``keys``, make the mappings that are missing, and return the path."""
    path: list[str | int] = []
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(data, list):
            part: str | int = _index(key, data, tuple(path), where)
        elif isinstance(data, dict):
            part = key
        else:
            rule = f"{'.'.join(keys[:position])} is {shown(data)}, which has no parts; set it as a whole"
            raise spec_error(where, [Problem(path=(), rule=rule)])
        path.append(part)
        if last:
            data[part] = value
        else:
            data = data[part] if isinstance(part, int) else data.setdefault(part, {})
    return tuple(path)


def _index(key: str, items: list[Any], path: KeyPath, where: str) -> int:
    if key.isdecimal() and key.isascii() and len(key) < 10 and int(key) < len(items):
        return int(key)
    numbers = f"one of 0 to {len(items) - 1}" if items else "none, the list is empty"
    rule = f"{key!r} is no item of the list; allowed: {numbers}"
    raise spec_error(where, [Problem(path=path, rule=rule)])
