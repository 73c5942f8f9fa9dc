"""Specs of pipelines: what goes with them, their defaults, and the CLIP that belongs to one."""

import json
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from orchestrator.errors import SpecError
from orchestrator.spec.defaults import with_defaults
from orchestrator.spec.load import dump_spec, load_spec, parse_spec
from orchestrator.spec.records import registry
from orchestrator.spec.records.rewards import resolve_rewards
from trainers.config import PIPELINE_DEFAULTS, LoraConfig, SamplingConfig
from trainers.reward_parameters import IMAGE_REWARDS, OPENAI_CLIP, SERVED

MINIMAL = """\
name: demo
model:
  pretrained: embedded
constraints:
  - reward: clip
    at_least: 0.15
    unit: sigma
"""
FULL = """\
name: demo
model:
  pretrained: owner/name
  revision: main
  lora: {rank: 8, targets: [to_q]}
prompts:
  train: animals
  evaluate: [a cat, "a 'dog'", ünïcode]
sampling:
  steps: 15
  rest: 0
  guidance: 5
constraints:
  - {reward: {saturation: {aim: low}}, name: muted, at_least: {grid: [0.25, 0.5]}, unit: sigma}
  - {reward: {clip: {precision: bf16}}, at_least: 0.15, unit: sigma}
  - {reward: mps, at_least: "+1%", unit: relative}
training:
  primal: truncated_backprop
  primal_parameters: {random: true}
  optimizer: adam_8bit
resources:
  gpus_per_worker: 1
"""

# Old text, new text, the line that the message must name, and what it must say.
CASES = [
    (
        "  pretrained: owner/name",
        "  pretraind: owner/name",
        3,
        "did you mean 'pretrained'? allowed: mixture, pre",
    ),
    ("  pretrained: owner/name\n", "", 2, "needs either 'mixture' or 'pretrained'"),
    ("  pretrained: owner/name", "  pretrained: 3", 3, "must be a string"),
    (
        "  pretrained: owner/name",
        "  pretrained: embeddid",
        3,
        "is written ./embeddid; did you mean 'embedded'?",
    ),
    ("  pretrained: owner/name", "  pretrained: embedded", 4, "the shipped pipeline has no revisions"),
    ("rank: 8", "rnk: 8", 5, "did you mean 'rank'? allowed: rank, alpha, targets"),
    ("rank: 8", "rank: 0", 5, "must be greater than 0"),
    ("targets: [to_q]", "targets: []", 5, "must not be empty"),
    ("prompts:\n  train: animals\n", "promptz:\n  train: animals\n", 6, "did you mean 'prompts'?"),
    ("  train: animals", "  traim: animals", 7, "did you mean 'train'? allowed: train, evaluate"),
    ("  train: animals\n", "", 6, "the key 'train' is required"),
    ("  steps: 15", "  steps: 0", 10, "must be greater than 0"),
    ("  rest: 0", "  rest: 15", 11, "must be less than the 15 steps of sampling"),
    ("  rest: 0", "  rest: -1", 11, "must be at least 0"),
    ("  guidance: 5", "  guidance: -5", 12, "must be at least 0"),
    (
        "{saturation: {aim: low}}",
        "{linear: {direction: [1]}}",
        14,
        "the reward 'linear' scores points of a mix",
    ),
    ("{clip: {precision: bf16}}", "{clip: {precision: bf61}}", 15, "did you mean 'bf16'?"),
    ("{clip: {precision: bf16}}", "{clip: {model: ''}}", 15, "must be at least 1 characters long"),
    ("random: true", "random: 1", 19, "must be true or false"),
    ("primal: truncated_backprop", "primal: low_variance", 19, "unknown key 'random'; allowed: copies"),
    ("primal: truncated_backprop", "primal: truncated", 18, "did you mean 'truncated_backprop'?"),
    ("gpus_per_worker: 1", "gpus_per_worker: 0", 20, "needs a GPU: set resources.gpus_per_worker"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), CASES, ids=lambda value: str(value)[:40])
def test_message(old: str, new: str, line: int, message: str) -> None:
    assert FULL.count(old) == 1, "the replacement must be unambiguous"
    with pytest.raises(SpecError) as caught:
        parse_spec(FULL.replace(old, new), "demo.yaml")
    text = str(caught.value)
    assert text.startswith(f"demo.yaml, line {line}, column "), text
    assert message in text
    assert text.count("demo.yaml") == 1, "one mistake is one problem"


def test_a_pipeline_needs_prompts() -> None:
    text = MINIMAL.replace("embedded", "owner/name")
    with pytest.raises(SpecError, match=r"line 3.*\n.*needs prompts: write prompts: {train: …, evaluate: …}"):
        parse_spec(text)
    with pytest.raises(SpecError, match="needs prompts"):
        parse_spec(MINIMAL + "prompts: null\n")


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_a_dumped_spec_loads_to_an_equal_one(text: str) -> None:
    spec = parse_spec(text)
    dumped = dump_spec(spec)
    assert parse_spec(dumped) == spec
    assert dump_spec(parse_spec(dumped)) == dumped
    assert parse_spec(json.dumps(spec.model_dump(mode="json")), "spec.json") == spec


def test_the_schema_knows_pipelines(validator: jsonschema.Draft202012Validator) -> None:
    for text in (MINIMAL, FULL):
        validator.validate(yaml.safe_load(text))
        validator.validate(json.loads(parse_spec(text).model_dump_json(exclude_none=True)))
    for changed in (
        {"model": {}},
        {"model": {"pretrained": "a/b", "mixture": yaml.safe_load(MIXTURE)}},
        {"prompts": {"train": []}},
        {"prompts": {"train": "shapes", "evaluate": [3]}},
        {"constraints": [{"reward": {"saturation": {"aim": "lower"}}, "at_least": 1}]},
    ):
        assert not validator.is_valid(yaml.safe_load(MINIMAL) | changed), changed


# Defaults --------------------------------------------------------------------------------------------

MIXTURE = "{weights: [1], means: [[0]], covariances: [[[1]]]}"


def test_defaults_of_a_pipeline() -> None:
    spec = parse_spec(MINIMAL)
    for section, values in PIPELINE_DEFAULTS.items():
        for key, value in values.items():
            assert getattr(getattr(spec, section), key) == value, (section, key)
    assert spec.model.lora == LoraConfig()
    assert spec.prompts is not None
    assert (len(spec.prompts.train), len(spec.prompts.evaluate)) == (64, 64)


def test_what_is_written_stays() -> None:
    spec = parse_spec(MINIMAL, overrides=["training.steps=7", "prompts.train=[a]", "model.lora={rank: 2}"])
    assert spec.training.steps == 7
    assert spec.training.primal == "reward_backprop"
    assert spec.prompts is not None
    assert spec.prompts.train == ("a",)
    assert len(spec.prompts.evaluate) == 64
    assert spec.model.lora == LoraConfig(rank=2)


def test_a_mixture_keeps_the_defaults_of_the_fields() -> None:
    data = {"model": {"mixture": yaml.safe_load(MIXTURE)}, "sampling": {"steps": 3}}
    assert with_defaults(data) is data
    reward = "constraints: [{reward: {linear: {direction: [1]}}, at_least: 1}]"
    spec = parse_spec(f"name: a\nmodel: {{mixture: {MIXTURE}}}\n{reward}")
    assert spec.sampling == SamplingConfig()
    assert spec.prompts is None


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_fewer_steps_rest_where_there_are_few(steps: int) -> None:
    spec = parse_spec(MINIMAL, overrides=[f"sampling.steps={steps}"])
    assert spec.sampling.rest == min(PIPELINE_DEFAULTS["sampling"]["rest"], steps - 1)


def test_defaults_do_not_move_other_problems() -> None:
    broken = MINIMAL + "sampling: 3\ntraining:\n  learning_rate: -1\n"
    with pytest.raises(SpecError) as caught:
        parse_spec(broken, "demo.yaml")
    assert str(caught.value).splitlines()[::2] == [
        "demo.yaml, line 8, column 11: sampling = 3",
        "demo.yaml, line 10, column 18: training.learning_rate = -1",
    ]


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["embedded", "a/b", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["pretrained", "steps", "rest", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["model", "sampling", "training", "prompts"]), junk))
def test_any_data_can_be_filled(data: dict[str, Any]) -> None:
    before = json.dumps(data)
    filled = with_defaults(data)
    assert json.dumps(data) == before, "the data are not changed"
    for name, written in data.items():
        kept = filled[name]
        assert kept == written or all(kept[key] == value for key, value in written.items())


# Rewards ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(IMAGE_REWARDS.keys() - SERVED))
def test_a_plain_name_is_the_reward_with_its_defaults(kind: str) -> None:
    text = MINIMAL
    if not getattr(IMAGE_REWARDS[kind], "differentiable", True):
        text += "\ntraining: {primal: log_variance}\n"
    plain = parse_spec(text.replace("reward: clip", f"reward: {kind}"))
    written = parse_spec(text.replace("reward: clip", f"reward: {{{kind}: {{}}}}"))
    assert resolve_rewards(plain).by_name == resolve_rewards(written).by_name
    assert resolve_rewards(plain).by_name[kind].parameters.keys() == IMAGE_REWARDS[kind].model_fields.keys()


@pytest.mark.parametrize(
    ("pretrained", "reward", "expected"),
    [
        ("embedded", "clip", "embedded"),
        ("embedded", "{clip: {precision: bf16}}", "embedded"),
        ("embedded", "{clip: {model: a/b}}", "a/b"),
        ("owner/name", "clip", OPENAI_CLIP),
        ("owner/name", "{clip: {model: embedded}}", "embedded"),
        ("embedded", "{clip_score: {}}", OPENAI_CLIP),
    ],
)
def test_clip_belongs_to_the_model(pretrained: str, reward: str, expected: str) -> None:
    text = MINIMAL.replace("embedded", pretrained).replace("reward: clip", f"reward: {reward}")
    spec = parse_spec(text + "prompts: {train: [a], evaluate: [b]}\n")
    [found] = resolve_rewards(spec).by_name.values()
    assert found.parameters["model"] == expected


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_plain_name_is_one_reward_in_any_order(order: tuple[int, int]) -> None:
    uses = ["{reward: clip, at_least: 1}", "{reward: clip, name: strict, at_least: 1, unit: sigma}"]
    constraints = ", ".join(uses[index] for index in order)
    spec = parse_spec(f"name: a\nmodel: {{pretrained: embedded}}\nconstraints: [{constraints}]")
    assert list(resolve_rewards(spec).by_name) == ["clip"]


def test_two_rewards_of_one_name() -> None:
    objective = "objective: {reward: {saturation: {aim: low}}, name: look}\n"
    clash = MINIMAL.replace("reward: clip", "reward: brightness\n    name: look")
    budget = "  - {kl: pretrained, at_most: 3}\n"
    with pytest.raises(SpecError, match="another reward is called 'look' already, at objective"):
        parse_spec(clash + budget + objective)


def test_rewards_and_estimators_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> EntryPoints:
        points = [EntryPoint("sharpness", "not_installed:Class", registry.REWARDS)]
        points += [EntryPoint("mine", "not_installed:Class", registry.PRIMAL_ESTIMATORS)]
        return EntryPoints(points).select(group=group)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    spec = parse_spec(
        MINIMAL.replace("reward: clip", "reward: sharpness"),
        overrides=["training.primal=mine", "training.primal_parameters={depth: [1, {a: null}]}"],
    )
    assert spec.training.primal_parameters == {"depth": [1, {"a": None}]}
    assert resolve_rewards(spec).by_name["sharpness"].parameters == {}
    assert parse_spec(dump_spec(spec)) == spec


def test_parameters_of_the_estimator_are_written_out() -> None:
    spec = parse_spec(FULL)
    assert spec.training.primal_parameters == {"steps": 1, "random": True}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            "[to_q, ff.net.0.poj]",
            "'ff.net.0.poj' ends the name of no layer of the UNet; did you mean 'ff.net.0.proj'?",
        ),
        ("[to_q, ff.net.0.poj]", "model.lora.targets.1"),
        ("[to_out]", "which is no linear layer or convolution: name layers, such as to_out.0"),
        ("[to_qq, to_v]", "did you mean 'to_q'?"),
    ],
)
def test_targets_that_name_no_layer_are_refused_where_files_tell(
    tmp_path: Path, targets: str, said: str
) -> None:
    """As of the shipped pipeline; of a hub id loading says it."""
    file = tmp_path / "spec.yaml"
    file.write_text(
        MINIMAL.replace("embedded", f"embedded\n  lora: {{targets: {targets}}}")
        + "prompts: {train: [a], evaluate: [b]}\n"
    )
    with pytest.raises(SpecError) as error:
        load_spec(file)
    assert said in str(error.value)
    file.write_text(file.read_text().replace("embedded", "owner/name"))
    assert load_spec(file)


def test_a_head_of_another_clip_is_told_by_its_files(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(
        MINIMAL.replace("reward: clip", f"reward: {{aesthetic: {{model: {tmp_path}, clip: embedded}}}}")
    )
    for width, said in ((64, []), (768, ["width 768, and the clip embedded gives 64"])):
        save_file({"layers.0.weight": np.zeros((4, width), np.float32)}, tmp_path / "model.safetensors")
        try:
            load_spec(file)
            found = []
        except SpecError as error:
            found = [text for text in said if text in str(error)]
        assert found == said
