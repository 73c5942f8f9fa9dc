"""Weights that are spread over the simplex: on it, evenly, and some at its ends."""

import numpy as np
import pytest

from trainers.duality.spread import even_simplex, simplex_design, to_the_ends


@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_stretch_is_spread_evenly_over_the_simplex(count: int) -> None:
    """Means and second moments are those of the uniform law, Dirichlet(1, …): 1 / m and 2 / (m (m + 1))."""
    for first in (0, 1000):
        weights = even_simplex(first, first + 600, count, shift=0.3)
        assert (weights >= 0).all()
        assert weights.sum(axis=1) == pytest.approx(np.ones(600))
        assert weights.mean(axis=0) == pytest.approx(np.full(count, 1 / count), abs=0.02)
        assert (weights**2).mean(axis=0) == pytest.approx(np.full(count, 2 / (count * (count + 1))), abs=0.02)
    again = even_simplex(1100, 1110, count, shift=0.3)
    assert np.array_equal(again, weights[100:110]), "no place depends on what was drawn before"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_some_are_moved_to_the_ends(count: int) -> None:
    weights = to_the_ends(even_simplex(0, 600, count))
    assert (weights >= 0).all()
    assert weights.sum(axis=1) == pytest.approx(np.ones(600))
    faces = (weights == 0).any(axis=1).mean()
    assert 0.15 < faces < 0.95
    if count == 2:
        corners = [(weights[:, model] == 1).mean() for model in range(2)]
        assert corners == pytest.approx([0.1, 0.1], abs=0.01)


def test_a_design_has_what_was_found_the_corners_and_the_middle() -> None:
    found = np.array([0.7, 0.3, 0.0])
    design = simplex_design(found, 9)
    assert design.shape == (9, 3)
    assert design[:5] == pytest.approx(np.vstack([found, np.eye(3), np.full(3, 1 / 3)]))
    assert design.sum(axis=1) == pytest.approx(np.ones(9))
    assert len(np.unique(design.round(6), axis=0)) == 9
    two = simplex_design(np.array([0.7, 0.3]), 9)
    assert len(np.unique(two.round(6), axis=0)) == 9
    assert np.array_equal(simplex_design(found, 2), design[:2])
