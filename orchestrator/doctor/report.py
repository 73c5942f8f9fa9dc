"""Findings as a document and as a table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.doctor.finding import Finding, Status
from orchestrator.report.terminal.tables import PlainTable

_COLOURS: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the document of ``cdsweep doctor``."""
    counts = Counter(finding.status for finding in findings)
    return {
        "healthy": not counts["fail"],
        "counts": {status: counts[status] for status in _COLOURS},
        "checks": [asdict(finding) for finding in findings],
    }


def table(findings: Sequence[Finding]) -> RenderableType:
    """Show the findings, what to do below what was found."""
    rows = PlainTable(show_header=False)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_column(overflow="fold")
    for finding in findings:
        said = Text(finding.found)
        if finding.mend:
            said.append(f"\n→ {finding.mend}", style="italic")
        rows.add_row(Text(finding.status, style=_COLOURS[finding.status]), finding.name, said)
    counts = document(findings)["counts"]
    total = ", ".join(f"{count} {status}" for status, count in counts.items())
    return Group(rows, Text(total, style="bold"))
