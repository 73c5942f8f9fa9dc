"""Hypervolumes end where the thresholds and budgets say, and not where the worst trial happens to be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.frontier.analysis import analyse
from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.frontier.trials import Trials
from trainers.config import ObjectiveConfig
from trainers.testing import gaussian_job

Simulate = Callable[..., Any]
TIGHT = {"right": 1.2, "near": -0.9}


def summary(sweep: Any, thresholds: dict[str, float] = TIGHT) -> FrontierSummary:
    config = sweep.config("constrained", thresholds, {}, 0)
    return summarise(Trials.of(sweep.trials, config), sweep="demo", baseline=sweep.baseline)


def volumes(found: FrontierSummary) -> dict[str, float]:
    return {method.method: method.hypervolume for method in found.methods}


@pytest.mark.parametrize("method", ["constrained", "weighted"])
def test_a_dominated_trial_that_ran_away_changes_nothing(simulate: Simulate, method: str) -> None:
    sweep = simulate().grid()
    before = summary(sweep)
    best = {name: max(sweep.trials[f"reward_{name}"].to_pylist()) for name in TIGHT}
    worse = {name: value - 0.1 for name, value in best.items()}
    sweep.add(method, TIGHT, kl=50.0, rewards=worse, weights={"right": 9.0} if method == "weighted" else None)
    after = summary(sweep)
    assert after.reference_point == before.reference_point
    assert volumes(after) == pytest.approx(volumes(before))
    config = sweep.config("constrained", TIGHT, {}, 0)
    analysed = analyse(Trials.of(sweep.trials, config), baseline=sweep.baseline)
    assert analysed.reference[0] == pytest.approx(before.reference_point["kl"])


def test_more_of_a_reward_than_was_asked_for_is_no_volume(simulate: Simulate) -> None:
    """One trial reaches the thresholds; another pays 40 times as much for rewards that nobody asked for."""
    sweep = simulate(noise=0.0)
    optimum = sweep.exact.least_kl(TIGHT)
    sweep.add("constrained", TIGHT, kl=optimum.kl, rewards=TIGHT)
    sweep.add(
        "weighted", TIGHT, kl=40 * optimum.kl, rewards={"right": 3.0, "near": -0.01}, weights={"right": 9.0}
    )
    found = summary(sweep)
    assert found.reference_point["kl"] == pytest.approx(2.0 * optimum.kl)
    stds = {name: sweep.baseline.rewards[name].std for name in TIGHT}
    sides = [TIGHT[name] - 0.05 * stds[name] - sweep.baseline.rewards[name].mean for name in TIGHT]
    assert volumes(found) == pytest.approx({"constrained": optimum.kl * np.prod(sides), "weighted": 0.0})
    assert found.counted_up_to == pytest.approx({name: TIGHT[name] - 0.05 * stds[name] for name in TIGHT})


def test_rewards_count_up_to_the_tightest_thresholds_of_a_box(simulate: Simulate) -> None:
    """Its row is at the loosest; of a sweep without other trials, too, these are not where rewards end."""
    sweep, loosest = simulate(noise=0.0), {"right": 0.6, "near": -1.4}
    optimum = sweep.exact.least_kl(loosest)
    sweep.add("frontier", loosest, kl=optimum.kl, rewards={"right": 0.8, "near": -1.2})
    config = sweep.config("constrained", loosest, {}, 0)
    stds = {name: sweep.baseline.rewards[name].std for name in TIGHT}
    for tightest in ({}, TIGHT, {"right": 1.2}):
        trials = Trials.of(sweep.trials, config, tightest)
        found = summarise(trials, sweep="demo", baseline=sweep.baseline)
        ends = loosest | tightest
        assert found.counted_up_to == pytest.approx({name: ends[name] - 0.05 * stds[name] for name in TIGHT})
        analysed = analyse(trials, baseline=sweep.baseline)
        assert analysed.reference[0] == pytest.approx(found.reference_point["kl"])


def test_a_budget_is_where_the_kl_ends(simulate: Simulate) -> None:
    sweep = simulate(objective=ObjectiveConfig(kind="reward", target="right"), noise=0.0)
    for budget, reward in ((0.3, 1.0), (0.6, 1.3)):
        sweep.add("constrained", {"kl": budget}, kl=budget, rewards={"right": reward, "near": -1.0})
    sweep.add("weighted", {"kl": 0.6}, kl=7.0, rewards={"right": 2.0, "near": -1.0}, weights={"right": 2.0})
    found = summary(sweep, {"kl": 0.6})
    assert found.reference_point == {"kl": 0.6, "right": sweep.baseline.rewards["right"].mean}
    assert found.counted_up_to == {"right": None}
    assert volumes(found) == pytest.approx({"constrained": 0.3 * (1.0 - 0.25), "weighted": 0.0})


def test_a_threshold_below_the_pretrained_mean_still_has_a_side(simulate: Simulate) -> None:
    sweep = simulate(noise=0.0)
    known = sweep.baseline.rewards
    thresholds = {"right": known["right"].mean + 0.5, "near": known["near"].mean - 0.1}
    sweep.add("constrained", thresholds, kl=0.2, rewards=thresholds)
    found = summary(sweep, thresholds)
    low = thresholds["near"] - 0.05 * known["near"].std
    assert found.reference_point["near"] == pytest.approx(low - known["near"].std)
    assert volumes(found)["constrained"] > 0


SHIPPED = [
    # Method, seed, saturation, contrast, CLIP in σ, KL: means over two seeds of the shipped sweep, as it was measured.
    ("constrained", (0.5, 0.3, 0.1), 0.49, 0.30, 0.10, 0.465),
    ("constrained", (0.5, 0.5, 0.1), 0.60, 0.49, 0.12, 0.790),
    ("constrained", (0.5, 0.7, 0.1), 0.70, 0.70, 0.13, 1.410),
    ("weighted", (1.0, 1.0, 1.0), 0.85, 0.39, 0.11, 0.669),
    ("weighted", (1.5, 1.5, 1.5), 1.19, 0.56, 0.16, 1.339),
    ("weighted", (2.0, 2.0, 2.0), 1.45, 0.69, 0.17, 2.044),
]


def test_the_method_that_pays_less_for_the_thresholds_has_the_larger_volume() -> None:
    """The shipped sweep: weights pay 1.4 to 1.7 times the KL, and over-saturate, which is no merit."""
    job = gaussian_job({"x": 0.0})
    names = ("saturation", "contrast", "clip")
    (reward,), (constraint,) = job.config.rewards, job.config.constraints
    config = job.config.model_copy(
        update={
            "rewards": tuple(reward.model_copy(update={"name": name}) for name in names),
            "constraints": tuple(
                constraint.model_copy(update={"name": name, "target": name}) for name in names
            ),
        }
    )
    known = job.baseline.rewards["x"].model_copy(update={"mean": 0.0, "std": 1.0})
    baseline = job.baseline.model_copy(update={"rewards": dict.fromkeys(names, known)})
    rows = []
    for number, (method, asked, *reached, kl) in enumerate(SHIPPED):
        constrained = method == "constrained"
        row = {"trial_id": f"t{number}", "method": method, "seed": 0, "status": "succeeded", "feasible": True}
        row |= {"kl": kl, "kl_low": kl, "kl_high": kl, "kl_least": None}
        for name, value, figure in zip(names, asked, reached, strict=True):
            row |= {f"reward_{name}{end}": figure for end in ("", "_low", "_high")}
            row[f"threshold_{name}"] = value if constrained else min(0.5, value)
            row[f"weight_{name}"] = None if constrained else value
            row[f"multiplier_{name}"] = 1.0 if constrained else None
        rows.append(
            row
            | {f"threshold_{n}": b for n, b in zip(names, (0.5, 0.3, 0.1), strict=True) if not constrained}
        )
    trials = Trials.of(pa.Table.from_pylist(rows), config)
    found = summarise(trials, sweep="demo", baseline=baseline)
    assert found.reference_point["kl"] == pytest.approx(2.0 * 1.410)
    sizes = volumes(found)
    assert sizes["constrained"] > sizes["weighted"]
