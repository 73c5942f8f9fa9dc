"""Prompts: shipped sets, files and lists become texts, and every mistake in them has a place."""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec.files import prompts
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
    (here / "one.txt").write_text("\ufeff#art a cow\n\n  a cat \r\n# 3 dogs\nein Bär\n", encoding="utf-8")
    (beside / "spec.yaml").write_text(SPEC.replace("TRAIN", "both.txt"))
    monkeypatch.chdir(here)
    assert load_spec(beside / "spec.yaml").prompts == parse_spec(SPEC.replace("TRAIN", "[beside]")).prompts
    assert _train("both.txt") == ("here",)
    whole = ("#art a cow", "a cat", "# 3 dogs", "ein Bär")
    assert _train("one.txt", beside) == whole
    assert _train(str(here / "one.txt"), beside) == whole


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
        (b" \n\r\n", "a.txt: has no prompts"),
        (b"a\n# b\n\na\n", 'a.txt, line 4: the prompt "a" is there twice'),
        (b"a\n" + b"b" * 1001, "a.txt, line 2: a prompt has at most 1,000 characters, got 1,001"),
        ("a\nb".encode("utf-16"), "a.txt: is not text in UTF-8 but, it seems, in UTF-16: save it as UTF-8"),
        ("a\nb".encode("utf-16-be"), "a.txt: is not text in UTF-8 but, it seems, in UTF-16"),
        (
            b'{"prompt": "a"}\n',
            "a.txt, line 1: is JSON; a file of prompts is .txt (one prompt per line), .jsonl",
        ),
        (b'a\n["b"]\n', "a.txt, line 2: is JSON; "),
        (b'[\n"a"\n]\n', "a.txt, line 1: is JSON; "),
        (b"\nPrompt,Category\na,b\n", "a.txt, line 2: is the header of a table; "),
        (b"a cat\na dog\tb\n", "a.txt, line 2: has a tab, as tables have; "),
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


PARTI = 'Prompt\tCategory\tNote\na red circle\tAbstract\t\na sign that says "Hi"\tText\tquoted\n'
GENEVAL = """\
{"tag": "colors", "prompt": "a cat", "include": [{"class": "é", "count": 1}]}

{"prompt": "a dog", "tag": "text", "level": 2, "hard": true, "note": null}
"""
CELLS = (
    "prompt," + ",".join(f"c{i}" for i in range(50)) + "\n" + "".join(f"{i}{',' * 50}\n" for i in range(900))
)
LONG = "prompt,b\n" + "".join(f"{i},{'y' * 900}\n" for i in range(300))


@pytest.mark.parametrize(
    ("name", "content", "texts", "metadata"),
    [
        (
            "a.tsv",
            PARTI,
            ("a red circle", 'a sign that says "Hi"'),
            {"Category": ("Abstract", "Text"), "Note": ("", "quoted")},
        ),
        (
            "a.tsv",
            'prompt\ttag\n"G I G" painted\tb\n"c"\td\n',
            ('"G I G" painted', '"c"'),
            {"tag": ("b", "d")},
        ),
        ("a.tsv", 'prompt\ttag\n"say ""G"""\t"b"\n', ('say "G"',), {"tag": ("b",)}),
        (
            "a.CSV",
            '\ufeff"Category","PROMPT"\r\nColors,"a red circle, on a ""table"""\r\n\r\nCounting,#two squares\r\n',
            ('a red circle, on a "table"', "#two squares"),
            {"Category": ("Colors", "Counting")},
        ),
        ("a.csv", "prompt\n a cat \na dog\n", ("a cat", "a dog"), {}),
        (
            "a.jsonl",
            GENEVAL,
            ("a cat", "a dog"),
            {
                "tag": ("colors", "text"),
                "include": ('[{"class": "é", "count": 1}]', None),
                "level": (None, "2"),
                "hard": (None, "true"),
                "note": (None, None),
            },
        ),
        ("a.jsonl", '{"Prompt": "a cat"}', ("a cat",), {}),
        ("a.txt", "a cat, up\n[a:b:0.5]\n{a|b} cat\n", ("a cat, up", "[a:b:0.5]", "{a|b} cat"), {}),
    ],
)
def test_tables_have_prompts_and_metadata(
    validator: jsonschema.Draft202012Validator,
    name: str,
    content: str,
    texts: tuple[str, ...],
    metadata: dict[str, Any],
    tmp_path: Path,
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert _train(name, tmp_path) == texts
    spec = parse_spec(SPEC.replace("TRAIN", name).replace("[held out]", name), directory=tmp_path)
    assert spec.prompts is not None
    assert spec.prompts.train_metadata == spec.prompts.evaluate_metadata == metadata
    assert parse_spec(dump_spec(spec)) == spec
    validator.validate(yaml.safe_load(dump_spec(spec)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv: has no prompts"),
        ("a.csv", "prompt,b\n", "a.csv: has no prompts"),
        (
            "a.csv",
            "Prompts,b\nx,y\n",
            "a.csv: has no column 'prompt' (it has: Prompts, b); is it 'Prompts'? Rename it",
        ),
        ("a.csv", "prompt;b\nx;y\n", "a.csv: has no column 'prompt' (it has: prompt;b)"),
        (
            "a.csv",
            "prompt,PROMPT\nx,y\n",
            "a.csv: has more than one column 'prompt' (it has: prompt, PROMPT)",
        ),
        (
            "a.csv",
            "prompt,b\n\na cat, a dog, x\n",
            "a.csv, line 3: has 3 cells, and the header has 2; a cell",
        ),
        ("a.tsv", "prompt\tb\nx\n", "a.tsv, line 2: has 1 cells, and the header has 2"),
        ("a.csv", 'prompt\nx\n"y" z\n', "a.csv, line 3: "),
        ("a.tsv", 'prompt\nx\n"y" ""z\n', "a.tsv, line 3: "),
        ("a.csv", 'prompt\nx\n"y\nz\n', "a.csv, line 3: "),
        ("a.csv", "prompt,b\nx,y\n,z\n", "a.csv, line 3: a prompt must not be empty"),
        ("a.csv", 'prompt\n"x\ny"\nx\nx\n', 'a.csv, line 5: the prompt "x" is there twice'),
        (
            "a.csv",
            ",prompt\n0,x\n",
            "a.csv, line 1: the name of a column is 1 to 100 characters of text, not ''",
        ),
        ("a.csv", "prompt,Seed\nx,1\n", "a.csv, line 1: the column 'Seed' is called like one of the results"),
        ("a.csv", "prompt,reward_clip\nx,1\n", "the column 'reward_clip' is called like one of the results"),
        ("a.csv", "prompt,Tag,tag\nx,1,2\n", "the columns 'Tag' and 'tag' cannot be told apart"),
        ("a.csv", "prompt,b\nx,y\x1b\n", r"a.csv, line 2: has the control character '\x1b'"),
        ("a.jsonl", '{"prompt": "a \\ud83d"}\n', r"a.jsonl, line 1: has half of a character '\ud83d'"),
        (
            "a.jsonl",
            '{"prompt": "x", "b": "\\udc31 c"}\n',
            r"a.jsonl, line 1: has half of a character '\udc31'",
        ),
        ("a.jsonl", '{"prompt": "x", "\\ud83d": 1}\n', "the name of a column is 1 to 100 characters of text"),
        (
            "a.tsv",
            'prompt\tb\n"stop\tx\nreads go"\tx\n',
            "a.tsv, line 2: a cell in quotes goes over several lines",
        ),
        (
            "a.jsonl",
            '{"prompt": "x"}\n{"prompt": 3}\n',
            "line 2: the value of 'prompt' must be a string, and is 3",
        ),
        (
            "a.jsonl",
            '{"prompt": "x"}\n{"text": "y"}\n',
            "line 2: the value of 'prompt' must be a string, and is not there",
        ),
        ("a.jsonl", '{"text": "y"}\n', "a.jsonl: has no key 'prompt' (it has: text)"),
        ("a.jsonl", '{"prompt": "x"}\nx\n', "a.jsonl, line 2: is not JSON: "),
        ("a.jsonl", '["x"]\n', "a.jsonl, line 1: must be a JSON object with the key 'prompt'"),
        ("a.jsonl", '{"prompt": "x", "a": 1, "a": 2}\n', "a.jsonl, line 1: the key 'a' is there twice"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: is not JSON"),
        (
            "a.jsonl",
            '{"prompt": "x", "kl": 2}\n',
            "a.jsonl: the column 'kl' is called like one of the results",
        ),
        ("a.json", '["x"]', "a.json: a file of prompts is .txt (one prompt per line), .jsonl, .csv or .tsv"),
        ("a.parquet", "PAR1", "a.parquet: a file of prompts is"),
        ("a.csv", f"prompt,b\nx,{'y' * 200_000}\n", "a.csv, line 2: field larger than field limit"),
        ("a.csv", CELLS, "a.csv: has 45,000 cells of metadata; at most 40,000"),
        ("a.csv", LONG, "characters in all; at most 196,608"),
    ],
    ids=lambda value: value[:40],
)
def test_mistakes_in_a_table(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, newline="")
    text = _error(name, tmp_path)
    assert text.startswith(f'demo.yaml, line 5, column 10: prompts.train = "{name}"\n')
    assert message in text
    assert text.count("demo.yaml") == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{train: shapes, train_metadata: {a: [x]}, evaluate: [b]}", "goes with a list of prompts"),
        (
            "{train: [a, b], train_metadata: {c: [x]}, evaluate: [b]}",
            "train_metadata.c has 1 values, and there are 2",
        ),
        ("{train: [a], train_metadata: {kl: [x]}, evaluate: [b]}", "'kl' is called like one of the results"),
        ("{train: [a], train_metadata: {c: [3]}, evaluate: [b]}", "must be a string"),
        ("{train: [a], train_metadata: {c: x}, evaluate: [b]}", "must be a list"),
        ("{train: [a], train_metadata: [c], evaluate: [b]}", "must be a mapping"),
    ],
)
def test_mistakes_in_written_metadata(section: str, message: str) -> None:
    text = SPEC[: SPEC.index("prompts:")] + f"prompts: {section}\n"
    with pytest.raises(SpecError, match=message):
        parse_spec(text)


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
