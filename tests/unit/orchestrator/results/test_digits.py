"""Few digits, and never above."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.results.digits import below


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.2123789, 0.2123), (-1.05349, -1.054), (0.29, 0.29), (1234567.0, 1234000.0), (0.0, 0.0), (1e-9, 1e-9)],
)
def test_four_digits_towards_minus_infinity(value: float, expected: float) -> None:
    assert below(value) == expected


@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_it_is_near_never_above_and_printed_whole(value: float) -> None:
    found = below(value)
    assert found <= value
    assert found == pytest.approx(value, rel=1.01e-3, abs=1e-300)
    assert float(f"{found:g}") == found
