"""A spec under the name of a sweep that is there: it adds to it, or is refused key by key."""

import json

import pytest

from orchestrator.errors import UsageError
from orchestrator.growth import grown, mended, with_resources
from orchestrator.plan import Plan, constrained_trial, make_plan, weighted_trial
from orchestrator.spec.identity import trial_id
from orchestrator.spec.load import parse_spec

SPEC = """
name: small
model: {mixture: {weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.3, 0.6]}, unit: sigma}
  - {reward: {linear: {direction: [0.0, 1.0]}}, name: up, at_least: 0.1, unit: sigma}
methods: [constrained, {weighted: {weights: equal, scale: 0.5}}]
seeds: [0]
training: {steps: 80}
"""
SEARCHED = """
name: small
model: {mixture: {weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {range: [0.3, 0.6]}, unit: sigma}
search: {kind: certified, tolerance: 0.05, max_trials: 4}
methods: [constrained, {weighted: {search: {sampler: tpe, trials: 3}}}]
seeds: [0]
"""


def _grown(text: str, overrides: list[str], there: Plan | None = None) -> tuple[Plan, Plan]:
    spec_there, spec = parse_spec(text), parse_spec(text, overrides=overrides)
    there = make_plan(spec_there) if there is None else there
    there = Plan.from_json(json.loads(json.dumps(there.to_json())))  # as it lies in the storage
    return there, grown(there, spec_there, make_plan(spec), spec, place="results/small")


@pytest.mark.parametrize(
    ("overrides", "more"),
    [
        (["constraints.0.at_least={grid: [0.1, 0.3, 0.45, 0.6]}"], 2),
        (["constraints.1.at_least={grid: [0.0, 0.1]}"], 2),
        (["seeds=[2, 0, 1]"], 6),
        (["methods=[constrained, {weighted: {scale: {grid: [0.5, 1.0]}}}]"], 1),
        (["constraints.0.at_least={grid: [0.6, 0.5, 0.3]}", "seeds=[0, 1]"], 5),
        (["evaluation.batch=7"], 0),
        (
            [
                "resources={gpus_per_worker: 1, cpus_per_worker: 2, concurrent_trials: 1, price_per_gpu_hour: 3}"
            ],
            0,
        ),
        (["resources.retries={errors: 9}", "resources.placement=spread"], 0),
        (["name=other", "storage=elsewhere", "trackers=[{tensorboard: {}}]"], 0),
    ],
    ids=str,
)
def test_a_spec_that_has_all_trials_adds_to_them(overrides: list[str], more: int) -> None:
    there, whole = _grown(SPEC, overrides)
    kept = {trial.trial_id: trial for trial in there.trials}
    assert len(whole.trials) == len(there.trials) + more
    assert {t.trial_id: t for t in whole.trials if t.trial_id in kept} == kept
    assert whole.resources == parse_spec(SPEC, overrides=overrides).resources


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.steps=81"], "training.steps: 80 there, 81 here"),
        (["training.steps=81", "seeds=[0, 1]"], "training.steps: 80 there, 81 here"),
        (["seeds=[1]"], "seeds[0]: 0 there, 1 here"),
        (["seeds=[1]"], "3 trials that are there would not be in it"),
        (["constraints.0.at_least=0.3"], "constraints[0].at_least"),
        (["constraints.1.unit=absolute"], 'constraints[1].unit: "sigma" there, "absolute" here'),
        (["methods=[constrained]"], "methods"),
        (["evaluation.images=5000"], "evaluation.images: 16384 there, 5000 here"),
        (["resources.workers=2"], "resources.workers: 1 there, 2 here"),
        (["model.mixture.means=[[0.0, 1.0]]"], "model.mixture.means[0][1]: 0.0 there, 1.0 here"),
    ],
    ids=str,
)
def test_what_would_mean_something_else_is_refused_key_by_key(overrides: list[str], said: str) -> None:
    with pytest.raises(UsageError, match="results/small holds the results of another spec") as caught:
        _grown(SPEC, overrides)
    lines = str(caught.value).splitlines()
    assert any(said in line for line in lines[1:-1]), lines
    assert "--name" in lines[-1]
    assert caught.value.exit_code == 2
    if overrides[0].startswith("training"):
        assert said in lines[1], "what is not growth stands first"


def test_searches_go_on_with_more_trials_and_wider_ranges() -> None:
    spec = parse_spec(SEARCHED)
    plan = make_plan(spec)
    [study] = [f"tpe 0.01 to 10, seed {seed}" for seed in spec.seeds]
    chosen = weighted_trial(plan.base, {"right": 0.4}, 0).model_copy(update={"origin": study})
    plan = plan.with_trial(chosen).with_trial(constrained_trial(plan.base, {"right": 0.5}, 0))
    assert plan.searched == 4 + 3 - 2
    for overrides, searched in (
        ([], 5),
        (["methods.1.weighted.search.trials=8"], 10),
        (["constraints.0.at_least={range: [0.1, 0.9]}"], 5),
        (["search.max_trials=6", "search.tolerance=0.01"], 7),
        (["seeds=[0, 1]"], 12),
    ):
        there, whole = _grown(SEARCHED, overrides, plan)
        assert (whole.trials, whole.searched) == (there.trials, searched), overrides
    for overrides, said in (
        (
            ["constraints.0.at_least={range: [0.4, 0.6]}"],
            "constraints[0].at_least.range[0]: 0.3 there, 0.4 here",
        ),
        (["methods.1.weighted.search.high=20"], "methods[1].weighted.search.high: 10.0 there, 20.0 here"),
        (["methods=[constrained]"], "methods"),
    ):
        with pytest.raises(UsageError) as caught:
            _grown(SEARCHED, overrides, plan)
        assert said in str(caught.value)


def test_equal_ids_of_another_version_are_not_enough() -> None:
    """A default that a later version changes leaves ids alone: the sweep's own base says what was meant."""
    spec = parse_spec(SPEC)
    here = make_plan(spec)
    document = json.loads(json.dumps(here.to_json()))
    document["base"]["duals"]["rate"] = 0.3  # what an earlier version had by default
    with pytest.raises(UsageError, match=r"duals\.rate: 0\.3 there, 0\.1 here"):
        grown(Plan.from_json(document), spec, here, spec, place="results/small")
    del document["base"]["duals"]["rate"], document["base"]["training"]["compile"]  # unknown to that version
    assert grown(Plan.from_json(document), spec, here, spec, place="results/small") == here


def test_ids_of_another_version_are_said_to_be_so() -> None:
    spec = parse_spec(SPEC)
    here = make_plan(spec)
    other = here.model_copy(
        update={"trials": tuple(t.model_copy(update={"trial_id": t.trial_id[::-1]}) for t in here.trials)}
    )
    with pytest.raises(UsageError, match="planned into other trials, by another version"):
        grown(other, spec, here, spec, place="results/small")


def test_resources_may_be_others_but_for_the_workers() -> None:
    plan = make_plan(parse_spec(SPEC))
    other = parse_spec(SPEC, overrides=["resources.cpus_per_worker=2", "resources.concurrent_trials=1"])
    assert with_resources(plan, other, place="there") == plan.model_copy(
        update={"resources": other.resources}
    )
    for workers in ("2", "{min: 1, max: 2}"):
        with pytest.raises(UsageError, match=r"resources\.workers: 1 there"):
            with_resources(plan, parse_spec(SPEC, overrides=[f"resources.workers={workers}"]), place="there")


def test_trials_that_are_run_with_mended_code_are_others() -> None:
    plan = make_plan(parse_spec(SPEC))
    [again, *rest] = plan.trials
    renewed = mended(plan, [again.trial_id], {"rewards.right": "mine 1.1 abc"})
    assert renewed.trials[1:] == tuple(rest)
    [first, *_] = Plan.from_json(json.loads(json.dumps(renewed.to_json()))).trials
    assert first.config.contents == {"rewards.right": "mine 1.1 abc"}
    assert first.trial_id == trial_id(first.config) != again.trial_id
