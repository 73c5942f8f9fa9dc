"""``python -m orchestrator``: the command line where its script is not installed, as in a job."""

from orchestrator.cli import app

app()
