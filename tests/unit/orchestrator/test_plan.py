"""A plan: which trials, with which ids, and what they need."""

import itertools
import json
import random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.frontier.problems.chosen import exact_problem
from orchestrator.plan import Plan, make_job, make_plan, resolve_thresholds, written_thresholds
from orchestrator.spec.identity import trial_id
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, LoraConfig, RewardStatistics, TrialConfig

SPEC = """
name: golden
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [1.0, 0.6]}}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: 0.25, unit: sigma}
  - {kl: pretrained, at_most: {grid: [2, 20]}}
methods:
  - constrained
  - weighted: {weights: equal, scale: {grid: [0.1, 1.0]}}
  - weighted: {weights: {right: {grid: [0, 1]}, near: 1}}
seeds: [0, 1]
training: {steps: 100}
"""

# The ids of SPEC. They name the trials of every sweep there is: a change here makes `resume` repeat finished
# trials. If it is meant (a new field that defines a trial, another default), say so in the changelog and
# accept it with the ids that the failing test prints.
GOLDEN = [
    "87c1c2a060ec",
    "114fc025dea9",
    "50e7fcdfe278",
    "9e2af704f059",
    "2c289ef0802a",
    "a1109d9d48d5",
    "21b5ef778b4d",
    "2805011eb79b",
    "6fbec71ad580",
    "1a13ecdb36f5",
    "a5803aea1d44",
    "d26db445f3c5",
    "2e124807a466",
    "6156c2e38a78",
]

BASELINE = BaselineStatistics(
    rewards={"right": RewardStatistics(mean=0.2, std=1.5), "near": RewardStatistics(mean=-2.0, std=0.8)},
    samples=None,
)


def _ids(data: Any) -> list[str]:
    return [trial.trial_id for trial in make_plan(parse_spec(json.dumps(data), "spec.json")).trials]


def _shuffled(value: Any, order: random.Random) -> Any:
    """Return ``value`` with the keys of every mapping in another order."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: _shuffled(value[key], order) for key in keys}
    if isinstance(value, list):
        return [_shuffled(item, order) for item in value]
    return value


def test_golden_ids() -> None:
    assert [trial.trial_id for trial in make_plan(parse_spec(SPEC)).trials] == GOLDEN


def test_trials_are_the_product_of_grids_and_seeds() -> None:
    trials = make_plan(parse_spec(SPEC)).trials
    constrained = [trial.config for trial in trials if trial.config.method == "constrained"]
    found = {(*(c.bound for c in config.constraints), config.seed) for config in constrained}
    assert found == set(itertools.product([1.0, 0.6], [0.25], [2.0, 20.0], [0, 1]))
    assert len(constrained) == len(found)
    weighted = [trial.config for trial in trials if trial.config.method == "weighted"]
    assert {(c.weights["right"], c.weights["near"]) for c in weighted} == {(0.1, 0.1), (1, 1), (0, 1)}
    assert len(weighted) == 3 * 2, "the trial with weights 1 and 1 is in both methods, and is run once"


def test_weighted_trials_carry_the_loosest_thresholds() -> None:
    for trial in make_plan(parse_spec(SPEC)).trials:
        if trial.config.method == "weighted":
            assert {c.name: c.bound for c in trial.config.constraints} == {
                "right": 0.6,
                "near": 0.25,
                "kl": 20,
            }


def test_a_reward_objective() -> None:
    text = SPEC.replace("methods:", "objective: {reward: near}\nmethods:")
    for trial in make_plan(parse_spec(text)).trials:
        config = trial.config
        assert {reward.name for reward in config.rewards} == {"near", "right"}
        assert config.objective.kind == ("reward" if config.method == "constrained" else "kl")
        assert set(config.weights) == (set() if config.method == "constrained" else {"near", "right"})


@given(st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_order(order: random.Random) -> None:
    data = yaml.safe_load(SPEC)
    expected = set(_ids(data))
    changed = _shuffled(data, order)
    for key in ("constraints", "methods", "seeds"):
        order.shuffle(changed[key])
    assert set(_ids(changed)) == expected


def test_ids_do_not_depend_on_what_defines_no_trial() -> None:
    data = yaml.safe_load(SPEC)
    expected = _ids(data)
    changes = {
        "name": "other",
        "storage": "elsewhere",
        "resources": {"concurrent_trials": 3, "gpus_per_worker": 1, "price_per_gpu_hour": 3},
        "evaluation": {"batch": 3},
    }
    assert _ids(data | changes) == expected
    assert _ids(yaml.safe_load(dump_spec(parse_spec(SPEC)))) == expected, "defaults written out"


def test_ids_do_not_tell_1_from_1_0() -> None:
    with_integers = SPEC.replace("1.0", "1").replace("0.0", "0")
    assert with_integers != SPEC
    written = make_plan(parse_spec(with_integers))
    assert written.trials == make_plan(parse_spec(SPEC)).trials


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [0, 2]},
        {"training": {"steps": 101}},
        {"duals": {"rate": 0.2}},
        {"resources": {"workers": 2}},
        {"sampling": {"eta": 0.5}},
        {"evaluation": {"seed": 7}},
    ],
    ids=str,
)
def test_ids_depend_on_what_defines_a_trial(change: dict[str, Any]) -> None:
    data = yaml.safe_load(SPEC)
    assert set(_ids(data | change)) != set(_ids(data))


def test_an_id_is_found_again_from_the_stored_config() -> None:
    for trial in make_plan(parse_spec(SPEC)).trials:
        stored = TrialConfig.model_validate_json(trial.config.model_dump_json())
        assert trial_id(stored) == trial.trial_id


def test_round_trip() -> None:
    plan = make_plan(parse_spec(SPEC.replace("training:", "sampling: {guidance: 2}\ntraining:")))
    for document in (plan.to_json(), plan.to_json(baseline=BASELINE, seconds_per_trial=3)):
        assert Plan.from_json(json.loads(json.dumps(document))) == plan
    assert plan.warnings


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 3},
        {"base": {}},
        {"trials": [{}]},
        {"trials": 3},
        {"resources": None},
        {"name": 3},
        {"warnings": "a"},
    ],
    ids=str,
)
def test_a_damaged_plan_is_refused(damage: dict[str, Any]) -> None:
    document = make_plan(parse_spec(SPEC)).to_json() | damage
    with pytest.raises(SpecError, match="the plan"):
        Plan.from_json(document)


def test_the_document() -> None:
    document = make_plan(parse_spec(SPEC)).to_json()
    first, last = document["trials"][0], document["trials"][-1]
    assert first["trial_id"] == GOLDEN[0]
    assert (first["method"], first["seed"], first["weights"]) == ("constrained", 0, {})
    assert first["thresholds"] == {"right": 1.0, "near": 0.25, "kl": 2.0}
    assert first["units"] == {"right": "absolute", "near": "sigma", "kl": "nats"}
    assert set(last["weights"]) == {"right", "near"}
    assert document["gpu_hours"] == 0
    assert "cost" not in document


def test_the_document_with_a_baseline() -> None:
    first = make_plan(parse_spec(SPEC)).to_json(baseline=BASELINE)["trials"][0]
    assert first["thresholds"] == {"right": 1.0, "near": -2.0 + 0.25 * 0.8, "kl": 2.0}
    assert first["units"] == {"right": "absolute", "near": "absolute", "kl": "nats"}
    assert first["written"]["near"] == {"value": 0.25, "unit": "sigma"}


def test_gpu_hours_and_cost() -> None:
    text = SPEC + "resources: {workers: 2, gpus_per_worker: 0.5, price_per_gpu_hour: 3}\n"
    plan = make_plan(parse_spec(text))
    assert plan.to_json()["gpu_hours"] is None
    assert plan.to_json()["cost"] is None
    document = plan.to_json(seconds_per_trial=1800)
    assert document["gpu_hours"] == len(plan.trials) * 0.5
    assert document["cost"] == len(plan.trials) * 1.5
    assert document["resources"]["per_trial"] == {"cpus": 2, "gpus": 1}


@pytest.mark.parametrize(
    ("unit", "written", "expected"),
    [
        ("absolute", "-1.5", -1.5),
        ("sigma", "0.5", -2.0 + 0.5 * 0.8),
        ("relative", '"+50%"', -1.0),
        ("relative", '"-10%"', -2.2),
        ("relative", "0.25", -1.5),
    ],
)
def test_thresholds_in_absolute_units(unit: str, written: str, expected: float) -> None:
    text = SPEC.replace("at_least: 0.25, unit: sigma", f"at_least: {written}, unit: {unit}")
    trial = make_plan(parse_spec(text)).trials[0]
    thresholds = resolve_thresholds(trial.config, BASELINE)
    assert thresholds == pytest.approx({"right": 1.0, "near": expected, "kl": 2.0})
    job = make_job(trial, BASELINE)
    assert job.trial_id == trial.trial_id
    assert job.thresholds == thresholds


@pytest.mark.parametrize(
    ("mean", "samples", "told"),
    [
        (0.0, None, True),
        (-5.55e-17, None, True),  # what sums of means leave
        (1e-4, None, False),
        (0.02, 1024, True),  # within its own noise, 0.8 / 32
        (-0.02, 1024, True),
        (0.2, 1024, False),
        (-0.2, 1024, False),
        (0.2, 16, True),
    ],
)
def test_nothing_is_relative_to_a_mean_that_may_be_0(mean: float, samples: int | None, told: bool) -> None:
    text = SPEC.replace("at_least: 0.25, unit: sigma", 'at_least: "+50%", unit: relative')
    trial = make_plan(parse_spec(text)).trials[0]
    rewards = BASELINE.rewards | {"near": RewardStatistics(mean=mean, std=0.8)}
    baseline = BaselineStatistics(rewards=rewards, samples=samples)
    if not told:
        assert resolve_thresholds(trial.config, baseline)["near"] == pytest.approx(mean + 0.5 * abs(mean))
        return
    with pytest.raises(
        SpecError, match=r"'near': unit relative .* cannot be told from 0 .* sigma or absolute"
    ):
        make_job(trial, baseline)
    with pytest.raises(SpecError, match="cannot be told from 0"):
        written_thresholds(trial.config, baseline, {"near": 1.0})


@pytest.mark.parametrize(
    ("unit", "written", "warned"),
    [
        ("absolute", "0", True),
        ("absolute", "-0.1", False),
        ("relative", '"+100%"', True),
        ("relative", '"+99%"', False),
        ("sigma", "100", False),
    ],
)
def test_a_quadratic_reward_cannot_exceed_zero(unit: str, written: str, warned: bool) -> None:
    text = SPEC.replace("at_least: 0.25, unit: sigma", f"at_least: {written}, unit: {unit}")
    warnings = make_plan(parse_spec(text)).warnings
    assert bool(warnings) == warned
    assert all("near" in warning and "cannot be reached" in warning for warning in warnings)


def test_guidance_of_a_mixture_is_warned_about() -> None:
    plan = make_plan(parse_spec(SPEC + "sampling: {guidance: 5}\n"))
    assert "has no effect" in plan.warnings[0]


def test_the_precision_of_a_mixture_is_warned_about() -> None:
    plan = make_plan(parse_spec(SPEC.replace("{steps: 100}", "{steps: 100, precision: bf16}")))
    assert "bf16 has no effect" in plan.warnings[0]


PIPELINE = """
name: pictures
model: {pretrained: embedded}
constraints:
  - {reward: clip, at_least: 0.15, unit: sigma}
  - {reward: {saturation: {aim: low}}, at_least: {grid: [0.25, 0.5]}, unit: sigma}
methods: [constrained, {weighted: {scale: {grid: [0.1, 1]}}}]
"""


def test_a_plan_of_a_pipeline() -> None:
    plan = make_plan(parse_spec(PIPELINE))
    assert len(plan.trials) == 4
    assert plan.warnings == ()
    for trial in plan.trials:
        config = trial.config
        assert config.prompts is not None
        assert len(config.prompts.train) == 64
        assert config.model.lora == LoraConfig()
        assert {reward.name: reward.parameters.get("model") for reward in config.rewards} == {
            "clip": "embedded",
            "saturation": None,
        }
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert exact_problem(plan.trials[0].config) is None
    assert make_plan(parse_spec(dump_spec(parse_spec(PIPELINE)))) == plan


@pytest.mark.parametrize(
    "override",
    [
        "model.lora={}",
        "model.lora={rank: 4, alpha: 4, targets: [to_q, to_k, to_v, to_out.0]}",
        "prompts={train: shapes, evaluate: shapes-held-out}",
        "sampling={steps: 8}",
        "sampling={guidance: 0}",
        "sampling={guidance: 1}",
        "training={primal: reward_backprop, primal_parameters: {}}",
        "constraints.0.reward={clip: {}}",
        "constraints.0.reward={clip: {model: embedded}}",
    ],
)
def test_equal_pipelines_have_equal_ids(override: str) -> None:
    written, expected = (make_plan(parse_spec(PIPELINE, overrides=o)) for o in ([override], []))
    assert [t.trial_id for t in written.trials] == [t.trial_id for t in expected.trials]


@pytest.mark.parametrize(
    "override",
    [
        "model.lora={rank: 8}",
        "model.lora={alpha: 8}",
        "prompts.train=[a cat]",
        "sampling={rest: 0}",
        "training={primal: truncated_backprop}",
        "constraints.0.reward={clip: {model: a/b}}",
    ],
)
def test_ids_depend_on_what_defines_a_pipeline(override: str) -> None:
    written, expected = (make_plan(parse_spec(PIPELINE, overrides=o)) for o in ([override], []))
    assert not {t.trial_id for t in written.trials} & {t.trial_id for t in expected.trials}


def test_prompts_that_are_not_held_out_are_warned_about() -> None:
    overrides = ["prompts.train=[a cat, a dog]", "prompts.evaluate=[a dog, a cow]", "sampling.guidance=5"]
    [warning] = make_plan(parse_spec(PIPELINE, overrides=overrides)).warnings
    assert "1 of 2 prompts are trained on, such as 'a dog'" in warning


def test_a_share_of_the_prompts_is_said() -> None:
    [warning] = make_plan(parse_spec(PIPELINE, overrides=["evaluation.images=40"])).warnings
    assert "40 images ask for 40 of 64 held-out prompts, the same for every trial" in warning


def test_prompts_that_look_like_comments_are_warned_about() -> None:
    [warning] = make_plan(
        parse_spec(PIPELINE, overrides=['prompts.train=["#art a cat", "# b", "a cow"]'])
    ).warnings
    assert "prompts.train: 2 of 3 prompts begin with #, such as '#art a cat'" in warning


def test_metadata_of_prompts_belongs_to_what_a_trial_is() -> None:
    """Its share of the prompts is spread over their metadata, and the results have it."""
    written = ["prompts={train: [a, b], evaluate: [c, d]}"]
    more = ["prompts={train: [a, b], evaluate: [c, d], evaluate_metadata: {tag: [x, y]}}"]
    plain, told = (make_plan(parse_spec(PIPELINE, overrides=o)) for o in (written, more))
    assert not {t.trial_id for t in plain.trials} & {t.trial_id for t in told.trials}
    assert "metadata" not in json.dumps(plain.to_json())
    assert Plan.from_json(json.loads(json.dumps(told.to_json()))) == told


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_no_precision_is_recommended(precision: str) -> None:
    """Rounding adds nothing to what is measured."""
    assert not make_plan(parse_spec(PIPELINE, overrides=[f"training.precision={precision}"])).warnings


def test_a_judge_is_in_no_weight_and_in_no_id() -> None:
    spec = "name: s\nmodel: {pretrained: embedded}\nconstraints: [{reward: saturation, at_least: 0.3}]\n"
    spec += "methods: [constrained, weighted: {weights: equal}]\n"
    plain, judged = (
        make_plan(parse_spec(spec + more))
        for more in ("", "rewards: [{reward: clip, name: judge, role: judge}, {reward: brightness}]\n")
    )
    assert [trial.trial_id for trial in judged.trials] == [trial.trial_id for trial in plain.trials]
    assert judged.trials[1].config.weights == {"saturation": 1.0}
    watched = ["global_contrast", "edge_density", "colour_entropy"]
    assert [reward.name for reward in plain.base.measured] == ["brightness", *watched, "clip_score"]
    assert plain.base.measured[-1].parameters["model"] == "embedded"
    assert [reward.name for reward in judged.base.measured] == ["judge", "brightness", *watched], (
        "it has a CLIP"
    )
    elsewhere = parse_spec(spec.replace("pretrained: embedded", "pretrained: embedded-flow"))
    assert make_plan(elsewhere).base.measured[-1].name == "clip_score"
    for twice in ("saturation", "brightness}, {reward: brightness"):
        with pytest.raises(SpecError, match="is in the"):
            parse_spec(f"{spec}rewards: [{{reward: {twice}}}]\n")


def test_selective_checkpointing_is_of_float32_without_a_compiler() -> None:
    spec = "name: s\nmodel: {pretrained: embedded}\nconstraints: [{reward: saturation, at_least: 0.3}]\n"
    training = "training: {{gradient_checkpointing: selective{}}}\n"
    config = make_plan(parse_spec(spec + training.format(""))).trials[0].config
    assert config.training.gradient_checkpointing == "selective"
    for more, rule in (
        (", precision: bf16", "training.precision is bf16"),
        (", compile: true", "training.compile is True"),
    ):
        with pytest.raises(SpecError, match=f"gradient_checkpointing = .*\n.*{rule}"):
            parse_spec(spec + training.format(more))


def test_the_sampler_that_will_be_used_is_of_a_pipeline() -> None:
    spec = "name: s\nmodel: {pretrained: embedded}\nconstraints: [{reward: saturation, at_least: 0.3}]\n"
    plain = make_plan(parse_spec(spec)).trials[0]
    deployed = make_plan(parse_spec(f"{spec}evaluation: {{as_deployed: {{steps: 20}}}}\n")).trials[0]
    assert plain.trial_id != deployed.trial_id
    with pytest.raises(SpecError, match="eta goes with sampler ode"):
        parse_spec(f"{spec}evaluation: {{as_deployed: {{sampler: dpmsolver++, eta: 0.5}}}}\n")
    mixture = "name: s\nmodel: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}\n"
    mixture += "constraints: [{reward: {linear: {direction: [1.0]}}, at_least: 0.3}]\n"
    with pytest.raises(
        SpecError, match=r"evaluation.as_deployed\n  is of an adapter that a pipeline is trained to"
    ):
        parse_spec(f"{mixture}evaluation: {{as_deployed: {{steps: 20}}}}\n")
    for section, key in (
        ("evaluation: {as_deployed", "evaluation.as_deployed.steps"),
        ("sampling", "sampling.steps"),
    ):
        ends = "}" * section.count("{")
        with pytest.raises(SpecError, match=rf"{key} = 1001\n  must be at most 1000, the noise levels"):
            parse_spec(f"{spec}{section}: {{steps: 1001}}{ends}\n")
    flow = spec.replace("pretrained: embedded", "pretrained: embedded-flow")
    assert flow != spec
    parse_spec(f"{flow}evaluation: {{as_deployed: {{steps: 20}}}}\n")
    for wrong, rule in (
        ("sampler: dpmsolver++", "sampler = .*\n  must be 'ode' for SD 3, which is trained by flow matching"),
        ("eta: 0.5", "eta = 0.5\n  must be 0 for SD 3, which is trained by flow matching"),
        ("true_guidance: 2.0", "true_guidance = 2.0\n  .* SD 3 is guided by evaluation.as_deployed.guidance"),
    ):
        with pytest.raises(SpecError, match=f"evaluation.as_deployed.{rule}"):
            parse_spec(f"{flow}evaluation: {{as_deployed: {{{wrong}}}}}\n")
