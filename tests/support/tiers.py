"""Which instances of a test `make test` leaves to `make test-all`."""

from typing import Any

import pytest


def exhaustive(*values: Any) -> list[Any]:
    """Return values of a parameter that `make test-all` alone runs."""
    return [pytest.param(value, marks=pytest.mark.exhaustive) for value in values]
