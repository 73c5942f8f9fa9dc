"""Columns carry units and meanings, and no name is lost or used twice."""

import numpy as np
import pytest

from orchestrator.plan import make_job, make_plan
from orchestrator.results.schema import (
    VERSION,
    Names,
    evaluations_schema,
    evaluations_table,
    frontier_schema,
    history_schema,
    samples_of,
    samples_schema,
    samples_table,
    trials_schema,
    units_table,
    version_of,
)
from orchestrator.spec.files.prompt_files import column_mistakes
from orchestrator.spec.load import parse_spec
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Evaluation

NAMES = Names(rewards=("clip", "saturation"), constraints=("clip", "kl"))
PIPELINE = """\
name: demo
model: {pretrained: owner/name}
prompts: {train: [a cat], evaluate: [a dog]}
constraints:
  - {reward: saturation, at_least: 0.5, unit: sigma}
  - {reward: {brightness: {aim: low}}, name: dark, at_least: 0.25, unit: sigma}
"""


@pytest.mark.parametrize("make", [trials_schema, history_schema, evaluations_schema, frontier_schema])
def test_every_column_says_its_unit_and_meaning(make) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    schema = make(NAMES)
    assert version_of(schema) == VERSION
    assert b"violation <= 0" in schema.metadata[b"cdsweep.signs"]
    for field in schema:
        assert field.metadata[b"meaning"]
        assert b"unit" in field.metadata


def test_units_stand_in_a_table_of_their_own_for_readers_without_column_metadata() -> None:
    other = Names(rewards=("clip", "late"), constraints=("late",))
    table = units_table([NAMES, other])
    assert table.column_names == ["table", "column", "unit", "meaning"]
    found = {(row["table"], row["column"]): row for row in table.to_pylist()}
    assert len(found) == table.num_rows, "each column of a table once"
    makes = {
        "trials": trials_schema,
        "history": history_schema,
        "evaluations": evaluations_schema,
        "baseline": samples_schema,
        "frontier": frontier_schema,
    }
    for name, make in makes.items():
        for field in (*make(NAMES), *make(other)):
            row = found[name, field.name]
            assert row["unit"].encode() == field.metadata[b"unit"]
            assert row["meaning"].encode() == field.metadata[b"meaning"]
    assert found["trials", "kl"]["unit"] == "nats"
    assert found["history", "multiplier_clip"]["unit"] == "nats per reward unit"
    assert found["trials", "violation_clip"] == {
        "table": "trials",
        "column": "violation_clip",
        "unit": "reward units",
        "meaning": "violation: threshold minus mean of clip; met iff <= 0",
    }
    assert found["trials", "violation_kl"]["meaning"] == "violation: KL minus budget of kl; met iff <= 0"
    assert found["bounds", "threshold_late"]["unit"] == "reward units"
    assert ("bounds", "threshold_kl") not in found, "a certified search has thresholds of rewards alone"


def test_the_promised_columns() -> None:
    promised = [
        *(
            "trial_id",
            "method",
            "seed",
            "status",
            "error",
            "feasible",
            "kl",
            "kl_low",
            "kl_high",
            "kl_estimator",
        ),
        *(
            "kl_least",
            "steps",
            "wall_seconds",
            "gpu_seconds",
            "started_at",
            "finished_at",
            "adapter",
            "base_trial",
        ),
    ]
    schema = trials_schema(NAMES)
    assert schema.names[: len(promised)] == promised
    for name in NAMES.rewards:
        for column in ("reward_{}", "reward_{}_low", "reward_{}_high", "weight_{}"):
            assert column.format(name) in schema.names
    for name in ("clip", "saturation", "kl"):
        for kind in ("threshold", "violation", "multiplier"):
            assert f"{kind}_{name}" in schema.names
    assert "reward_kl" not in schema.names
    assert schema.field("started_at").type.tz == "UTC"
    assert schema.field("multiplier_kl").metadata[b"unit"] == b"objective units per nat"


def test_names_that_collide_are_refused() -> None:
    with pytest.raises(ValueError, match="reward_clip_low"):
        trials_schema(Names(rewards=("clip", "clip_low")))


def test_samples_of_the_pretrained_model_are_read_back_by_set() -> None:
    rng = np.random.default_rng(0)
    config = make_plan(parse_spec(PIPELINE)).trials[0].config
    samples = {
        name: Evaluation(
            kl=np.zeros(count),
            rewards={"saturation": rng.normal(size=count), "dark": rng.normal(size=count)},
            seeds=np.arange(count) + 7,
            prompts=tuple(f"{name} {i}" for i in range(count)),
        )
        for name, count in (("train", 3), ("evaluate", 5))
    }
    table = samples_table(config, samples)
    assert version_of(table.schema) == VERSION
    measured = [f"reward_{reward.name}" for reward in config.measured]
    assert table.column_names == ["set", "prompt", "seed", "reward_saturation", "reward_dark", *measured]
    assert table["prompt"].to_pylist() == [f"train {i}" for i in range(3)] + [
        f"evaluate {i}" for i in range(5)
    ]
    assert table["seed"].to_pylist() == [7, 8, 9, 7, 8, 9, 10, 11]
    for name, drawn in samples.items():
        read = samples_of(table, name)
        assert list(read) == ["saturation", "dark"]
        for reward, values in drawn.rewards.items():
            assert np.array_equal(read[reward], values), "not rounded"
    assert all(len(values) == 0 for values in samples_of(table, "nothing").values())


def test_samples_without_prompts_have_none() -> None:
    config = make_plan(parse_spec(PIPELINE)).trials[0].config
    one = Evaluation(
        kl=np.zeros(1), rewards={"saturation": np.ones(1), "dark": np.ones(1)}, seeds=np.zeros(1, np.int64)
    )
    assert samples_table(config, {"train": one})["prompt"].to_pylist() == [None]


def test_metadata_of_prompts_stands_beside_them() -> None:
    listed = "[a dog, a cow], evaluate_metadata: {tag: [pets, null], size: ['1', '2']}}"
    text = PIPELINE.replace("[a dog]}", listed)
    job = make_job(
        make_plan(parse_spec(text)).trials[0],
        BaselineStatistics(
            rewards=dict.fromkeys(("saturation", "dark"), RewardStatistics(mean=0, std=1)), samples=1
        ),
    )
    drawn = Evaluation(
        kl=np.zeros(4),
        rewards={"saturation": np.zeros(4), "dark": np.zeros(4)},
        seeds=np.arange(4),
        prompts=("a cow", "a dog", "a cow", "a joint prompt"),
    )
    table = evaluations_table(job, drawn)
    assert table.schema.names[:7] == ["trial_id", "prompt", "seed", "kl", "log_ratio", "tag", "size"]
    assert table["log_ratio"].null_count == 4
    assert table["tag"].to_pylist() == [None, "pets", None, None]
    assert table["size"].to_pylist() == ["2", "1", "2", None]


def test_metadata_cannot_take_the_name_of_a_column() -> None:
    for name in evaluations_schema(Names(rewards=("clip",))).names:
        assert list(column_mistakes([name.upper()])), name
