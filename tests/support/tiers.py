"""Which instances of a test `make test` leaves to `make test-all`."""

from typing import Any

import pytest


def exhaustive(*values: Any) -> list[Any]:
    """Return values of a parameter that `make test-all` alone runs."""
    return further(*((value,) for value in values))


def further(*cases: tuple[Any, ...]) -> list[Any]:
    """Return cases of several parameters that `make test-all` alone runs."""
    return [pytest.param(*case, marks=pytest.mark.exhaustive) for case in cases]
