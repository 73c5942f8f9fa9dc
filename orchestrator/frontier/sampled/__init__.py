"""Samples of the pretrained model and of trials, and what they predict: its face for the floors above."""

from orchestrator.frontier.sampled.calibration import calibrated
from orchestrator.frontier.sampled.forecast import arranged, hopeless, mixture_rewards, preview_document
from orchestrator.frontier.sampled.predicted import PRETRAINED, may_join, path_samples, predicted_problem
from orchestrator.frontier.sampled.samples import REPLICATES, Samples
from orchestrator.frontier.sampled.tilted import BEYOND, HARD, REACHABLE

__all__ = [
    "BEYOND",
    "HARD",
    "PRETRAINED",
    "REACHABLE",
    "REPLICATES",
    "Samples",
    "arranged",
    "calibrated",
    "hopeless",
    "may_join",
    "mixture_rewards",
    "path_samples",
    "predicted_problem",
    "preview_document",
]
