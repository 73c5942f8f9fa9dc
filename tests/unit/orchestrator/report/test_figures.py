"""Figures are whole files that any viewer opens, and repeat bit by bit."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from support.reported import write_sweep

from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.frontier.trials import Trials
from orchestrator.report.figures.baselines import baselines_figure
from orchestrator.report.figures.frontier import frontier_figure
from orchestrator.report.figures.rewards import rewards_figure
from orchestrator.report.figures.style import STYLES
from orchestrator.report.sweep import pretrained_rewards, read_summary
from orchestrator.results.schema import Names, trials_schema
from orchestrator.results.store import SweepStore
from trainers.config import ObjectiveConfig

Simulate = Callable[..., Any]
THRESHOLDS = {"right": 0.6, "near": -1.4}


def summary(sweep: Any, trials: Any = None, thresholds: dict[str, float] = THRESHOLDS) -> FrontierSummary:
    return summarise(
        Trials.of(sweep.trials if trials is None else trials, sweep.config("constrained", thresholds, {}, 0)),
        sweep="demo",
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
    svg = check(frontier_figure(result))
    for label in ("constrained", "constrained, infeasible", "weighted", "pretrained", "least possible KL"):
        assert f"<!-- {label} -->" in svg
    assert "<!-- weighted, infeasible -->" not in svg
    assert "<!-- right (reward units) -->" in svg
    assert frontier_figure(result)["frontier.svg"].decode() == svg


@pytest.mark.parametrize("with_exact", [True, False])
def test_nothing_yet(simulate: Simulate, with_exact: bool) -> None:
    sweep = simulate()
    result = summary(sweep, trials_schema(Names()).empty_table())
    svg = check(frontier_figure(result if with_exact else replace(result, exact=None)))
    assert ("least possible KL" in svg) == with_exact


def test_a_reward_objective_under_a_kl_budget(simulate: Simulate) -> None:
    sweep = simulate(objective=ObjectiveConfig(kind="reward", target="right"))
    for budget in (0.2, 0.5):
        best = sweep.exact.greatest_reward("right", budget)
        sweep.add("constrained", {"kl": budget}, kl=budget, rewards=best.rewards)
    svg = check(frontier_figure(summary(sweep, thresholds={"kl": 0.2})))
    assert "<!-- right (reward units) -->" in svg
    assert "<!-- near (reward units) -->" not in svg


def test_planning_does_not_wait_for_matplotlib() -> None:
    code = (
        "import sys, orchestrator.report.figures.frontier, orchestrator.report.terminal.tables; "
        "sys.exit(bool({'matplotlib', 'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Of a sweep's files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    return write_sweep(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def found(store: SweepStore) -> FrontierSummary:
    return read_summary(store)


def drawn(figures: dict[str, bytes], name: str) -> str:
    """Both files are valid; returns the SVG."""
    assert set(figures) == {f"{name}.svg", f"{name}.png"}
    assert figures[f"{name}.png"].startswith(b"\x89PNG\r\n\x1a\n")
    assert ET.fromstring(figures[f"{name}.svg"]).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own bytes
    return figures[f"{name}.svg"].decode()


def test_every_pair_of_rewards(store: SweepStore, found: FrontierSummary) -> None:
    svg = drawn(rewards_figure(found, pretrained_rewards(store, found.baseline)), "rewards")
    for label in ("right (σ above the pretrained mean)", "near (σ above the pretrained mean)", "pretrained"):
        assert f"<!-- {label} -->" in svg


def test_there_is_a_row_for_every_threshold_combination(found: FrontierSummary) -> None:
    svg = drawn(baselines_figure(found), "baselines")
    for label in ("constrained", "weighted, meets the thresholds", "best weights"):
        assert f"<!-- {label} -->" in svg
    assert len(found.cells) == 6
    for right in (0.2, 0.5, 0.8):
        for near in (0.2, 0.5):
            assert f"<!-- right ≥ {right}σ, near ≥ {near}σ -->" in svg
    assert all(f"<!-- × {cell.ratio:.3g} -->" in svg for cell in found.cells if cell.ratio)


def test_weights_that_are_filled_are_those_that_the_comparison_counts(found: FrontierSummary) -> None:
    """The cheapest filled marker of a row is the best weights of its cell."""
    seen: list[Figure] = []
    with patch.object(Figure, "savefig", lambda figure, *_, **__: seen.append(figure)):
        baselines_figure(found)
    color = to_rgba(STYLES["weighted"][0])
    for row, cell in enumerate(found.cells):
        filled = [
            float(line.get_xdata()[0])
            for line in seen[0].axes[0].lines
            if len(line.get_xdata()) == 1
            and line.get_ydata()[0] == row
            and to_rgba(line.get_markerfacecolor()) == color
        ]
        assert min(filled, default=None) == pytest.approx(cell.rival_kl)


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    store = write_sweep(tmp_path, finished=0)
    nothing = read_summary(store)
    assert baselines_figure(nothing) == {}
    assert rewards_figure(nothing, pretrained_rewards(store, nothing.baseline)) == {}
