"""Columns carry units and meanings, and no name is lost or used twice."""

import pytest

from orchestrator.results.schema import (
    VERSION,
    Names,
    constraint_names,
    evaluations_schema,
    frontier_schema,
    history_schema,
    reward_names,
    trials_schema,
    version_of,
)

NAMES = Names(rewards=("clip", "saturation"), constraints=("clip", "kl"))


@pytest.mark.parametrize("make", [trials_schema, history_schema, evaluations_schema, frontier_schema])
def test_every_column_says_its_unit_and_meaning(make) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    schema = make(NAMES)
    assert version_of(schema) == VERSION
    assert b"violation <= 0" in schema.metadata[b"cdsweep.signs"]
    for field in schema:
        assert field.metadata[b"meaning"]
        assert b"unit" in field.metadata


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


def test_names_are_read_back() -> None:
    for make in (trials_schema, history_schema, frontier_schema):
        assert reward_names(make(NAMES)) == NAMES.rewards
        assert set(constraint_names(make(NAMES))) == {"clip", "saturation", "kl"}


def test_names_that_collide_are_refused() -> None:
    with pytest.raises(ValueError, match="reward_clip_low"):
        trials_schema(Names(rewards=("clip", "clip_low")))
