"""Dominance, hypervolume and feasibility against definitions and by their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from orchestrator.frontier.dominance import non_dominated, to_minimise
from orchestrator.frontier.feasibility import ONE_SIDED, TWO_SIDED, standard_error, upper_bound
from orchestrator.frontier.indicators import hypervolume


def point_sets(size: int = 40) -> st.SearchStrategy[np.ndarray]:
    """Points with many ties, ``[n, 1 to 4]``."""
    shapes = st.tuples(st.integers(0, size), st.integers(1, 4))
    return arrays(np.float64, shapes, elements=st.integers(-3, 3).map(float))


@given(points=point_sets())
@settings(max_examples=150, deadline=None)
def test_non_dominated_against_the_definition(points: np.ndarray) -> None:
    expected = [
        not any((other <= point).all() and (other < point).any() for other in points) for point in points
    ]
    assert non_dominated(points).tolist() == expected


def test_incomplete_points_neither_stand_nor_beat() -> None:
    points = np.array([[1.0, 1.0], [0.0, np.nan], [2.0, 0.0], [2.0, 2.0]])
    assert non_dominated(points).tolist() == [True, False, True, False]


def test_directions_are_set_once() -> None:
    points = to_minimise(np.array([1.0, 2.0]), {"a": np.array([3.0, 4.0]), "b": np.array([5.0, 6.0])})
    assert points.tolist() == [[1.0, -3.0, -5.0], [2.0, -4.0, -6.0]]


@given(points=point_sets(15), data=st.data())
@settings(max_examples=100, deadline=None)
def test_hypervolume_is_monotone(points: np.ndarray, data: st.DataObject) -> None:
    reference = np.full(points.shape[1], 2.0)
    volume = hypervolume(points, reference)
    assert volume >= 0
    extra = data.draw(arrays(np.float64, (1, points.shape[1]), elements=st.integers(-3, 3).map(float)))
    assert hypervolume(np.vstack([points, extra]), reference) >= volume
    assert hypervolume(points, reference + 1.0) >= volume
    assert hypervolume(points[non_dominated(points)], reference) == pytest.approx(volume)


def test_hypervolume_by_hand() -> None:
    points = np.array([[1.0, 2.0], [2.0, 1.0], [5.0, 0.0], [np.nan, 0.0]])
    assert hypervolume(points, np.array([3.0, 3.0])) == pytest.approx(3.0)
    assert hypervolume(np.zeros((0, 2)), np.ones(2)) == 0.0


def test_quantiles_and_bounds() -> None:
    assert norm.ppf(0.95) == pytest.approx(ONE_SIDED)
    assert norm.ppf(0.975) == pytest.approx(TWO_SIDED)
    assert standard_error([1.0], [1.0 + 2 * TWO_SIDED]) == pytest.approx([1.0])
    assert upper_bound(-0.5, 0.1) == pytest.approx(-0.5 + 0.1 * ONE_SIDED)
