"""Any stretch of the sequence over the cube is spread evenly."""

import numpy as np
import pytest

from trainers.low_discrepancy import even_cube


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("first", [0, 1, 1000])
def test_any_stretch_is_spread_evenly(count: int, first: int) -> None:
    places = even_cube(first, first + 512, count, shift=0.3)
    assert places.shape == (512, count)
    assert ((places >= 0) & (places < 1)).all()
    for column in places.T:  # of every coordinate, against the uniform law
        assert np.abs(np.sort(column) - (np.arange(512) + 0.5) / 512).max() < 0.03
    half = (places < 0.5).all(axis=1).mean()
    assert half == pytest.approx(0.5**count, abs=0.01)


def test_none_depends_on_what_was_drawn_before() -> None:
    np.testing.assert_array_equal(even_cube(0, 40, 3, 0.1)[25:], even_cube(25, 40, 3, 0.1))
    np.testing.assert_allclose(even_cube(0, 1, 2, 0.25), [[0.75, 0.75]])
