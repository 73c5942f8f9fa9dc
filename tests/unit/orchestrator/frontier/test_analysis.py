"""The analysis of simulated sweeps, and that nothing large slows the summary down."""

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from support.models.compositions import SPEC, THRESHOLD, plan_of, table_of

from orchestrator.frontier.analysis import FrontierAnalysis, analyse
from orchestrator.frontier.bounds.excess import UpperBound
from orchestrator.frontier.comparison.comparison import _cheapest
from orchestrator.frontier.problems.chosen import exact_baseline
from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.frontier.trials import Trials
from orchestrator.results.schema import Names, trials_schema
from trainers.config import ObjectiveConfig

Simulate = Callable[..., Any]

LOOSE = {"right": 0.6, "near": -1.4}


def mixing(kl: np.ndarray, rewards: np.ndarray) -> UpperBound:
    """Least KL of a mixture, by a linear program of the tests' own."""

    def upper(thresholds: np.ndarray) -> np.ndarray:
        solved = [
            linprog(
                kl, A_ub=-rewards.T, b_ub=-asked, A_eq=np.ones((1, len(kl))), b_eq=[1.0], bounds=(0, None)
            )
            for asked in thresholds
        ]
        return np.array([found.fun if found.success else np.inf for found in solved])

    return upper


@pytest.fixture(autouse=True)
def _few_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.frontier.bounds.judged.THRESHOLDS", 12)


def analysis(sweep: Any, thresholds: dict[str, float] = LOOSE, **changes: Any) -> FrontierAnalysis:
    trials = changes.pop("trials") if "trials" in changes else sweep.trials
    options = {"baseline": sweep.baseline, "exact": sweep.exact}
    config = sweep.config("constrained", thresholds, {}, 0)
    return analyse(Trials.of(trials, config), **(options | changes))


def summary_of(sweep: Any, table: pa.Table | None = None) -> FrontierSummary:
    config = sweep.config("constrained", LOOSE, {}, 0)
    trials = Trials.of(sweep.trials if table is None else table, config)
    return summarise(trials, sweep="demo", baseline=sweep.baseline)


def in_order(trials: pa.Table, order: list[int]) -> pa.Table:
    """The trials, finished in this order of their rows."""
    ranks = np.empty(trials.num_rows, dtype=int)
    ranks[order] = np.arange(trials.num_rows)
    times = [datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=int(rank)) for rank in ranks]
    column = trials.schema.get_field_index("finished_at")
    field = trials.schema.field(column)
    return trials.set_column(column, field, pa.array(times, field.type))


# ---------------------------------------------------------------------- all of it


def test_the_document(simulate: Simulate) -> None:
    sweep = simulate().grid(seeds=(0, 1, 2))
    result = analysis(sweep, mixing=mixing)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    summary = summary_of(sweep)
    assert document["reference_point"] == pytest.approx(dict(summary.reference_point))
    constrained, weighted = document["methods"]
    assert (constrained["method"], weighted["method"]) == ("constrained", "weighted")
    assert constrained["seeds"] == [0, 1, 2]
    volume = constrained["hypervolume"]
    assert volume["kind"] == "seeds"
    assert volume["low"] < volume["mean"] < volume["high"]
    # The union of the seeds' fronts dominates each of them, and their mean.
    assert volume["mean"] < max(volume["by_run"]) <= summary.methods[0].hypervolume
    for name in LOOSE:
        levels = [(surface["level"], surface["of"]) for surface in constrained["attainment"][name]]
        assert levels == [(1, 3), (2, 3), (3, 3)]
        best, _, worst = (surface["points"] for surface in constrained["attainment"][name])
        rewards = pc.max(
            pc.filter(sweep.trials[f"reward_{name}"], pc.equal(sweep.trials["method"], "constrained"))
        )
        assert max(point[1] for point in best) == pytest.approx(rewards.as_py())
        assert max(point[1] for point in worst) < rewards.as_py()
        # Of KL and one reward alone, weights on that reward do as well; the shares are of three seeds each.
        shares = {rectangle[4] for rectangle in document["differences"][name]["rectangles"]}
        assert all(min(abs(3 * share - whole) for whole in range(-3, 4)) < 1e-9 for share in shares)
    assert document["prices"]["pairs"] == 12
    assert sum(found["share"] for found in document["importance"].values()) == pytest.approx(1.0)
    assert document["box"]["least_kl"] == "proven"
    assert constrained["excess"]["reached"] == 1.0
    assert set(constrained["excess_by_seed"]) == {"0", "1", "2"}


def test_hypervolume_of_one_seed_is_that_of_the_summary(simulate: Simulate) -> None:
    sweep = simulate().grid(seeds=(4,))
    summary = summary_of(sweep)
    for method, summarised in zip(analysis(sweep).methods, summary.methods, strict=True):
        assert method.hypervolume.mean == pytest.approx(summarised.hypervolume)
        assert method.hypervolume.kind == "standard errors"


def test_importance_of_the_exact_problem(simulate: Simulate) -> None:
    """The integral of the exact prices, from the pretrained means to the tightest thresholds."""
    sweep = simulate(noise=1e-9, excess=1.0).grid(sigmas=np.linspace(0.1, 0.9, 6), scales=(), seeds=(0,))
    columns = [sweep.trials[f"threshold_{name}"].to_numpy() for name in LOOSE]
    start = np.array([sweep.baseline.rewards[name].mean for name in LOOSE])
    way = np.array([column.max() for column in columns]) - start
    costs = np.zeros(2)
    for part in (np.arange(40) + 0.5) / 40:
        optimum = sweep.exact.least_kl(dict(zip(LOOSE, start + part * way, strict=True)))
        costs += way * [optimum.multipliers[name] for name in LOOSE] / 40
    found = analysis(sweep).importance
    assert found is not None
    assert found.share_at_tightest == pytest.approx(costs / costs.sum(), abs=0.03)


# ---------------------------------------------------------------------- excess


def test_excess_against_the_exact_optimum(simulate: Simulate) -> None:
    """Trials pay 30 % too much; the box ends where feasible trials are."""
    sweep = simulate(noise=1e-6, excess=1.3).grid(seeds=(0,))
    result = analysis(sweep, mixing=mixing)
    judged, method = result.judged, result.methods[0]
    assert judged is not None
    assert method.curve is not None
    misses = [0.05 * sweep.baseline.rewards[name].std for name in LOOSE]
    tight = [pc.max(sweep.trials[f"threshold_{name}"]).as_py() for name in LOOSE]
    assert judged.high == pytest.approx(np.array(tight) - misses)
    exact = [
        sweep.exact.least_kl(dict(zip(LOOSE, row, strict=True))).kl for row in judged.thresholds.tolist()
    ]
    assert judged.least == pytest.approx(exact)
    assert 0.2 * max(exact) < method.curve.last.excess < 0.5 * max(exact)
    estimated = analysis(sweep, mixing=mixing, exact=None)
    assert estimated.judged is not None
    assert estimated.judged.kind == "estimated"
    dearer = estimated.judged.least / judged.least
    assert (dearer > 1.1).mean() > 0.3, "their own tangents do not show what all of them pay"
    assert dearer.max() < 1.3, "nor more than that"
    given_bound = analysis(
        sweep, mixing=mixing, exact=None, least=lambda thresholds: np.zeros(len(thresholds))
    )
    assert given_bound.judged is not None
    assert (given_bound.judged.least == 0).all()


def test_a_single_threshold_grants_the_tolerance_too(simulate: Simulate) -> None:
    """A feasible trial, short of its thresholds by half of what it may miss, reaches all of a box of one point."""
    sweep = simulate(noise=1e-9, excess=1.0).grid(sigmas=np.array([0.5]), scales=(), seeds=(0,))
    misses, trials = {name: 0.05 * sweep.baseline.rewards[name].std for name in LOOSE}, sweep.trials
    asked = {name: trials[f"threshold_{name}"][0].as_py() for name in LOOSE}
    for name, miss in misses.items():
        place = trials.schema.get_field_index(f"reward_{name}")
        short = pa.array([asked[name] - miss / 2], trials.schema.field(place).type)
        trials = trials.set_column(place, trials.schema.field(place), short)
    result = analysis(sweep, trials=trials, mixing=mixing)
    assert result.judged is not None
    at = [asked[name] - misses[name] for name in LOOSE]
    assert result.judged.low == pytest.approx(at)
    assert result.judged.high == pytest.approx(at)
    curve = result.methods[0].curve
    assert curve is not None
    assert curve.last.reached == 1.0
    assert 0 < curve.last.excess < 0.1


def test_curves_follow_the_order_of_finishing(simulate: Simulate) -> None:
    """Of the right order alone a mixture of the first trials reaches the whole box."""
    sweep = simulate(noise=1e-6).grid(scales=(), seeds=(0,))
    cheapest = np.argsort(sweep.trials["kl"].to_numpy()).tolist()
    for place in (0, 3, 6):
        order = [*cheapest[:-1][:place], cheapest[-1], *cheapest[:-1][place:]]
        (method,) = analysis(sweep, mixing=mixing, trials=in_order(sweep.trials, order)).methods
        assert method.curve is not None
        assert (np.isfinite(method.curve.excess)).tolist() == [False] * place + [True] * (9 - place)


def test_failed_trials_count_in_the_curve(simulate: Simulate) -> None:
    sweep = simulate(noise=1e-6)
    rewards = sweep.exact.least_kl(LOOSE).rewards
    for _ in range(2):
        sweep.add("constrained", LOOSE, kl=0.0, rewards=rewards, status="failed", seed=0)
    for seed in (0, 1):
        sweep.constrained(LOOSE, seed, shift=0.1)
    (method,) = analysis(sweep, mixing=mixing, trials=in_order(sweep.trials, [0, 1, 2, 3])).methods
    assert method.curve is not None
    assert method.curve.trials_to(10.0) == 3
    assert {seed: curve.trials_to(10.0) for seed, curve in method.curves.items()} == {0: 3, 1: 1}


# ---------------------------------------------------------------------- what is not there


def test_nothing_yet(simulate: Simulate) -> None:
    result = analysis(simulate(), trials=trials_schema(Names()).empty_table(), mixing=mixing)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["methods"] == []
    assert (document["prices"], document["importance"], document["box"]) == (None, None, None)


def test_only_weighted_trials(simulate: Simulate) -> None:
    sweep = simulate()
    sweep.weighted({"right": 1.0, "near": 1.0}, LOOSE)
    result = analysis(sweep, mixing=mixing)
    assert [method.method for method in result.methods] == ["weighted"]
    assert result.methods[0].hypervolume.mean > 0
    assert (result.prices, result.importance, result.judged, dict(result.differences)) == (
        None,
        None,
        None,
        {},
    )


def test_a_seed_whose_trials_all_failed_attains_nothing(simulate: Simulate) -> None:
    sweep = simulate()
    sweep.constrained(LOOSE, 0)
    sweep.add(
        "constrained", LOOSE, kl=0.0, rewards=sweep.exact.least_kl(LOOSE).rewards, status="failed", seed=1
    )
    (method,) = analysis(sweep).methods
    assert method.hypervolume.by_run[1] == 0.0
    assert [len(surface.points) for surface in method.surfaces["right"]] == [1, 0]


def test_a_reward_objective_has_prices_but_no_box(simulate: Simulate) -> None:
    sweep = simulate(objective=ObjectiveConfig(kind="reward", target="right"), noise=1e-6)
    for budget in (0.2, 0.4, 0.8):
        best = sweep.exact.greatest_reward("right", budget)
        assert best.kl_multiplier is not None
        prices = {"kl": best.kl_multiplier, "right": 1.0 / best.kl_multiplier}
        sweep.add("constrained", {"kl": budget}, kl=budget, rewards=best.rewards, multipliers=prices)
    result = analysis(sweep, {"kl": 0.2}, mixing=mixing)
    assert result.judged is None
    assert result.importance is not None
    assert result.importance.share.tolist() == [1.0]
    assert result.prices is not None
    assert len(result.prices.first) == 2
    assert not result.prices.flagged.any()


@pytest.mark.parametrize("rewards", ["", THRESHOLD])
def test_compositions_have_hypervolumes_but_no_prices(rewards: str) -> None:
    plan = plan_of(SPEC + rewards)
    config = plan.trials[0].config
    baseline = exact_baseline(config)
    assert baseline is not None
    result = analyse(Trials.of(table_of(plan.trials), config), baseline=baseline, mixing=mixing)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    constrained, weighted = document["methods"]
    assert constrained["hypervolume"]["mean"] >= weighted["hypervolume"]["mean"] > 0
    assert document["prices"] is None
    assert set(constrained["attainment"]) == ({"up"} if rewards else set())


# ---------------------------------------------------------------------- large summaries


@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 30), size=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_the_cheapest_rival_against_the_definition(seed: int, levels: int, size: int) -> None:
    """Thresholds on a grid and scattered ones take different ways."""
    generator = np.random.default_rng(seed)
    count, rivals = generator.integers(1, 30, 2)
    asked = generator.integers(0, levels, (count, size)) / levels
    asked[generator.uniform(size=asked.shape) < 0.1] = -np.inf
    reach = generator.integers(0, levels + 1, (rivals, size)) / levels
    reach[generator.uniform(size=reach.shape) < 0.1] = -np.inf
    costs = generator.integers(0, 5, rivals).astype(float)
    costs[generator.uniform(size=rivals) < 0.2] = np.nan
    expected = []
    for row in asked:
        able = [i for i in range(rivals) if (row <= reach[i]).all() and np.isfinite(costs[i])]
        expected.append(min(able, key=lambda i: (costs[i], i)) if able else -1)
    assert _cheapest(asked, reach, costs).tolist() == expected


def test_a_front_is_a_sequence_of_points(simulate: Simulate) -> None:
    sweep = simulate().grid()
    summary = summary_of(sweep)
    front = summary.methods[0].front
    points = list(front)
    assert len(points) == len(front) > 5
    assert [front[place] for place in range(-len(front), len(front))] == points * 2
    assert list(front.take(np.arange(1, 4))) == points[1:4]
    with pytest.raises(IndexError):
        front[len(front)]


def test_many_distinct_settings_are_compared_like_few(simulate: Simulate) -> None:
    """Cells of a large sweep are those of the same settings on their own."""
    sweep = simulate(noise=0.01)
    levels = {"right": np.linspace(0.4, 1.2, 6), "near": np.linspace(-1.5, -0.9, 6)}
    for seed in (0, 1, 2):
        for right, near in itertools.product(*levels.values()):
            sweep.constrained({"right": right, "near": near}, seed)
        for right, near in itertools.product(np.geomspace(0.1, 2.0, 5), repeat=2):
            sweep.weighted({"right": right, "near": near}, LOOSE, seed)
    cells = summary_of(sweep).cells
    assert len(cells) == 36
    assert len({cell.verdict for cell in cells}) > 1
    weighted = sweep.trials.filter(pc.equal(sweep.trials["method"], "weighted"))
    for cell in cells[::7]:
        mine = pc.and_(
            pc.equal(sweep.trials["threshold_right"], cell.thresholds["right"]),
            pc.equal(sweep.trials["threshold_near"], cell.thresholds["near"]),
        )
        alone = pa.concat_tables([sweep.trials.filter(mine), weighted])
        assert summary_of(sweep, alone).cells[:1] == (cell,)
