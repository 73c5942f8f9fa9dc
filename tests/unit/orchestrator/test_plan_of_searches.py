"""Plans of searches: what is known beforehand, what is only counted, and the trials that searches make."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models.compositions import SPEC as COMPOSITION
from support.models.compositions import job_of

from orchestrator.errors import SpecError
from orchestrator.plan import (
    Plan,
    base_config,
    constrained_trial,
    describe,
    make_plan,
    resolve_thresholds,
    weighted_trial,
)
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, RewardStatistics

SPEC = """
name: searched
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {range: [0.2, 1.0]}, unit: sigma}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: {range: [+10%, +60%]}, unit: relative}
methods:
  - constrained
  - weighted: {weights: equal, scale: {grid: [0.1, 1.0]}}
  - weighted: {search: {sampler: nsga2, trials: 12}}
  - weighted: {search: {sampler: random, trials: 5}}
search: {kind: certified, tolerance: 0.05, max_trials: 10}
seeds: [0, 1]
training: {steps: 100}
"""

GRID = (
    SPEC.replace("{range: [0.2, 1.0]}", "{grid: [0.2, 1.0]}")
    .replace("{range: [+10%, +60%]}", "+10%")
    .replace("  - weighted: {search: {sampler: nsga2, trials: 12}}\n", "")
    .replace("{search: {sampler: random, trials: 5}}", "{weights: {right: {grid: [0, 1]}, near: 1}}")
    .replace("search: {kind: certified, tolerance: 0.05, max_trials: 10}\n", "")
)
BUDGET = "  - {kl: pretrained, at_most: {grid: [2, 20]}}\nobjective: {reward: near}\nmethods:"
BASELINE = BaselineStatistics(
    rewards={"right": RewardStatistics(mean=0.2, std=1.5), "near": RewardStatistics(mean=-2.0, std=0.8)},
    samples=None,
)


def test_searches_are_counted_and_grids_are_planned() -> None:
    plan = make_plan(parse_spec(SPEC))
    assert [trial.config.method for trial in plan.trials] == ["weighted"] * 4
    assert plan.searched == 2 * (10 + 12 + 5)
    assert plan.most == 4 + 54
    assert make_plan(parse_spec(dump_spec(parse_spec(SPEC)))) == plan


def test_searches_are_told_in_words() -> None:
    assert make_plan(parse_spec(SPEC)).searches == (
        "constrained: up to 10 trials per seed, certified search chooses right from 0.2σ to 1σ, near from +10% to +60%",
        "weighted: 12 trials per seed, nsga2 chooses weights of 0.01 to 10 nats per σ",
        "weighted: 5 trials per seed, random chooses weights of 0.01 to 10 nats per σ",
    )
    fixed = make_plan(parse_spec(SPEC.replace("{range: [+10%, +60%]}", "0.3")))
    assert fixed.searches[0].endswith("right from 0.2σ to 1σ, near at 0.3×")


def test_a_plan_without_a_search_adds_nothing() -> None:
    plan = make_plan(parse_spec(GRID))
    assert (plan.searched, plan.searches) == (0, ())
    assert plan.most == len(plan.trials)


def test_weighted_trials_carry_the_low_ends_of_the_ranges() -> None:
    for trial in make_plan(parse_spec(SPEC)).trials:
        assert {c.name: c.bound for c in trial.config.constraints} == {"right": 0.2, "near": 0.1}


def test_round_trip_and_plans_from_before_there_were_searches() -> None:
    plan = make_plan(parse_spec(SPEC))
    document = json.loads(json.dumps(plan.to_json()))
    assert document["searched"] == 54
    assert Plan.from_json(document) == plan
    del document["searched"], document["searches"]
    assert Plan.from_json(document) == plan.model_copy(update={"searched": 0, "searches": ()})
    for damage in (-1, "many", None, 1.5):
        with pytest.raises(SpecError, match="the plan is damaged"):
            Plan.from_json(document | {"searched": damage})


def test_gpu_hours_and_cost_are_those_of_the_most_trials() -> None:
    text = SPEC + "resources: {workers: 2, gpus_per_worker: 0.5, price_per_gpu_hour: 3}\n"
    document = make_plan(parse_spec(text)).to_json(seconds_per_trial=1800)
    assert document["gpu_hours"] == 58 * 0.5
    assert document["cost"] == 58 * 1.5


def test_a_range_out_of_reach_is_warned_about() -> None:
    assert make_plan(parse_spec(SPEC)).warnings == ()
    [warning] = make_plan(parse_spec(SPEC.replace("+60%", "+100%"))).warnings
    assert "near at_least +100% (relative) cannot be reached" in warning


@pytest.mark.parametrize("text", [GRID, GRID.replace("methods:", BUDGET), COMPOSITION])
def test_a_search_makes_the_trials_that_a_grid_makes(text: str) -> None:
    spec = parse_spec(text)
    base = base_config(spec)
    for trial in make_plan(spec).trials:
        config = trial.config
        thresholds = {constraint.name: constraint.bound for constraint in config.constraints}
        if config.method == "weighted":
            assert weighted_trial(base, config.weights, config.seed) == trial
        else:
            assert constrained_trial(base, thresholds, config.seed) == trial


@given(
    st.floats(0.2, 1.0),
    st.floats(0.1, 0.6),
    st.integers(0, 2**31),
)
def test_a_constrained_trial_has_its_thresholds_in_the_unit_of_the_spec(
    right: float, near: float, seed: int
) -> None:
    base = base_config(parse_spec(SPEC))
    trial = constrained_trial(base, {"near": near, "right": right}, seed)
    assert (trial.config.method, trial.config.seed, dict(trial.config.weights)) == ("constrained", seed, {})
    assert resolve_thresholds(trial.config, BASELINE) == pytest.approx(
        {"right": 0.2 + right * 1.5, "near": -2.0 + near * 2.0}
    )
    assert trial == constrained_trial(base, {"right": right, "near": near}, seed)
    other = constrained_trial(base, {"right": right, "near": near}, seed + 1)
    assert other.trial_id != trial.trial_id


def test_what_is_left_out() -> None:
    base = base_config(parse_spec(SPEC))
    loosest = {"right": 0.2, "near": 0.1}
    trial = constrained_trial(base, {"right": 0.5}, 3)
    assert {c.name: c.bound for c in trial.config.constraints} == loosest | {"right": 0.5}
    weighted = weighted_trial(base, {"near": 2}, 3)
    assert weighted.config.weights == {"right": 0.0, "near": 2.0}
    assert {c.name: c.bound for c in weighted.config.constraints} == loosest
    assert describe(weighted.config) == "weighted right·0 near·2 seed 3"


def test_names_that_are_not_there() -> None:
    base = base_config(parse_spec(SPEC))
    with pytest.raises(ValueError, match="no constraint 'rihgt' in this sweep, only right, near"):
        constrained_trial(base, {"rihgt": 0.5}, 0)
    with pytest.raises(ValueError, match="no reward or model 'kl' in this sweep, only right, near"):
        weighted_trial(base, {"kl": 0.5}, 0)


def test_a_searched_trial_is_ready_to_run() -> None:
    spec = parse_spec(COMPOSITION)
    trial = weighted_trial(base_config(spec), {"a": 0.5, "c": 0.5}, 1)
    assert job_of(trial).trial_id == trial.trial_id
    assert trial.config.weights == {"a": 0.5, "b": 0.0, "c": 0.5}
    assert trial.config.objective.kind == "minmax_kl"
