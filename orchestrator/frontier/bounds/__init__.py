"""Bounds of the frontier between trials, mixtures, and what to pick: its face for the floors above."""

from orchestrator.frontier.bounds.bounds import ROUNDING, Bounds, Box, FrontierPoint
from orchestrator.frontier.bounds.excess import Mixing, UpperBound
from orchestrator.frontier.bounds.mixing import NEGLIGIBLE, Mixture, OutOfReachError, alone, pick, pick_within
from orchestrator.frontier.bounds.pieces import Pieces
from orchestrator.frontier.bounds.trial_points import bounded, mean_point, points_of, pretrained_point

__all__ = [
    "NEGLIGIBLE",
    "ROUNDING",
    "Bounds",
    "Box",
    "FrontierPoint",
    "Mixing",
    "Mixture",
    "OutOfReachError",
    "Pieces",
    "UpperBound",
    "alone",
    "bounded",
    "mean_point",
    "pick",
    "pick_within",
    "points_of",
    "pretrained_point",
]
