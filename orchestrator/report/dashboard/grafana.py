"""The Grafana dashboard of running sweeps, built from the metrics' names. Pure: nothing in, JSON out."""

from typing import Any

from orchestrator.report.dashboard import names
from orchestrator.report.dashboard.names import Metric
from orchestrator.report.dashboard.prometheus import SCRAPE_SECONDS, plain

UID = "cdsweep"
TITLE = "cdsweep: sweeps"

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_MATCHING = 'sweep=~"$sweep"'
_WIDTH = 24


def dashboard(*, scrape_seconds: float = SCRAPE_SECONDS) -> dict[str, Any]:
    """Return the dashboard, for a Prometheus that looks every ``scrape_seconds``.

    It reads Ray's own series, not recorded ones, so that it works with any Prometheus that scrapes the cluster. What
    has ended is no longer exported: the scatter plots look back over the time range for the last value of every trial.
    """
    panels = [
        _stat("Trials", names.TRIALS, "{{sweep}} {{status}}", width=12),
        _lines("Bound gap", names.BOUND_GAP, "{{sweep}}", width=12, height=5),
        _scatter(scrape_seconds),
        _lines("KL", names.KL, "{{trial}} {{method}}"),
        _lines("Rewards", names.REWARD, "{{trial}} {{constraint}}"),
        _lines("Violations", names.VIOLATION, "{{trial}} {{constraint}}", zero=True),
        _lines("Multipliers", names.MULTIPLIER, "{{trial}} {{constraint}}"),
        _lines("KKT residual", names.KKT_RESIDUAL, "{{trial}}", logarithmic=True),
        _lines("Learning rate", names.LEARNING_RATE, "{{trial}}", logarithmic=True),
        _lines("Images per second", names.IMAGES_PER_SECOND, "{{trial}}"),
        _lines("Steps", names.STEP, "{{trial}}"),
        _lines("KL to each model of a composition", names.MODEL_KL, "{{trial}} {{constraint}}"),
    ]
    return {
        "uid": UID,
        "title": TITLE,
        "tags": ["cdsweep", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": _placed(panels),
    }


def expressions(document: dict[str, Any]) -> list[str]:
    """Return every PromQL expression of a dashboard, those of its variables included."""
    found = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    return found + [v["query"]["query"] for v in document["templating"]["list"] if v["type"] == "query"]


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [
        source,
        _choice("sweep", "Sweep", f"label_values({names.TRIALS.exported}, sweep)"),
        _choice("constraint", "Reward", f"label_values({names.REWARD.exported}{{{_MATCHING}}}, constraint)"),
    ]


def _choice(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _last(metric: Metric, matching: str, scrape_seconds: float) -> str:
    """Return the last value of every trial in the time range, those that have ended included."""
    kept = ", ".join(tag for tag in metric.tags if tag != names.CONSTRAINT)
    series = f"max by ({kept}) ({metric.exported}{{{matching}}})"
    return f"last_over_time({series}[$__range:{round(scrape_seconds * 1000)}ms])"


def _scatter(scrape_seconds: float) -> dict[str, Any]:
    """Return reward versus KL, a point per trial and a colour per method, once for every reward."""
    return {
        "type": "xychart",
        "title": "Reward versus KL: $constraint",
        "description": "The last training estimate of every trial in the time range. The evaluated frontier, with its "
        "intervals, is on the cdsweep page and in the report.",
        "repeat": "constraint",
        "repeatDirection": "h",
        "maxPerRow": 2,
        "datasource": _SOURCE,
        "targets": [
            _table("KL", _last(names.KL, _MATCHING, scrape_seconds)),
            _table("Reward", _last(names.REWARD, f'{_MATCHING}, constraint="$constraint"', scrape_seconds)),
        ],
        # Rows with the same sweep, trial and method become one; then one frame, so one colour, per method.
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "partitionByValues",
                "options": {"fields": ["method"], "keepFields": True, "naming": {"asLabels": False}},
            },
        ],
        "options": {
            "mapping": "auto",
            "series": [{"x": _named("Value #KL"), "y": _named("Value #Reward")}],
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        },
        "fieldConfig": {
            "defaults": {"custom": {"show": "points", "pointSize": {"fixed": 7}}},
            "overrides": [_override("Value #KL", "KL, nats"), _override("Value #Reward", "reward")],
        },
        "gridPos": {"w": _WIDTH, "h": 11},
    }


def _named(field: str) -> dict[str, Any]:
    return {"matcher": {"id": "byName", "options": field}}


def _override(field: str, label: str) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": field},
        "properties": [{"id": "custom.axisLabel", "value": label}],
    }


def _table(name: str, expression: str) -> dict[str, Any]:
    return {
        "refId": name,
        "datasource": _SOURCE,
        "expr": expression,
        "format": "table",
        "instant": True,
        "range": False,
    }


def _lines(
    title: str,
    metric: Metric,
    legend: str,
    *,
    zero: bool = False,
    logarithmic: bool = False,
    width: int = 12,
    height: int = 8,
) -> dict[str, Any]:
    """Return a plot over time; ``zero`` marks where a constraint is met."""
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 0, "showPoints": "auto", "spanNulls": 60_000}
    defaults: dict[str, Any] = {"custom": custom}
    if logarithmic:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    if zero:
        custom["thresholdsStyle"] = {"mode": "line"}
        steps = [{"color": "transparent", "value": None}, {"color": "text", "value": 0}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": "timeseries",
        "title": title,
        "description": metric.description,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": "A",
                "datasource": _SOURCE,
                "expr": plain(metric, _MATCHING),
                "legendFormat": legend,
                "range": True,
            }
        ],
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "gridPos": {"w": width, "h": height},
    }


def _stat(title: str, metric: Metric, legend: str, *, width: int) -> dict[str, Any]:
    target = {
        "refId": "A",
        "datasource": _SOURCE,
        "expr": plain(metric, _MATCHING),
        "legendFormat": legend,
        "instant": True,
        "range": False,
    }
    return {
        "type": "stat",
        "title": title,
        "description": metric.description,
        "datasource": _SOURCE,
        "targets": [target],
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name"},
        "fieldConfig": {"defaults": {}, "overrides": []},
        "gridPos": {"w": width, "h": 5},
    }


def _placed(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the panels numbered, and set row by row on Grafana's grid."""
    placed, x, y, tallest = [], 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        width, height = panel["gridPos"]["w"], panel["gridPos"]["h"]
        if x + width > _WIDTH:
            x, y, tallest = 0, y + tallest, 0
        placed.append({"id": number, **panel, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x, tallest = x + width, max(tallest, height)
    return placed
