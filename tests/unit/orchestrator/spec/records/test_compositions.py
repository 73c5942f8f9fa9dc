"""Compositions in a spec: what is filled in, and what is refused with which words."""

import json

import jsonschema
import pytest
import yaml
from support.models.compositions import SPEC, THRESHOLD

from orchestrator.errors import SpecError
from orchestrator.spec.load import dump_spec, parse_spec
from orchestrator.spec.records.terms import MinmaxObjective

METHODS = """\
methods:
  - constrained
  - weighted: {weights: equal}
"""
C = "  c: {mixture: {weights: [1.0], means: [[1.2, 0.0]], covariances: [[[0.6, 0.0], [0.0, 0.4]]]}}\n"
SINGLE = "model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}\n"


def test_defaults() -> None:
    spec = parse_spec(SPEC)
    assert spec.model is None
    assert spec.constraints == ()
    assert spec.models is not None
    assert list(spec.models) == ["a", "b", "c"]
    assert (spec.sampling.steps, spec.training.steps, spec.evaluation.every) == (64, 60, 1)
    assert isinstance(spec.objective, MinmaxObjective)
    assert (spec.objective.sampler, spec.objective.offsets) == ("fkc", {})
    text = SPEC.replace("  direction: reverse\n", "") + "training: {steps: 5}\n"
    changed = parse_spec(text)
    assert changed.training.steps == 5
    assert changed.training.batch_per_worker == 4096
    assert changed.objective == spec.objective


@pytest.mark.parametrize("text", [SPEC, SPEC + THRESHOLD, SPEC.replace("reverse", "forward")])
def test_a_dumped_spec_loads_to_an_equal_one(text: str) -> None:
    spec = parse_spec(text)
    assert parse_spec(dump_spec(spec)) == spec


def test_what_belongs_to_training_alone_is_ignored() -> None:
    parse_spec(SPEC + "training: {primal: reward_backprop, optimizer: adam_8bit}\n")


@pytest.mark.parametrize(
    "text", [SPEC, SPEC + THRESHOLD, "name: x\nconstraints: [{kl: pretrained, at_most: 1}]\n" + SINGLE]
)
def test_the_schema_takes_what_loads(validator: jsonschema.Draft202012Validator, text: str) -> None:
    validator.validate(yaml.safe_load(text))


def test_the_schema_refuses_both_and_neither(validator: jsonschema.Draft202012Validator) -> None:
    for text in (SPEC + SINGLE + THRESHOLD, "name: x\n" + THRESHOLD, "name: x\n" + SINGLE):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(yaml.safe_load(text))
    assert "composition" not in json.dumps(validator.schema["$defs"]["ModelConfig"]["properties"])


CASES = [
    # models
    (C, C + SINGLE, "goes without 'models'"),
    (C, "", "unknown model 'c'"),
    (C, "  c: {prompt: a cat}\n", "mixtures compose with mixtures only, but c is none"),
    (C, "  c: {pretrained: embedded}\n  d: {prompt: x}\n", "compose with mixtures only, but c, d are none"),
    (C, "  c: {mixtur: {}}\n", "did you mean 'mixture'?"),
    (C, "  c: {path: {}}\n", "must be a mapping with the key 'mixture', 'adapter', 'prompt' or 'pretrained'"),
    (C, C.replace("}\n", ", prompt: a cat}\n"), "unknown key 'prompt'"),
    (C, C + "model: {pretrained: embedded}\n", "goes without 'models'"),
    (
        C,
        "  c: {mixture: {weights: [1.0], means: [[1.2]], covariances: [[[0.6]]]}}\n",
        "must all have one dimension, but a has 2, b has 2, c has 1",
    ),
    # objective
    ("minmax_kl: [a, b, c]", "minmax_kl: [a]", "needs at least two models"),
    ("minmax_kl: [a, b, c]", "minmax_kl: [a, b, b]", "is in the list twice"),
    ("minmax_kl: [a, b, c]", "minmax_kl: [a, b, C]", "unknown model 'C'; did you mean 'c'?"),
    ("minmax_kl: [a, b, c]", "minmax: [a, b, c]", "did you mean 'minmax_kl'?"),
    ("minmax_kl: [a, b, c]\n  direction: reverse", "kl: pretrained", "write {minmax_kl: [a, b, c]}"),
    ("direction: reverse", "direction: revers", "did you mean 'reverse'?"),
    ("direction: reverse", "sampler: fck", "did you mean 'fkc'?"),
    ("direction: reverse", "sampler: merged", "of adapters only"),
    ("direction: reverse", "sampler: joint", "of prompts only"),
    ("direction: reverse", "offsets: {d: 0.1}", "unknown model 'd'"),
    # constraints
    (METHODS, "constraints: [{kl: pretrained, at_most: 1}]\n", "has no pretrained model"),
    (METHODS, THRESHOLD.replace("at_least", "unit: sigma, at_least"), "must be absolute for a composition"),
    (
        METHODS,
        THRESHOLD.replace("at_least", "unit: relative, at_least"),
        "must be absolute for a composition",
    ),
    (METHODS, THRESHOLD.replace("0.6", "+50%"), "refers to a pretrained model"),
    (METHODS, THRESHOLD.replace("[0.0, 1.0]", "[1.0]"), "must have length 2"),
    (METHODS, "constraints: [{reward: saturation, at_least: 1}]\n", "scores images"),
    ("reverse\n" + METHODS, "forward\n" + THRESHOLD, "rewards go with direction: reverse"),
    # methods
    ("equal}", "equal, scale: 2}", "must be 1 for a composition"),
    ("weights: equal", "weights: {a: 0.5, b: 0.2}", "a 0.5, b 0.2, c 0 sum to 0.7"),
    ("weights: equal", "weights: {a: {grid: [0.5, 0.6]}, b: 0.5}", "a 0.6, b 0.5, c 0 sum to 1.1"),
    ("weights: equal", "weights: {a: 1.5, b: -0.5}", "must be at least 0"),
    ("weights: equal", "weights: {a: 0.5, d: 0.5}", "unknown model 'd'"),
    ("equal}", "equal, sampler: merged}", "of adapters only"),
    ("equal}", "equal, sampler: fck}", "did you mean 'fkc'?"),
    # others
    (METHODS, "resources: {workers: 2}\n", "every worker would compute the same"),
    (METHODS, "distillation: {steps: 10}\n", "goes with networks"),
    (METHODS, "sampling: {rest: 1}\n", "must be 0 for a composition"),
    (METHODS, "prompts: {train: [x], evaluate: [y]}\n", "has no prompts"),
]


@pytest.mark.parametrize(("old", "new", "message"), CASES)
def test_messages(old: str, new: str, message: str) -> None:
    assert old in SPEC
    with pytest.raises(SpecError) as error:
        parse_spec(SPEC.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name", ["kl", "KL", "low", "high", "least", "ratio", "estimator", "x_low", "x_high", "A"]
)
def test_names_that_would_clash_with_columns(name: str) -> None:
    text = SPEC.replace("  c:", f"  {name}:").replace("[a, b, c]", f"[a, b, {name}]")
    with pytest.raises(SpecError, match=r"model must not be called|differ in case only"):
        parse_spec(text)


@pytest.mark.parametrize("name", ["c", "C"])
def test_a_model_is_not_called_like_a_reward(name: str) -> None:
    with pytest.raises(SpecError, match=r"models\.c\n.*the name of what is at constraints.0"):
        parse_spec(SPEC + THRESHOLD.replace("name: up", f"name: {name}"))


def test_one_model_is_not_composed() -> None:
    with pytest.raises(SpecError, match="composes several models"):
        parse_spec(
            "name: x\n"
            + SINGLE
            + "constraints: [{kl: pretrained, at_most: 1}]\nobjective: {minmax_kl: [a, b]}\n"
        )
    mixture = "{weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}"
    models = f"[{{name: a, mixture: {mixture}}}, {{name: b, mixture: {mixture}}}]"
    text = f"name: x\nmodel: {{composition: {{models: {models}}}}}\nconstraints: [{{kl: pretrained, at_most: 1}}]\n"
    with pytest.raises(SpecError, match="written as models"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distillation: {}\n", "distillation\n.*goes with a composition"),
        ("methods: [{weighted: {sampler: score}}]\n", "sampler = .*\n.*goes with a composition"),
    ],
)
def test_what_only_compositions_have(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(f"name: x\n{SINGLE}{THRESHOLD.replace('[0.0, 1.0]', '[1.0]')}{text}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n" + SINGLE, "the key 'constraints' is required"),
        ("name: x\nconstraints: []\n" + SINGLE, "must not be empty"),
        ("name: x\nconstraints: [{kl: pretrained, at_most: 1}]\n", "the key 'model' is required"),
        ("name: x\nmodel:\nconstraints: [{kl: pretrained, at_most: 1}]\n", "must be a mapping"),
    ],
)
def test_other_specs_need_what_they_needed(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(text)
