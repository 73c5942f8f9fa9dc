"""Rows of composition trials: a KL and a weight for every model."""

import numpy as np
import pytest

from orchestrator.results.schema import (
    Names,
    evaluations_table,
    history_schema,
    history_table,
    model_names,
    trials_schema,
)
from tests.support.compositions import SPEC, THRESHOLD, job_of, outcome_of, plan_of, row_of, step_of
from trainers.types import Evaluation

LAST = ["sampler", "acceptance", "effective_samples", "network_evaluations"]


def test_columns_of_the_models() -> None:
    names = Names.of(plan_of(SPEC + THRESHOLD).trials[0].config)
    assert names == Names(rewards=("up",), constraints=("up",), models=("a", "b", "c"))
    for schema in (trials_schema(names), history_schema(names)):
        assert model_names(schema) == ("a", "b", "c")
        for name in names.models:
            for column in (f"kl_{name}", f"multiplier_{name}", f"weight_{name}"):
                assert schema.field(column).metadata[b"meaning"]
    assert model_names(trials_schema(Names(rewards=("up",), constraints=("kl",)))) == ()
    plain = trials_schema(Names()).names
    assert plain[-len(LAST) :] == LAST


def test_a_constrained_row() -> None:
    trial = plan_of().trials[0]
    outcome = outcome_of(trial)
    [row] = row_of(trial, outcome).to_pylist()
    assert row["kl"] == max(row[f"kl_{name}"] for name in "abc")
    assert row["kl_least"] == pytest.approx(row["kl"] - 0.01, abs=1e-4)
    assert sum(row[f"multiplier_{name}"] for name in "abc") == pytest.approx(1.0)
    assert row["kl_c_low"] < row["kl_c"] < row["kl_c_high"]
    assert row["weight_a"] is None
    assert (row["sampler"], row["acceptance"], row["effective_samples"]) == ("fkc", None, 900.0)


def test_a_weighted_row() -> None:
    trial = plan_of().trials[-1]
    [row] = row_of(trial, outcome_of(trial)).to_pylist()
    assert [row[f"weight_{name}"] for name in "abc"] == pytest.approx([1 / 3] * 3)
    assert row["multiplier_a"] is None


def test_a_failed_row() -> None:
    trial = plan_of().trials[0]
    [row] = row_of(trial, outcome_of(trial, status="failed")).to_pylist()
    assert row["kl_a"] is None


def test_history() -> None:
    for trial in (plan_of().trials[0], plan_of().trials[-1]):
        rows = history_table(job_of(trial), [step_of(1), step_of(2)]).to_pylist()
        assert [row["step"] for row in rows] == [1, 2]
        assert [rows[0][f"kl_{name}"] for name in "abc"] == [1.0, 0.7, 1.0]
        assert [rows[0][f"multiplier_{name}"] for name in "abc"] == [0.5, 0.0, 0.5]
        assert rows[0]["kl_a_low"] is None
    assert rows[0]["weight_a"] == pytest.approx(1 / 3), "a weight of a model is not divided by a sigma"


def test_an_evaluation_whose_kl_is_not_known_by_sample() -> None:
    trial = plan_of(SPEC + THRESHOLD).trials[0]
    drawn = Evaluation(
        kl=np.full(3, np.nan), rewards={"up": np.arange(3.0)}, seeds=np.arange(3, dtype=np.int64)
    )
    table = evaluations_table(job_of(trial), drawn)
    assert table["kl"].null_count == 3
    assert table["reward_up"].to_pylist() == [0.0, 1.0, 2.0]
