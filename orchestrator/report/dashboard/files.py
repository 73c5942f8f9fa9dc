"""The files for Prometheus and Grafana, and where they go."""

import json
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.report.dashboard import grafana, prometheus

GRAFANA_FILE = "cdsweep_grafana_dashboard.json"
RAY_DATA_FILE = "data_grafana_dashboard.json"
"""Where Ray writes the dashboard that its tab "Ray Data" shows."""
DASHBOARDS = "dashboards"


def write_files(
    directory: Path,
    *,
    ray_directory: str = "/tmp/ray",  # noqa: S108 - Ray's own
    scrape_seconds: float = prometheus.SCRAPE_SECONDS,
) -> list[Path]:
    """Write the configuration and rules of Prometheus and the Grafana dashboard; return their paths.

    Ray writes its own dashboards into ``dashboards`` as well, if it is told to. Started with
    ``RAY_GRAFANA_DATA_DASHBOARD_UID=cdsweep`` it shows the dashboard of that uid in its Metrics tab; its own of that
    name then gives way to ours, because Grafana takes each uid once.

    Raises:
        UsageError: The directory cannot be written.
    """
    dashboards = directory / DASHBOARDS
    document = json.dumps(grafana.dashboard(scrape_seconds=scrape_seconds), indent=2) + "\n"
    target, other = dashboards / GRAFANA_FILE, dashboards / RAY_DATA_FILE
    if _uid(other) == grafana.UID:
        target, other = other, target
    files = {
        directory / prometheus.CONFIG_FILE: prometheus.config(
            ray_directory=ray_directory, scrape_seconds=scrape_seconds
        ),
        directory / prometheus.RULES_FILE: prometheus.rules(),
        target: document,
    }
    try:
        dashboards.mkdir(parents=True, exist_ok=True)
        if target.name == RAY_DATA_FILE:
            other.unlink(missing_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {directory}: {error.strerror}") from error
    return list(files)


def _uid(path: Path) -> str | None:
    """Return the uid of a dashboard's file, or None if there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document.get("uid") if isinstance(document, dict) else None
