"""What is picked is what a search by brute force finds, and what cannot be is refused in words."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from orchestrator.errors import UsageError
from orchestrator.frontier.bounds import FrontierPoint
from orchestrator.frontier.feasibility import joint_deviations
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.frontier.trials import Trials
from orchestrator.plan import base_config
from orchestrator.report.picked import PRETRAINED, Measured, picked
from orchestrator.report.terminal.tables import picked_table
from orchestrator.results.schema import Names, trials_schema
from orchestrator.spec.load import parse_spec
from trainers.config import ObjectiveConfig, TrialConfig

SPEC = """
name: demo
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.3, 1.2]}}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: {grid: [-1.6, -0.6]}}
methods: [constrained, {weighted: {weights: equal, scale: 0.5}}]
"""
CONFIG = base_config(parse_spec(SPEC))
PROBLEM = ExactProblem(CONFIG.model.exact, CONFIG.rewards)
BASELINE = PROBLEM.baseline()
NAMES = PROBLEM.names
PRE = {name: (known.mean, 0.0) for name, known in BASELINE.rewards.items()}
STDS = np.array([BASELINE.rewards[name].std for name in NAMES])


def row_of(name: str, thresholds: dict[str, float], *, error: float = 0.0, **changes: Any) -> dict[str, Any]:
    """The row of a constrained trial at its optimum."""
    optimum = PROBLEM.least_kl(thresholds)
    assert optimum.reachable
    row: dict[str, Any] = {
        "trial_id": name,
        "method": "constrained",
        "status": "succeeded",
        "feasible": True,
        "kl": optimum.kl,
        "kl_low": optimum.kl - 1.96 * error,
        "kl_high": optimum.kl + 1.96 * error,
    }
    for reward in NAMES:
        mean = optimum.rewards[reward]
        ends = {f"reward_{reward}_low": mean - 1.96 * error, f"reward_{reward}_high": mean + 1.96 * error}
        row |= {f"reward_{reward}": mean} | ends
        row |= {f"threshold_{reward}": thresholds.get(reward), f"weight_{reward}": None}
        row |= {f"multiplier_{reward}": optimum.multipliers.get(reward)}
    return row | changes


PLACES = [(0.5, -1.4), (0.9, -1.2), (0.4, -0.8), (1.1, -0.9), (0.8, -0.7)]
ROWS = [row_of(f"t{n}", {"right": a, "near": b}) for n, (a, b) in enumerate(PLACES)]


def trials(rows: list[dict[str, Any]], config: TrialConfig = CONFIG) -> Trials:
    schema = trials_schema(Names.of(config))
    return Trials.of(pa.Table.from_pylist([{"seed": 0} | row for row in rows], schema=schema), config)


def pick(at_least: dict[str, float], budget: float | None = None, **options: Any) -> dict[str, Any]:
    rows = options.pop("rows", ROWS)
    found = picked(trials(rows), BASELINE, PRE, at_least=at_least, kl_at_most=budget, **options).to_json()
    assert sum(member["probability"] for member in found["mixture"]) == pytest.approx(1.0)
    Console(width=80).print(picked_table(found))
    return json.loads(json.dumps(found, allow_nan=False))


def members(rows: list[dict[str, Any]] = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """KL and rewards of everything there is, the pretrained model first."""
    costs = np.array([0.0, *(row["kl"] for row in rows)])
    rewards = np.array([[PRE[n][0] for n in NAMES], *([row[f"reward_{n}"] for n in NAMES] for row in rows)])
    return costs, rewards


def mixtures(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """KL and rewards of all mixtures of up to three members, in steps of 1 / ``count``."""
    costs, rewards = members()
    weights = (
        np.array([(a, b, count - a - b) for a in range(count + 1) for b in range(count + 1 - a)]) / count
    )
    trios = [list(trio) for trio in itertools.combinations(range(len(costs)), 3)]
    return (
        np.concatenate([weights @ costs[trio] for trio in trios]),
        np.concatenate([weights @ rewards[trio] for trio in trios]),
    )


MIXED = mixtures()


@pytest.mark.parametrize(
    "thresholds", [(0.6, -1.3), (0.9, -1.0), (0.3, -0.75), (0.2, -1.6), (1.0, -9.0), (-9.0, -0.75)]
)
def test_the_cheapest_mixture_is_what_brute_force_finds(thresholds: tuple[float, float]) -> None:
    asked = dict(zip(NAMES, thresholds, strict=True))
    found = pick(asked)
    kls, reached = MIXED
    meets = (reached >= np.array(thresholds)).all(axis=1)
    best = kls[meets].min()
    assert best - 0.05 <= found["kl"] <= best + 1e-6, "the grid of mixtures is coarse, never better"
    assert all(found["rewards"][name] >= bound - 1e-5 for name, bound in asked.items())
    least = PROBLEM.least_kl(asked).kl
    assert found["lower_bound"] <= least + 1e-6
    assert found["excess"] == pytest.approx(found["kl"] - found["lower_bound"])
    costs, _ = members()
    ids = [PRETRAINED, *(row["trial_id"] for row in ROWS)]
    shares = {m["trial_id"]: m["probability"] for m in found["mixture"]}
    assert found["kl"] == pytest.approx(
        sum(shares[name] * cost for name, cost in zip(ids, costs, strict=True) if name in shares)
    )
    assert found["thresholds"] == asked


def test_the_cheapest_single_trial() -> None:
    asked = {"right": 0.6, "near": -1.3}
    costs, rewards = members()
    meets = (rewards >= np.array([0.6, -1.3])).all(axis=1)
    best = int(np.argmin(np.where(meets, costs, np.inf)))
    found = pick(asked, mix=False)
    assert found["mixture"] == [{"trial_id": f"t{best - 1}", "probability": 1.0}]
    assert found["kl"] == pytest.approx(costs[best])
    assert pick(asked)["kl"] < found["kl"]


@pytest.mark.parametrize("budget", [0.2, 0.35, 0.5])
def test_a_budget_buys_the_most_common_improvement(budget: float) -> None:
    found = pick({}, budget)
    assert found["kl"] <= budget + 1e-9
    start = np.array([PRE[name][0] for name in NAMES])
    kls, reached = MIXED
    gains = ((reached - start) / STDS).min(axis=1)[kls <= budget]
    got = min((found["rewards"][name] - PRE[name][0]) / std for name, std in zip(NAMES, STDS, strict=True))
    assert gains.max() - 1e-6 <= got <= gains.max() + 0.05
    # With a threshold as well, it is met, and the rest is still improved.
    floor = found["rewards"]["near"] + min(0.02, 0.1 * budget)
    other = pick({"near": floor}, budget)
    assert other["rewards"]["near"] >= floor - 1e-5
    assert other["rewards"]["right"] < found["rewards"]["right"]
    allowed = (kls <= budget) & (reached[:, 1] >= floor)
    assert allowed.any()
    best = ((reached - start) / STDS).min(axis=1)[allowed].max()
    assert (
        min((other["rewards"][name] - PRE[name][0]) / std for name, std in zip(NAMES, STDS, strict=True))
        >= best - 1e-5
    )


def test_the_pretrained_model_is_a_member() -> None:
    free = pick({"right": PRE["right"][0] - 0.1})
    assert free["mixture"] == [{"trial_id": PRETRAINED, "probability": 1.0}]
    assert free["kl"] == free["lower_bound"] == 0.0
    half = pick({"right": 0.5 * (PRE["right"][0] + ROWS[3]["reward_right"])}, rows=[ROWS[3]])
    shares = {member["trial_id"]: member["probability"] for member in half["mixture"]}
    assert shares == pytest.approx({PRETRAINED: 0.5, "t3": 0.5}, abs=1e-5)
    assert pick({}, 0.0)["mixture"] == [{"trial_id": PRETRAINED, "probability": 1.0}]


def test_the_bound_of_a_threshold_that_a_trial_has_is_its_own_cost() -> None:
    found = pick({"right": 0.9, "near": -1.2})
    assert found["lower_bound"] == pytest.approx(ROWS[1]["kl"], abs=1e-6)
    assert found["excess"] == pytest.approx(0.0, abs=1e-5)


def test_a_reward_that_no_trial_constrains_leaves_the_bound() -> None:
    """Trials under one threshold only: their price of the other reward is 0, not unknown."""
    config = CONFIG.model_copy(update={"constraints": CONFIG.constraints[:1]})
    rows = [row_of("a", {"right": 0.6}), row_of("b", {"right": 1.0})]
    found = picked(trials(rows, config), BASELINE, PRE, at_least={"right": 1.0}).to_json()
    assert found["lower_bound"] == pytest.approx(rows[1]["kl"], abs=1e-6)
    assert found["mixture"] == [{"trial_id": "b", "probability": 1.0}]


def test_intervals_are_those_of_the_members() -> None:
    rows = [row_of("a", {"right": 1.0, "near": -1.2}, error=0.02)]
    found = pick({"right": 0.96}, rows=rows, mix=False)
    assert found["kl_high"] - found["kl"] == pytest.approx(1.96 * 0.02, rel=1e-3)
    assert found["rewards_bound"]["right"] == pytest.approx(1.0 - 1.645 * 0.02, rel=1e-3)
    assert found["kl_bound"] == pytest.approx(rows[0]["kl"] + 1.645 * 0.02, rel=1e-3)
    half = pick({"right": 0.5 * (1.0 + PRE["right"][0])}, rows=rows)
    share = next(m["probability"] for m in half["mixture"] if m["trial_id"] == "a")
    assert half["rewards_high"]["right"] - half["rewards"]["right"] == pytest.approx(
        share * 1.96 * 0.02, rel=1e-3
    )


def test_trials_without_figures_are_left_out() -> None:
    bad = row_of("bad", {"right": 1.1, "near": -0.6}) | {"status": "failed", "kl": None}
    stopped = row_of("stopped", {"right": 0.7, "near": -1.3}, status="infeasible", feasible=False)
    found = pick({"right": 0.7, "near": -1.3}, rows=[*ROWS, bad, stopped])
    assert "stopped" in [m["trial_id"] for m in found["mixture"]], "it can be drawn from like any other"
    assert "bad" not in [m["trial_id"] for m in found["mixture"]]


@pytest.mark.parametrize("asked", [1, 2])
def test_what_is_asked_holds_at_the_bound_of_training(asked: int) -> None:
    """Above the bound the trial is not enough, though its estimate is; below it is."""
    rows = [row_of("a", {"right": 1.0, "near": -1.2}, error=0.02)]
    names = NAMES[:asked]
    width = 1.644854 * 0.02 if asked == 1 else 1.959964 * 0.02
    bounds = {name: rows[0][f"reward_{name}"] - width for name in names}
    found = pick({name: bound - 1e-4 for name, bound in bounds.items()}, rows=rows, mix=False)
    assert [member["trial_id"] for member in found["mixture"]] == ["a"]
    assert found["rewards_bound"] == pytest.approx(
        {name: rows[0][f"reward_{name}"] - width for name in NAMES}, abs=1e-5
    )
    with pytest.raises(UsageError, match=r"misses right by .* measured, at least .* at 95 % confidence\): a"):
        pick(bounds | {"right": bounds["right"] + 0.01}, rows=rows, mix=False)


def test_a_budget_buys_the_reward_that_is_maximised() -> None:
    config = CONFIG.model_copy(update={"objective": ObjectiveConfig(kind="reward", target="near")})
    found = picked(trials(ROWS, config), BASELINE, PRE, at_least={}, kl_at_most=0.3).to_json()
    kls, reached = MIXED
    best = reached[kls <= 0.3, 1].max()
    assert best - 1e-6 <= found["rewards"]["near"] <= best + 0.05
    both = picked(trials(ROWS), BASELINE, PRE, at_least={}, kl_at_most=0.3).to_json()
    assert both["rewards"]["near"] < found["rewards"]["near"] - 0.02, "not shared with the other rewards"
    # A threshold on the other is met, and not improved.
    floor = picked(trials(ROWS, config), BASELINE, PRE, at_least={"right": 1.05}, kl_at_most=0.3).to_json()
    assert floor["rewards"]["right"] == pytest.approx(1.05, abs=1e-4)
    assert floor["rewards"]["near"] < found["rewards"]["near"]


@pytest.mark.parametrize(
    ("at_least", "budget", "said"),
    [
        ({"rihgt": 0.5}, None, "unknown reward 'rihgt'.*right"),
        ({}, None, "say what is wanted: --at-least REWARD=VALUE, --kl-at-most NATS, or both"),
        ({"right": math.nan}, None, "a threshold is a finite number, got right=nan"),
        ({"right": math.inf}, 1.0, "a threshold is a finite number, got right=inf"),
        ({}, math.nan, "a KL budget is a finite number of nats, at least 0, got nan"),
        ({}, -1.0, "a KL budget is a finite number of nats, at least 0, got -1"),
        ({"right": 3.0}, None, r"no mixture of them, reaches these thresholds; the nearest misses right by 1\.9 .* t3"),
        ({"right": 1.0, "near": -0.9}, 0.1, r"these thresholds need 0\.\d+ nats with .* finished, above the budget"),
        ({"right": 3.0}, 0.1, "no finished trial, and no mixture of them, reaches"),
    ],
)  # fmt: skip
def test_what_cannot_be_picked_is_refused_in_words(
    at_least: dict[str, float], budget: float | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        pick(at_least, budget)


def test_nothing_finished_is_said() -> None:
    for rows in ([], [row_of("bad", {"right": 1.0}, status="failed", kl=None)]):
        with pytest.raises(UsageError, match="no trial of this sweep has finished yet"):
            pick({"right": 0.5}, rows=rows)


def test_a_sweep_without_thresholds_improves_all_its_rewards() -> None:
    config = CONFIG.model_copy(update={"constraints": ()})
    found = picked(trials(ROWS, config), BASELINE, PRE, at_least={}, kl_at_most=0.3).to_json()
    assert all(found["rewards"][name] > PRE[name][0] for name in NAMES)


@pytest.mark.parametrize("least", [PROBLEM, None])
def test_the_bound_beside_an_answer_is_that_of_all_thresholds_that_it_holds(least: Any) -> None:
    """An answer is for a box: what was not asked for is held at its loosest, and costs."""
    held = {"right": 0.9, "near": -0.9}
    optimum, alone = PROBLEM.least_kl(held), PROBLEM.least_kl({"right": 0.9})
    point = FrontierPoint(
        rewards=np.array([optimum.rewards[name] + 0.004 for name in NAMES]),
        kl=optimum.kl + 0.01,
        reward_errors=np.full(len(NAMES), 0.001),
        kl_error=0.002,
    )
    answer = Measured(trial_id="box", multipliers={"right": 1.0, "near": 1.0}, point=point, held=held)
    rows = [row_of("t0", {"right": 0.5, "near": -1.4}), row_of("t1", {"right": 0.6, "near": -1.0})]
    found = pick({"right": 0.9}, rows=rows, answers=[answer], least=least)
    assert [member["trial_id"] for member in found["mixture"]] == ["box"]
    assert found["thresholds"] == held
    assert all(found["rewards_bound"][name] >= bound for name, bound in held.items())
    assert found["rewards_bound"]["right"] == pytest.approx(
        point.rewards[NAMES.index("right")] - joint_deviations(1) * 0.001
    )
    if least is None:
        assert found["lower_bound"] == pytest.approx(
            max(
                PROBLEM.least_kl(p).kl
                + sum(PROBLEM.least_kl(p).multipliers[n] * (held[n] - p[n]) for n in NAMES)
                for p in ({"right": 0.5, "near": -1.4}, {"right": 0.6, "near": -1.0})
            ),
            abs=1e-3,
        )
        return
    assert found["lower_bound"] == pytest.approx(optimum.kl)
    assert found["excess"] == pytest.approx(0.01)
    assert alone.kl < optimum.kl - 0.05, "what was shown before"
    mixed = pick({"right": 0.55}, rows=rows, answers=[answer], least=least)
    assert mixed["thresholds"] == {"right": 0.55}, "a mixture is picked for what was asked alone"
