"""Multipliers as functions of thresholds: hats, local means, even sequences, and a dual optimiser on them."""

import json

import numpy as np
import pytest

from trainers.config import DualConfig
from trainers.duality.box import MOST_MOVING, Box, scaled_gaps
from trainers.duality.constraint import Constraint
from trainers.duality.optimizers import DualAscent, NuPI


def box(moving: int, still: int = 0) -> Box:
    """A box whose thresholds run from j to j + 2, with others that stand still between them."""
    loosest = np.arange(moving + still, dtype=np.float64)
    tightest = loosest + np.array([2.0] * moving + [0.0] * still)
    order = np.random.default_rng(0).permutation(moving + still)
    return Box(loosest=loosest[order], tightest=tightest[order])


@pytest.mark.parametrize("moving", range(1, MOST_MOVING + 1))
def test_hats_are_shares_and_multilinear_functions_are_their_own(moving: int) -> None:
    found = box(moving, still=2)
    nodes, thresholds = found.nodes, found.spread(0, 500)
    assert len(nodes) <= 81
    np.testing.assert_array_equal(nodes[0], found.loosest)
    np.testing.assert_array_equal(nodes[-1], found.tightest)
    np.testing.assert_allclose(found.hats(nodes), np.eye(len(nodes)), atol=1e-12)
    hats = found.hats(thresholds)
    assert (hats >= 0).all()
    np.testing.assert_allclose(hats.sum(axis=1), 1.0)
    np.testing.assert_allclose(found.masses.sum(), 1.0)
    np.testing.assert_allclose(found.at(nodes.ravel(), thresholds), thresholds)  # λ(b) = b is multilinear
    np.testing.assert_allclose(found.mean(nodes.ravel()), (found.loosest + found.tightest) / 2)


@pytest.mark.parametrize(("moving", "draws"), [(1, 256), (2, 1024), (3, 4096)])
def test_any_stretch_of_the_sequence_is_spread_evenly(moving: int, draws: int) -> None:
    found = box(moving)
    for first, shift in ((0, 0.0), (12345, 0.7)):
        thresholds = found.spread(first, first + draws, shift)
        occupied = found.hats(thresholds).mean(axis=0)
        np.testing.assert_allclose(occupied, found.masses, atol=4 / draws)  # a few points
        assert (np.abs(thresholds.mean(axis=0) - (found.loosest + found.tightest) / 2) < 0.02).all()


def test_any_part_of_the_sequence_is_what_it_is_in_the_whole() -> None:
    found = box(2)
    whole = found.spread(0, 100, 0.3)
    np.testing.assert_array_equal(found.spread(40, 60, 0.3), whole[40:60])
    assert len(np.unique(whole, axis=0)) == 100


def test_local_means_are_those_of_the_neighbourhood() -> None:
    found = box(1, still=1)
    thresholds = found.spread(0, 20_000)
    moving = found.moving[0]
    values = np.stack([np.full(20_000, 3.0), thresholds[:, moving]], axis=1)
    local = found.local_means(thresholds, values).reshape(-1, 2)
    np.testing.assert_allclose(local[:, 0], 3.0, rtol=5e-3)
    nodes = found.nodes[:, moving]
    np.testing.assert_allclose(
        local[1:-1, 1], nodes[1:-1], rtol=5e-3
    )  # symmetric hats: the value at the node
    assert local[0, 1] > nodes[0]  # one-sided ones: a third of a cell inside
    assert local[0, 1] == pytest.approx(nodes[0] + (nodes[1] - nodes[0]) / 3, rel=5e-3)


def test_violations_have_the_threshold_of_each_sample() -> None:
    constraints = (
        Constraint(name="r", quantity="r", sign=-1.0, bound=9.0, scale=2.0, margin=0.1),
        Constraint(name="kl", quantity="kl", sign=1.0, bound=9.0, scale=1.0),
    )
    thresholds, values = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[2.0, 1.5], [2.0, 2.5]])
    np.testing.assert_allclose(
        scaled_gaps(constraints, thresholds, values), [[-0.5 + 0.1, -0.5], [0.5 + 0.1, 0.5]]
    )


@pytest.mark.parametrize("rule", [DualAscent, NuPI])
def test_an_ordinary_dual_optimizer_finds_a_function_that_is_cut_at_zero_and_winds_nothing_up(
    rule: type,
) -> None:
    """A reward of response 1 to its multiplier: g(b) = b − λ(b), so λ*(b) = [b]₊; a long time at 0, then b moves up."""
    low = Box(loosest=np.array([-1.0]), tightest=np.array([1.0]))
    constraint = (Constraint(name="r", quantity="r", sign=-1.0, bound=0.0, scale=1.0),)
    dual = rule(DualConfig(rate=0.2), np.zeros(len(low.nodes)))

    def steps(count: int, first: int, raised: float) -> None:
        for number in range(first, first + count):
            thresholds = low.spread(number * 64, number * 64 + 64)
            rewards = low.at(dual.multipliers, thresholds) - raised
            dual.step(low.local_means(thresholds, scaled_gaps(constraint, thresholds, rewards)))

    steps(300, 0, 0.0)
    asked = np.linspace(-1.0, 1.0, 41)[:, None]
    # Kinks are smoothed over a cell of a quarter.
    np.testing.assert_allclose(low.at(dual.multipliers, asked), np.maximum(asked, 0.0), atol=0.07)
    assert low.at(dual.multipliers, np.array([[-1.0]])) == 0.0
    steps(60, 300, 1.0)  # every threshold is 1 harder: what stood at 0 follows at once
    np.testing.assert_allclose(low.at(dual.multipliers, asked), asked + 1.0, atol=0.1)
    again = rule(DualConfig(rate=0.2), np.zeros(len(low.nodes)))
    again.load(json.loads(json.dumps(dual.state())))
    np.testing.assert_array_equal(again.multipliers, dual.multipliers)


def test_thresholds_outside_are_refused_and_so_is_a_box_that_does_not_move() -> None:
    with pytest.raises(ValueError, match="not all in the box"):
        box(1).hats(np.array([[-0.1]]))
    with pytest.raises(ValueError, match="1 to 6 thresholds of a box move, got 0"):
        box(0, still=2)
    with pytest.raises(ValueError, match="got 7"):
        box(7)
