"""Tables and figures of compositions."""

import io
import xml.etree.ElementTree as ET
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console, RenderableType
from support.models import network_outcomes as networks
from support.models.compositions import SPEC, THRESHOLD, job_of, outcome_of, plan_of, table_of
from support.models.networks import ADAPTERS, PROMPTS

from orchestrator.execution.trials.trial import record
from orchestrator.frontier.problems.chosen import exact_baseline, exact_solver
from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.frontier.trials import Trials
from orchestrator.plan import Plan
from orchestrator.report.figures.composition import composition_figure
from orchestrator.report.reach import unreachable
from orchestrator.report.sweep import read_summary, write_frontier
from orchestrator.report.terminal.tables import plan_table, summary_tables
from orchestrator.results.schema import Names, trials_schema
from orchestrator.results.store import SweepStore


def summary(plan: Plan, *, empty: bool = False) -> FrontierSummary:
    config = plan.trials[0].config
    baseline = exact_baseline(config)
    assert baseline is not None
    return summarise(
        Trials.of(trials_schema(Names()).empty_table() if empty else table_of(plan.trials), config),
        sweep="composed",
        baseline=baseline,
        exact=exact_solver(config),
        planned=Counter(trial.config.method for trial in plan.trials),
    )


def render(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(renderable)
    text = str(console.file.getvalue())  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    return text


@pytest.mark.parametrize("text", [SPEC, SPEC + THRESHOLD])
def test_tables(text: str) -> None:
    plan = plan_of(text)
    assert "weights per σ" not in render(plan_table(plan.to_json()))
    shown = render(summary_tables(summary(plan)))
    for trial in plan.trials[:3]:
        assert trial.trial_id in shown
    assert "constrained: 2 of 2 trials, 2 feasible" in shown
    assert "0.523" in shown or "0.533" in shown, "the weights"
    assert "1.107 +0.010" in shown or "1.515 +0.010" in shown
    assert "exact least maximum" in shown


@pytest.mark.parametrize("text", [SPEC, SPEC.replace("reverse", "forward"), SPEC + THRESHOLD])
@pytest.mark.parametrize("empty", [False, True])
def test_figures(text: str, empty: bool) -> None:
    figures = composition_figure(summary(plan_of(text), empty=empty))
    assert set(figures) == {"frontier.svg", "frontier.png"}
    assert figures["frontier.png"].startswith(b"\x89PNG")
    assert ET.fromstring(figures["frontier.svg"]).tag.endswith("svg")  # noqa: S314 - our own bytes
    svg = figures["frontier.svg"].decode()
    assert ("<!-- equal weights -->" in svg) != empty
    assert ("<!-- exact least maximum -->" in svg) != empty


def test_from_outcomes_to_files(tmp_path: Path) -> None:
    plan = plan_of(SPEC + THRESHOLD)
    baseline = exact_baseline(plan.trials[0].config)
    assert baseline is not None
    store = SweepStore(str(tmp_path), "composed")
    store.create(SPEC, plan.to_json(baseline=baseline), baseline.model_dump(mode="json"))
    started = job_of(plan.trials[0])
    assert started.baseline == baseline
    for trial in plan.trials:
        record(job_of(trial), outcome_of(trial), store, started_at=datetime.now(UTC))
    result = read_summary(store)
    assert result.bound is not None
    assert result.bound.gap == pytest.approx(0.01, abs=1e-4)
    figures = write_frontier(store, result)
    assert Path(figures["frontier.svg"]).exists()
    assert (tmp_path / "composed" / "frontier.parquet").exists()


def test_a_composition_without_rewards_has_an_empty_baseline() -> None:
    baseline = exact_baseline(plan_of().trials[0].config)
    assert baseline is not None
    assert baseline.rewards == {}
    assert baseline.samples is None


def test_thresholds_out_of_reach() -> None:
    plan = plan_of(SPEC + THRESHOLD.replace("0.6", "{grid: [0.6, 100]}"))
    config = plan.trials[0].config
    exact = exact_solver(config)
    assert exact is not None
    baseline = exact_baseline(config)
    assert baseline is not None
    [warning] = unreachable(plan, baseline, exact)
    assert "up≥100" in warning
    assert "up≥0.6" not in warning


# ------------------------------------------------------------------------------------------- networks


def network_summary(plan: Plan, table: pa.Table | None = None) -> FrontierSummary:
    return summarise(
        Trials.of(networks.table_of(plan.trials) if table is None else table, plan.trials[0].config),
        sweep="networks",
        baseline=networks.baseline_of(plan),
        exact=exact_solver(plan.trials[0].config),
        planned=Counter(trial.config.method for trial in plan.trials),
    )


def test_the_plan_of_networks_tells_trials_apart_that_differ_in_their_sampler() -> None:
    shown = render(plan_table(networks.plan_of(networks.SPEC + "seeds: [0, 1]\n").to_json()))
    lines = [line for line in shown.splitlines() if line.startswith("weighted")]
    assert len(lines) == 2
    assert ["merged" in line for line in lines] == [False, True]
    assert all(line.rstrip().endswith("0, 1") for line in lines)
    plain = render(plan_table(networks.plan_of(ADAPTERS).to_json()))
    assert "fkc" not in plain, "all alike"


def test_tables_of_networks() -> None:
    plan = networks.plan_of()
    shown = render(summary_tables(network_summary(plan)))
    for trial in plan.trials:
        assert trial.trial_id in shown
    assert "merged" in shown.split("improvement")[0]
    assert "keeps at least" in " ".join(shown.split())
    alike = render(summary_tables(network_summary(networks.plan_of(ADAPTERS))))
    assert "fkc" not in alike


def test_a_figure_shows_what_is_retained_where_that_is_measured() -> None:
    plan = networks.plan_of()
    svg = composition_figure(network_summary(plan))["frontier.svg"].decode()
    for label in ("equal weights, merged", "constrained", "share of the improvement that is kept"):
        assert f"<!-- {label}" in svg
    assert svg.count("<!-- crisp -->") == 1, "nothing judges it"
    assert svg.count("<!-- vivid -->") == 2
    assert svg.count("<!-- equal weights, merged -->") == 1, "one legend for both panels"
    concepts = networks.plan_of(PROMPTS)
    svg = composition_figure(network_summary(concepts))["frontier.svg"].decode()
    assert "share of the improvement" not in svg


def test_figures_of_networks_before_anything_has_finished() -> None:
    plan = networks.plan_of()
    figures = composition_figure(network_summary(plan, trials_schema(Names()).empty_table()))
    assert ET.fromstring(figures["frontier.svg"]).tag.endswith("svg")  # noqa: S314 - our own bytes


def test_networks_from_outcomes_to_files(tmp_path: Path) -> None:
    plan = networks.plan_of()
    store = SweepStore(str(tmp_path), "networks")
    store.create(networks.SPEC, plan.to_json(), networks.baseline_of(plan).model_dump(mode="json"))
    for trial in plan.trials:
        record(networks.job_of(trial), networks.outcome_of(trial), store, started_at=datetime.now(UTC))
    result = read_summary(store)
    assert "keeps at least 80%" in result.sentence()
    assert Path(write_frontier(store, result)["frontier.svg"]).exists()
