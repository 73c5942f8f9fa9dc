"""Commands of the command line on a sweep, in this process, as documents."""

import json
from typing import Any

from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.results.store import SweepStore


def ask(sweep: SweepStore, *arguments: str, code: int = 0) -> Any:
    """Run a command with ``--json`` on a sweep; returns its document, or what it said where it ends with ``code``."""
    command, *rest = arguments
    result = CliRunner().invoke(app, [command, sweep.name, *rest, "--storage", sweep.storage, "--json"])
    assert result.exit_code == code, result.output
    return result.output if code else json.loads(result.stdout)
