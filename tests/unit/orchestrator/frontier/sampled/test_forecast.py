"""The document of a preview: what its readers rely on, what it says of budgets, and of thresholds out of reach."""

import json
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from orchestrator.errors import UsageError
from orchestrator.execution.sampling.previews import preview_spec, previewed
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.frontier.sampled.forecast import arranged, hopeless, mixture_rewards, preview_document
from orchestrator.plan import base_config, make_plan, resolve_thresholds
from orchestrator.report.terminal.tables import preview_table
from orchestrator.spec.load import parse_spec
from trainers.config import BaselineStatistics, RewardStatistics

SPEC = """
name: demo
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.2, 0.5]}, unit: sigma}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: 0.2, unit: sigma}
methods: [constrained, {weighted: {weights: equal, scale: 0.5}}]
seeds: [0, 1]
"""
BUDGET = "  - {kl: pretrained, at_most: {grid: [0.02, 5]}}\nmethods:"
REWARD = SPEC.replace("methods:", "  - {kl: pretrained, at_most: 0.3}\nobjective: {reward: near}\nmethods:").replace(
    "  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: 0.2, unit: sigma}\n", ""
).replace("{reward: near}", "{reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near}")  # fmt: skip


def document_of(text: str, samples: int | None = 4000) -> dict[str, Any]:
    spec = parse_spec(text)
    document = preview_spec(spec, make_plan(spec), samples=samples, address=None, console=Console())
    return json.loads(json.dumps(document, allow_nan=False))


def problem_of(text: str) -> ExactProblem:
    config = base_config(parse_spec(text))
    return ExactProblem(config.model.exact, config.rewards)


def test_what_its_readers_rely_on() -> None:
    document = document_of(SPEC)
    assert document["samples"] == 4000
    assert len(document["points"]) == 2, (
        "one for every combination of thresholds, whatever the seeds and methods"
    )
    problem = problem_of(SPEC)
    baseline = problem.baseline()
    expected = {
        tuple(resolve_thresholds(trial.config, baseline).items())
        for trial in make_plan(parse_spec(SPEC)).trials
        if trial.config.method == "constrained"
    }
    assert {tuple(point["thresholds"].items()) for point in document["points"]} == expected
    for point in document["points"]:
        assert {"thresholds", "kl", "kl_low", "kl_high", "multipliers", "ess", "verdict"} <= set(point)
        least = problem.least_kl(point["thresholds"])
        assert point["verdict"] == "reachable"
        assert point["kl"] == pytest.approx(least.kl, rel=0.1)
        assert point["kl_low"] <= point["kl"] <= point["kl_high"]
        assert point["multipliers"] == pytest.approx(dict(least.multipliers), rel=0.15, abs=0.02)
        assert point["rewards"] == pytest.approx(dict(least.rewards), rel=0.1)
        assert 100 < point["least_ess"] <= point["ess"] <= 4000
        assert not point["over_budget"]
    assert hopeless(document) == []
    Console(width=80).print(preview_table(document))


@pytest.mark.parametrize("samples", [2, 3, 5, 8, 50, 199, 200, 1000])
def test_any_number_of_samples_makes_a_document_without_nan(samples: int) -> None:
    for text in (SPEC, REWARD, SPEC.replace("methods:", BUDGET)):
        document = document_of(text, samples)
        assert document["samples"] == samples
        for point in document["points"]:
            assert point["ess"] <= samples + 1e-6


def test_the_default_is_enough_for_thresholds_of_half_a_nat() -> None:
    document = document_of(SPEC, None)
    problem = problem_of(SPEC)
    for point in document["points"]:
        assert point["kl"] == pytest.approx(problem.least_kl(point["thresholds"]).kl, rel=0.05)


def test_thresholds_beyond_the_samples_are_null_and_hopeless() -> None:
    document = document_of(SPEC.replace("[0.2, 0.5]", "[0.2, 9.0]"))
    near, far = sorted(document["points"], key=lambda point: point["thresholds"]["right"])
    assert near["verdict"] == "reachable"
    assert far["verdict"] == "beyond the samples"
    assert far["kl"] is None
    assert far["kl_high"] is None
    assert far["kl_low"] > 1.0, "weak duality proves a cost all the same"
    (line,) = hopeless(document)
    assert line.startswith("beyond 4000 samples of the pretrained model: ")
    assert f"right {far['thresholds']['right']:.4g}" in line
    Console(width=80).print(preview_table(document))


def test_thresholds_that_cost_more_than_the_budget_are_hopeless() -> None:
    document = document_of(SPEC.replace("methods:", BUDGET))
    problem = problem_of(SPEC)
    assert len(document["points"]) == 4
    for point in document["points"]:
        rewards = {name: point["thresholds"][name] for name in ("right", "near")}
        assert point["over_budget"] == (problem.least_kl(rewards).kl > point["thresholds"]["kl"])
        assert set(point["multipliers"]) == {"right", "near"}, (
            "the budget is no reward, samples do not price it"
        )
    over = [point for point in document["points"] if point["over_budget"]]
    assert 1 <= len(over) <= 2
    lines = hopeless(document)
    assert len(lines) == len(over)
    assert all("above the KL budget" in line and "kl 0.02" in line for line in lines)


def test_a_reward_objective_is_predicted_within_its_budget() -> None:
    text = REWARD.replace("[0.2, 0.5]", "[0.2, 0.7]")
    problem = problem_of(text)
    low, high = document_of(text)["points"]
    assert low["multipliers"]["right"] == 0, "more of the objective is more of it anyway"
    assert high["multipliers"]["right"] > 0.1
    for point in (low, high):
        others = {"right": point["thresholds"]["right"]}
        best = problem.greatest_reward("near", 0.3, others)
        assert best.reachable
        assert point["kl"] == pytest.approx(0.3)
        assert point["reward"] == pytest.approx(best.rewards["near"], rel=0.03)
        assert point["reward_low"] <= point["reward"] <= point["reward_high"]
        assert point["rewards"]["near"] == pytest.approx(point["reward"])
        # Nats per reward unit, as results have them, whatever the objective.
        assert point["multipliers"] == pytest.approx({"right": best.tilt["right"]}, rel=0.15, abs=0.03)
        assert not point["over_budget"]


def test_a_budget_below_the_price_of_the_thresholds_alone() -> None:
    document = document_of(REWARD.replace("at_most: 0.3", "at_most: 0.01").replace("[0.2, 0.5]", "[0.5]"))
    (point,) = document["points"]
    assert point["over_budget"]
    assert point["reward"] is None
    assert point["kl"] > 0.01
    assert len(hopeless(document)) == 1


@pytest.mark.parametrize(("bound", "over"), [(-1.2, False), (-0.2, True)])
def test_a_threshold_on_the_objective_is_met_or_over_the_budget(bound: float, *, over: bool) -> None:
    text = REWARD.replace("objective:", f"  - {{reward: near, name: floor, at_least: {bound}}}\nobjective:")
    for point in document_of(text)["points"]:
        assert point["thresholds"]["floor"] == bound
        assert point["over_budget"] == over
        assert (point["reward"] >= bound) == (not over)


def test_the_highest_threshold_on_a_reward_counts() -> None:
    text = SPEC.replace("methods:", "  - {reward: near, name: floor, at_least: -9}\nmethods:")
    for plain, twice in zip(document_of(SPEC)["points"], document_of(text)["points"], strict=True):
        assert twice["kl"] == pytest.approx(plain["kl"])
        assert twice["thresholds"] == plain["thresholds"] | {"floor": -9}


def test_ranges_are_looked_at_by_their_ends_and_middle() -> None:
    text = SPEC.replace("{grid: [0.2, 0.5]}", "{range: [0.2, 0.6]}").replace(
        "methods:", "search: {kind: certified, tolerance: 0.1}\nmethods:"
    )
    spec = parse_spec(text)
    configs = previewed(spec, make_plan(spec))
    assert sorted({c.constraints[0].bound for c in configs}) == pytest.approx([0.2, 0.4, 0.6])
    assert {c.constraints[1].bound for c in configs} == {0.2}
    assert len(document_of(text)["points"]) == 3


def test_nothing_to_look_at_is_said() -> None:
    weighted = SPEC.replace("[constrained, {weighted", "[{weighted").replace("{grid: [0.2, 0.5]}", "0.2")
    with pytest.raises(UsageError, match="no method of this spec has thresholds"):
        document_of(weighted)


def test_samples_of_a_mixture_are_of_it() -> None:
    config = base_config(parse_spec(SPEC))
    rewards = mixture_rewards(config.model.exact, config.rewards, 200_000, seed=3)
    for name, known in problem_of(SPEC).baseline().rewards.items():
        values = rewards[name]
        assert values.mean() == pytest.approx(known.mean, abs=5 * known.std / math.sqrt(len(values)))
        assert values.std() == pytest.approx(known.std, rel=0.02)
    again = mixture_rewards(config.model.exact, config.rewards, 200_000, seed=3)
    assert all(np.array_equal(again[name], rewards[name]) for name in rewards)
    assert np.corrcoef(rewards["right"], rewards["near"])[0, 1] > 0.3, "of the same draws"


def test_prompts_are_tilted_each_for_itself() -> None:
    """Two prompts, one easy and one hard: choosing the easy one is no policy."""
    text = SPEC.replace("{grid: [0.2, 0.5]}", "0.0").replace("at_least: 0.2,", "at_least: 0.5,")
    config = base_config(parse_spec(text))
    rng = np.random.default_rng(0)
    count = 4000
    prompts = ["easy", "hard"] * count
    shifts = np.tile([1.0, -1.0], count)
    rewards = {
        "right": rng.normal(size=2 * count) + 3.0,
        "near": 0.5 * rng.normal(size=2 * count) + shifts,
    }
    std = float(rewards["near"].std())
    baseline = BaselineStatistics(
        rewards={"right": RewardStatistics(mean=3.0, std=1.0), "near": RewardStatistics(mean=0.0, std=std)},
        samples=count,
    )
    apart = preview_document([config], baseline, arranged(config, rewards, prompts))
    together = preview_document([config], baseline, arranged(config, rewards, None))
    assert (apart["prompts"], together["prompts"]) == (2, 1)
    # Within a prompt the reward has a spread of 0.5, so the shift costs ½ (b / 0.5)²; over both it has more.
    bound = 0.5 * std
    assert apart["points"][0]["kl"] == pytest.approx(0.5 * (bound / 0.5) ** 2, rel=0.1)
    assert together["points"][0]["kl"] < 0.5 * apart["points"][0]["kl"]
    shuffled = rng.permutation(2 * count)
    mixed = {name: values[shuffled] for name, values in rewards.items()}
    again = preview_document(
        [config], baseline, arranged(config, mixed, [prompts[index] for index in shuffled])
    )
    assert again["points"][0]["kl"] == pytest.approx(apart["points"][0]["kl"], rel=1e-3)
