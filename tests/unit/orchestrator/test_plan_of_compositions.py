"""The trials of a composition: their configs, names and ids."""

import pytest
from support.models.compositions import SPEC, THRESHOLD, job_of, plan_of

from orchestrator.plan import Plan, describe, make_job, resolve_thresholds

# Of SPEC. A change here makes `resume` repeat finished trials: say so in the changelog.
GOLDEN: list[str] = [
    "9f8cb9596a15",
    "30d3d6d7dc4a",
    "65afedbdc4da",
    "40747a7e7f40",
]


def test_golden_ids() -> None:
    assert [trial.trial_id for trial in plan_of().trials] == GOLDEN


def test_configs() -> None:
    trials = plan_of().trials
    for trial in trials:
        composition = trial.config.model.composition
        assert composition is not None
        assert [model.name for model in composition.models] == ["a", "b", "c"]
        assert (trial.config.objective.kind, trial.config.objective.target) == ("minmax_kl", "models")
    assert [trial.config.method for trial in trials] == ["constrained"] * 2 + ["weighted"] * 2
    assert trials[0].config.weights == {}
    assert trials[2].config.weights == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (SPEC, "constrained and of a, b, c seed 0"),
        (SPEC.replace("reverse", "forward"), "constrained or of a, b, c seed 0"),
        (SPEC + THRESHOLD, "constrained and of a, b, c up≥0.6 seed 0"),
        (SPEC.replace("  - constrained\n", ""), "weighted a·0.33 b·0.33 c·0.33 seed 0"),
        (SPEC.replace("direction: reverse", "sampler: hmc"), "constrained and of a, b, c by hmc seed 0"),
    ],
)
def test_descriptions(text: str, label: str) -> None:
    assert describe(plan_of(text).trials[0].config) == label


def test_grids_of_weights_stay_on_the_simplex() -> None:
    text = SPEC.replace("weights: equal", "weights: {a: 0.25, b: {grid: [0.75]}}")
    assert plan_of(text).trials[-1].config.weights == {"a": 0.25, "b": 0.75, "c": 0.0}


def test_ids_do_not_depend_on_what_means_nothing() -> None:
    same = SPEC.replace("  direction: reverse\n", "  offsets: {c: 0.0}\n").replace("[a, b, c]", "[c, a, b]")
    assert {trial.trial_id for trial in plan_of(same).trials} == set(GOLDEN)
    forward = SPEC.replace("reverse", "forward")
    ids = {trial.trial_id for trial in plan_of(forward).trials}
    assert not ids & set(GOLDEN)
    plan = plan_of(forward.replace("forward", "forward\n  sampler: hmc"))
    assert {trial.trial_id for trial in plan.trials} == ids
    assert any("has no effect" in warning for warning in plan.warnings)
    offsets = plan_of(SPEC.replace("direction: reverse", "offsets: {c: 0.1}"))
    assert not {trial.trial_id for trial in offsets.trials} & set(GOLDEN)


def test_a_method_has_its_own_sampler() -> None:
    text = SPEC.replace("seeds:", "  - weighted: {weights: equal, sampler: score}\nseeds:")
    plan = plan_of(text)
    assert [trial.trial_id for trial in plan.trials[:4]] == GOLDEN
    samplers = [trial.config.model.composition.sampler for trial in plan.trials]  # type: ignore[union-attr]
    assert samplers == ["fkc"] * 4 + ["score"] * 2
    assert [trial["sampler"] for trial in plan.to_json()["trials"]] == samplers
    assert describe(plan.trials[-1].config) == "weighted a·0.33 b·0.33 c·0.33 by score seed 1"


def test_a_model_that_is_not_composed_is_told() -> None:
    [warning] = plan_of(SPEC.replace("[a, b, c]", "[a, c]")).warnings
    assert "b has no part in the composition" in warning


def test_the_document_and_thresholds() -> None:
    plan = plan_of(SPEC + THRESHOLD)
    document = plan.to_json(baseline=job_of(plan.trials[0]).baseline)
    assert Plan.from_json(document) == plan
    first, last = document["trials"][0], document["trials"][-1]
    assert first["thresholds"] == {"up": 0.6}
    assert set(last["weights"]) == {"a", "b", "c"}
    job = job_of(plan.trials[0])
    assert job.thresholds == resolve_thresholds(job.config, job.baseline) == {"up": 0.6}
    assert make_job(plan.trials[0], job.baseline) == job
    assert set(job.baseline.rewards) == {"up"}
    assert job.baseline.rewards["up"].mean == pytest.approx(0.2 / 3)
