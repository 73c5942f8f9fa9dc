"""The frontier in characters."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.report.terminal.plot import MARGIN, ROWS, frontier_plot
from tests.unit.orchestrator.frontier.test_summary import summary

Simulate = Callable[..., Any]


def test_dearer_trials_stand_higher_and_better_ones_further_right(simulate: Simulate) -> None:
    sweep = simulate(noise=0.0)
    for right in (0.5, 0.8, 1.1):
        sweep.constrained({"right": right, "near": -1.6})
    found = summary(sweep)
    lines = frontier_plot(found, "right", width=70).plain.splitlines()
    canvas = [line[MARGIN + 1 :] for line in lines[1 : 1 + ROWS]]
    marks = sorted(
        (column, ROWS - row)
        for row, line in enumerate(canvas)
        for column, mark in enumerate(line)
        if mark == "o"
    )
    assert len(marks) == 3
    order = np.argsort(found.points.rewards["right"].mean)
    assert np.all(np.diff([column for column, _ in marks]) > 0)
    assert np.all(np.diff([height for _, height in marks]) >= 0)
    assert np.all(np.diff(found.points.kl.mean[order]) > 0)
    assert max(map(len, lines)) <= 70


def test_infeasible_trials_are_told_apart(simulate: Simulate) -> None:
    sweep = simulate(noise=0.0)
    sweep.constrained({"right": 0.8, "near": -1.4}, shift=-0.5)
    text = frontier_plot(summary(sweep), "right").plain
    assert ". infeasible" in text
    assert "o" not in text.split("+--")[0].replace("nats", "")


def test_an_unknown_reward_names_the_known_ones(simulate: Simulate) -> None:
    with pytest.raises(ValueError, match="the frontier has right, near"):
        frontier_plot(summary(simulate().grid()), "left")
