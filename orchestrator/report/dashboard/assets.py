"""What the cdsweep page of Ray's dashboard is made of, by the path it is served at."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from orchestrator.report.page.page import script, style

PAGE = "/cdsweep"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Of the page: it asks this server only, whatever stands in a sweep's names and texts."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that a browser gets."""

    body: str
    content_type: str


@cache
def assets() -> dict[str, Asset]:
    """Return the page and what it loads; the report's own components among it."""
    return {
        PAGE: Asset(_own("index.html"), "text/html"),
        f"{PAGE}/page.css": Asset(_own("page.css"), "text/css"),
        f"{PAGE}/page.js": Asset(_own("page.js"), "text/javascript"),
        f"{PAGE}/report.css": Asset(style(), "text/css"),
        f"{PAGE}/report.js": Asset(script(), "text/javascript"),
    }


def _own(name: str) -> str:
    return files("orchestrator.report.dashboard").joinpath("page", name).read_text(encoding="utf-8")
