"""Figures are whole files that any viewer opens, and repeat bit by bit."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.report.figures.frontier import frontier_figure
from orchestrator.results.schema import Names, trials_schema
from trainers.config import ObjectiveConfig

Simulate = Callable[..., Any]
THRESHOLDS = {"right": 0.6, "near": -1.4}


def summary(sweep: Any, trials: Any = None, thresholds: dict[str, float] = THRESHOLDS) -> FrontierSummary:
    return summarise(
        sweep.trials if trials is None else trials,
        sweep="demo",
        config=sweep.config("constrained", thresholds, {}, 0),
        baseline=sweep.baseline,
        exact=sweep.exact,
        planned={"constrained": 18, "weighted": 8},
    )


def check(figures: dict[str, bytes]) -> str:
    """Both files are valid; returns the SVG."""
    assert set(figures) == {"frontier.svg", "frontier.png"}
    png, svg = figures["frontier.png"], figures["frontier.svg"]
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
    assert width > 800
    assert height > 500
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own bytes
    return svg.decode()


def test_a_grid(simulate: Simulate) -> None:
    sweep = simulate().grid(seeds=(0,))
    sweep.constrained({"right": 1.0, "near": -1.0}, shift=-0.2)
    result = summary(sweep)
    svg = check(frontier_figure(result, sweep.exact))
    for label in ("constrained", "constrained, infeasible", "weighted", "pretrained", "least possible KL"):
        assert f"<!-- {label} -->" in svg
    assert "<!-- weighted, infeasible -->" not in svg
    assert "<!-- right (reward units) -->" in svg
    assert frontier_figure(result, sweep.exact)["frontier.svg"].decode() == svg


@pytest.mark.parametrize("with_exact", [True, False])
def test_nothing_yet(simulate: Simulate, with_exact: bool) -> None:
    sweep = simulate()
    result = summary(sweep, trials_schema(Names()).empty_table())
    svg = check(frontier_figure(result, sweep.exact if with_exact else None))
    assert ("least possible KL" in svg) == with_exact


def test_a_reward_objective_under_a_kl_budget(simulate: Simulate) -> None:
    sweep = simulate(objective=ObjectiveConfig(kind="reward", target="right"))
    for budget in (0.2, 0.5):
        best = sweep.exact.greatest_reward("right", budget)
        sweep.add("constrained", {"kl": budget}, kl=budget, rewards=best.rewards)
    svg = check(frontier_figure(summary(sweep, thresholds={"kl": 0.2}), sweep.exact))
    assert "<!-- right (reward units) -->" in svg
    assert "<!-- near (reward units) -->" not in svg


def test_planning_does_not_wait_for_matplotlib() -> None:
    code = (
        "import sys, orchestrator.report.figures.frontier, orchestrator.report.tables; "
        "sys.exit(bool({'matplotlib', 'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
