"""Methods and seeds against each other: its face for the floors above."""

from orchestrator.frontier.comparison.attainment import attainment_surfaces, runs_of
from orchestrator.frontier.comparison.comparison import Cell, reach, settings_of, tightness

__all__ = ["Cell", "attainment_surfaces", "reach", "runs_of", "settings_of", "tightness"]
