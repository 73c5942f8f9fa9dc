"""What a sweep came to, on simulated trials whose optimum is known."""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.pace import cpu_seconds

from orchestrator.frontier.comparison.comparison import compare
from orchestrator.frontier.comparison.sentence import sentence
from orchestrator.frontier.dominance import sought_rewards
from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.frontier.trials import Trials
from orchestrator.results.schema import Names, frontier_schema, trials_schema
from trainers.config import ObjectiveConfig

Simulate = Callable[..., Any]

LOOSE = {"right": 0.6, "near": -1.4}
TIGHT = {"right": 1.2, "near": -0.9}

NUMBER_OR_NULL = {"type": ["number", "null"]}
DOCUMENT = {
    "type": "object",
    "required": ["sweep", "reference_point", "methods", "bound"],
    "properties": {
        "sweep": {"type": "string"},
        "reference_point": {"type": "object", "required": ["kl"], "additionalProperties": NUMBER_OR_NULL},
        "bound": {
            "type": ["object", "null"],
            "required": ["gap", "kind"],
            "properties": {"gap": {"type": "number"}, "kind": {"enum": ["proven", "estimated"]}},
        },
        "methods": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["method", "hypervolume", "trials", "feasible", "front"],
                "properties": {
                    "method": {"type": "string"},
                    "hypervolume": {"type": "number"},
                    "trials": {"type": "integer"},
                    "feasible": {"type": "integer"},
                    "front": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["trial_id", "kl", "rewards", "feasible"],
                            "properties": {
                                "trial_id": {"type": "string"},
                                "kl": {"type": "number"},
                                "rewards": {"type": "object", "additionalProperties": {"type": "number"}},
                                "feasible": {"type": ["boolean", "null"]},
                            },
                        },
                    },
                },
            },
        },
    },
}


def summary(sweep: Any, thresholds: dict[str, float] = LOOSE, **changes: Any) -> FrontierSummary:
    trials = changes.pop("trials") if "trials" in changes else sweep.trials
    options = {
        "sweep": "demo",
        "baseline": sweep.baseline,
        "exact": sweep.exact,
    }
    config = sweep.config("constrained", thresholds, {}, 0)
    return summarise(Trials.of(trials, config), **(options | changes))


# ---------------------------------------------------------------------- the document and the table


def test_the_document_has_the_promised_shape(simulate: Simulate) -> None:
    sweep = simulate().grid()
    document = summary(sweep, planned={"constrained": 18, "weighted": 8}).to_json()
    jsonschema.validate(json.loads(json.dumps(document, allow_nan=False)), DOCUMENT)
    constrained, weighted = document["methods"]
    assert (constrained["method"], weighted["method"]) == ("constrained", "weighted")
    assert (constrained["trials"], constrained["planned"], constrained["feasible"]) == (18, 18, 18)
    asked = {name: pc.max(sweep.trials[f"threshold_{name}"]).as_py() for name in LOOSE}
    stds = {name: sweep.baseline.rewards[name].std for name in LOOSE}
    there = [
        row["kl"]
        for row in sweep.trials.to_pylist()
        if all(row[f"reward_{name}"] >= bound - 0.05 * stds[name] for name, bound in asked.items())
    ]
    assert document["reference_point"]["kl"] == pytest.approx(2.0 * min(there))
    assert document["reference_point"]["right"] == sweep.baseline.rewards["right"].mean
    for point in constrained["front"]:
        assert point["excess_kl"] == pytest.approx(point["kl"] - point["kl_least"])
        assert point["kl_ratio"] == pytest.approx(point["kl"] / point["kl_least"])
        assert set(point["multipliers"]) == set(point["thresholds"]) == {"right", "near"}
    assert [point["kl"] for point in weighted["front"]] == sorted(p["kl"] for p in weighted["front"])


def test_the_front_is_non_dominated_and_complete(simulate: Simulate) -> None:
    sweep = simulate().grid()
    method = summary(sweep).methods[0]
    rows = sweep.trials.filter(pc.equal(sweep.trials["method"], "constrained")).to_pylist()

    def beats(one: dict[str, float], two: dict[str, float]) -> bool:
        pairs = [(-one["kl"], -two["kl"])] + [(one[f"reward_{n}"], two[f"reward_{n}"]) for n in LOOSE]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    expected = {row["trial_id"] for row in rows if not any(beats(other, row) for other in rows)}
    assert {point.trial_id for point in method.front} == expected


def test_the_table_is_the_front(simulate: Simulate) -> None:
    sweep = simulate().grid()
    result = summary(sweep)
    table = result.to_table()
    assert table.schema.names == frontier_schema(Names(rewards=("right", "near"))).names
    assert table.num_rows == sum(len(method.front) for method in result.methods)
    volumes = {method.method: method.hypervolume for method in result.methods}
    assert {(row["method"], row["hypervolume"]) for row in table.to_pylist()} == set(volumes.items())
    assert set(table["reference_right"].to_pylist()) == {result.reference_point["right"]}
    stored = json.loads(table.schema.metadata[b"cdsweep.reference_point"])
    assert stored == dict(result.reference_point)


def test_least_kl_is_filled_in_on_the_fronts(simulate: Simulate) -> None:
    sweep = simulate()
    optimum = sweep.exact.least_kl(TIGHT)
    sweep.add("constrained", TIGHT, kl=1.2 * optimum.kl, rewards=optimum.rewards, with_least=False)
    point = summary(sweep).methods[0].front[0]
    assert point.kl_least is not None
    assert point.kl_least == pytest.approx(sweep.exact.least_kl(point.rewards).kl)
    without = summary(sweep, exact=None).methods[0].front[0]
    assert (without.kl_least, without.excess_kl) == (None, None)


def test_only_trials_that_succeeded_make_points(simulate: Simulate) -> None:
    sweep = simulate()
    sweep.constrained(LOOSE)
    for status in ("failed", "infeasible"):
        sweep.add("constrained", TIGHT, kl=0.0, rewards={"right": 9.0, "near": 0.0}, status=status)
    result = summary(sweep)
    method = result.methods[0]
    assert (method.trials, method.succeeded, len(method.front)) == (3, 1, 1)
    assert result.statuses == {"succeeded": 1, "failed": 1, "infeasible": 1}


@pytest.mark.parametrize(("boxes", "expected"), [(1, "One trial answers for"), (3, "3 trials answer for")])
def test_trials_for_a_box_alone_are_told(boxes: int, expected: str) -> None:
    found = sentence(
        cells=(),
        rivals=0,
        statuses=Counter({"succeeded": boxes}),
        planned=boxes,
        objective=None,
        ratios_to_exact=(),
        boxes=boxes,
    )
    assert found == f"{expected} a whole box of thresholds; there are no other trials to compare with."


def test_nothing_yet(simulate: Simulate) -> None:
    sweep = simulate()
    result = summary(
        sweep, trials=trials_schema(Names()).empty_table(), planned={"constrained": 4, "weighted": 2}
    )
    assert result.sentence() == "No trial has finished yet."
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    jsonschema.validate(document, DOCUMENT)
    assert [(m["method"], m["trials"], m["planned"]) for m in document["methods"]] == [
        ("constrained", 0, 4),
        ("weighted", 0, 2),
    ]
    assert document["bound"] is None
    assert result.to_table().num_rows == 0


# ---------------------------------------------------------------------- the bound


def test_the_gap_is_the_worst_excess_at_the_thresholds(simulate: Simulate) -> None:
    sweep = simulate(noise=1e-9)
    for thresholds, factor in ((LOOSE, 1.5), (TIGHT, 1.1)):
        optimum = sweep.exact.least_kl(thresholds)
        sweep.add("constrained", thresholds, kl=factor * optimum.kl, rewards=optimum.rewards)
    bound = summary(sweep).bound
    assert bound is not None
    costs = [sweep.exact.least_kl(thresholds).kl for thresholds in (LOOSE, TIGHT)]
    gaps = [0.5 * costs[0], 0.1 * costs[1]]
    assert bound.gap == pytest.approx(max(gaps), rel=1e-4)
    assert bound.ratio == pytest.approx((1.5, 1.1)[int(np.argmax(gaps))], rel=1e-4)
    assert (bound.kind, bound.trials) == ("proven", 2)


def test_a_shortfall_within_tolerance_does_not_shrink_the_gap(simulate: Simulate) -> None:
    sweep = simulate(noise=1e-9)
    short = {name: bound - 0.04 * sweep.baseline.rewards[name].std for name, bound in TIGHT.items()}
    cheap = sweep.exact.least_kl(short)
    sweep.add("constrained", TIGHT, kl=1.02 * cheap.kl, rewards=cheap.rewards)
    assert 1.02 * cheap.kl < sweep.exact.least_kl(TIGHT).kl
    result = summary(sweep)
    assert result.methods[0].feasible == 1
    assert result.bound is not None
    assert result.bound.gap == pytest.approx(0.02 * cheap.kl, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_gap_against_solving_every_trial(simulate: Simulate, seed: int) -> None:
    """The gap comes from few optima; all of them must give the same."""
    sweep = simulate(noise=0.02, rng=np.random.default_rng(seed))
    for _ in range(30):
        thresholds = {"right": sweep.rng.uniform(0.3, 1.5), "near": sweep.rng.uniform(-1.6, -0.6)}
        sweep.constrained(thresholds)
    gaps = []
    for row in sweep.trials.filter(sweep.trials["feasible"]).to_pylist():
        targets = {name: min(row[f"reward_{name}"], row[f"threshold_{name}"]) for name in LOOSE}
        gaps.append(row["kl"] - sweep.exact.least_kl(targets).kl)
    bound = summary(sweep).bound
    assert bound is not None
    assert bound.gap == pytest.approx(max(gaps), abs=2e-9)
    assert bound.trials == len(gaps)


def test_no_bound_without_a_closed_form_or_a_feasible_trial(simulate: Simulate) -> None:
    sweep = simulate()
    sweep.constrained(TIGHT, shift=-0.5)
    assert summary(sweep).bound is None
    sweep.constrained(TIGHT)
    assert summary(sweep).bound is not None
    assert summary(sweep, exact=None).bound is None


# ---------------------------------------------------------------------- comparison and sentence


def test_cells_average_over_seeds(simulate: Simulate) -> None:
    sweep = simulate().grid()
    trials = Trials.of(sweep.trials, sweep.config("constrained", LOOSE, {}, 0))
    cells, rivals = compare(trials, sweep.baseline)
    assert (len(cells), rivals) == (9, 4)
    for cell in cells:
        mine = [
            row["kl"]
            for row in sweep.trials.to_pylist()
            if row["method"] == "constrained"
            and all(row[f"threshold_{name}"] == bound for name, bound in cell.thresholds.items())
        ]
        assert cell.seeds == len(mine) == 2
        assert cell.kl == pytest.approx(np.mean(mine))
        assert cell.met
        if cell.ratio is not None:
            assert cell.rival_kl is not None
            assert cell.ratio == pytest.approx(cell.rival_kl / cell.kl)


def test_a_rival_must_meet_every_threshold(simulate: Simulate) -> None:
    sweep = simulate(noise=1e-6)
    cheap = sweep.exact.least_kl(LOOSE)
    dear = sweep.exact.least_kl({name: bound + 0.3 for name, bound in TIGHT.items()})
    for seed in (0, 1, 2):
        sweep.constrained(TIGHT, seed)
        sweep.add(
            "weighted",
            LOOSE,
            kl=cheap.kl,
            rewards=cheap.rewards,
            weights={"right": 0.1, "near": 0.1},
            seed=seed,
        )
        sweep.add(
            "weighted",
            LOOSE,
            kl=dear.kl,
            rewards=dear.rewards,
            weights={"right": 3.0, "near": 3.0},
            seed=seed,
        )
    trials = Trials.of(sweep.trials, sweep.config("constrained", TIGHT, {}, 0))
    (cell,), rivals = compare(trials, sweep.baseline)
    assert rivals == 2
    assert cell.rival_kl == pytest.approx(dear.kl)
    assert cell.rival is not None
    assert cell.rival["right"] == pytest.approx(3.0 / sweep.baseline.rewards["right"].std)
    assert cell.verdict == "constrained better"


def test_a_kl_budget_is_a_threshold_too(simulate: Simulate) -> None:
    """A reward objective under a KL budget: who spends more than the budget is no rival."""
    sweep = simulate(objective=ObjectiveConfig(kind="reward", target="right"), noise=1e-6)
    budget = {"kl": 0.3}
    best = sweep.exact.greatest_reward("right", 0.3)
    found = {"kl": 0.3, "rewards": best.rewards, "multipliers": {"kl": best.kl_multiplier}}
    for seed in (0, 1):
        sweep.add("constrained", budget, **found, seed=seed)
        sweep.add(
            "weighted",
            budget,
            kl=0.9,
            rewards={"right": 2.0, "near": -1.0},
            weights={"right": 2.0},
            seed=seed,
        )
    config = sweep.config("constrained", budget, {}, 0)
    assert sought_rewards(config) == ("right",)
    (cell,), _ = compare(Trials.of(sweep.trials, config), sweep.baseline)
    assert cell.verdict == "none meets"
    for seed in (0, 1):
        sweep.add(
            "weighted",
            budget,
            kl=0.2,
            rewards={"right": 0.5, "near": -1.0},
            weights={"right": 0.5},
            seed=seed,
        )
    (cell,), _ = compare(Trials.of(sweep.trials, config), sweep.baseline)
    assert cell.objective == pytest.approx(best.rewards["right"], abs=1e-4)
    assert cell.rival_objective == pytest.approx(0.5, abs=1e-4)
    result = summary(sweep, budget)
    less = (best.rewards["right"] - 0.5) / sweep.baseline.rewards["right"].std
    assert f"reached {less:.2f} σ less of right" in result.sentence()
    assert result.bound is not None  # at the reward reached, since the objective has no threshold
    assert result.bound.gap == pytest.approx(0.0, abs=1e-3)


def test_sentence_of_a_grid(simulate: Simulate) -> None:
    sweep = simulate().grid(scales=(0.25, 0.5, 1.0))
    text = summary(sweep).sentence()
    assert re.fullmatch(
        r"Constrained training met all 9 threshold combinations; "
        r"at \d of those no weighted setting \(of 3 tried\) met the thresholds; "
        r"at the other \d the cheapest weighted setting that met the thresholds paid "
        r"\d\.\d\d times its KL in the median \(\d\.\d\d to \d\.\d\d\)\.",
        text,
    ), text


def test_sentence_where_weights_do_as_well_or_better(simulate: Simulate) -> None:
    sweep = simulate(noise=1e-6)
    loose, tight = (sweep.exact.least_kl(thresholds) for thresholds in (LOOSE, TIGHT))
    for seed in (0, 1):
        for thresholds, optimum in ((LOOSE, loose), (TIGHT, tight)):
            sweep.add("constrained", thresholds, kl=1.3 * optimum.kl, rewards=optimum.rewards, seed=seed)
        sweep.add(
            "weighted",
            LOOSE,
            kl=tight.kl,
            rewards=tight.rewards,
            weights={"right": 1.0, "near": 1.0},
            seed=seed,
        )
    assert "at the other one weights did better" in summary(sweep).sentence()
    for seed in (0, 1):
        sweep.add("weighted", LOOSE, kl=1.3 * loose.kl, rewards=loose.rewards, seed=seed)
    text = summary(sweep).sentence()
    assert "at 1 of those weights did better" in text
    assert "at the other one the seeds do not tell it from weights that met the thresholds" in text


def test_sentence_where_constraints_are_missed(simulate: Simulate) -> None:
    sweep = simulate(noise=1e-6)
    sweep.constrained(TIGHT, shift=-0.5)
    sweep.constrained(LOOSE)
    optimum = sweep.exact.least_kl(TIGHT)
    sweep.add("weighted", LOOSE, kl=optimum.kl, rewards=optimum.rewards, weights={"right": 1.0, "near": 1.0})
    text = summary(sweep).sentence()
    assert text.startswith("Constrained training met 1 of 2 threshold combinations")
    assert "weights met 1 of the 1 that constrained training missed" in text


def test_sentence_without_one_of_the_methods(simulate: Simulate) -> None:
    sweep = simulate()
    sweep.constrained(TIGHT)
    text = summary(sweep, planned={"constrained": 1, "weighted": 3}).sentence()
    assert re.fullmatch(
        r"Constrained training met the thresholds; it paid 1\.\d\d times the least possible KL; "
        r"there are no weighted trials to compare with \(so far: 1 of 4 trials\)\.",
        text,
    ), text
    only_weighted = simulate()
    only_weighted.weighted({"right": 0.5, "near": 0.5}, LOOSE)
    assert "Only weighted trials succeeded (1 setting)" in summary(only_weighted).sentence()


def test_sentence_when_nothing_succeeded() -> None:
    text = sentence(
        cells=(),
        rivals=0,
        statuses=Counter(failed=2, infeasible=1),
        planned=5,
        objective=None,
        ratios_to_exact=(),
    )
    assert text == "No trial succeeded: 2 failed, 1 infeasible (so far: 3 of 5 trials)."


# ---------------------------------------------------------------------- size


def test_many_trials_are_summarised_quickly(simulate: Simulate) -> None:
    sweep = simulate().grid()
    many = pa.concat_tables([sweep.trials] * 770)  # 20,020 rows
    noise = np.random.default_rng(0).uniform(0.9, 1.1, many.num_rows)
    column = many.schema.get_field_index("kl")
    many = many.set_column(column, many.schema.field(column), pc.multiply(many["kl"], pa.array(noise)))
    seconds, rows = cpu_seconds(lambda: summary(sweep, trials=many)), cpu_seconds(many.to_pylist)
    assert seconds < rows, "less than a look at every row from Python"
