"""Figures are whole files that any viewer opens, and repeat bit by bit."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reported import SPEC, write_sweep

from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.report.figures.attainment import attainment_figure
from orchestrator.report.figures.baselines import _meets, _settings, baselines_figure
from orchestrator.report.figures.bounds import _bands, _points, bounds_figure
from orchestrator.report.figures.every import every_figure
from orchestrator.report.figures.frontier import frontier_figure
from orchestrator.report.figures.prompts import prompts_figure
from orchestrator.report.figures.rewards import rewards_figure
from orchestrator.report.figures.search import search_figure
from orchestrator.report.figures.training import training_figure
from orchestrator.report.figures.weights import weights_figure, weights_of
from orchestrator.report.page.document import report_document
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


# Of the report's document -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_document(write_sweep(tmp_path_factory.mktemp("sweeps"), prompts=True))


def drawn(figures: dict[str, bytes], name: str) -> str:
    """Both files are valid; returns the SVG."""
    assert set(figures) == {f"{name}.svg", f"{name}.png"}
    assert figures[f"{name}.png"].startswith(b"\x89PNG\r\n\x1a\n")
    assert ET.fromstring(figures[f"{name}.svg"]).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own bytes
    return figures[f"{name}.svg"].decode()


SIGMA = "σ above the pretrained mean"
SHOWN = [
    (rewards_figure, "rewards", (f"right ({SIGMA})", f"near ({SIGMA})", "pretrained")),
    (
        bounds_figure,
        "bounds",
        (
            "between tangents and mixtures of trials",
            "exact",
            "near ≥ 0.499σ",
            f"threshold of right ({SIGMA})",
        ),
    ),
    (
        training_figure,
        "training",
        ("multiplier of right", "violation of near (σ)", "KL (nats)", "optimiser step"),
    ),
    (attainment_figure, "attainment", ("attained by one seed", "by all", f"right ({SIGMA})")),
    (prompts_figure, "prompts", ("change of right (σ)", "change of near (σ)", "a red circle")),
]


@pytest.mark.parametrize(("draw", "name", "labels"), SHOWN)
def test_figures_say_what_they_show(
    document: dict[str, Any], draw: Any, name: str, labels: tuple[str, ...]
) -> None:
    svg = drawn(draw(document), name)
    for label in labels:
        assert f"<!-- {label} -->" in svg


def test_there_is_a_row_for_every_threshold_combination(document: dict[str, Any]) -> None:
    figures = baselines_figure(document)
    svg = drawn(figures, "baselines")
    for label in ("constrained", "weighted, meets the thresholds", "best weights"):
        assert f"<!-- {label} -->" in svg
    assert len(document["comparison"]) == 6
    for right in (0.2, 0.5, 0.8):
        for near in (0.2, 0.5):
            assert f"<!-- right ≥ {right}σ, near ≥ {near}σ -->" in svg
    ratios = [cell["ratio"] for cell in document["comparison"] if cell["ratio"]]
    assert all(f"<!-- × {ratio:.3g} -->" in svg for ratio in ratios)


def test_weights_meet_thresholds_by_the_rule_of_the_comparison(document: dict[str, Any]) -> None:
    settings = _settings(document["trials"])
    assert len(settings) == 3
    for cell in document["comparison"]:
        meeting = [s for s in settings if _meets(s, cell["thresholds"], document["constraints"])]
        assert bool(meeting) == (cell["rival_kl"] is not None)
        if meeting:
            assert min(s["kl"][0] for s in meeting) == pytest.approx(cell["rival_kl"], rel=1e-5)


def test_the_band_holds_the_exact_line(document: dict[str, Any]) -> None:
    source = document["pick"]
    held = {"near": document["words"]["thresholds"]["near"]}
    values, low, high = _bands(_points(source), source["rewards"], "right", held)
    reached = np.isfinite(high)
    assert reached.sum() > 10
    assert (low[reached] <= high[reached] + 1e-6).all()
    line = min(
        (line for line in document["exact"] if line["reward"] == "right"),
        key=lambda line: abs(line["held"]["near"] - held["near"]),
    )
    exact = np.interp(values[reached], *np.array(line["points"]).T)
    assert (high[reached] >= 0.97 * exact).all(), "mixtures are no better than the best possible"


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    assert every_figure(report_document(write_sweep(tmp_path, finished=0))) == {}
    one_seed = report_document(write_sweep(tmp_path / "one", SPEC.replace("seeds: [0, 1]", "seeds: [0]")))
    for draw in (attainment_figure, weights_figure, prompts_figure, search_figure):
        assert draw(one_seed) == {}


FOUND = {
    "id": "x",
    "method": "constrained",
    "label": "and of a, b, c seed 0",
    "feasible": True,
    "multipliers": {"a": 0.5, "b": 0.0, "c": 0.5},
}
FIXED = {"id": "y", "method": "weighted", "label": "weighted seed 0", "weights": {"a": 1, "b": 1, "c": 1}}
COMPOSED: dict[str, Any] = {
    "models": ["a", "b", "c"],
    "trials": [FOUND, FIXED, {"id": "z", "method": "weighted", "label": "without weights"}],
}


def test_weights_of_three_models_lie_on_a_triangle_and_of_more_in_bars() -> None:
    svg = drawn(weights_figure(COMPOSED), "weights")
    assert all(f"<!-- {name} -->" in svg for name in ("a", "b", "c", "constrained", "weighted"))
    assert weights_of(FIXED, COMPOSED["models"]) == pytest.approx([1 / 3] * 3)
    two = {"models": ["a", "b"], "trials": [{**FOUND, "multipliers": {"a": 0.25, "b": 0.75}}]}
    assert "<!-- weight on the simplex -->" in drawn(weights_figure(two), "weights")
    assert weights_figure({"models": [], "trials": []}) == {}


def test_the_gap_of_a_search_falls_to_its_last_row() -> None:
    rows = [
        {"trials": n + 1, "gap": gap, "lower": 0.1, "upper": 0.1 + gap, "kind": "estimated"}
        for n, gap in enumerate((0.5, 0.2, 0.05))
    ]
    assert "<!-- largest gap (estimated) -->" in drawn(search_figure({"bounds": rows}), "search")
    unknown = [{**rows[0], "gap": None, "lower": None, "upper": None}, *rows]
    drawn(search_figure({"bounds": unknown}), "search")
    assert search_figure({"bounds": []}) == {}
