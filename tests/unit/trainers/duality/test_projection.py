"""Exact projections, against an optimiser and by their defining properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from trainers.duality.projection import project_nonnegative, project_simplex

points = st.lists(st.floats(-50, 50), min_size=1, max_size=8).map(np.array)


@given(points)
def test_simplex_projection_is_feasible_and_idempotent(point: np.ndarray) -> None:
    projected = project_simplex(point)
    assert (projected >= 0).all()
    assert projected.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(project_simplex(projected), projected, atol=1e-12)


@given(points, st.integers(0, 2**32 - 1))
def test_simplex_projection_is_closest(point: np.ndarray, seed: int) -> None:
    """The variational inequality of a projection: ``(point − P) · (y − P) <= 0`` for every ``y`` of the simplex."""
    projected = project_simplex(point)
    others = np.vstack([np.eye(len(point)), np.random.default_rng(seed).dirichlet(np.ones(len(point)), 20)])
    assert ((others - projected) @ (point - projected)).max() <= 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_simplex_projection_is_what_an_optimiser_finds(seed: int) -> None:
    point = np.random.default_rng(seed).normal(size=6)
    found = minimize(
        lambda y: 0.5 * np.sum((y - point) ** 2),
        np.full(6, 1 / 6),
        jac=lambda y: y - point,
        bounds=[(0, None)] * 6,
        constraints={"type": "eq", "fun": lambda y: y.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(project_simplex(point), found.x, atol=1e-6)


def test_simplex_projection_is_not_clipping_and_rescaling() -> None:
    np.testing.assert_allclose(project_simplex(np.array([1.0, 0.5, -1.0])), [0.75, 0.25, 0.0])


@pytest.mark.parametrize("point", [np.zeros(0), np.array([0.0, np.nan]), np.array([np.inf, 0.0])])
def test_simplex_projection_refuses_what_has_none(point: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite, non-empty"):
        project_simplex(point)


@given(points)
def test_nonnegative_projection(point: np.ndarray) -> None:
    projected = project_nonnegative(point)
    assert ((projected == point) | ((projected == 0) & (point < 0))).all()
