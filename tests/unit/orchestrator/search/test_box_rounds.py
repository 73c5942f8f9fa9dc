"""Further rounds of trials for a box: how often, after a crash, and what ends them."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.plan import make_plan
from orchestrator.search.base import Search, SearchContext
from orchestrator.search.several import build_search
from orchestrator.search.spending import Spending
from orchestrator.spec.load import parse_spec
from trainers.config import BaselineStatistics, RewardStatistics

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {range: [0.2, 1.0]}}
methods:
  - frontier: {rounds: 3}
  - weighted: {weights: equal}
seeds: [0, 1]
"""
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None)


def context(**rows: dict[str, Any]) -> SearchContext:
    spec = parse_spec(SPEC)
    return SearchContext(spec=spec, plan=make_plan(spec), baseline=BASELINE, finished=rows)


def row(rounds: int, status: str = "succeeded") -> dict[str, Any]:
    return {"status": status, "rounds": rounds, "wall_seconds": 1.0}


def drive(search: Search, begun: SearchContext, status: str = "succeeded") -> list[tuple[str, int]]:
    """Run one trial at a time to the end; returns ids and rounds in their order."""
    rounds = {name: found["rounds"] for name, found in begun.finished.items()}
    done = []
    while (trial := search.propose()) is not None:
        name = trial.trial_id
        rounds[name] = rounds.get(name, 0) + 1
        done.append((name, rounds[name]))
        ended = status if rounds[name] == 2 and trial.config.method == "frontier" else "succeeded"
        search.observe(trial, row(rounds[name], ended))
    assert search.exhausted
    return done


def test_a_plan_counts_further_rounds_and_says_so() -> None:
    plan = make_plan(parse_spec(SPEC))
    assert (len(plan.trials), plan.searched, plan.most) == (4, 4, 8)
    assert [line for line in plan.searches if "up to 3 rounds per seed" in line]
    once = make_plan(parse_spec(SPEC.replace("rounds: 3", "rounds: 1")))
    usual = make_plan(parse_spec(SPEC.replace("{rounds: 3}", "{}")))
    assert once.trials == usual.trials
    assert (once.searched, once.searches) == (0, ())
    assert plan.trials[0].trial_id != usual.trials[0].trial_id


def test_every_box_is_trained_so_often_and_nothing_else_is_again() -> None:
    begun = context()
    boxes = [t.trial_id for t in begun.plan.trials if t.config.method == "frontier"]
    search = build_search(begun)
    assert search.continues
    assert not search.exhausted
    done = drive(search, begun)
    assert sorted(done) == sorted(
        [(name, n) for name in boxes for n in (1, 2, 3)]
        + [(t.trial_id, 1) for t in begun.plan.trials if t.config.method == "weighted"]
    )


def test_while_a_round_runs_it_waits() -> None:
    begun = context()
    search = build_search(begun)
    running = [search.propose() for _ in range(4)]
    assert search.propose() is None
    assert not search.exhausted
    assert running[0] is not None
    search.observe(running[0], row(1))
    assert search.propose() == running[0]
    assert search.propose() is None


def test_after_a_crash_it_goes_on_where_states_are_left() -> None:
    fresh = context()
    first, second, *others = [trial.trial_id for trial in fresh.plan.trials]
    ended = {first: row(2), second: row(1)} | {name: row(1) for name in others}
    begun = replace(fresh, finished=ended, continuable=frozenset({first, second}))
    assert drive(build_search(begun), begun) == [(first, 3), (second, 2), (second, 3)]
    lost = replace(begun, continuable=frozenset({second}))
    assert drive(build_search(lost), lost) == [(second, 2), (second, 3)]
    over = replace(fresh, finished={name: row(3) for name in ended}, continuable=frozenset(ended))
    assert build_search(over).exhausted


@pytest.mark.parametrize("status", ["failed", "infeasible"])
def test_what_ended_badly_is_not_trained_further(status: str) -> None:
    begun = context()
    assert max(rounds for _, rounds in drive(build_search(begun), begun, status)) == 2


def test_a_budget_that_is_spent_ends_them() -> None:
    fresh = context()
    ended = {trial.trial_id: row(1) | {"gpu_seconds": 3600.0} for trial in fresh.plan.trials}
    begun = replace(
        fresh,
        finished=ended,
        continuable=frozenset(ended),
        spending=Spending(gpu_hours=5.5, planned=list(ended), finished=ended),
    )
    search = build_search(begun)
    assert search.propose() is not None
    assert search.propose() is None
    assert search.exhausted
