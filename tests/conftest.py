"""What all tests share."""

import os

import pytest
from hypothesis import settings

# One thread per test process: two run side by side on two cores, and sums stay in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray runs its workers at niceness 15: beside a test that computes they would wait for it to end.
os.environ.setdefault("RAY_worker_niceness", "0")

# A busy machine is no reason to fail.
settings.register_profile("cdsweep", deadline=None)
settings.load_profile("cdsweep")


LONG = ("slow", "ray", "distributed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests first where workers share them, so that none is left to one worker at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not any(map(item.get_closest_marker, LONG)))
