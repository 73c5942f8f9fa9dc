"""Rows of composition trials: a KL and a weight for every model."""

import numpy as np
import pytest
from support.models import network_outcomes as networks
from support.models.compositions import SPEC, THRESHOLD, job_of, outcome_of, plan_of, row_of, step_of
from support.models.networks import PROMPTS

from orchestrator.results.schema import (
    Names,
    evaluations_table,
    history_schema,
    history_table,
    samples_of,
    samples_table,
    trials_schema,
)
from trainers.types import Evaluation

LAST = [
    "sampler",
    "acceptance",
    "effective_samples",
    "network_evaluations",
    "distance",
    "distance_before",
    "interpolated",
    "rounds",
    "beside_round",
    "asked_gpu_seconds",
    "provenance",
]


def test_columns_of_the_models() -> None:
    names = Names.of(plan_of(SPEC + THRESHOLD).trials[0].config)
    assert names == Names(rewards=("up",), constraints=("up",), models=("a", "b", "c"))
    for schema in (trials_schema(names), history_schema(names)):
        for name in names.models:
            for column in (f"kl_{name}", f"multiplier_{name}", f"weight_{name}"):
                assert schema.field(column).metadata[b"meaning"]
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
    assert table["kl"].null_count == table["log_ratio"].null_count == 3
    assert table["reward_up"].to_pylist() == [0.0, 1.0, 2.0]


# ------------------------------------------------------------------------------------------- networks


DISTILLED = networks.SPEC + "distillation: {steps: 7}\n"


def test_columns_of_networks() -> None:
    config = networks.plan_of(DISTILLED).trials[0].config
    schema = trials_schema(Names.of(config))
    assert len(set(schema.names)) == len(schema.names)
    for column in (
        *("retention_vivid", "retention_bright", "pointwise_kl_crisp"),
        *("distilled_kl_crisp", "distilled_reward_saturation"),
    ):
        for end in ("", "_low", "_high"):
            assert schema.field(f"{column}{end}").metadata[b"meaning"]
    assert "retention_crisp" not in schema.names, "nothing judges it"
    assert "retention_vivid" not in history_schema(Names.of(config)).names
    for trial in networks.plan_of(DISTILLED).trials:
        # Readers of a folder take the columns of its first file.
        assert trials_schema(Names.of(trial.config)) == schema
    assert "pointwise_kl_a" not in trials_schema(Names.of(plan_of().trials[0].config)).names
    concepts = Names.of(networks.plan_of(PROMPTS).trials[0].config)
    assert concepts.retained == ()


def test_rows_of_networks() -> None:
    plan = networks.plan_of(DISTILLED)
    rows = networks.table_of(plan.trials).to_pylist()
    assert [row["sampler"] for row in rows] == ["fkc", "fkc", "merged"]
    for row in rows:
        assert row["retention_vivid_low"] < row["retention_vivid"] < row["retention_vivid_high"]
        assert row["pointwise_kl_crisp"] == pytest.approx(0.7 * row["kl_crisp"])
        assert row["kl"] == max(row[f"kl_{name}"] for name in ("vivid", "bright", "crisp"))
    assert [row["distilled_kl_crisp"] for row in rows] == [1.5, 1.5, None], (
        "a baseline is one network already"
    )


def test_a_reward_may_be_called_like_the_model_that_it_judges() -> None:
    text = networks.SPEC.replace("vivid", "saturation")
    schema = trials_schema(Names.of(networks.plan_of(text).trials[0].config))
    assert len(set(schema.names)) == len(schema.names)
    for column in ("kl_saturation", "reward_saturation", "multiplier_saturation", "weight_saturation"):
        assert column in schema.names
    assert b"model" in schema.field("multiplier_saturation").metadata[b"meaning"] or (
        b"simplex" in schema.field("multiplier_saturation").metadata[b"meaning"]
    )


def test_samples_of_each_model_alone_are_sets_of_their_own() -> None:
    config = networks.plan_of().trials[0].config
    names = [reward.name for reward in config.rewards]
    drawn = {
        of: Evaluation(
            kl=np.full(2, np.nan),
            rewards={name: np.array([value, value + 1]) for name in names},
            seeds=np.arange(2, dtype=np.int64),
            prompts=("a", "b"),
        )
        for value, of in enumerate(("train", "evaluate", "model:vivid", "model:bright"))
    }
    table = samples_table(config, drawn)
    for value, of in enumerate(drawn):
        assert samples_of(table, of)["saturation"].tolist() == [value, value + 1]
    assert all(len(values) == 0 for values in samples_of(table, "model:crisp").values())


def test_an_evaluation_of_networks_has_prompts() -> None:
    trial = networks.plan_of().trials[0]
    drawn = Evaluation(
        kl=np.array([0.5, np.nan]),
        rewards={reward.name: np.arange(2.0) for reward in trial.config.rewards},
        seeds=np.arange(2, dtype=np.int64),
        prompts=("a", "b"),
    )
    table = evaluations_table(networks.job_of(trial), drawn)
    assert table["prompt"].to_pylist() == ["a", "b"]
    assert table["kl"].to_pylist() == [0.5, None]
