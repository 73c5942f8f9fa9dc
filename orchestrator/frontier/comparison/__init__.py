"""Methods and seeds against each other: its face for the floors above."""

from orchestrator.frontier.comparison.attainment import attainment_surfaces, runs_of
from orchestrator.frontier.comparison.comparison import Cell, real

__all__ = ["Cell", "attainment_surfaces", "real", "runs_of"]
