"""The figure of a preview, by what its SVG holds."""

import re
from typing import Any

import pytest

from orchestrator.report.figures.preview import preview_figure


def point(saturation: float, contrast: float, kl: float | None, verdict: str) -> dict[str, Any]:
    return {
        "thresholds": {"saturation": saturation, "contrast": contrast},
        "kl": kl,
        "kl_low": 0.9 * (kl or 2.0),
        "kl_high": None if kl is None else 1.1 * kl,
        "verdict": verdict,
    }


def test_a_threshold_that_varies_has_a_panel_and_every_verdict_its_mark() -> None:
    points = [
        point(0.4, 0.1, 0.2, "reachable"),
        point(0.5, 0.1, 0.6, "hard: few samples reach it"),
        point(0.9, 0.1, None, "beyond the samples"),
    ]
    files = preview_figure({"samples": 100, "points": points})
    assert sorted(files) == ["preview.png", "preview.svg"]
    drawn = files["preview.svg"].decode()
    for label in ("threshold of saturation", "contrast ≥ 0.1", "predicted least KL (nats)"):
        assert f"<!-- {label}" in drawn
    for verdict in ("reachable", "hard: few samples reach it", "beyond the samples"):
        assert f"<!-- {verdict} -->" in drawn
    assert files["preview.png"].startswith(b"\x89PNG")


def test_a_verdict_that_nobody_got_is_not_explained() -> None:
    drawn = preview_figure({"samples": 9, "points": [point(0.4, 0.1, 0.2, "reachable")]})[
        "preview.svg"
    ].decode()
    assert not re.search("beyond the samples", drawn)


def test_without_points_there_is_no_figure() -> None:
    with pytest.raises(ValueError, match="without thresholds"):
        preview_figure({"samples": 9, "points": []})
