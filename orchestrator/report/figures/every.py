"""All figures of a report's document."""

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.report.figures.attainment import attainment_figure
from orchestrator.report.figures.baselines import baselines_figure
from orchestrator.report.figures.bounds import bounds_figure
from orchestrator.report.figures.prompts import prompts_figure
from orchestrator.report.figures.rewards import rewards_figure
from orchestrator.report.figures.search import search_figure
from orchestrator.report.figures.training import training_figure
from orchestrator.report.figures.weights import weights_figure

FIGURES: tuple[Callable[[Mapping[str, Any]], dict[str, bytes]], ...] = (
    rewards_figure,
    baselines_figure,
    bounds_figure,
    training_figure,
    attainment_figure,
    weights_figure,
    prompts_figure,
    search_figure,
)


def every_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the content of each figure that there is something to draw in, by file name."""
    found: dict[str, bytes] = {}
    for draw in FIGURES:
        found |= draw(document)
    return found
