"""Constraints on groups of prompts, as they are written."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.plan import make_plan
from orchestrator.spec import dump_spec, load_spec, parse_spec
from orchestrator.spec.records.models import SweepSpec

TAGS = {"a red sign": "text", "a hill": "photo", "a blue sign": "text", "a tree": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [json.dumps({"prompt": prompt, "tag": tag, "lang": "en"}) for prompt, tag in TAGS.items()]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "held-out.jsonl").write_text("\n".join(rows).replace("a ", "one "))
    return tmp_path


def written(folder: Path, *constraints: str, images: int = 64) -> Path:
    lines = "\n".join(f"  - {constraint}" for constraint in constraints)
    path = folder / "spec.yaml"
    path.write_text(
        "name: groups\nmodel: {pretrained: embedded}\nprompts: {train: train.jsonl, evaluate: held-out.jsonl}\n"
        f"evaluation: {{images: {images}}}\nconstraints:\n{lines}\n"
    )
    return path


def planned(path: Path) -> tuple[SweepSpec, Any]:
    spec = load_spec(path)
    return spec, make_plan(spec).base


def test_for_each_has_a_constraint_and_a_reward_for_every_value(folder: Path) -> None:
    path = written(folder, "{reward: saturation, at_least: 0.1, unit: sigma, for_each: tag}")
    spec, base = planned(path)
    assert [(c.name, c.target) for c in base.constraints] == [
        ("saturation[text]", "saturation[text]"),
        ("saturation[photo]", "saturation[photo]"),
    ]
    assert [reward.where for reward in base.rewards] == [{"tag": "text"}, {"tag": "photo"}]
    assert base.prompts.members("train", {"tag": "text"}) == {"a red sign", "a blue sign"}
    again = parse_spec(dump_spec(spec))
    assert make_plan(again).trials == make_plan(spec).trials


def test_a_group_stands_beside_all_prompts_and_under_names(folder: Path) -> None:
    path = written(
        folder,
        "{reward: saturation, at_least: 0.1}",
        "{reward: saturation, at_least: 0.2, where: {tag: text, lang: en}}",
        "{reward: saturation, at_least: 0.3, where: {tag: photo}, name: vivid}",
        "{reward: saturation, at_least: {grid: [0.1, 0.2]}, for_each: tag, name: each}",
    )
    spec, base = planned(path)
    names = ["saturation", "saturation[text, en]", "vivid", "each[text]", "each[photo]"]
    assert [c.name for c in base.constraints] == names
    assert [reward.name for reward in base.rewards] == names
    assert len(make_plan(spec).trials) == 4


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        ("for_each: tagg", "constraints.0.for_each\n  no column 'tagg'"),
        ("where: {tag: blue}", 'no prompt of prompts.train has tag = "blue"; values of tag: text, photo'),
        ("where: {tag: text, lang: de}", "values of lang: en"),
        ("for_each: tag, where: {tag: text}", "in for_each too"),
        ("where: {}", "must not be empty"),
        ("where: {tag: 3}", "must be a string"),
    ],
)
def test_a_group_that_is_none_is_refused(folder: Path, constraint: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(written(folder, f"{{reward: saturation, at_least: 0.1, {constraint}}}"))
    assert says in str(caught.value)


def test_the_place_of_what_is_wrong_is_that_in_the_file(folder: Path) -> None:
    path = written(
        folder,
        "{reward: saturation, at_least: 0.1, for_each: tag}",
        "{reward: saturation, at_least: 10%, unit: sigma, name: again}",
    )
    with pytest.raises(SpecError, match=r"line 7, column \d+: constraints\.1\.at_least"):
        load_spec(path)


def test_a_value_that_one_list_lacks_is_told_where_each_is_asked_for(folder: Path) -> None:
    held_out = [{"prompt": "one hill", "tag": "text", "lang": "en"}]
    (folder / "held-out.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    with pytest.raises(
        SpecError, match=r"constraints\.0\.for_each\n +no prompt of prompts\.evaluate has tag = \"photo\""
    ):
        load_spec(written(folder, "{reward: saturation, at_least: 0.1, for_each: tag}"))


def test_groups_need_prompts_that_are_asked_for_and_told_apart(folder: Path) -> None:
    constraint = "{reward: saturation, at_least: 0.1, where: {tag: photo}}"
    written(folder, "{reward: saturation, at_least: 0.1}", images=1)
    prompts = load_spec(folder / "spec.yaml").prompts
    assert prompts is not None
    seed = next(seed for seed in range(99) if prompts.in_turn("evaluate", seed)[0] != "one hill")
    path = written(folder, constraint, images=1)
    path.write_text(path.read_text().replace("images: 1", f"images: 1, seed: {seed}"))
    with pytest.raises(
        SpecError, match="none of the 1 held-out prompts that 1 images ask for is in the group"
    ):
        load_spec(path)
    held_out = json.dumps({"prompt": "a hill", "tag": "text", "lang": "en"})
    (folder / "held-out.jsonl").write_text(
        held_out + "\n" + json.dumps({"prompt": "x", "tag": "photo", "lang": "en"})
    )
    with pytest.raises(SpecError, match='"a hill" is in both lists of prompts'):
        load_spec(written(folder, constraint))
    plain = (
        written(folder, constraint)
        .read_text()
        .replace("prompts: {train: train.jsonl, evaluate: held-out.jsonl}\n", "")
    )
    with pytest.raises(SpecError, match="no column 'tag'"):
        parse_spec(plain)
    mixture = "model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}"
    plain = plain.replace("model: {pretrained: embedded}", mixture).replace(
        "saturation", "{linear: {direction: [1.0]}}"
    )
    with pytest.raises(SpecError, match="there are none: write prompts"):
        parse_spec(plain)
