"""What Prometheus needs to watch sweeps: whom to scrape, what to keep, when to warn. Pure: settings in, text out."""

from typing import Any

import yaml

from orchestrator.report.dashboard import names
from orchestrator.report.dashboard.names import Metric

RULES_FILE = "cdsweep_rules.yml"
CONFIG_FILE = "prometheus.yml"
SCRAPE_SECONDS = 10
"""As in Ray's own configuration; Ray shows a gauge for 20 s, so that even the shortest trial is seen."""
DISCOVERY = "session_latest/prom_metrics_service_discovery.json"
"""Below Ray's temporary directory: the nodes to scrape, kept up to date by Ray."""

_STUCK = "20m"
_TREND = "30m"


def config(*, ray_directory: str = "/tmp/ray", scrape_seconds: float = SCRAPE_SECONDS) -> str:  # noqa: S108 - Ray's own
    """Return ``prometheus.yml``.

    Args:
        ray_directory: Ray's temporary directory on the head node, where Prometheus runs.
        scrape_seconds: Between two looks.
    """
    interval = f"{round(scrape_seconds * 1000)}ms"
    discovered = {"files": [f"{ray_directory.rstrip('/')}/{DISCOVERY}"], "refresh_interval": interval}
    return _yaml(
        {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [RULES_FILE],
            "scrape_configs": [{"job_name": "ray", "file_sd_configs": [discovered]}],
        }
    )


def rules() -> str:
    """Return recording and alerting rules.

    The recorded series are free of Ray's own tags, so that a trial that goes on in another process stays one series.
    """
    recorded = [{"record": metric.recorded, "expr": plain(metric)} for metric in names.ALL]
    return _yaml(
        {
            "groups": [
                {"name": "cdsweep-series", "rules": recorded},
                {"name": "cdsweep-alerts", "rules": _alerts()},
            ]
        }
    )


def plain(metric: Metric, matching: str = "") -> str:
    """Return the expression of a metric without Ray's own tags.

    Args:
        metric: Of ``names``.
        matching: Label matchers without braces.
    """
    selector = f"{metric.exported}{{{matching}}}" if matching else metric.exported
    return f"max by ({', '.join(metric.tags)}) ({selector})"


def _alerts() -> list[dict[str, Any]]:
    step, trials = names.STEP.recorded, names.TRIALS.recorded
    violation, multiplier = names.VIOLATION.recorded, names.MULTIPLIER.recorded
    trial = f"{names.SWEEP}, {names.TRIAL}"
    return [
        _alert(
            "CdsweepTrialStuck",
            # There now, there before, and never changed in between.
            f"{step} and on ({trial}) changes({step}[{_STUCK}]) == 0 and on ({trial}) {step} offset {_STUCK}",
            after="0s",
            severity="warning",
            summary="Trial {{ $labels.trial }} of {{ $labels.sweep }} has been at step {{ $value }} for 20 minutes.",
        ),
        _alert(
            "CdsweepThresholdOutOfReach",
            f"min_over_time({violation}[{_TREND}]) > 0 and deriv({multiplier}[{_TREND}]) > 0"
            f" and {violation} offset {_TREND}",
            after="0s",
            severity="info",
            summary="Trial {{ $labels.trial }} of {{ $labels.sweep }} has missed {{ $labels.constraint }} by at least "
            "{{ $value }} for 30 minutes, and its multiplier still rises: the threshold may be out of reach.",
        ),
        _alert(
            "CdsweepTrialsFailed",
            f'{trials}{{status="failed"}} > 0',
            after="0s",
            severity="warning",
            summary="{{ $value }} trial(s) of {{ $labels.sweep }} have failed.",
        ),
        _alert(
            "CdsweepNothingRuns",
            f'({trials}{{status="planned"}} > ignoring (status) sum without (status) ({trials}{{status!="planned"}}))'
            f" unless on (sweep) {step}",
            after="15m",
            severity="warning",
            summary="{{ $labels.sweep }} has trials left, and none has trained for 15 minutes: is there room for one?",
        ),
    ]


def _alert(name: str, expression: str, *, after: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": after,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=1000)
