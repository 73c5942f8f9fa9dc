"""Text to data: YAML 1.2 scalars, positions, and every text that is refused."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec.text.document import MAX_CHARACTERS, parse, to_yaml

text = st.text(st.characters(exclude_categories=["Cc", "Cs"]))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(-1e100, 1e100, allow_subnormal=False)
    | text
    | st.sampled_from(
        ["yes", "off", "1e3", "2024-01-01", "0x1f", "1_000", "~", "<<", "=", "null", ".inf", "-"]
    )
)
data = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("yes", "yes"),
        ("off", "off"),
        ("NO", "NO"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("+50%", "+50%"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        (r'"\ud83d\ude00"', "😀"),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    found = parse(f"x: {written}", "spec.yaml").data["x"]
    assert found == value
    assert type(found) is type(value)


def test_json_is_yaml_also_with_tabs() -> None:
    written = '{\n\t"a": [1, 2.5, true, null],\n\t"b": {"c": "\\u00e9\\/"}\n}'
    assert parse(written, "spec.json").data == {"a": [1, 2.5, True, None], "b": {"c": "é/"}}


def test_positions() -> None:
    document = parse("a: 1\nb:\n  - c: 2\n    d: {e: 3}\n", "spec.yaml")
    assert document.place(("a",)).column == 4
    assert document.place(("b",)).line == 2
    assert document.place(("b", 0, "d", "e")).line == 4
    assert document.place(("b", 0, "d", "e"), at_key=True).column == 9
    assert document.place(("b", 0, "missing")).line == 3


def test_aliases_are_copies() -> None:
    found = parse("a: &x {b: [1]}\nc: *x\n", "spec.yaml").data
    assert found == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert found["a"] is not found["c"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("a: [1, 2", "line 1, column 9"),
        ("a: 1\n\tb: 2\n", "indent with spaces, not tabs"),
        ("a: 1\n--- \nb: 2\n", "line 2, column 1"),
        ("a: 1\nb: \x00\n", "line 2"),
        ("a: *nowhere", "undefined alias"),
        ("&a [*a]", "alias inside itself"),
        ("a: &a [*a]", "alias inside itself"),
        ("[" * 10_000, "nested deeper"),
        ("- " * 10_000, "nested deeper"),
        ("a: " + "{a: " * 10_000, "nested deeper"),
        ('a: "\\U99999999"', "is not valid YAML"),
        ("x" * (MAX_CHARACTERS + 1), "is larger"),
        ("%YAML 3.0\n---\na: 1", "is not valid YAML"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_document(written: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse(written, "some/spec.yaml")
    assert str(caught.value).startswith("some/spec.yaml")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("a: 1\nb: 2\na: 3", "duplicate key 'a': it is on line 1 and again on line 3"),
        ("1: a", "keys must be strings, got 1"),
        ("true: a", "keys must be strings, got true"),
        ("? [a, b]\n: c", "keys must be strings"),
        ("a: .inf", "finite"),
        ("a: -.INF", "finite"),
        ("a: .nan", "finite"),
        ("a: 1e999", "finite"),
        ("a: 1" + "0" * 5000, "an integer must be at most"),
        (r'a: "\0"', "control character"),
        (r'a: "\ud800"', "surrogate"),
        ("a: !!int no", "tag"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !mine {}", "tag"),
        ("a: !!timestamp 2024-01-01", "tag"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_wrong_inside_a_document(written: str, message: str) -> None:
    [problem] = parse(written, "spec.yaml").problems
    assert message in problem.rule


def test_alias_bomb() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(SpecError, match="aliases expanded"):
        parse("\n".join(lines), "spec.yaml")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


@given(data)
def test_what_is_written_is_read_back(value: Any) -> None:
    document = parse(to_yaml(value), "spec.yaml")
    assert document.problems == ()
    assert _same(document.data, value)
