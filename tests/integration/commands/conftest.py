"""A browser for the tests of pages."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Launched for a module, and ended with it."""
    from support.browser import chromium  # noqa: PLC0415 - it needs playwright, which other tests here do not

    with chromium() as launched:
        yield launched
