"""Prompts: shipped sets, files and lists become texts, and every mistake in them has a place."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import prompts
from orchestrator.spec.load import dump_spec, load_spec, parse_spec

SPEC = """\
name: demo
model: {pretrained: embedded}
constraints: [{reward: clip, at_least: 0.15, unit: sigma}]
prompts:
  train: TRAIN
  evaluate: [held out]
"""


def _train(written: str, directory: Path | None = None) -> tuple[str, ...]:
    spec = parse_spec(SPEC.replace("TRAIN", written), directory=directory)
    assert spec.prompts is not None
    assert parse_spec(dump_spec(spec)) == spec
    return spec.prompts.train


def _error(written: str, directory: Path | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC.replace("TRAIN", written), "demo.yaml", directory=directory)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "count"), [("shapes", 64), ("shapes-held-out", 64), ("animals", 45), ("animals-held-out", 6)]
)
def test_shipped_sets(name: str, count: int) -> None:
    texts = _train(name)
    assert len(texts) == len(set(texts)) == count
    assert all(text == text.strip() != "" for text in texts)


def test_held_out_sets_are_held_out() -> None:
    for name in ("shapes", "animals"):
        assert not set(_train(name)) & set(_train(f"{name}-held-out"))


def test_a_file_is_found_beside_the_spec_and_then_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "both.txt").write_text(folder.name)
    (here / "one.txt").write_text("\ufeff# animals\n\n  a cat \r\n#a dog\nein Bär\n", encoding="utf-8")
    (beside / "spec.yaml").write_text(SPEC.replace("TRAIN", "both.txt"))
    monkeypatch.chdir(here)
    assert load_spec(beside / "spec.yaml").prompts == parse_spec(SPEC.replace("TRAIN", "[beside]")).prompts
    assert _train("both.txt") == ("here",)
    assert _train("one.txt", beside) == ("a cat", "ein Bär")
    assert _train(str(here / "one.txt"), beside) == ("a cat", "ein Bär")


def test_a_trial_depends_on_texts_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\na dog\n")
    assert _train("a.txt", tmp_path) == _train("[a cat, a dog]")


def test_what_is_not_found_is_looked_for_aloud(tmp_path: Path) -> None:
    text = _error("shapez", tmp_path)
    assert text.startswith('demo.yaml, line 5, column 10: prompts.train = "shapez"\n')
    assert f"looked for {tmp_path / 'shapez'} (No such file or directory) and shapez (No such" in text
    assert "did you mean 'shapes'? shipped: animals, animals-held-out, shapes" in text
    assert "looked for ../shapes.txt (No such file or directory); " in _error("../shapes.txt")
    assert "(not a file)" in _error(".", tmp_path)
    assert "File name too long" in _error("x" * 5000, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch(mode=0)
    assert "Permission denied" in _error("a.txt", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.txt: has no prompts"),
        (b"# nothing\n\n", "a.txt: has no prompts"),
        (b"a\n# b\n\na\n", 'a.txt, line 4: the prompt "a" is there twice'),
        (b"a\n" + b"b" * 1001, "a.txt, line 2: a prompt has at most 1,000 characters, got 1,001"),
        (b"a\nb\xff", "a.txt, line 2: is not text in UTF-8"),
        (b"a\nb\x1bc", r"a.txt, line 2: has the control character '\x1b'"),
        (b"\n".join(b"%d" % i for i in range(10_001)), "a.txt: has 10,001 prompts; at most 10,000"),
        (
            b"\n".join(b"%0900d" % i for i in range(300)),
            "a.txt: has 271,200 characters in all; at most 196,608",
        ),
        (b"#" * 600_000, "a.txt: is larger than a file of prompts may be"),
    ],
)
def test_mistakes_in_a_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    text = _error("a.txt", tmp_path)
    assert text.startswith('demo.yaml, line 5, column 10: prompts.train = "a.txt"\n')
    assert message in text
    assert text.count("demo.yaml") == 1


@pytest.mark.parametrize(
    ("written", "column", "path", "message"),
    [
        ("[]", 3, "prompts.train = []", "must not be empty"),
        ("[a, ' ']", 14, 'prompts.train.1 = " "', "a prompt must not be empty"),
        ("[a, '']", 14, 'prompts.train.1 = ""', "a prompt must not be empty"),
        ("[a, b, a]", 17, 'prompts.train.2 = "a"', 'the prompt "a" is there twice'),
        ("[a, 3]", 14, "prompts.train.1 = 3", "must be a string (put it in quotes)"),
        ("3", 10, "prompts.train = 3", "must be the name of a shipped set, the path"),
        ("null", 10, "prompts.train = null", "must be the name of a shipped set, the path"),
        ("{grid: [a]}", 3, "prompts.train", "must be the name of a shipped set, the path"),
        (f"[{'a' * 1001}]", 11, "prompts.train.0", "a prompt has at most 1,000 characters, got 1,001"),
        (
            f"[x{', x'.join(map(str, range(10_001)))}]",
            3,
            "prompts.train",
            "has 10,001 prompts; at most 10,000",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_in_a_list(written: str, column: int, path: str, message: str) -> None:
    text = _error(written)
    assert text.startswith(f"demo.yaml, line 5, column {column}: {path}"), text
    assert message in text
    assert text.count("demo.yaml") == 1


def test_an_override_is_named() -> None:
    with pytest.raises(SpecError, match=r"--set prompts.train=shapez: prompts.train = \"shapez\""):
        parse_spec(SPEC, "demo.yaml", ["prompts.train=shapez"])


@settings(max_examples=50)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200)
        .map(str.strip)
        .filter(bool),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_any_text_survives(texts: list[str]) -> None:
    spec = parse_spec(SPEC.replace("TRAIN", "[a]"))
    assert spec.prompts is not None
    changed = spec.model_copy(update={"prompts": spec.prompts.model_copy(update={"train": tuple(texts)})})
    assert parse_spec(dump_spec(changed)) == changed


@pytest.mark.slow
@pytest.mark.parametrize("character", ["'", "é", "😀", "\x80", "a b"], ids=ascii)
def test_the_largest_lists_fit_into_a_resolved_spec(character: str) -> None:
    def largest(first: int) -> tuple[str, ...]:
        texts: list[str] = []
        for index in range(10_000):
            text = f"{first + index} {character * 900}"[:1000].strip()
            if prompts._size([*texts, text]) > prompts.MAX_TOTAL:
                break
            texts.append(text)
        return tuple(texts)

    spec = parse_spec(SPEC.replace("TRAIN", "[a]"))
    assert spec.prompts is not None
    full = spec.prompts.model_copy(update={"train": largest(0), "evaluate": largest(20_000)})
    assert parse_spec(dump_spec(spec.model_copy(update={"prompts": full}))).prompts == full
