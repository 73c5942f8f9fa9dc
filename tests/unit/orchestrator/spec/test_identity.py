"""What a trial is known by: what a later version adds or changes by default changes no id."""

import json
from typing import Any

import pytest
from pydantic import create_model

import trainers.config as configuration
from orchestrator.plan import Plan, constrained_trial, make_plan, weighted_trial
from orchestrator.spec.identity import meaning, trial_id
from orchestrator.spec.load import parse_spec
from trainers.config import TrialConfig

MIXTURE = """
name: known
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {quadratic: {center: [1.0]}}, name: near, at_least: {grid: [-1.5, -1.0]}, unit: absolute}
methods: [constrained, {weighted: {weights: equal}}]
"""
PIPELINE = """
name: pictures
model: {pretrained: embedded}
constraints:
  - {reward: clip, at_least: {grid: [0.1, 0.2]}, unit: sigma}
"""


def _configs(text: str) -> list[TrialConfig]:
    return [trial.config for trial in make_plan(parse_spec(text)).trials]


@pytest.mark.parametrize("text", [MIXTURE, PIPELINE])
@pytest.mark.parametrize("section", ["training", "duals", "convergence", "evaluation", "sampling"])
def test_a_field_of_a_later_version_changes_no_id_while_it_has_its_default(text: str, section: str) -> None:
    for config in _configs(text):
        now = getattr(config, section)
        later: Any = create_model("Later", __base__=type(now), foresight=(int, 3))
        same = later(**now.model_dump())
        assert trial_id(config.model_copy(update={section: same})) == trial_id(config)
        grown: Any = create_model("Grown", __base__=TrialConfig, foresight=(bool, False))
        assert trial_id(grown(**dict(config))) == trial_id(config)
        assert trial_id(grown(**dict(config), foresight=True)) != trial_id(config)


@pytest.mark.parametrize(
    ("text", "defaults", "section", "key", "value"),
    [
        (PIPELINE, "PIPELINE_DEFAULTS", "training", "steps", 120),
        (PIPELINE, "PIPELINE_DEFAULTS", "duals", "rate", 0.2),
        (PIPELINE, "PIPELINE_DEFAULTS", "sampling", "rest", 1),
        (PIPELINE, "PIPELINE_DEFAULTS", "convergence", "window", 20),
    ],
)
def test_another_default_of_a_kind_of_model_changes_no_id_but_the_meaning(
    monkeypatch: pytest.MonkeyPatch, text: str, defaults: str, section: str, key: str, value: float
) -> None:
    before = _configs(text)
    ids = list(map(trial_id, before))
    monkeypatch.setitem(getattr(configuration, defaults)[section], key, value)
    after = _configs(text)
    assert [getattr(getattr(config, section), key) for config in after] == [value] * len(after)
    assert list(map(trial_id, after)) == ids
    assert meaning(after[0])[section][key] != meaning(before[0])[section][key]


def test_parameters_that_have_their_defaults_are_none() -> None:
    written = MIXTURE.replace("center: [1.0]", "center: [1.0], scale: 1.0")
    assert list(map(trial_id, _configs(written))) == list(map(trial_id, _configs(MIXTURE)))
    other = MIXTURE.replace("center: [1.0]", "center: [1.0], scale: 2.0")
    assert not set(map(trial_id, _configs(other))) & set(map(trial_id, _configs(MIXTURE)))


def test_a_weighted_trial_is_the_same_whatever_it_is_judged_by() -> None:
    """Its thresholds are the loosest of the grid, and nothing in training knows them."""
    narrow, wide = (
        make_plan(parse_spec(text)) for text in (MIXTURE, MIXTURE.replace("-1.5,", "-2.0, -1.5,"))
    )
    assert {t.trial_id for t in narrow.trials} < {t.trial_id for t in wide.trials}
    assert meaning(narrow.base) == meaning(wide.base)
    seeds = [weighted_trial(plan.base, {"near": 0.5}, 1).trial_id for plan in (narrow, wide)]
    assert seeds[0] == seeds[1]
    assert constrained_trial(narrow.base, {}, 1).trial_id != constrained_trial(wide.base, {}, 1).trial_id


def test_a_plan_is_a_base_and_rows_whose_sections_are_shared() -> None:
    plan = make_plan(parse_spec(PIPELINE))
    document = json.loads(json.dumps(plan.to_json()))
    assert [sorted(row["changes"]) for row in document["trials"]] == [[], ["constraints"]]
    read = Plan.from_json(document)
    assert read == plan
    for made in (plan, read):
        assert all(trial.config.prompts is made.base.prompts for trial in made.trials)
        assert all(trial.config.training is made.base.training for trial in made.trials)


def test_a_plan_of_the_format_before_is_read_with_its_ids() -> None:
    plan = make_plan(parse_spec(MIXTURE))
    document = plan.to_json() | {"format": 1}
    del document["base"]
    for row, trial in zip(document["trials"], plan.trials, strict=True):
        del row["changes"]
        row |= {"trial_id": f"old{trial.trial_id}", "config": trial.config.model_dump(mode="json")}
    read = Plan.from_json(json.loads(json.dumps(document)))
    assert [trial.config for trial in read.trials] == [trial.config for trial in plan.trials]
    assert [trial.trial_id for trial in read.trials] == [f"old{trial.trial_id}" for trial in plan.trials]
    assert all(trial.config.model is read.base.model for trial in read.trials)
