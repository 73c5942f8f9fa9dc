"""Tables stay readable on 80 columns and without colour."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType
from support.reported import SPEC, write_sweep

from orchestrator.frontier.analysis import FrontierAnalysis
from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.frontier.trials import Measured, Trials
from orchestrator.report.outcome import read_outcome
from orchestrator.report.terminal.outcome_tables import outcome_tables
from orchestrator.report.terminal.tables import plan_table, status_table, summary_tables, sweeps_table
from trainers.config import DeployedConfig, MeanStatistics

Simulate = Callable[..., Any]


def render(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    return str(text)


def summary_of(sweep: Any) -> FrontierSummary:
    config = sweep.config("constrained", {"right": 0.6, "near": -1.4}, {}, 0)
    trials = Trials.of(sweep.trials, config)
    return summarise(trials, sweep="demo", baseline=sweep.baseline, exact=sweep.exact)


def render_summary(sweep: Any) -> str:
    return render(summary_tables(summary_of(sweep)))


def test_the_summary_holds_what_one_asks_for(simulate: Simulate) -> None:
    sweep = simulate().grid(seeds=(0,))
    text = render_summary(sweep)
    for row in sweep.trials.to_pylist():
        assert row["trial_id"] in text  # in one piece, to be copied
        assert f"{row['kl']:.3f} ±{(row['kl_high'] - row['kl_low']) / 2:.3f}" in text
        if row["method"] == "constrained":
            assert f"≥ {row['threshold_near']:.3f}, {row['multiplier_near']:.3f}" in text
        else:
            assert f"{row['weight_right']:.3f}" in text
    assert "constrained: 9 trials, 9 feasible" in text
    assert "hypervolumes up to the reference point: kl" in text
    assert "Constrained training met all 9 threshold combinations" in text


def test_three_rewards_fit_and_ids_stay_in_one_piece(simulate: Simulate) -> None:
    sweep = simulate()
    sweep.constrained({"right": 0.6, "near": -1.4})
    sweep.constrained({"right": 1.0, "near": -1.0}, shift=-0.3)
    summary = summary_of(sweep)
    (reward, *_), (constraint, *_), long = (
        summary.config.rewards,
        summary.config.constraints,
        "a_long_reward_name",
    )
    longer = summary.config.model_copy(
        update={
            "rewards": (*summary.config.rewards, reward.model_copy(update={"name": long})),
            "constraints": (
                *summary.config.constraints,
                constraint.model_copy(update={"name": long, "target": long}),
            ),
        }
    )
    text = render(summary_tables(replace(summary, trials=replace(summary.trials, config=longer))))
    lines = text.splitlines()
    for row in sweep.trials.to_pylist():
        (at,) = [index for index, line in enumerate(lines) if line.startswith(row["trial_id"])]
        assert lines[at].split()[3] == "right"
        assert f"{row['threshold_right']:.3f}" in lines[at], "figures stand beside their reward"
        assert "near" in lines[at + 1].split()
        assert f"{row['threshold_near']:.3f}" in lines[at + 1]
    assert {"feasible", "infeasible"} <= set(text.split())
    assert "…" not in text


JUDGES = """\
rewards:
  - {reward: {linear: {direction: [0.0, 1.0]}}, name: up, role: judge}
  - {reward: {linear: {direction: [-1.0, 0.0]}}, name: left, role: judge}
"""


@pytest.mark.parametrize("text", [SPEC, SPEC.replace("  - {reward: {quadratic", "  # ")])
def test_judges_stand_beside_what_is_trained_on(tmp_path: Path, text: str) -> None:
    one = text + JUDGES.rpartition("  - ")[0]
    for name, spec, judges in (("one", one, ["up"]), ("two", text + JUDGES, ["up", "left"])):
        outcome = read_outcome(write_sweep(tmp_path, spec, finished=3, name=name))
        lines = render(summary_tables(outcome.summary, outcome.judges)).splitlines()
        assert sum(line.count("0.250 ±0.050") for line in lines) == len(judges) * len(outcome.summary.points)
        assert any("only measured" in line for line in lines)
        document = outcome.to_json()
        assert document["judges"] == judges
        front = document["methods"][0]["front"]
        assert front
        assert all(trial["measured"] == dict.fromkeys(judges, 0.25) for trial in front)
        assert all(list(trial["intervals"]["up"]) == [0.2, 0.3] for trial in front)
        stored = outcome.summary.to_table()
        assert stored["reward_up_low"].to_pylist() == [0.2] * len(front)
    plain = read_outcome(write_sweep(tmp_path, text, finished=3, name="plain"))
    assert "only measured" not in render(summary_tables(plain.summary, plain.judges))


def test_figures_as_deployed_stand_beside_the_pretrained_models(simulate: Simulate) -> None:
    sweep = simulate().grid(seeds=(0,))
    config = sweep.config("constrained", {"right": 0.6, "near": -1.4}, {}, 0)
    config = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"as_deployed": DeployedConfig(steps=20)})}
    )
    trials = Trials.of(sweep.trials, config)
    ones = np.ones(len(trials))
    known = Measured(mean=0.75 * ones, low=0.7 * ones, high=0.8 * ones)
    baseline = sweep.baseline.model_copy(
        update={"deployed": {"right": MeanStatistics(mean=0.5, low=0.48, high=0.52)}}
    )
    summary = summarise(
        replace(trials, deployed={"right": known, "near": known}), sweep="demo", baseline=baseline
    )
    lines = [" ".join(line.split()) for line in render(summary_tables(summary)).splitlines()]
    assert "under ode, 20 steps" in lines
    point = summary.methods[0].front[0]
    at = lines.index(f"{point.trial_id} right 0.750 ±0.050 0.500 ±0.020 +0.25")
    assert lines[at + 1].startswith("near 0.750 ±0.050 –")  # noqa: RUF001 - a dash
    document = summary.to_json()
    assert document["deployed"]["right"] == {"mean": 0.5, "low": 0.48, "high": 0.52}
    assert document["methods"][0]["front"][0]["deployed"] == {"right": 0.75, "near": 0.75}
    assert set(summary.to_table()["deployed_right_low"].to_pylist()) == {0.7}


def test_infeasible_is_said_in_words(simulate: Simulate) -> None:
    sweep = simulate()
    sweep.constrained({"right": 1.0, "near": -1.0}, shift=-0.3)
    (line,) = [
        line for line in render_summary(sweep).splitlines() if sweep.trials["trial_id"][0].as_py() in line
    ]
    assert line.split()[2] == "no"


def test_a_long_front_is_thinned(simulate: Simulate) -> None:
    sweep = simulate(noise=1e-9)
    for step in range(60):
        sweep.weighted({"right": 0.02 * (1 + step)}, {"right": 0.6, "near": -1.4})
    text = render_summary(sweep)
    assert re.search(r"24 of [45]\d shown", text)
    assert len(re.findall(r"^[0-9a-f]{12} ", text, flags=re.MULTILINE)) == 24
    assert sweep.trials["trial_id"][-1].as_py() in text  # the last of the front


def test_plan_status_and_list() -> None:
    trials = [
        {
            "method": "constrained",
            "seed": seed,
            "thresholds": {"right": float(level), "near": -1.0},
            "units": {"right": "sigma", "near": "absolute"},
            "weights": {},
        }
        for level in range(50)
        for seed in (0, 1)
    ]
    needs = {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}
    plan = {
        "name": "demo",
        "base": {"model": {"composition": None}, "sampling": {"steps": 8}},
        "trials": trials,
        "resources": needs,
        "gpu_hours": 0.0,
    }
    text = render(plan_table(plan))
    assert "right 3σ  near -1" in text
    assert "0, 1" in text
    assert "10 more lines" in text
    assert "100 trials" in text

    searched = plan | {"trials": [], "searched": 8}
    text = render(plan_table(searched | {"searches": ["constrained: up to 8 trials per seed"]}))
    assert text.splitlines()[1] == "constrained: up to 8 trials per seed"

    status = {
        "sweep": "demo",
        "path": "/results/demo",
        "state": "running",
        "trials": {"planned": 4, "running": 1, "succeeded": 2, "failed": 1, "infeasible": 0, "stopped": 0},
        "failures": [{"trial_id": "bb22", "status": "failed", "error": "diverged at step 3"}],
        "feasible": 2,
        "updated_at": "2026-11-28T19:00:00+00:00",
        "running": [{"trial_id": "aa11", "label": "right 0.5σ", "step": 20, "kl": 0.123}],
    }
    text = render(status_table(status))
    assert "demo: running" in text
    assert "2 succeeded, 1 failed" in text
    assert "0.123" in text
    assert "bb22  failed: diverged at step 3" in text
    many = [
        {"trial_id": f"t{number}", "status": "infeasible", "error": "out of reach"} for number in range(15)
    ]
    assert "and 5 more" in render(status_table({**status, "failures": many}))
    assert "running" in render(sweeps_table([status]))


def test_without_methods_to_compare_there_is_no_table_of_them(tmp_path: Path) -> None:
    """As of one trial for a box of thresholds."""
    outcome = read_outcome(write_sweep(tmp_path, SPEC, finished=3))
    assert outcome.analysis is not None

    def shown(analysis: FrontierAnalysis) -> str:
        return "\n".join(map(render, outcome_tables(replace(outcome, analysis=analysis))))

    assert "mixtures of each method's trials" in shown(outcome.analysis)
    assert "mixtures of each method's trials" not in shown(replace(outcome.analysis, methods=()))
