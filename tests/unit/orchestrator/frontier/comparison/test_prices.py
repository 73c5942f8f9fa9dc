"""Shadow prices on quadratic frontiers, ``P(r) = ½ r'Ar`` with prices ``Ar``, and from simulated trials."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.frontier.comparison.priced import PricedSettings, priced_settings
from orchestrator.frontier.comparison.prices import check_prices, neighbours
from orchestrator.frontier.trials import Trials
from trainers.config import ObjectiveConfig

Simulate = Callable[..., Any]

CURVATURE = np.array([[2.0, 0.6], [0.6, 1.0]])
GRID = np.array(list(itertools.product((0.2, 0.5, 0.8), (0.3, 0.6, 1.0))))
NAMES = ("right", "near")
PRETRAINED = np.array([0.25, -2.0])


def priced(reached: np.ndarray = GRID, noise: float = 0.0, seed: int = 0) -> PricedSettings:
    """Settings on the quadratic frontier; ``noise`` is relative, of KL and prices, and reported."""
    generator = np.random.default_rng(seed)
    kl, prices = 0.5 * np.einsum("ni,ij,nj->n", reached, CURVATURE, reached), reached @ CURVATURE
    return PricedSettings(
        rewards=NAMES,
        constraints=NAMES,
        targets=NAMES,
        thresholds=reached,
        signs=np.ones(2),
        seeds=np.ones(len(reached), dtype=np.int64),
        reached=reached + noise * generator.normal(size=reached.shape),
        reached_errors=np.full_like(reached, noise),
        kl=kl * (1.0 + noise * generator.normal(size=len(kl))),
        kl_errors=noise * kl,
        prices=prices * (1.0 + noise * generator.normal(size=prices.shape)),
        price_errors=noise * prices,
        others=np.zeros((0, 3)),
    )


# ---------------------------------------------------------------------- neighbours


@given(levels=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_neighbours_of_a_grid_with_holes(levels: list[int], seed: int) -> None:
    """Pairs differ in one threshold, with no other setting between them."""
    generator = np.random.default_rng(seed)
    grid = np.array(list(itertools.product(*(range(count) for count in levels))), dtype=float)
    grid = generator.permutation(grid[generator.uniform(size=len(grid)) < 0.8])
    expected = set()
    for (a, one), (b, two) in itertools.permutations(enumerate(grid), 2):
        (axes,) = np.nonzero(one != two)
        if len(axes) != 1 or one[axes[0]] > two[axes[0]]:
            continue
        between = [
            row for row in grid if (np.delete(row, axes) == np.delete(one, axes)).all()
            and one[axes[0]] < row[axes[0]] < two[axes[0]]
        ]  # fmt: skip
        if not between:
            expected.add((a, b, int(axes[0])))
    found = list(zip(*(column.tolist() for column in neighbours(grid)), strict=True))
    assert {pair for pair in found if pair[2] >= 0} == expected
    alone = set(range(len(grid))) - {row for a, b, _ in expected for row in (a, b)}
    diagonal = {row for a, b, axis in found if axis < 0 for row in (a, b)}
    assert len(grid) < 2 or alone <= diagonal


def test_scattered_settings_are_held_against_the_nearest() -> None:
    """Distances count in widths of the box: the second coordinate has a width of 100."""
    points = np.array([[0.0, 0.0], [0.3, 1.0], [1.0, 90.0], [0.9, 100.0]])
    first, second, axis = neighbours(points)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {(0, 1), (2, 3)}
    assert axis.tolist() == [-1, -1]


def test_a_missing_threshold_has_no_level() -> None:
    points = np.array([[0.1, np.nan], [0.2, np.nan], [0.2, 1.0]])
    first, second, axis = neighbours(points)
    assert list(zip(first.tolist(), second.tolist(), axis.tolist(), strict=True)) == [(0, 1, 0)]


# ---------------------------------------------------------------------- the check


def test_exact_prices_agree_with_the_finite_differences() -> None:
    """Of a quadratic the finite difference is the mean of what the two prices predict."""
    check = check_prices(priced())
    assert len(check.first) == 12
    np.testing.assert_allclose(check.paid, 0.5 * (check.least + check.most), atol=1e-12)
    assert (check.least < check.paid).all()
    assert (check.paid < check.most).all()
    assert not check.flagged.any()
    slopes = (check.paid / check.step)[check.constraint == 0]
    assert slopes[0] == pytest.approx(CURVATURE[0] @ [0.35, 0.3])


def test_a_wrong_multiplier_is_flagged_on_both_of_its_sides() -> None:
    right = priced(noise=1e-4)
    prices = right.prices.copy()
    prices[4] *= 2.0  # the setting in the middle
    check = check_prices(replace(right, prices=prices))
    pairs = {(int(a), int(b)) for a, b in zip(check.first, check.second, strict=True)}
    flagged = {
        (int(a), int(b)) for a, b in zip(check.first[check.flagged], check.second[check.flagged], strict=True)
    }
    assert {(4, 5), (4, 7)} <= pairs
    assert flagged == {(4, 5), (4, 7)}, "it predicts more than its tighter neighbours paid"
    prices[4] *= 0.25
    check = check_prices(replace(right, prices=prices))
    flagged = {
        (int(a), int(b)) for a, b in zip(check.first[check.flagged], check.second[check.flagged], strict=True)
    }
    assert flagged == {(1, 4), (3, 4)}, "it predicts less than was paid to come to it"


def test_a_dear_trial_is_flagged() -> None:
    right = priced(noise=1e-3)
    kl = right.kl.copy()
    kl[4] *= 1.5
    document = check_prices(replace(right, kl=kl)).to_json(right)
    assert document["pairs"] == 12
    assert 0 < document["flagged"] == len(document["worst"]) < 12
    assert {"right": 0.5, "near": 0.6} in (document["worst"][0]["looser"], document["worst"][0]["tighter"])
    deviations = [pair["deviations"] for pair in document["worst"]]
    assert deviations == sorted(deviations, reverse=True)
    assert min(deviations) > document["limit"] > 2.5


@pytest.mark.parametrize("noise", [0.003, 0.05])
def test_noise_alone_is_flagged_in_at_most_one_sweep_of_twenty(noise: float) -> None:
    fine = np.array(list(itertools.product(np.linspace(0.5, 0.52, 8), np.linspace(0.5, 0.52, 8))))
    alarms = sum(check_prices(priced(fine, noise, seed)).flagged.any() for seed in range(200))
    assert alarms <= 18  # 10 are expected at most; 18 has a chance of 1 %
    check = check_prices(priced(fine, noise, 0))
    inside = (check.least <= check.paid) & (check.paid <= check.most)
    assert not inside.all(), "the levels are so close that noise decides"


def test_what_noise_explains_is_not_flagged() -> None:
    wrong = priced(noise=1e-4)
    wrong = replace(wrong, prices=wrong.prices * np.where(np.arange(9) == 4, 2.0, 1.0)[:, None])
    assert check_prices(wrong).flagged.any()
    unsure = replace(wrong, price_errors=np.abs(wrong.prices))
    assert not check_prices(unsure).flagged.any()


def test_one_setting_has_no_neighbours() -> None:
    check = check_prices(priced(GRID[:1]))
    assert len(check.first) == 0
    assert check.to_json(priced(GRID[:1]))["flagged"] == 0


# ---------------------------------------------------------------------- from trials


def of(sweep: Any, thresholds: dict[str, float], **options: Any) -> PricedSettings:
    config = sweep.config("constrained", thresholds, {}, 0)
    return priced_settings(Trials.of(sweep.trials, config), PRETRAINED, **options)


def test_the_tangents_of_a_trial_that_missed_lie_below_all_that_was_measured(simulate: Simulate) -> None:
    """Multipliers that ran away from thresholds out of reach say nothing of what others reached for less."""
    sweep = simulate()
    sweep.weighted({"right": 1.0, "near": 1.0}, {"right": 0.8, "near": -1.2})
    missed = sweep.exact.least_kl({"right": 0.6, "near": -1.2})
    runaway = {"right": 300.0, "near": 9.0}
    asked = {"right": 3.0, "near": -1.0}
    sweep.add("constrained", asked, kl=missed.kl, rewards=missed.rewards, multipliers=runaway)
    found = of(sweep, asked)
    slopes, offsets = found.tangents
    assert slopes.max() == 300.0
    kl, reached = found.others[:, 0], found.others[:, 1:]
    assert len(kl) == 2, "the pretrained model, and the weighted trial"
    assert kl[0] == 0.0
    assert reached[0] == pytest.approx(PRETRAINED)
    [weighted] = [row for row in sweep.trials.to_pylist() if row["method"] == "weighted"]
    assert kl[1] == weighted["kl"]
    assert reached[1] == pytest.approx([weighted["reward_right"], weighted["reward_near"]])
    assert (kl[:, None] - reached @ slopes.T - offsets >= -1e-9).all()
    assert (found.kl[:, None] - found.reached @ slopes.T - offsets >= -1e-9).all()


def test_settings_are_means_over_seeds_with_their_errors(simulate: Simulate) -> None:
    sweep = simulate(noise=0.05)
    for seed in range(3):
        for right in (0.6, 0.9, 1.2):
            sweep.constrained({"right": right, "near": -1.2}, seed)
    sweep.weighted({"right": 1.0, "near": 1.0}, {"right": 0.6, "near": -1.2})
    sweep.add(
        "constrained",
        {"right": 0.9, "near": -1.2},
        kl=9.0,
        rewards=sweep.exact.least_kl({}).rewards,
        status="infeasible",
    )
    found = of(sweep, {"right": 0.6, "near": -1.2})
    rows = [row for row in sweep.trials.to_pylist() if row["threshold_right"] == 0.9 and row["kl"]]
    assert found.seeds.tolist() == [3, 3, 3]
    assert found.thresholds[1].tolist() == [0.9, -1.2]
    assert found.kl[1] == pytest.approx(np.mean([row["kl"] for row in rows]))
    assert found.reached[1, 0] == pytest.approx(np.mean([row["reward_right"] for row in rows]))
    assert found.prices[1, 0] == pytest.approx(np.mean([row["multiplier_right"] for row in rows]))
    evaluated = 0.05 * sweep.baseline.rewards["right"].std / np.sqrt(3)
    assert found.reached_errors[1, 0] >= 0.999 * evaluated, "never below that of the evaluation"


def test_the_spread_over_seeds_is_an_error(simulate: Simulate) -> None:
    sweep = simulate(noise=1e-6)
    generator = np.random.default_rng(0)
    optimum = sweep.exact.least_kl({"right": 0.9, "near": -1.2})
    factors = 1.0 + 0.1 * generator.normal(size=(40, 2))
    for seed, (dear, steep) in enumerate(factors):
        sweep.add(
            "constrained",
            {"right": 0.9, "near": -1.2},
            kl=dear * optimum.kl,
            rewards=optimum.rewards,
            multipliers={name: steep * value for name, value in optimum.multipliers.items()},
            seed=seed,
        )
    found = of(sweep, {"right": 0.9, "near": -1.2})
    spread = factors.std(axis=0, ddof=1) / np.sqrt(40)
    assert found.kl_errors[0] == pytest.approx(spread[0] * optimum.kl)
    assert found.price_errors[0, 0] == pytest.approx(spread[1] * optimum.multipliers["right"])


@pytest.mark.parametrize("last", [600, 300])
def test_one_seed_takes_the_noise_of_prices_from_the_history(simulate: Simulate, last: int) -> None:
    """Averaged over the last 180 steps, 30 % of those planned, also where the trial ended after 300."""
    sweep = simulate()
    sweep.constrained({"right": 0.9, "near": -1.2})
    (row,) = sweep.trials.to_pylist()
    steps = np.arange(1, last + 1)
    history = pa.table(
        {
            "trial_id": [row["trial_id"]] * last + ["another"],
            "step": [*steps, 1],
            "multiplier_right": [
                *np.where(steps > last - 90, 1.4, np.where(steps > last - 180, 1.0, 50.0)),
                9.0,
            ],
            "multiplier_near": [2.0] * (last + 1),
        }
    )
    thresholds = {"right": 0.9, "near": -1.2}
    assert of(sweep, thresholds).price_errors.tolist() == [[0.0, 0.0]]
    found = of(sweep, thresholds, history=history)
    assert found.price_errors[0] == pytest.approx([0.2, 0.0])
    others = history.filter(pc.equal(history["trial_id"], "another"))
    assert of(sweep, thresholds, history=others).price_errors.tolist() == [[0.0, 0.0]]


def test_under_a_reward_objective_prices_are_slopes_of_the_kl(simulate: Simulate) -> None:
    """The objective's own multiplier is the price of what it reached; that of the budget says the same."""
    sweep = simulate(objective=ObjectiveConfig(kind="reward", target="right"), noise=1e-7)
    for budget, near in itertools.product((0.2, 0.4, 0.8), (-1.4, -1.2)):
        best = sweep.exact.greatest_reward("right", budget, {"near": near})
        assert best.kl_multiplier is not None
        sweep.add(
            "constrained",
            {"kl": budget, "near": near},
            kl=budget,
            rewards=best.rewards,
            multipliers={
                "kl": best.kl_multiplier,
                "right": 1.0 / best.kl_multiplier,
                "near": best.multipliers["near"] / best.kl_multiplier,
            },
        )
    found = of(sweep, {"kl": 0.2, "near": -1.4})
    assert found.rewards == NAMES
    exact = sweep.exact.least_kl(dict(zip(NAMES, found.reached[0].tolist(), strict=True)))
    assert found.prices[0] == pytest.approx([exact.multipliers[name] for name in NAMES], rel=1e-3, abs=1e-4)
    check = check_prices(found)
    assert len(check.first) == 7
    assert not check.flagged.any()
    budgets = check.constraint == found.constraints.index("kl")
    assert (found.kl[check.first[budgets]] > found.kl[check.second[budgets]]).all(), (
        "less to spend is tighter"
    )
