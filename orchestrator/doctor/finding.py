"""What a check finds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from orchestrator.spec import SweepSpec

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of ``cdsweep doctor``."""

    name: str
    """Of what was looked at."""
    status: Status
    """``fail``: a sweep will not run as it should; ``warn``: it may not, or slowly."""
    found: str
    mend: str = ""
    """What to do about it; empty where all is well."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is to be looked at."""

    spec: SweepSpec | None = None
    """A sweep that is to run, or None: what any sweep needs."""
    address: str | None = None
    """Of a cluster."""
    storage: str = "results"


Check = Callable[[Patient], Iterable[Finding]]
"""Looks at one thing; what it raises becomes a finding of its own."""
