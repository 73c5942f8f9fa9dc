"""Where another round of a trial for a box leans, and which round of it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.execution.sampling.baseline import Jobs
from orchestrator.execution.trials.leaning import gaps
from orchestrator.execution.trials.rounds import better
from orchestrator.execution.trials.trial import record
from orchestrator.plan import PlannedTrial, make_job, make_plan
from orchestrator.results.schema import answers_table, trial_table
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, RewardStatistics, TrialJob
from trainers.types import Answer, Interval, TrialOutcome

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [2.0]}}, name: x, at_least: {range: [0.4, 2.0]}}
methods: [frontier: {rounds: 3}]
"""
"""Reward 2 z of z ~ N(0, 1): the least KL at b is b²/8, at the price b/4."""
BUDGETS = SPEC.replace(
    "methods", "  - {kl: pretrained, at_most: {grid: [1.0, 0.5]}}\nobjective: {reward: x}\nmethods"
).replace("{range: [0.4, 2.0]}", "0.1")
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=2.0)}, samples=None)
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def planned(text: str = SPEC) -> PlannedTrial:
    [trial] = make_plan(parse_spec(text)).trials
    return trial


def exactly(value: float) -> Interval:
    return Interval(mean=value, low=value, high=value)


def answer(bound: float, above: float, short: float = 0.0) -> Answer:
    return Answer(
        thresholds={"x": bound},
        multipliers={"x": bound / 4},
        kl=exactly(bound**2 / 8 + above),
        rewards={"x": exactly(bound - short)},
        violations={"x": short},
        feasible=short <= 0,
        images=512,
    )


def outcome(*answers: Answer, steps: int = 10) -> TrialOutcome:
    return TrialOutcome(
        status="succeeded",
        error=None,
        feasible=answers[0].feasible,
        kl=answers[0].kl,
        kl_estimator="path",
        rewards=answers[0].rewards,
        violations=answers[0].violations,
        multipliers=answers[0].multipliers,
        weights={},
        steps=steps,
        wall_seconds=1.0,
        evaluation=None,
        history=(),
        answers=answers,
        adapter={"control.safetensors": b""},
    )


def rows(job: TrialJob, *answers: Answer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answers_table(job, answers, [None] * len(answers)).to_pylist()
    return found


@dataclass(frozen=True)
class Predicted:
    """A least KL as samples have it: known up to a threshold."""

    up_to: float

    def least_kl(self, asked: dict[str, float]) -> Any:
        kl = asked["x"] ** 2 / 8 if asked["x"] <= self.up_to else float("inf")
        return type("Optimum", (), {"kl": kl})


def test_a_gap_is_what_is_paid_and_lacking_above_the_best_that_is_known() -> None:
    job = make_job(planned(), BASELINE)
    found = rows(job, answer(0.4, 0.01), answer(2.0, 0.1, short=0.2), answer(1.0, 0.05, short=-0.1))
    known: Any = Predicted(3.0)
    np.testing.assert_allclose(gaps(job, found, known), [0.01, 0.1 + 0.5 * 0.2, 0.05])
    found[2]["lower_bound"] = 0.1  # certified: less than is predicted, and taken
    np.testing.assert_allclose(gaps(job, found, known)[2], 0.125 + 0.05 - 0.1)
    partly: Any = Predicted(0.5)
    np.testing.assert_allclose(gaps(job, found, partly), [0.01, np.nan, 0.075])
    found[2]["lower_bound"] = None
    np.testing.assert_allclose(gaps(job, found, None), [0.0, 0.1, 0.0])  # σ


def test_under_budgets_it_is_what_is_missed() -> None:
    job = make_job(planned(BUDGETS), BASELINE)
    made = Answer(
        thresholds={"x": 0.1, "kl": 0.5},
        multipliers={"x": 0.0, "kl": 1.0},
        kl=exactly(0.6),
        rewards={"x": exactly(0.04)},
        violations={"x": 0.06, "kl": 0.1},
        feasible=False,
        images=512,
    )
    np.testing.assert_allclose(gaps(job, rows(job, made), None), [0.2])


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ((answer(0.4, 0.05), answer(2.0, 0.1)), (answer(0.4, 0.01), answer(2.0, 0.3)), True),
        ((answer(0.4, 0.01), answer(2.0, 0.3)), (answer(0.4, 0.05), answer(2.0, 0.1)), False),
        ((answer(0.4, 0.5), answer(2.0, 0.5)), (answer(0.4, 0.0), answer(2.0, 0.0, short=0.1)), True),
        ((answer(0.4, 0.0), answer(2.0, 0.0, short=0.1)), (answer(0.4, 0.5), answer(2.0, 0.5)), False),
        # 0.4 more of a reward that costs half a nat
        ((answer(0.4, 0.0), answer(2.0, 0.15, short=-0.4)), (answer(0.4, 0.0), answer(2.0, 0.0)), True),
    ],
)
def test_a_box_is_judged_by_all_of_its_answers(
    new: tuple[Answer, ...], old: tuple[Answer, ...], expected: bool
) -> None:
    job = make_job(planned(), BASELINE)
    before = trial_table(job, outcome(*old), started_at=NOW, finished_at=NOW).to_pylist()[0]
    assert better(job.config, outcome(*new), before, rows(job, *old)) is expected


class Killed(SweepStore):
    """Whose process ends where it would write an adapter."""

    def write_adapter(self, trial_id: str, files: Mapping[str, bytes], rounds: int = 1) -> str:
        raise KeyboardInterrupt


def test_a_round_that_is_killed_before_its_adapter_is_written_is_recorded_by_the_next_attempt(
    tmp_path: Path,
) -> None:
    store, first = SweepStore(str(tmp_path), "killed"), make_job(planned(), BASELINE)
    again = first.model_copy(update={"rounds": 2})
    old, new = (
        replace(outcome(answer(0.4, over), answer(2.0, over)), adapter={"control.safetensors": name})
        for over, name in ((0.3, b"old"), (0.1, b"new"))
    )
    record(first, old, store, started_at=NOW)
    with pytest.raises(KeyboardInterrupt):
        record(again, new, Killed(str(tmp_path), "killed"), started_at=NOW)
    record(again, new, store, started_at=NOW)
    assert store.adapter(first.trial_id)["control.safetensors"] == b"new"
    row = store.stored_trial(first.trial_id)
    assert row is not None
    assert (row["rounds"], row["kl"]) == (2, store.answers(first.trial_id)["kl"][0].as_py())
    assert "not kept" not in row["notes"]


def test_the_next_round_leans_where_the_last_one_that_is_kept_pays_too_much(tmp_path: Path) -> None:
    spec, trial = parse_spec(SPEC), planned()
    store = SweepStore(str(tmp_path), "whole")
    store.create(dump_spec(spec), make_plan(spec).to_json(), {})
    jobs = Jobs(store, BASELINE, continuable=True)
    first = jobs(trial)
    assert (first.rounds, first.continuable, first.density) == (1, True, None)
    record(first, outcome(answer(0.4, 0.01), answer(2.0, 0.3)), store, started_at=NOW)
    second = jobs(trial)
    assert second.rounds == 2
    assert second.density is not None
    assert second.density[0] == pytest.approx(0.5 + 0.5 * 0.01 / 0.155, abs=0.01)
    assert np.argmax(second.density) == len(second.density) - 1
    # A round that is not kept leaves answers and density as they are.
    record(second, outcome(answer(0.4, 0.01), answer(2.0, 0.4), steps=20), store, started_at=NOW)
    store.reread([trial.trial_id])
    third = jobs(trial)
    assert (third.rounds, third.density) == (3, second.density)
    record(third, outcome(answer(0.4, 0.01), answer(2.0, 0.0), steps=30), store, started_at=NOW)
    row = store.stored_trial(trial.trial_id)
    assert row is not None
    assert (row["rounds"], row["steps"]) == (3, 30)
    assert [one["kl"] for one in store.answers(trial.trial_id).to_pylist()] == pytest.approx([0.03, 0.5])


def test_a_box_that_is_trained_once_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    once = planned(SPEC.replace("{rounds: 3}", "{}"))
    assert Jobs(SweepStore(str(tmp_path), "none"), BASELINE, continuable=True)(once) == make_job(
        once, BASELINE
    )
