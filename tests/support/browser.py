"""A headless Chromium for tests of pages, and a folder where they leave what it saw."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARKS = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(
        CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)"
    ),
]
"""Of a module whose tests all want it."""
ARTIFACTS = Path(__file__).parents[2] / ".artifacts"
"""Screenshots; ignored by git, kept for whoever looks."""

DESKTOP, PHONE = (1280, 900), (390, 844)
"""Width and height, pixels."""

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that ends with the test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, address: str, size: tuple[int, int] = DESKTOP, **options: str) -> Iterator[Page]:
    """A page that has been loaded; the test fails if it said anything on its console."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)  # type: ignore[arg-type]
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    page.goto(address)
    yield page
    context.close()
    assert not said, said


def keep(page: Page, name: str, selector: str | None = None) -> None:
    """Leave a screenshot of the page, or of a part, among the artifacts."""
    folder = ARTIFACTS / "report"
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / f"{name}.png")
    if selector is None:
        page.screenshot(path=path, full_page=True)
    else:
        page.locator(selector).screenshot(path=path)
