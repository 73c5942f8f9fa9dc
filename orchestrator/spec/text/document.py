"""YAML or JSON text to plain data that remembers where it was written, and back to text.

Scalars follow the core schema of YAML 1.2, of which JSON is a part: ``1e-3`` is a number, ``yes``, ``on``
and ``2024-01-01`` are strings. Objects are never constructed: nodes are composed and read here, with limits
on size, depth and the number of values, so that no text, however made, takes long or fails otherwise than
with a SpecError.
"""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from orchestrator.spec.text.problems import KeyPath, Position, Problem, spec_error

MAX_CHARACTERS = 512 * 1024
"""Longest text: PyYAML reads about 100 kB in a second."""
MAX_DEPTH = 32
"""Deepest nesting; a spec needs eight levels."""
MAX_VALUES = 100_000
"""Most values, aliases expanded: a few lines of aliases can otherwise mean billions."""
MAX_ENTRIES = 20_000
"""Most entries of one list: PyYAML takes a second for 40,000. Prompts of which there are more lie in a file."""
MAX_INTEGER = 2**63 - 1
MAX_NUMBER = 1e100
"""Products of two such numbers are finite."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Plain data, and where each part of it stands."""

    data: Any
    keys: dict[KeyPath, Position]
    """Where the key of each path stands."""
    values: dict[KeyPath, Position]
    """Where each value stands; for a mapping or list under a key, where the key stands."""
    problems: tuple[Problem, ...]
    """What is wrong with the text already, such as a key that is there twice."""

    def place(self, path: KeyPath, *, at_key: bool = False) -> Position:
        """Return where ``path`` stands, or the nearest ancestor that is there."""
        table = self.keys if at_key else self.values
        while path and path not in table:
            table, path = self.values, path[:-1]
        return table.get(path, Position(line=1, column=1))


def parse_value(text: str, source: str, path: KeyPath = ()) -> Any:
    """Return the data of a text that has no lines to point at, such as an override of what is at ``path``.

    Raises:
        SpecError: It is not one well-formed value.
    """
    document = parse(text, source)
    if document.problems:
        raise spec_error(source, [replace(each, path=(*path, *each.path)) for each in document.problems])
    return document.data


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalars of YAML 1.2; its constructors are not used."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        if isinstance(index, int) and index >= MAX_ENTRIES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, f"a list of more than {MAX_ENTRIES:,} entries", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than a string, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1 would read "yes" as true
for _name, _pattern in _PLAIN.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)


def to_yaml(data: Any) -> str:
    """Return YAML that ``parse`` reads back to equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100, default_flow_style=None)


def parse(text: str, source: str) -> Document:
    """Return the data of a YAML or JSON text.

    Args:
        text: One document.
        source: What messages call it; a name that ends in ``.json`` may be indented with tabs.

    Raises:
        SpecError: It is not one well-formed document.
    """
    if len(text) > MAX_CHARACTERS:
        _fail(source, f"is larger than a spec may be ({MAX_CHARACTERS:,} characters)")
    if source.endswith(".json"):
        text = text.replace("\t", " ")  # a tab inside a JSON string is an error anyway
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _fail(
            source,
            f"has a character that YAML does not allow, {error.character!r}",
            Position(line=line, column=1),
        )
    except yaml.MarkedYAMLError as error:
        _syntax_error(source, text, error)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as "\U99999999"
        _fail(source, f"is not valid YAML: {error}")
    if node is None:
        _fail(source, "is empty")
    reader = _Reader(source=source)
    data = reader.read(node, ())
    return Document(data=data, keys=reader.keys, values=reader.values, problems=tuple(reader.problems))


def _syntax_error(source: str, text: str, error: yaml.MarkedYAMLError) -> NoReturn:
    mark = error.problem_mark or error.context_mark
    rule = "is not valid YAML: " + " ".join(filter(None, (error.context, error.problem)))
    if mark is None:
        _fail(source, rule)
    if text[mark.index : mark.index + 1] == "\t":
        rule += " (indent with spaces, not tabs)"
    _fail(source, rule, _position(mark))


def _fail(source: str, rule: str, position: Position | None = None) -> NoReturn:
    where = f", line {position.line}, column {position.column}" if position else ""
    raise spec_error(source, [Problem(path=(), rule=rule, where=where)])


def _position(mark: Any) -> Position:
    return Position(line=mark.line + 1, column=mark.column + 1)


@dataclass(slots=True, kw_only=True)
class _Reader:
    """Nodes to data; what can be gone past is collected, so that one look shows all."""

    source: str
    keys: dict[KeyPath, Position] = field(default_factory=dict)
    values: dict[KeyPath, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def read(self, node: Node, path: KeyPath, key: Position | None = None) -> Any:
        """Return the data of ``node``, which stands at ``path`` under ``key``."""
        here = _position(node.start_mark)
        if len(path) > MAX_DEPTH:
            _fail(self.source, f"nested deeper than {MAX_DEPTH} levels, or an alias inside itself", here)
        if len(self.values) >= MAX_VALUES:
            _fail(self.source, f"has more than {MAX_VALUES:,} values, aliases expanded", here)
        self.values[path] = here if isinstance(node, ScalarNode) or key is None else key
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        self._problem(path, f"the tag {node.tag} is not allowed")
        return None

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = _position(key_node.start_mark)
            if not isinstance(key_node, ScalarNode) or key_node.tag != _TAG + "str":
                raw = str(key_node.value) if isinstance(key_node, ScalarNode) else "a list or mapping"
                self._problem(path, f"line {here.line}: keys must be strings, got {raw[:60]}")
                continue
            key = self._scalar(key_node, path)
            if not isinstance(key, str):
                continue
            place = (*path, key)
            if key in data:
                first = self.keys[place].line
                where = f", line {here.line}, column {here.column}"
                rule = f"duplicate key {key[:60]!r}: it is on line {first} and again on line {here.line}"
                self.problems.append(Problem(path=place, rule=rule, where=where))
                continue
            self.keys[place] = here
            data[key] = self.read(value_node, place, here)
        return data

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        text: str = node.value
        try:
            value = _convert(node.tag.removeprefix(_TAG), text)
        except ValueError as error:
            self._problem(path, f"{error}, got {text[:60]!r}")
            return None
        return value

    def _problem(self, path: KeyPath, rule: str) -> None:
        self.problems.append(Problem(path=path, rule=rule))


def _convert(tag: str, text: str) -> Any:
    """Return the value of a scalar.

    Raises:
        ValueError: The text is no finite value of the type.
    """
    if tag == "str":
        return _string(text)
    if tag == "null":
        return None
    if tag == "bool" and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if tag == "int" and re.fullmatch(_PLAIN["int"], text):
        # More digits than these cannot fit, and int() refuses to read thousands of them.
        value = (
            int(text, 0) if text[:2] in {"0o", "0x"} else int(text) if len(text) <= 100 else MAX_INTEGER + 1
        )
        if abs(value) > MAX_INTEGER:
            raise ValueError(f"an integer must be at most {MAX_INTEGER}")
        return value
    if tag == "float" and re.fullmatch(_PLAIN["float"], text):
        number = float(text) if re.search(r"[0-9]", text) else math.nan  # .inf and .nan have no digit
        if not abs(number) <= MAX_NUMBER:  # false for NaN too
            raise ValueError(f"a number must be finite, and at most {MAX_NUMBER:g} in magnitude")
        return number
    raise ValueError(f"the tag {tag} is not allowed here")


def _string(text: str) -> str:
    if control := CONTROL.search(text):
        raise ValueError(f"a string must not contain the control character {control[0]!r}")
    try:
        # JSON writes characters beyond 16 bits as two surrogates; one alone is no character.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("a string must not contain half a surrogate pair") from None
