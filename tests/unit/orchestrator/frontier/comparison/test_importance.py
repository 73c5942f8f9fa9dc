"""Shares of the cost against closed forms, a numerical integral, and the axioms they follow from."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.frontier.comparison.importance import importance, share_costs
from orchestrator.frontier.comparison.priced import PricedSettings

CURVATURE = np.array([[2.0, 0.6, -0.3], [0.6, 1.0, 0.0], [-0.3, 0.0, 0.5]])
NAMES = ("a", "b", "c")


def quadratic(side: int, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tangents of ``½ (r − start)'A(r − start)`` on a grid over the unit cube above the start."""
    way = np.array(list(itertools.product(np.linspace(0.0, 1.0, side), repeat=3)))
    slopes = way @ CURVATURE
    offsets = 0.5 * np.einsum("ni,ij,nj->n", way, CURVATURE, way) - (slopes * (way + start)).sum(axis=1)
    return slopes, offsets


def settings_of(reached: np.ndarray, thresholds: np.ndarray | None = None) -> PricedSettings:
    count = reached.shape[1]
    matrix = CURVATURE[:count, :count]
    errors = np.zeros_like(reached)
    return PricedSettings(
        rewards=NAMES[:count],
        constraints=NAMES[:count],
        targets=NAMES[:count],
        thresholds=reached if thresholds is None else thresholds,
        signs=np.ones(count),
        seeds=np.ones(len(reached), dtype=np.int64),
        reached=reached,
        reached_errors=errors,
        kl=0.5 * np.einsum("ni,ij,nj->n", reached, matrix, reached),
        kl_errors=errors[:, 0],
        prices=reached @ matrix,
        price_errors=errors,
        others=np.zeros((0, 1 + count)),
    )


@st.composite
def tangents(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Slopes, offsets, a start where nothing is above 0, and targets."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, size = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    slopes = generator.uniform(0, 3, (count, size)) * (generator.uniform(size=(count, size)) < 0.8)
    start = generator.normal(size=size)
    offsets = -slopes @ start - generator.exponential(0.5, count) * (generator.uniform(size=count) < 0.8)
    return slopes, offsets, start, start + generator.uniform(-0.5, 2.0, (5, size))


def test_a_quadratic_frontier_in_closed_form() -> None:
    """``φ_i = ½ d_i (A d)_i`` with ``d = b − b⁰``: half of threshold times price."""
    start = np.array([1.0, -2.0, 0.5])
    way = np.array([[1.0, 1.0, 1.0], [0.3, 0.9, 0.8], [1.0, 0.5, 0.2]])
    costs = share_costs(*quadratic(17, start), start, start + way)
    np.testing.assert_allclose(costs, 0.5 * way * (way @ CURVATURE), atol=0.01)
    np.testing.assert_allclose(
        costs.sum(axis=1), 0.5 * np.einsum("ni,ij,nj->n", way, CURVATURE, way), atol=0.003
    )


@given(case=tangents())
@settings(max_examples=100, deadline=None)
def test_shares_against_a_numerical_integral(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    slopes, offsets, start, targets = case
    costs = share_costs(slopes, offsets, start, targets)
    slopes, offsets = np.vstack([np.zeros(len(start)), slopes]), np.append(0.0, offsets)
    middles = (np.arange(4000) + 0.5) / 4000
    for target, cost in zip(targets, costs, strict=True):
        way = np.maximum(target - start, 0.0)
        leader = ((start + middles[:, None] * way) @ slopes.T + offsets).argmax(axis=1)
        np.testing.assert_allclose(cost, way * slopes[leader].mean(axis=0), atol=4e-3)


@given(case=tangents())
@settings(max_examples=100, deadline=None)
def test_shares_add_up_to_the_largest_tangent(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    slopes, offsets, start, targets = case
    costs = share_costs(slopes, offsets, start, targets)
    assert (costs >= 0).all()
    largest = np.maximum((np.maximum(targets, start) @ slopes.T + offsets).max(axis=1), 0.0)
    np.testing.assert_allclose(costs.sum(axis=1), largest, atol=1e-12)


@given(case=tangents(), units=st.lists(st.floats(0.01, 100.0), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_shares_do_not_depend_on_units(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], units: list[float]
) -> None:
    slopes, offsets, start, targets = case
    unit = np.array(units[: len(start)])
    np.testing.assert_allclose(
        share_costs(slopes / unit, offsets, start * unit, targets * unit),
        share_costs(slopes, offsets, start, targets),
        atol=1e-9,
    )


def test_what_does_not_bind_costs_nothing() -> None:
    """A threshold that others bring along has no price; one below the pretrained mean is met for nothing."""
    costs = share_costs(
        np.array([[2.0, 0.0]]), np.array([-1.0]), np.zeros(2), np.array([[1.0, 5.0], [-1.0, 5.0]])
    )
    assert costs.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_tangent_that_is_above_nothing_at_the_start_is_lowered() -> None:
    costs = share_costs(np.array([[1.0]]), np.array([0.3]), np.zeros(1), np.array([[1.0]]))
    assert costs.tolist() == [[1.0]]


# ---------------------------------------------------------------------- of settings


def test_importance_of_a_sweep() -> None:
    grid = np.array(list(itertools.product(np.linspace(0.1, 1.0, 10), repeat=2)))
    found = importance(settings_of(grid), np.zeros(2))
    exact = 0.5 * grid * (grid @ CURVATURE[:2, :2])
    np.testing.assert_allclose(found.share, exact.sum(axis=0) / exact.sum(), atol=0.01)
    np.testing.assert_allclose(found.share_at_tightest, [2.6 / 4.2, 1.6 / 4.2], atol=0.01)
    assert found.share.sum() == pytest.approx(1.0)
    document = found.to_json()
    assert document["a"]["share"] > document["b"]["share"]
    assert document["a"]["low"] < 0.2, "at (0.1, 1)"
    assert document["a"]["high"] > 0.9, "at (1, 0.1)"


def test_thresholds_are_shared_and_not_what_was_reached() -> None:
    """The third reward comes along, far above its threshold; without one, what was reached counts."""
    reached = np.array([[0.5, 0.4], [1.0, 0.9]])
    asked = np.array([[0.5, 0.1], [1.0, np.nan]])
    np.testing.assert_array_equal(
        importance(settings_of(reached, asked), np.zeros(2)).targets, [[0.5, 0.1], [1.0, 0.9]]
    )


def test_nothing_costs_anything() -> None:
    found = importance(settings_of(np.full((1, 2), -1.0)), np.zeros(2))
    assert np.isnan(found.share).all()


def test_a_noisy_tangent_does_not_overrule_the_settings() -> None:
    """One multiplier is ten times too large: its tangent is lowered until no setting lies below it."""
    grid = np.array(list(itertools.product(np.linspace(0.1, 1.0, 10), repeat=2)))
    right = settings_of(grid)
    right.prices[0] *= 10.0
    found = importance(right, np.zeros(2))
    totals = 0.5 * np.einsum("ni,ij,nj->n", grid, CURVATURE[:2, :2], grid)
    assert (found.costs.sum(axis=1) <= totals + 1e-12).all()
    np.testing.assert_allclose(found.costs.sum(axis=1), totals, atol=0.02)
