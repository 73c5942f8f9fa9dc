"""Sweeps with next to nothing in them: every summary stays without warnings, and says no number that is none."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from orchestrator.frontier.analysis import analyse
from orchestrator.frontier.summary import summarise
from orchestrator.frontier.trials import Trials
from orchestrator.report.figures.frontier import frontier_figure
from orchestrator.report.outcome import Outcome, mixtures
from orchestrator.report.terminal.outcome_tables import outcome_tables
from orchestrator.report.terminal.plot import frontier_plot
from orchestrator.report.terminal.tables import summary_tables
from orchestrator.report.words import words
from trainers.config import PromptsConfig

Simulate = Callable[..., Any]

THRESHOLDS = {"right": 0.6, "near": -1.4}


def changed(trials: pa.Table, **columns: Any) -> pa.Table:
    """Rows with other values in some columns, the same in all rows."""
    for name, value in columns.items():
        index = trials.schema.get_field_index(name)
        field = trials.schema.field(index)
        trials = trials.set_column(index, field, pa.array([value] * trials.num_rows, field.type))
    return trials


def free(sweep: Any) -> pa.Table:
    """Thresholds that the pretrained model meets: nothing is paid, and nothing priced."""
    means = {name: known.mean for name, known in sweep.baseline.rewards.items()}
    for seed in (0, 1):
        sweep.add(
            "constrained",
            {name: mean - 0.5 for name, mean in means.items()},
            kl=0.0,
            rewards=means,
            multipliers=dict.fromkeys(means, 0.0),
            seed=seed,
        )
        sweep.add("weighted", THRESHOLDS, kl=0.0, rewards=means, weights=dict.fromkeys(means, 0.0), seed=seed)
    return sweep.trials


def lone(sweep: Any) -> pa.Table:
    sweep.constrained(THRESHOLDS)
    return sweep.trials


def unbounded(sweep: Any) -> pa.Table:
    """So few images that intervals have no ends."""
    sweep.grid(sigmas=(0.2, 0.5), scales=(0.5,))
    ends = {
        f"{name}_{end}": value
        for name in ("kl", "reward_right", "reward_near")
        for end, value in (("low", -np.inf), ("high", np.inf))
    }
    return changed(sweep.trials, **ends)


def unmeasured(sweep: Any) -> pa.Table:
    """A reward that was lost in all trials."""
    sweep.grid(sigmas=(0.2, 0.5), scales=(0.5,))
    return changed(sweep.trials, reward_near=float("nan"), reward_near_low=None, reward_near_high=None)


def absent(sweep: Any) -> pa.Table:
    sweep.grid(sigmas=(0.2, 0.5), scales=(0.5,))
    return changed(sweep.trials, reward_near=None, multiplier_right=None)


def endless(sweep: Any) -> pa.Table:
    """A KL that overflowed."""
    sweep.grid(sigmas=(0.2, 0.5), scales=(0.5,))
    return changed(sweep.trials, kl=np.inf, kl_high=np.inf)


def lost(sweep: Any) -> pa.Table:
    sweep.grid(sigmas=(0.2, 0.5), scales=(0.5,))
    return changed(sweep.trials, kl=float("nan"))


def weighted_alone(sweep: Any) -> pa.Table:
    sweep.weighted({"right": 0.5, "near": 0.5}, THRESHOLDS)
    return sweep.trials


def boxed_alone(sweep: Any) -> pa.Table:
    """Trials for a box, the first of which misses its thresholds."""
    means = {name: known.mean for name, known in sweep.baseline.rewards.items()}
    prices = dict.fromkeys(means, 1.0)
    sweep.add("frontier", THRESHOLDS, kl=0.1, rewards=means, multipliers=prices, seed=0)
    sweep.add("frontier", THRESHOLDS, kl=0.9, rewards=THRESHOLDS, multipliers=prices, seed=1)
    return sweep.trials


def failed(sweep: Any) -> pa.Table:
    sweep.add("constrained", THRESHOLDS, kl=0.0, rewards={"right": 0.0, "near": 0.0}, status="failed")
    return sweep.trials


def below(sweep: Any) -> pa.Table:
    """Trials that are worse than the pretrained model in everything."""
    worse = {name: known.mean - 3 * known.std for name, known in sweep.baseline.rewards.items()}
    sweep.add("constrained", THRESHOLDS, kl=2.0, rewards=worse, multipliers={"right": 9.0, "near": 9.0})
    sweep.add("weighted", THRESHOLDS, kl=2.0, rewards=worse, weights={"right": 9.0, "near": 9.0})
    return sweep.trials


@pytest.mark.parametrize(
    "make",
    [free, lone, unbounded, unmeasured, absent, endless, lost, weighted_alone, boxed_alone, failed, below],
)
@pytest.mark.parametrize("solved", [True, False])
def test_nothing_is_said_that_is_no_number(
    simulate: Simulate, make: Callable[[Any], pa.Table], solved: bool
) -> None:
    sweep = simulate()
    trials = make(sweep)
    config = sweep.config("constrained", THRESHOLDS, {}, 0)
    exact = sweep.exact if solved else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = Trials.of(trials, config)
        summary = summarise(read, sweep="demo", baseline=sweep.baseline, exact=exact)
        analysis = None
        if len(summary.points):
            analysis = analyse(read, baseline=sweep.baseline, exact=exact, mixing=mixtures(summary))
        outcome = Outcome(summary=summary, analysis=analysis, certified=None, prediction=None)
        outcome.to_json()
        summary.to_table()
        told = words(summary, planned=trials.num_rows)
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(summary_tables(summary), *outcome_tables(outcome), sep="\n")
        for name in summary.sought:
            console.print(frontier_plot(summary, name, 80))
        frontier_figure(summary)
    text = " ".join([console.export_text(), told.bought, told.take, *told.uncertain])
    assert not re.search(r"\bnan\b|nan%|\binf\b|None", text), text


def test_of_boxes_alone_one_that_holds_is_to_be_taken(simulate: Simulate) -> None:
    sweep = simulate()
    trials = boxed_alone(sweep)
    config = sweep.config("constrained", THRESHOLDS, {}, 0)
    summary = summarise(Trials.of(trials, config), sweep="demo", baseline=sweep.baseline, exact=sweep.exact)
    told = words(summary, planned=trials.num_rows)
    held = summary.points.ids[summary.points.feasible].tolist()
    assert [told.taken] == held
    assert told.take.startswith(f"Trial {held[0]} answers for every threshold of its box")
    assert told.thresholds == pytest.approx(THRESHOLDS, rel=1e-3)


@pytest.mark.parametrize(("images", "said"), [(2, "on 2 of 3 held-out prompts"), (3, ""), (7, "")])
def test_the_share_of_the_prompts_is_said(simulate: Simulate, images: int, said: str) -> None:
    sweep = simulate()
    trials = below(sweep)
    config = sweep.config("constrained", THRESHOLDS, {}, 0)
    asked = config.model_copy(
        update={
            "prompts": PromptsConfig(train=("x",), evaluate=("a", "b", "c")),
            "evaluation": config.evaluation.model_copy(update={"images": images}),
        }
    )
    summary = summarise(Trials.of(trials, asked), sweep="demo", baseline=sweep.baseline, exact=sweep.exact)
    told = words(summary, planned=trials.num_rows).uncertain
    found = [line for line in told if "held-out prompts" in line]
    assert len(found) == bool(said)
    assert all(said in line for line in found)
