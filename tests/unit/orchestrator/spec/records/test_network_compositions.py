"""Compositions of networks in a spec: what is filled in, what rewards judge, and what is refused with which words."""

import jsonschema
import pytest
import yaml
from support.models.compositions import SPEC as MIXTURES
from support.models.networks import ADAPTERS, PIPELINES, PROMPTS

from orchestrator.errors import SpecError
from orchestrator.spec.load import dump_spec, parse_spec
from orchestrator.spec.records.rewards import resolve_rewards
from orchestrator.spec.records.terms import MinmaxObjective
from trainers.config import CompositionConfig, RewardConfig

DRAWN = "prompts: {train: [a cat], evaluate: [a dog]}\n"
LOW = "constraints: [{reward: {saturation: {aim: low}}, name: muted, at_least: -0.5}]\n"


def composed(text: str) -> CompositionConfig:
    composition = parse_spec(text).configured.composition
    assert composition is not None
    return composition


def rewards_of(text: str) -> dict[str, RewardConfig]:
    return resolve_rewards(parse_spec(text)).by_name


# Defaults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rest", "base", "prompted"),
    [
        (ADAPTERS, 2, "embedded", True),
        (PROMPTS, 2, "embedded", False),
        (PIPELINES, 0, None, True),
        (ADAPTERS.replace("{adapter: contrast}", "{prompt: a cat}"), 0, "embedded", True),
    ],
)
def test_defaults(text: str, rest: int, base: str | None, *, prompted: bool) -> None:
    spec = parse_spec(text)
    assert (spec.sampling.steps, spec.sampling.rest) == (8, rest)
    assert (spec.training.steps, spec.training.batch_per_worker, spec.evaluation.images) == (12, 64, 256)
    assert (spec.prompts is not None) == prompted
    assert isinstance(spec.objective, MinmaxObjective)
    assert spec.objective.sampler == "fkc"
    composition = composed(text)
    assert composition.networks
    assert (None if composition.base is None else composition.base.pretrained) == base
    assert composition.sampler == "fkc"
    assert composition.distillation is None


def test_few_steps_leave_one_to_the_adapters() -> None:
    assert parse_spec(ADAPTERS + "sampling: {steps: 2}\n").sampling.rest == 1
    assert parse_spec(ADAPTERS + "sampling: {rest: 0}\n").sampling.rest == 0


def test_a_base_of_ones_own() -> None:
    text = ADAPTERS + DRAWN + "model: {pretrained: owner/name, revision: main}\n"
    base = composed(text).base
    assert base is not None
    assert (base.pretrained, base.revision) == ("owner/name", "main")
    with pytest.raises(SpecError, match="need prompts"):
        parse_spec(text.replace(DRAWN, ""))


def test_no_base_is_the_default_one() -> None:
    assert parse_spec(ADAPTERS + "model: null\n") == parse_spec(ADAPTERS)


def test_no_sampler_is_the_default_one() -> None:
    with_none = ADAPTERS.replace("crisp]}", "crisp], sampler: null}")
    assert composed(with_none) == composed(ADAPTERS)
    assert composed(ADAPTERS.replace("crisp]}", "crisp], sampler: score}")).sampler == "score"


def test_distillation() -> None:
    distillation = composed(ADAPTERS + "distillation: {steps: 5}\n").distillation
    assert distillation is not None
    assert (distillation.steps, distillation.lora.rank) == (5, 8)


@pytest.mark.parametrize(
    "text",
    [
        ADAPTERS,
        PROMPTS,
        PIPELINES,
        ADAPTERS + "distillation: {}\n",
        ADAPTERS.replace("}\nm", "}\n" + LOW + "m"),
    ],
)
def test_a_dumped_spec_loads_to_an_equal_one(text: str, validator: jsonschema.Draft202012Validator) -> None:
    spec = parse_spec(text)
    assert parse_spec(dump_spec(spec)) == spec
    validator.validate(yaml.safe_load(text))
    validator.validate(yaml.safe_load(dump_spec(spec)))


def test_the_schema_knows_what_a_base_is(validator: jsonschema.Draft202012Validator) -> None:
    for model in ("{pretrained: owner/name}", "{pretrained: a/b, revision: main}"):
        validator.validate(yaml.safe_load(f"{PROMPTS}model: {model}\n"))
    for model in ("{pretrained: a/b, lora: {rank: 4}}", "{revision: main}"):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(yaml.safe_load(f"{PROMPTS}model: {model}\n"))


# Rewards ----------------------------------------------------------------------------------------------


def test_rewards_of_adapters_are_measured_once() -> None:
    assert {name: (r.kind, r.text) for name, r in rewards_of(ADAPTERS).items()} == {
        "saturation": ("saturation", None),
        "colourfulness": ("colourfulness", None),
    }
    assert [model.rewards for model in composed(ADAPTERS).models] == [
        ("saturation",),
        ("colourfulness", "saturation"),
        (),
    ]


def test_rewards_of_prompts() -> None:
    found = rewards_of(PROMPTS)
    assert {name: reward.text for name, reward in found.items()} == {
        "clip_cat": "a cat",
        "clip_dog": "a dog",
        "blip_itm_dog": "a dog",
        "clip_sun": "a sun",
        "blip_itm_sun": "a sun",
        "clip_least": None,
        "blip_itm_least": None,
    }
    assert found["clip_cat"].parameters["model"] == "embedded"
    assert found["blip_itm_sun"].parameters["output"] == "logit", "defined by the other use of the name"
    assert (found["clip_least"].kind, found["clip_least"].parameters) == (
        "least",
        {"of": ["clip_cat", "clip_dog", "clip_sun"]},
    )
    assert found["blip_itm_least"].parameters == {"of": ["blip_itm_dog", "blip_itm_sun"]}
    assert [model.rewards for model in composed(PROMPTS).models] == [
        ("clip_cat",),
        ("clip_dog", "blip_itm_dog"),
        ("clip_sun", "blip_itm_sun"),
    ]


def test_there_is_no_least_of_one() -> None:
    text = PROMPTS.replace("{blip_itm: {output: logit}}", "blip_itm").replace(", blip_itm]}\no", "]}\no")
    assert list(rewards_of(text)) == ["clip_cat", "clip_dog", "blip_itm_dog", "clip_sun", "clip_least"]


def test_clip_follows_the_base() -> None:
    other = rewards_of(PROMPTS + "model: {pretrained: owner/name}\n")
    assert other["clip_cat"].parameters["model"] == "openai/clip-vit-large-patch14"
    judged = PIPELINES.replace("{pretrained: embedded}", "{pretrained: embedded, rewards: [clip]}")
    assert rewards_of(judged)["clip"].parameters["model"] == "embedded"


def test_what_is_not_composed_is_not_measured() -> None:
    text = PROMPTS.replace("[cat, dog, sun]", "[cat, dog]")
    assert list(rewards_of(text)) == ["clip_cat", "clip_dog", "blip_itm_dog", "clip_least"]
    assert rewards_of(text)["clip_least"].parameters == {"of": ["clip_cat", "clip_dog"]}


def test_models_may_be_judged_by_what_a_constraint_defines() -> None:
    found = rewards_of(ADAPTERS.replace("contrast}", "contrast, rewards: [muted]}") + LOW)
    assert found["muted"].parameters == {"aim": "low"}
    assert list(found) == ["muted", "saturation", "colourfulness"]


def test_a_constraint_may_name_the_least() -> None:
    text = PROMPTS + "constraints: [{reward: clip_least, at_least: 0.2}, {reward: clip_sun, at_least: 0.2}]\n"
    assert next(iter(rewards_of(text))) == "clip_least"
    parse_spec(PROMPTS + "constraints: [{reward: aesthetic, at_least: 5}]\n")


# Messages ---------------------------------------------------------------------------------------------

CASES = [
    # models and base
    (ADAPTERS, "crisp: {adapter: contrast}", "crisp: {adaptr: contrast}", "did you mean 'adapter'?"),
    (ADAPTERS, "contrast}", "contrast, revision: main}", "unknown key 'revision'"),
    (PROMPTS, "a cat}", "' '}", "a prompt must not be empty"),
    (PROMPTS, "a cat}", f"{'x' * 1001}}}", "at most 1000 characters"),
    (PIPELINES, "objective", "model: {pretrained: embedde}\nobjective", "did you mean 'embedded'?"),
    (PIPELINES, "{pretrained: embedded}", "{pretrained: embedded, revision: x}", "models.one.revision = "),
    (PIPELINES, "objective", "distillation: {}\nobjective", "needs a pipeline to adapt"),
    (ADAPTERS, "objective", "model: {pretrained: embedded, lora: {rank: 2}}\nobjective", "model.lora\n"),
    (
        ADAPTERS,
        "objective",
        "model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}\nobjective",
        "the base of networks is a pipeline",
    ),
    # prompts, sections
    (PROMPTS, "objective", DRAWN + "objective", "each is a prompt of its own"),
    (ADAPTERS, "objective", "prompts: null\nobjective", "need prompts"),
    (
        ADAPTERS.replace("{adapter: contrast}", "{prompt: a cat}"),
        "objective",
        "sampling: {rest: 1}\nobjective",
        "must be 0 unless all models are adapters, which are left off, or all prompts, which are joined",
    ),
    (ADAPTERS, "objective", "sampling: {steps: 4, rest: 4}\nobjective", "must be less than the 4 steps"),
    (ADAPTERS, "objective", "resources: {workers: 2}\nobjective", "every worker would compute the same"),
    # samplers
    (ADAPTERS, "crisp]}", "crisp], sampler: mala}", "networks take fkc or score"),
    (ADAPTERS, "crisp]}", "crisp], sampler: merged}", "write - weighted: {weights: equal, sampler: merged}"),
    (PROMPTS, "sun]}", "sun], sampler: joint}", "write - weighted: {weights: equal, sampler: joint}"),
    (PROMPTS, "equal}", "equal, sampler: merged}", "of adapters only"),
    (ADAPTERS, "equal}", "equal, sampler: joint}", "of prompts only"),
    (ADAPTERS, "equal}", "equal, sampler: hmc}", "networks take fkc or score"),
    (PROMPTS, "equal}", "{cat: 1, dog: 0}, sampler: joint}", "write weights: equal"),
    # rewards
    (ADAPTERS, "[saturation]", "saturation", "must be a list"),
    (ADAPTERS, "[saturation]", "[saturatio]", 'models.vivid.rewards.0 = "saturatio"\n  unknown reward'),
    (ADAPTERS, "[saturation]", "[saturation, saturation]", "is in the list twice"),
    (
        ADAPTERS.replace("adapter: contrast", "adapter: contrast, rewards: [{saturation: {aim: high}}]"),
        "[saturation]",
        "[{saturation: {aim: low}}]",
        "another reward is called 'saturation' already",
    ),
    (ADAPTERS, "[saturation]", "[{linear: {direction: [1.0]}}]", "scores points of a mixture"),
    (
        ADAPTERS,
        "objective",
        "constraints: [{reward: saturation, name: vivid, at_least: 0.5}]\nobjective",
        "a model must not be called 'vivid', the name of what is at constraints.0",
    ),
    (PROMPTS, "  cat:", f"  {'x' * 62}:", "longer than 64 characters"),
    (
        PROMPTS,
        "methods",
        "constraints: [{reward: clip, at_least: 1}]\nmethods",
        "name one of clip_cat, clip_dog",
    ),
    (PROMPTS, "methods", "constraints: [{reward: clip_leas, at_least: 1}]\nmethods", "mean 'clip_least'?"),
    (
        PROMPTS,
        "methods",
        "constraints: [{reward: saturation, name: clip_cat, at_least: 1}]\nmethods",
        "results would call it 'clip_cat', the name of what is at constraints.0",
    ),
    (
        ADAPTERS,
        "methods",
        LOW.replace("at_", "unit: sigma, at_") + "methods",
        "must be absolute for a composition",
    ),
    (
        ADAPTERS,
        "methods",
        "constraints: [{kl: pretrained, at_most: 1}]\nmethods",
        "KLs of a composition are its",
    ),
    (
        ADAPTERS.replace("crisp]}", "crisp], direction: forward}"),
        "equal}",
        "equal, sampler: merged}",
        "goes with direction: reverse",
    ),
]


@pytest.mark.parametrize(("text", "old", "new", "message"), CASES)
def test_messages(text: str, old: str, new: str, message: str) -> None:
    assert old in text
    with pytest.raises(SpecError) as error:
        parse_spec(text.replace(old, new))
    assert message in str(error.value)


def test_a_model_may_have_the_name_of_what_only_judges_it() -> None:
    composition = composed(ADAPTERS.replace("vivid", "saturation"))
    [model] = [model for model in composition.models if model.name == "saturation"]
    assert model.rewards == ("saturation",)


def test_one_problem_for_each_mistake() -> None:
    text = MIXTURES.replace("  c: {mixture", "  d: {prompt: a cat}\n  c: {mixture")
    with pytest.raises(SpecError) as error:
        parse_spec(text)
    assert str(error.value).count("\n") == 1
