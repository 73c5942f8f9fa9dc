"""The report as one HTML file that needs nothing else: style, script and data inside, and no address it could ask."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

SCRIPTS = ("base.js", "pick.js", "frontier.js", "box.js", "composed.js", "parts.js", "report.js")
"""What defines ``cdsweepReport.mount(element, document)`` and ``cdsweepReport.update(document)``, in this order."""
_PAGE = "page.js"

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@cache
def asset(name: str) -> str:
    """Return a file of ``orchestrator/report/page/html``."""
    return files("orchestrator.report.page").joinpath("html", name).read_text(encoding="utf-8")


def style() -> str:
    """Return the style sheet; all rules are below ``.cdsweep-report``."""
    return asset("report.css")


def script() -> str:
    """Return the script of the report's components; it draws nothing until ``mount`` is called."""
    return "\n".join(asset(name) for name in SCRIPTS)


def safe_json(document: Mapping[str, Any]) -> str:
    """Return JSON that can stand inside of a script element, whatever text is in it."""
    text = json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def report_page(document: Mapping[str, Any]) -> bytes:
    """Return the HTML file of a report's document."""
    code, sheet = f"{script()}\n{asset(_PAGE)}", style()
    policy = (
        f"default-src 'none'; img-src data:; script-src {_hash(code)}; style-src {_hash(sheet)}; base-uri 'none'; "
        "form-action 'none'"
    )
    page = Template(asset("page.html")).substitute(
        policy=policy,
        title=html.escape(f"{document['sweep']} · cdsweep report"),
        sentence=html.escape(document["words"]["bought"]),
        style=sheet,
        document=safe_json(document),
        script=code,
    )
    return page.encode()


def _hash(text: str) -> str:
    """Allow one inline element by its content."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
