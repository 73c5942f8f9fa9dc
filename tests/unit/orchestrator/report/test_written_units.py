"""Axes in the unit of thresholds, all of an interval in the frame, and text that is text."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.figure import Figure
from support import reported
from support.reported import SPEC, write_sweep

from orchestrator.report.figures.frontier import frontier_figure
from orchestrator.report.figures.preview import preview_figure
from orchestrator.report.figures.rewards import rewards_figure
from orchestrator.report.figures.style import show_in
from orchestrator.report.outcome import read_outcome
from orchestrator.report.units import ABSOLUTE, Written, units_in
from orchestrator.spec.load import parse_spec

RELATIVE = SPEC.replace("{grid: [0.2, 0.5]}, unit: sigma", "{grid: [0.1, 0.2]}, unit: relative")
ABSOLUTELY = SPEC.replace("{grid: [0.2, 0.5]}, unit: sigma", "{grid: [-1.2, -1.0]}, unit: absolute")


def drawn(figures: Any) -> tuple[dict[str, bytes], list[Figure]]:
    """Files, and the figures that they were written from."""
    seen: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *args: Any, **options: Any) -> None:
        save(figure, *args, **options)
        if figure not in seen:
            seen.append(figure)

    with patch.object(Figure, "savefig", kept):
        return figures(), seen


def shown(axis: Any) -> list[tuple[float, str]]:
    """Ticks in the frame: place in the data, and label."""
    low, high = sorted(axis.get_view_interval())
    return [
        (at, tick)
        for at, tick in zip(axis.get_majorticklocs(), _labels(axis), strict=True)
        if low <= at <= high
    ]


def _labels(axis: Any) -> list[str]:
    formatter = axis.get_major_formatter()
    return [formatter(at, None) for at in axis.get_majorticklocs()]


UNITS = [
    (SPEC, "near (σ above the pretrained mean)", lambda known: (known.mean, known.std)),
    (RELATIVE, "near (relative to the pretrained mean)", lambda known: (known.mean, abs(known.mean))),
    (ABSOLUTELY, "near (reward units)", lambda _: (0.0, 1.0)),
]


@pytest.mark.parametrize(("spec", "title", "unit"), UNITS, ids=["sigma", "relative", "absolute"])
def test_axes_are_in_the_unit_of_the_thresholds(spec: str, title: str, unit: Any, tmp_path: Path) -> None:
    summary = read_outcome(write_sweep(tmp_path, spec)).summary
    files, (figure,) = drawn(lambda: frontier_figure(summary))
    assert f"<!-- {title} -->" in files["frontier.svg"].decode()
    origin, size = unit(summary.baseline.rewards["near"])
    ticks = shown(figure.axes[1].xaxis)
    assert len(ticks) >= 3
    for at, label in ticks:
        assert float(label.replace("−", "-")) == pytest.approx((at - origin) / size, abs=1e-5)
    known = {name: (each.mean, 0.0) for name, each in summary.baseline.rewards.items()}
    _, (pairs,) = drawn(lambda: rewards_figure(summary, known))
    assert pairs.axes[0].get_ylabel() == title


def test_a_preview_is_in_the_unit_of_its_thresholds() -> None:
    unit = {"unit": "sigma", "origin": 10.0, "size": 2.0}
    points = [
        {
            "thresholds": {"near": 10.0 + 2.0 * at, "far": 1.0},
            "kl": at,
            "kl_low": -0.1,
            "kl_high": 2 * at,
            "verdict": "reachable",
        }
        for at in (0.25, 0.5, 1.0)
    ]
    units = {"near": unit, "far": {"unit": "relative", "origin": 0.8, "size": 0.8}}
    document = {"samples": 9, "points": points, "units": units}
    files, (figure,) = drawn(lambda: preview_figure(document))
    svg = files["preview.svg"].decode()
    assert "<!-- threshold of near (σ above the pretrained mean) -->" in svg
    assert "<!-- far ≥ 0.25 relative -->" in svg
    for at, label in shown(figure.axes[0].xaxis):
        assert float(label) == pytest.approx((at - 10.0) / 2.0)
    assert figure.axes[0].get_ylim()[0] <= -0.1, "the interval is in the frame"


def test_thresholds_in_several_units_are_shown_in_reward_units() -> None:
    first = {"name": "a", "kind": "reward", "target": "near", "unit": "sigma", "origin": 1.0, "size": 2.0}
    second = {**first, "name": "b", "unit": "absolute", "origin": 0.0, "size": 1.0}
    unknown = {**first, "name": "c", "target": "far", "origin": None, "size": None}
    units = units_in([first, second, unknown])
    assert units.of_reward("near") == units.of_reward("far") == units.of_reward("other") == ABSOLUTE
    assert units.of_constraint("a") == Written("sigma", 1.0, 2.0)
    assert units.of_constraint("a").say(0.0) == "−0.5σ"
    assert ABSOLUTE.say(-0.25) == "−0.25"


def test_ticks_are_round_numbers_of_the_unit() -> None:
    axes = Figure().subplots()
    axes.set_xlim(-1.3701, -0.913)
    show_in(axes.xaxis, Written("sigma", -1.3701, 0.4571), "near")
    assert [label for _, label in shown(axes.xaxis)] == ["0", "0.25", "0.5", "0.75", "1"]


@pytest.mark.parametrize("noise", [0.004, 0.3])
def test_intervals_lie_in_the_frame(noise: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reported, "_NOISE", noise)
    summary = read_outcome(write_sweep(tmp_path)).summary
    _, (figure,) = drawn(lambda: frontier_figure(summary))
    bottom, top = figure.axes[0].get_ylim()
    assert bottom <= summary.points.kl.low.min()
    assert summary.points.kl.high.max() <= top
    for axes, name in zip(figure.axes, summary.sought, strict=True):
        low, high = axes.get_xlim()
        assert low <= np.nanmin(summary.points.rewards[name].low)
        assert np.nanmax(summary.points.rewards[name].high) <= high


def test_a_sweep_may_have_its_own_units_for_each_reward(tmp_path: Path) -> None:
    found = parse_spec(RELATIVE).constraints
    assert [constraint.unit for constraint in found] == ["sigma", "relative"]
    svg = frontier_figure(read_outcome(write_sweep(tmp_path, RELATIVE)).summary)["frontier.svg"].decode()
    assert "<!-- right (σ above the pretrained mean) -->" in svg
    assert "<!-- near (relative to the pretrained mean) -->" in svg
