"""What a composition sweep came to, on simulated trials at exact compositions."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.models import network_outcomes as networks
from support.models.compositions import SPEC, THRESHOLD, outcome_of, plan_of, row_of, table_of
from support.models.networks import PROMPTS
from support.pace import cpu_seconds

from orchestrator.frontier.composed import settings
from orchestrator.frontier.problems.chosen import exact_baseline, exact_composition
from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.frontier.trials import Trials
from orchestrator.plan import Plan
from orchestrator.results.schema import Names, trials_schema


def summary(plan: Plan, table: pa.Table | None = None, **changes: Any) -> FrontierSummary:
    config = plan.trials[0].config
    options: dict[str, Any] = {
        "sweep": "composed",
        "baseline": exact_baseline(config),
        "exact": exact_composition(config),
        "planned": Counter(trial.config.method for trial in plan.trials),
    }
    trials = Trials.of(table_of(plan.trials) if table is None else table, config)
    return summarise(trials, **(options | changes))


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_summary(direction: str) -> None:
    plan = plan_of(SPEC.replace("reverse", direction))
    result = summary(plan)
    exact = exact_composition(plan.trials[0].config)
    assert exact is not None
    radius = exact.optimum().radius
    assert result.bound is not None
    assert (result.bound.kind, result.bound.trials) == ("proven", 2)
    assert result.bound.gap == pytest.approx(0.01, abs=1e-4)
    assert result.bound.ratio == pytest.approx((radius + 0.01) / radius, abs=1e-3)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["composition"]["direction"] == direction
    assert set(document["reference_point"]) == {"kl"}
    constrained, weighted = document["methods"]
    assert (constrained["method"], weighted["method"]) == ("constrained", "weighted")
    assert constrained["hypervolume"] > weighted["hypervolume"] > 0
    for point in constrained["front"] + weighted["front"]:
        assert point["rewards"] == {}
        assert point["kl"] == max(point["kls"].values())
        assert sum(point["weights"].values()) == pytest.approx(1.0)
        assert point["excess_kl"] == pytest.approx(point["kl"] - radius, abs=1e-4)
    assert result.to_table().num_rows == 4
    assert result.to_table()["kl_c"].null_count == 0


def test_the_sentence() -> None:
    plan = plan_of()
    assert summary(plan).sentence() == (
        "The constrained composition keeps every model within 1.12 nats (exact least maximum 1.11); "
        "equal weights leave c at 1.90, 1.7 times as far."
    )
    first = plan.trials[:1]
    assert summary(plan, table_of(first)).sentence() == (
        "The constrained composition keeps every model within 1.12 nats (exact least maximum 1.11); "
        "there are no weighted trials to compare with (so far: 1 of 4 trials)."
    )
    assert "Only weighted trials succeeded" in summary(plan, table_of(plan.trials[2:])).sentence()
    several = plan_of(SPEC.replace("equal}", "{a: 0.5, c: 0.5}}\n  - weighted: {weights: equal}"))
    assert "the best of 2 weightings (weights a 0.5, b 0, c 0.5) leaves c" in summary(several).sentence()


def test_nothing_yet_and_nothing_but_failures() -> None:
    plan = plan_of()
    empty = summary(plan, trials_schema(Names()).empty_table())
    assert empty.sentence() == "No trial has finished yet."
    assert empty.bound is None
    failed = row_of(plan.trials[0], outcome_of(plan.trials[0], status="failed"))
    result = summary(plan, failed)
    assert result.sentence() == "No trial succeeded: 1 failed (so far: 1 of 4 trials)."
    json.dumps(result.to_json(), allow_nan=False)


def test_rewards_beside_the_models() -> None:
    plan = plan_of(SPEC + THRESHOLD)
    result = summary(plan)
    constrained, weighted = result.methods
    assert (constrained.feasible, weighted.feasible) == (2, 0)
    assert len(weighted.front) == 1, "the nearest of those that miss a threshold"
    assert constrained.front[0].thresholds == {"up": 0.6}
    assert constrained.front[0].multipliers["up"] > 0
    assert set(result.reference_point) == {"kl", "up"}
    assert "no weighted setting (of 1 tried) met the loosest thresholds" in result.sentence()
    grid = plan_of(SPEC + THRESHOLD.replace("0.6", "{grid: [0.2, 0.6]}"))
    assert "met 2 of 2 threshold combinations" in summary(grid).sentence()


def test_the_least_is_found_where_it_is_not_stored() -> None:
    for text in (SPEC, SPEC + THRESHOLD):
        plan = plan_of(text)
        stored, found = summary(plan), summary(plan, table_of(plan.trials, with_least=False))
        assert stored.bound is not None
        assert found.bound is not None
        assert found.bound.gap == pytest.approx(stored.bound.gap, abs=1e-4)


def test_without_an_exact_solution() -> None:
    plan = plan_of()
    result = summary(plan, table_of(plan.trials, with_least=False), exact=None)
    assert result.bound is None
    assert np.isnan(result.points.least).all()
    assert "within 1.12 nats; equal" in result.sentence()


def test_a_shortfall_does_not_look_like_skill() -> None:
    exact = exact_composition(plan_of(SPEC + THRESHOLD).trials[0].config)
    assert exact is not None
    assert exact.held({"up": 0.6}, {"up": 0.5}) == {"up": 0.5}
    assert exact.held({"up": 0.6}, {"up": 0.7}) == {"up": 0.6}


def test_out_of_reach() -> None:
    exact = exact_composition(plan_of(SPEC + THRESHOLD).trials[0].config)
    assert exact is not None
    assert not exact.least_kl({"up": 100.0}).reachable


def test_offsets() -> None:
    plan = plan_of(SPEC.replace("direction: reverse", "offsets: {c: 0.2}"))
    exact = exact_composition(plan.trials[0].config)
    assert exact is not None
    optimum = exact.optimum()
    assert exact.least_kl({}).kl == max(optimum.kl.values()) > optimum.radius


def test_no_oracle_is_needed() -> None:
    text = SPEC.replace("reverse", "forward")
    for old, new in (("0.0]]", "0.0, 0.0]]"), ("0.2]]", "0.2, 0.0]]")):
        text = text.replace(old, new)
    identity = "[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]"
    text = "".join(
        line.split("covariances")[0] + f"covariances: {identity}}}}}\n" if "covariances" in line else line
        for line in text.splitlines(keepends=True)
    )
    assert exact_composition(plan_of(text).trials[0].config) is None


def test_many_trials_are_summarised_quickly() -> None:
    plan = plan_of()
    table = pa.concat_tables([table_of(plan.trials)] * 500)
    seconds, rows = cpu_seconds(lambda: summary(plan, table)), cpu_seconds(table.to_pylist)
    assert seconds < rows, "less than a look at every row from Python"


# ------------------------------------------------------------------------------------------- networks


def network_summary(plan: Plan) -> FrontierSummary:
    return summary(plan, networks.table_of(plan.trials), baseline=networks.baseline_of(plan))


def test_networks_have_no_exact_answer() -> None:
    config = networks.plan_of().trials[0].config
    assert exact_composition(config) is None
    assert exact_baseline(config) is None, "it is sampled"
    bare = networks.plan_of(
        networks.SPEC.replace("rewards: [saturation]", "rewards: []").replace(
            ", rewards: [colourfulness, saturation]", ""
        )
    )
    found = exact_baseline(bare.trials[0].config)
    assert found is not None
    assert found.rewards == {}


def test_settings_of_one_weighting_are_told_apart_by_their_sampler() -> None:
    plan = networks.plan_of(networks.SPEC + "seeds: [0, 1]\n")
    for trials in (plan.trials, tuple(reversed(plan.trials))):
        found = settings(Trials.of(networks.table_of(trials), trials[0].config))
        assert [(s.method, s.sampler) for s in found] == [
            ("constrained", None),
            ("weighted", None),
            ("weighted", "merged"),
        ]
        assert found[1].label == "equal weights"
        assert found[2].label == "equal weights, merged"
        assert found[2].kls == networks.KLS["merged"]
        assert found[2].retention == pytest.approx(networks.RETAINED["merged"])
        assert found[2].least_retained == "bright"
        # Two seeds of standard error 0.02 / 1.96.
        assert found[0].retention_error["vivid"] == pytest.approx(0.02 / 1.96 / 2**0.5, rel=1e-3)
        assert "crisp" not in found[0].retention, "nothing judges it"


def test_a_baseline_alone_is_named() -> None:
    text = networks.SPEC.replace("  - constrained\n  - weighted: {weights: equal}\n", "")
    plan = networks.plan_of(text)
    [only] = settings(Trials.of(networks.table_of(plan.trials), plan.trials[0].config))
    assert only.label == "equal weights, merged"
    prompts = PROMPTS.replace("{weights: equal}", "{weights: equal, sampler: joint}")
    plan = networks.plan_of(prompts)
    assert (
        settings(Trials.of(networks.table_of(plan.trials), plan.trials[0].config))[1].label
        == "one joint prompt"
    )
    assert "; one joint prompt leaves" in network_summary(plan).sentence()


def test_an_or_has_one_way_to_be_sampled() -> None:
    text = networks.SPEC.replace("crisp]}", "crisp], direction: forward}").split(
        "  - weighted: {weights: equal, s"
    )[0]
    plan = networks.plan_of(text)
    found = settings(Trials.of(networks.table_of(plan.trials), plan.trials[0].config))
    assert [s.label for s in found if s.method == "weighted"] == ["equal weights"]
    assert "exact" not in network_summary(plan).sentence()


def test_the_sentence_says_what_is_retained() -> None:
    text = network_summary(networks.plan_of()).sentence()
    assert text == (
        "The constrained composition keeps every model within 1.02 nats; the best of 2 weightings (equal weights) "
        "leaves crisp at 1.52, 1.5 times as far. Of every model's improvement over the pretrained one, the "
        "constrained composition keeps at least 80% (bright), equal weights keep at least 80% (bright), equal "
        "weights, merged keep at least -20% (bright)."
    )


def test_the_document_of_networks() -> None:
    result = network_summary(networks.plan_of())
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["bound"] is None
    assert document["composition"]["models"] == ["vivid", "bright", "crisp"]
    constrained, weighted = document["methods"]
    assert constrained["front"][0]["kls"] == networks.KLS["fkc"]
    assert len(weighted["front"]) == 2
    assert result.to_table().num_rows == 3


def test_mixtures_are_told_apart_by_their_sampler_too() -> None:
    """Simulated trials are all of one sampler: the column says otherwise of the last."""
    plan = plan_of()
    table = table_of(plan.trials)
    other = table.set_column(
        table.column_names.index("sampler"), "sampler", pa.array(["fkc", "fkc", "fkc", "ula"])
    )
    found = settings(Trials.of(other, plan.trials[0].config))
    assert [setting.label for setting in found if setting.method == "weighted"] == [
        "equal weights",
        "equal weights, ula",
    ]


def test_nearly_as_far() -> None:
    plan = networks.plan_of(networks.SPEC)
    table = networks.table_of(plan.trials)
    near = table.set_column(table.column_names.index("kl"), "kl", pa.array([1.02, 1.06, 3.0]))
    text = summary(plan, near, baseline=networks.baseline_of(plan)).sentence()
    assert "1.04 times as far" in text


def test_a_trial_for_all_weights_stands_for_the_constrained_composition_where_there_is_none() -> None:
    text = networks.SPEC + "distillation: {}\n"
    alone = networks.plan_of(text.replace("  - constrained\n", "  - frontier: {}\n"))
    both = networks.plan_of(text.replace("  - constrained\n", "  - constrained\n  - frontier: {}\n"))
    usual = networks.plan_of(text)
    expected = settings(Trials.of(networks.table_of(usual.trials), usual.trials[0].config))
    for plan in (alone, both):
        assert settings(Trials.of(networks.table_of(plan.trials), plan.trials[0].config)) == expected
