"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# One thread per test process: two run side by side on two cores, and sums stay in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray runs its workers at niceness 15: beside a test that computes they would wait for it to end.
os.environ.setdefault("RAY_worker_niceness", "0")

# A busy machine is no reason to fail.
settings.register_profile("cdsweep", deadline=None)
settings.load_profile("cdsweep")


@pytest.fixture(scope="session", autouse=True)
def _no_disk_is_waited_for() -> Iterator[None]:
    """No test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


LONG = ("slow", "ray", "distributed")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests first where workers share them, so that none is left to one worker at the end.

    Tests that share what their module builds once keep to one worker, or each would build it.
    """
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: not any(map(item.get_closest_marker, LONG)))
    for item in items:
        module, _, _ = item.nodeid.partition("::")
        if item.get_closest_marker("xdist_group") is None and _shares(item, module):
            item.add_marker(pytest.mark.xdist_group(module))


def _shares(item: pytest.Item, module: str) -> bool:
    """Whether a test uses a fixture of its module that holds for all tests of the module."""
    if not isinstance(item, pytest.Function):
        return False
    used = (found[-1] for found in item._fixtureinfo.name2fixturedefs.values())
    return any(fixture.scope == "module" and fixture.baseid == module for fixture in used)
